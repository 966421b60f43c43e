//! What is done for the guest's tables is interrupted, and done again by someone with more patience.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;

use super::testing::*;
use super::{Limits, Placement};
use crate::fake::FakeFeatures;
use intel_vtd::spec::descriptors::{ContextScope, IotlbScope, PasidCacheScope};
use intel_vtd::{
    InlineBudget, Invalidation, Pasid, Patience, TranslationObserver as _, Unfinished,
};

const PLAIN: FakeFeatures = FakeFeatures {
    nesting: false,
    ..NESTING
};
const RW: u64 = 3;
const PAGES: u64 = 1000;

/// Tables with [`PAGES`] pages that do not follow each other in memory.
fn scattered(guest: &Guest) -> intel_vtd::testing::tables::Paging {
    let paging = guest.world.second_stage(4);
    for page in 0..PAGES {
        guest.world.map(&paging, page * 0x1000, 1, 0x30_0000 | RW);
    }
    paging
}

/// All pages of domain 5.
const ALL_OF_IT: Invalidation = Invalidation::Iotlb(IotlbScope::Domain(5));

fn little() -> Patience {
    Patience::endless().with_steps(20_000)
}

#[test]
fn a_device_stays_where_it_was_until_where_it_belongs_is_complete() {
    let (guest, ids) = Guest::with(&[PLAIN]);
    let before = guest.world.second_stage(4);
    guest.map(&before, 0x1000, 0x10_0000, 1, RW);
    guest.shadow(SOURCES[0], &before, 5);
    let paging = scattered(&guest);
    guest.enter_second_stage(SOURCES[0], &paging, 6);
    guest.devices.run_begins();
    let mut before = 1;
    for _ in 0..3 {
        let outcome = guest.devices.invalidated(&[CONTEXT], &little());
        assert_eq!(outcome, Err(Unfinished));
        assert_eq!(guest.dma(ids[0], 0x1000), Some((0x10_0000, "rw")));
        let (areas, _) = guest.devices.mapped();
        assert!(
            (before + 1..1000).contains(&areas),
            "what was done stays done"
        );
        before = areas;
    }
    guest.tell(&[CONTEXT]);
    assert_eq!(guest.dma(ids[0], 0x1000), Some((0x30_0000, "rw")));
    assert_eq!(guest.devices.mapped().0, 1000);
}

#[test]
fn what_is_done_again_is_not_held_against_the_guest() {
    // As for one comparison and as many areas, and no more.
    let (tables, run, call) = (7 * 8, 1, 100);
    let guest = Guest::new(Limits {
        steps_per_exit: tables + PAGES * (run + call),
        ..Limits::default()
    });
    let id = guest.add(SOURCES[0], PLAIN);
    let paging = scattered(&guest);
    guest.impatience.set(10_000);
    guest.shadow(SOURCES[0], &paging, 5);
    assert_ne!(guest.interruptions.get(), 0);
    assert_eq!(guest.dma(id, 0x1000), Some((0x30_0000, "rw")));
    assert!(matches!(
        guest.binding(SOURCES[0]),
        Placement::Shadow { .. }
    ));
}

#[test]
fn pages_that_were_unmapped_are_out_of_reach_whenever_it_is_finished() {
    for steps in [1, 10, 150, 1000, 10_000, 60_000] {
        let (guest, ids) = Guest::with(&[PLAIN, PLAIN]);
        let paging = scattered(&guest);
        for source in &SOURCES[..2] {
            guest.shadow(*source, &paging, 5);
        }
        guest.impatience.set(steps);
        guest.unmap(&paging, 0x1000, 500);
        guest.invalidate(&[pages(5, 0, 9)]);
        for id in ids {
            assert_eq!(guest.dma(id, 0x1000), None);
            assert_eq!(guest.dma(id, 501 << 12), Some((0x30_0000, "rw")));
        }
        assert_eq!(guest.devices.mapped().0, 500);
    }
}

#[test]
fn to_take_much_away_is_much_work() {
    let (guest, ids) = Guest::with(&[PLAIN]);
    let paging = scattered(&guest);
    guest.shadow(SOURCES[0], &paging, 5);
    // All of it, by one entry of the topmost table.
    guest.world.set(paging.top, 0);
    guest.devices.run_begins();
    let patience = Patience::endless().with_steps(6000);
    let outcome = guest.devices.invalidated(&[ALL_OF_IT], &patience);
    assert_eq!(outcome, Err(Unfinished));
    let (left, _) = guest.devices.mapped();
    assert!((1..1000).contains(&left), "{left}");
    guest.tell(&[ALL_OF_IT]);
    assert_eq!(guest.devices.mapped().0, 0);
    assert_eq!(guest.dma(ids[0], 0x1000), None);
}

#[test]
fn what_nobody_uses_is_given_back_by_someone_with_time() {
    let (guest, ids) = Guest::with(&[PLAIN]);
    let paging = scattered(&guest);
    guest.shadow(SOURCES[0], &paging, 5);
    guest.enter_nothing(SOURCES[0]);
    let objects = guest.host.objects();
    guest.devices.run_begins();
    let patience = Patience::endless().with_steps(6000);
    let outcome = guest.devices.invalidated(&[CONTEXT], &patience);
    assert_eq!(outcome, Err(Unfinished));
    assert_eq!(guest.dma(ids[0], 0x1000), None);
    assert_eq!(guest.host.objects(), objects);
    guest.tell(&[CONTEXT]);
    assert!(guest.host.objects() < objects);
    assert_eq!(guest.devices.mapped().0, 0);
}

#[test]
fn pasids_for_which_there_was_room_at_last_are_bound_after_an_interruption() {
    let features = FakeFeatures {
        pasid_bits: 8,
        ..PLAIN
    };
    let guest = Guest::new(Limits {
        pasids: 1,
        ..Limits::default()
    });
    let id = guest.add(SOURCES[0], features);
    let paging = scattered(&guest);
    for pasid in [1, 2] {
        guest.enter_with(SOURCES[0], pasid, entry::second_stage(&paging, 5));
        guest.announce_pasid(5, pasid);
    }
    let reaches = |pasid| guest.host.dma_with(id, Pasid::new(pasid), 0x1000).is_some();
    assert!(reaches(1) && !reaches(2));
    guest.enter_with(SOURCES[0], 1, [0; 3]);
    guest.impatience.set(2000);
    guest.invalidate(&[Invalidation::PasidCache(PasidCacheScope::Pasid(5, 1))]);
    assert_ne!(guest.interruptions.get(), 0);
    assert!(!reaches(1) && reaches(2));
}

#[test]
fn a_group_is_put_together_after_an_interruption() {
    let features = FakeFeatures {
        pasid_bits: 8,
        ..PLAIN
    };
    let guest = Guest::new(Limits::default());
    let ids = [0, 1].map(|at| {
        let device = grouped_device(&guest.host, SOURCES[at], features);
        let id = device.id;
        guest.devices.add(device).unwrap();
        id
    });
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x1000, 0x30_0000, 1, RW);
    let enter = |source| {
        guest.enter_with(source, 1, entry::second_stage(&paging, 5));
    };
    enter(SOURCES[1]);
    guest.announce_pasid(5, 1);
    let reaches = |id| guest.host.dma_with(id, Pasid::new(1), 0x1000).is_some();
    enter(SOURCES[0]);
    guest.devices.run_begins();
    let context = Invalidation::Context(ContextScope::Device {
        source: SOURCES[0].0,
        function_mask: 0,
    });
    let mut interrupted = 0;
    for steps in (50..2000).step_by(50) {
        let patience = Patience::endless().with_steps(steps);
        let outcome = guest.devices.invalidated(&[context], &patience);
        interrupted += usize::from(outcome.is_err());
    }
    assert_ne!(interrupted, 0);
    guest.tell(&[context]);
    assert_eq!(ids.map(reaches), [true; 2]);
}

#[test]
fn a_device_is_removed_in_the_midst_of_what_the_guest_has_done_to_its_tables() {
    let guest = Guest::new(Limits::for_memory(2 << 30));
    let pages = 1_u64 << 18;
    let paging = guest.world.second_stage(4);
    for page in 0..pages {
        guest.world.map(&paging, page * 0x1000, 1, 0x30_0000 | RW);
    }
    guest.add(SOURCES[0], PLAIN);
    guest.enter_second_stage(SOURCES[0], &paging, 5);
    let wake = Arc::new(|| {});
    guest.unit.run_in_background(InlineBudget::NOTHING, wake);
    // Translation is turned on.
    let root = guest.world.latched.root.address | 1 << 10;
    guest.unit.write(0x20, &root.to_le_bytes());
    guest.unit.write(0x18, &0xC000_0000_u32.to_le_bytes());
    let removing = Arc::new(AtomicBool::new(false));
    let calls = Arc::new(AtomicUsize::new(0));
    let (begins, begun) = channel();
    let (seen, counted) = (Arc::clone(&removing), Arc::clone(&calls));
    guest.host.watch(move |_| {
        if counted.fetch_add(1, Ordering::SeqCst) == 100 {
            let _ = begins.send(());
            assert!((0..10_000_000).any(|_| {
                thread::yield_now();
                seen.load(Ordering::SeqCst)
            }));
        }
        thread::yield_now();
    });
    thread::scope(|scope| {
        scope.spawn(|| guest.unit.run_backlog(&Arc::default()));
        begun.recv().unwrap();
        removing.store(true, Ordering::SeqCst);
        assert!(guest.devices.remove(SOURCES[0]));
        let calls = calls.load(Ordering::SeqCst) as u64;
        assert!(calls < pages, "{calls} of {pages}");
    });
    assert_eq!(guest.devices.mapped(), (0, 0));
    let mut status = [0; 4];
    guest.unit.read(0x1C, &mut status);
    assert_eq!(u32::from_le_bytes(status), 0xC000_0000);
}
