//! What following the guest costs, in calls of the host, steps and looks at bindings; never in time.

use super::testing::*;
use super::{Blocked, Limits, Placement};
use crate::fake::{Call, FakeFeatures};
use intel_vtd::{SourceId, TranslationObserver as _};

const PASIDS: FakeFeatures = FakeFeatures {
    pasid_bits: 8,
    ..NESTING
};
const PLAIN: FakeFeatures = FakeFeatures {
    nesting: false,
    ..NESTING
};
const RW: u64 = 3;

/// How many bindings are looked at within `what`.
fn looks(what: impl FnOnce()) -> usize {
    take_looks();
    what();
    take_looks()
}

#[test]
fn an_invalidation_looks_at_no_binding_that_it_does_not_name() {
    let (guest, _) = Guest::with(&[PASIDS; 4]);
    let bind = |source: SourceId, pasid, domain: u16| {
        let top = guest.world.first_stage(4).top;
        guest.enter_with(source, pasid, entry::first_stage(top, domain.into()));
        guest.announce_pasid(domain, pasid);
    };
    for (source, domain) in SOURCES.into_iter().zip(5..) {
        for pasid in 1..=16 {
            bind(source, pasid, domain);
        }
    }
    let paging = guest.world.second_stage(4);
    guest.enter_with(SOURCES[0], 17, entry::second_stage(&paging, 20));
    guest.announce_pasid(20, 17);
    guest.host.take_calls();
    guest.map(&paging, 0x1000, 0x30_0000, 1, RW);
    for (invalidation, calls) in [
        (pasid_pages(5, 7, 0x1000, 0), 1),
        (pasid_pages(99, 7, 0x1000, 0), 0),
        (pages(20, 0x1000, 0), 1),
        (pages(99, 0x1000, 0), 0),
    ] {
        let looks = looks(|| guest.invalidate(&[invalidation]));
        assert_eq!(looks, 0, "{invalidation:?}");
        assert_eq!(guest.host.take_calls().len(), calls, "{invalidation:?}");
    }
}

/// How often all of a shadow was compared with the tables within `what`.
fn comparisons(guest: &Guest, what: impl FnOnce()) -> u64 {
    let before = guest.devices.statistics().comparisons;
    what();
    guest.devices.statistics().comparisons - before
}

/// Turns translation off and on.
fn toggle(guest: &Guest) {
    for enabled in [false, true] {
        let mut latched = guest.world.latched;
        latched.enabled = enabled;
        guest.unit.dma_state().set_latched(latched);
        guest.change_translation();
    }
}

#[test]
fn a_shadow_is_compared_once_for_all_who_come_to_it_together() {
    let (guest, ids) = Guest::with(&[PLAIN; 4]);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x1000, 0x30_0000, 4, RW);
    for source in SOURCES {
        guest.shadow(source, &paging, 5);
    }
    assert_eq!(comparisons(&guest, || toggle(&guest)), 1);
    for id in &ids {
        assert_eq!(guest.dma(*id, 0x1000), Some((0x30_0000, "rw")));
    }
    // Those that come later find what was mapped meanwhile.
    guest.enter_nothing(SOURCES[3]);
    guest.invalidate(&[CONTEXT]);
    guest.map(&paging, 0x8000, 0x50_0000, 1, RW);
    guest.enter_second_stage(SOURCES[3], &paging, 5);
    guest.devices.run_begins();
    let compared = comparisons(&guest, || guest.tell(&[CONTEXT]));
    assert_eq!(compared, 1);
    assert_eq!(guest.dma(ids[3], 0x8000), Some((0x50_0000, "rw")));
}

#[test]
fn what_is_there_for_one_device_is_there_for_four() {
    // For one comparison and as many areas; four comparisons would be more.
    let areas = 1000;
    let (table, run, call) = (8, 1, 100);
    let guest = Guest::new(Limits {
        steps_per_exit: 7 * table + areas * (run + call) + 100,
        ..Limits::default()
    });
    let paging = guest.world.second_stage(4);
    for page in 0..areas {
        guest.world.map(&paging, page * 0x1000, 1, 0x30_0000 | RW);
    }
    for source in SOURCES {
        guest.add(source, PLAIN);
        guest.shadow(source, &paging, 5);
    }
    toggle(&guest);
    for source in SOURCES {
        assert!(matches!(guest.binding(source), Placement::Shadow { .. }));
    }
    assert_eq!(guest.devices.mapped().0, 1000);
}

#[test]
fn what_maps_each_page_of_memory_by_itself_once_is_within_the_limits() {
    // 2 GiB, of which our memory is the first part: what counts is how many areas there are.
    let pages = (2 << 30) / 0x1000_u64;
    let guest = Guest::new(Limits::for_memory(2 << 30));
    let paging = guest.world.second_stage(4);
    for page in 0..pages {
        guest.world.map(&paging, page * 0x1000, 1, 0x30_0000 | RW);
    }
    let id = guest.add(SOURCES[0], PLAIN);
    guest.shadow(SOURCES[0], &paging, 5);
    assert_eq!(guest.devices.mapped(), (1 << 19, 2 << 30));
    toggle(&guest);
    assert_eq!(guest.devices.mapped(), (1 << 19, 2 << 30));
    assert_eq!(guest.dma(id, (2 << 30) - 1), Some((0x30_0fff, "rw")));
}

#[test]
fn pages_that_lie_far_apart_are_counted_with_their_tables() {
    // 100 pages of one region, or 8 in regions of their own.
    let limits = Limits {
        shadow_memory: 4 * (4 * 4096 + 100 * 320),
        ..Limits::default()
    };
    for (distance, areas) in [(0x1000, 100), (0x20_0000, 8)] {
        let guest = Guest::new(limits);
        guest.add(SOURCES[0], PLAIN);
        let paging = guest.world.second_stage(4);
        guest.shadow(SOURCES[0], &paging, 5);
        for number in 0..areas {
            let address = number * distance;
            guest.world.map(&paging, address, 1, 0x30_0000 | RW);
            guest.invalidate(&[pages(5, address, 0)]);
        }
        assert_eq!(guest.devices.mapped().0, usize::try_from(areas).unwrap());
        let address = areas * distance;
        guest.world.map(&paging, address, 1, 0x30_0000 | RW);
        guest.invalidate(&[pages(5, address, 0)]);
        let placement = guest.binding(SOURCES[0]);
        assert_eq!(placement, Placement::Blocked(Blocked::TooManyAreas));
        assert_eq!(guest.devices.mapped().0, 0);
    }
}

#[test]
fn a_device_that_is_over_a_limit_is_tried_again_for_its_own_entry_only() {
    let guest = Guest::new(Limits {
        shadow_memory: 4 * (4 * 4096 + 100 * 320),
        ..Limits::default()
    });
    guest.add(SOURCES[0], PLAIN);
    guest.add(SOURCES[1], PLAIN);
    let (large, small) = (guest.world.second_stage(4), guest.world.second_stage(4));
    for page in 0..101 {
        guest.world.map(&large, page * 0x1000, 1, 0x30_0000 | RW);
    }
    guest.map(&small, 0x1000, 0x30_0000, 1, RW);
    guest.shadow(SOURCES[0], &large, 5);
    let over = Placement::Blocked(Blocked::TooManyAreas);
    assert_eq!(guest.binding(SOURCES[0]), over);
    let calls = || {
        let calls = guest.host.take_calls();
        let shares = calls
            .iter()
            .filter(|(call, _)| matches!(call, Call::Share(_)));
        shares.count()
    };
    calls();
    // The other one's entry costs what the other one needs.
    for _ in 0..10 {
        guest.shadow(SOURCES[1], &small, 6);
        guest.enter_nothing(SOURCES[1]);
        guest.announce_entry(6);
        assert_eq!(calls(), 1);
    }
    assert_eq!(guest.binding(SOURCES[0]), over);
    // Its own is tried, in vain, and then with success.
    guest.announce_entry(5);
    assert!(calls() >= 100);
    assert_eq!(guest.binding(SOURCES[0]), over);
    guest.unmap(&large, 0, 1);
    guest.announce_entry(5);
    assert!(matches!(
        guest.binding(SOURCES[0]),
        Placement::Shadow { .. }
    ));
    assert_eq!(guest.devices.mapped().0, 100);
}
