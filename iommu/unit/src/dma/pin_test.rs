//! Pins: what they hold, and which invalidations wait for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use proptest::prelude::*;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend as _, GuestMemoryError, GuestMemoryMmap,
    GuestMemoryRegion as _, MmapRegion, Permissions,
};

use super::dma_test::{Bench, bench, bench_of};
use super::{DmaPin, DmaPort, DmaState, DmaView, DrainScope, Pinned};
use crate::spec::descriptors::{
    ContextScope, IotlbScope, PageBlock, PasidCacheScope, PasidIotlbScope,
};
use crate::spec::ids::Pasid;
use crate::spec::invalidation::Invalidation;
use crate::translate::testing::{SOURCE, World};
use crate::translate::{Access, Latched};

type Memory = Arc<GuestMemoryMmap<()>>;

const INPUT: u64 = 0x7000_1000;
const FIRST: u64 = 0x200_0000;
const SECOND: u64 = 0x200_8000;

/// Pins a part of the page at [`INPUT`].
fn pin_page<'p>(bench: &Bench, pin: &'p mut DmaPin<Memory>) -> Pinned<'p, Memory> {
    let mut view = bench.port.view();
    let range = [(GuestAddress(INPUT + 0x10), 0x20)];
    view.begin().pin(pin, range, Permissions::Write).unwrap()
}

/// Invalidates, and tells whether that is complete at once.
fn completes(state: &DmaState<Memory>, invalidations: &[Invalidation]) -> bool {
    let scope: DrainScope = invalidations.iter().collect();
    state.invalidate_all();
    assert!(state.drain_transactions(&scope, &mut || panic!("no transaction is open")));
    state.drain_pins(&scope, &mut || false)
}

const fn pages(address: u64, mask: u8) -> PageBlock {
    PageBlock {
        address,
        mask,
        leaf_only: true,
    }
}

/// What Linux says when it has unmapped a page, in domain 7.
fn page(address: u64) -> Invalidation {
    Invalidation::Iotlb(IotlbScope::Pages(7, pages(address, 0)))
}

fn pasid_page(domain: u16, address: u64) -> Invalidation {
    Invalidation::PasidIotlb {
        domain,
        pasid: 1,
        scope: PasidIotlbScope::Pages(pages(address, 0)),
    }
}

/// Everything that concerns the page at [`INPUT`] of PASID 0, domain 7.
fn own() -> [Invalidation; 8] {
    [
        page(INPUT),
        Invalidation::Iotlb(IotlbScope::Pages(7, pages(0x7000_0000, 2))),
        Invalidation::Iotlb(IotlbScope::Domain(7)),
        Invalidation::Iotlb(IotlbScope::Global),
        Invalidation::PasidCache(PasidCacheScope::Domain(7)),
        Invalidation::Context(ContextScope::Device {
            source: SOURCE.0,
            function_mask: 0,
        }),
        Invalidation::Context(ContextScope::Global),
        Invalidation::All,
    ]
}

#[test]
fn pinned_memory_is_what_the_tables_say_in_the_order_asked_for() {
    let bench = bench();
    for (input, output) in [(0, 0), (1, 1), (2, 7), (5, 2)] {
        let leaf = (FIRST + output * 0x1000) | 3;
        bench
            .world
            .map(&bench.paging, INPUT + input * 0x1000, 1, leaf);
    }
    let mut view = bench.port.view();
    let mut pin = DmaPin::new();
    let ranges = [(0x5ff0, 0x10), (0x0f80, 0), (0x0f80, 0x1100), (0x5ff8, 8)];
    let ranges = ranges.map(|(at, length)| (GuestAddress(INPUT + at), length));
    let pinned = view
        .begin()
        .pin(&mut pin, ranges, Permissions::Write)
        .unwrap();
    assert_eq!(pinned.len(), 0x1118);
    let slices: Vec<_> = pinned.slices().collect::<Result<_, _>>().unwrap();
    let lengths: Vec<_> = slices.iter().map(|slice| slice.len()).collect();
    assert_eq!(lengths, [0x10, 0x1080, 0x80, 8]);
    slices[1].write_obj(0x11_u8, 0).unwrap();
    slices[1].write_obj(0x22_u8, 0x80).unwrap();
    slices[2].write_obj(0x33_u8, 0x7f).unwrap();
    slices[3].write_obj(0x44_u8, 0).unwrap();
    let byte = |at| {
        bench
            .world
            .memory
            .read_obj::<u8>(GuestAddress(FIRST + at))
            .unwrap()
    };
    assert_eq!(
        [0xf80, 0x1000, 0x707f, 0x2ff8].map(byte),
        [0x11, 0x22, 0x33, 0x44]
    );
    assert!(bench.log.take().is_empty());
}

#[test]
fn behind_no_unit_addresses_are_memory_and_regions_are_kept_apart() {
    let ranges = [(0, 0x2000), (0x2000, 0x1000), (0x10_0000, 0x1000)];
    let ranges = ranges.map(|(start, size)| (GuestAddress(start), size));
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
    let mut view = DmaPort::direct(Arc::clone(&memory)).view();
    let mut pin = DmaPin::new();
    let range = [(GuestAddress(0x1f00), 0x200)];
    let pinned = view
        .begin()
        .pin(&mut pin, range, Permissions::Read)
        .unwrap();
    let lengths: Vec<_> = pinned.slices().map(|slice| slice.unwrap().len()).collect();
    assert_eq!(lengths, [0x100, 0x100]);
    drop(pinned);
    for (start, length) in [(0x2f00, 0x200), (0x3000, 1), (u64::MAX, 2)] {
        let range = [(GuestAddress(start), length)];
        let outcome = view.begin().pin(&mut pin, range, Permissions::Read);
        assert!(outcome.is_err(), "{start:#x}");
    }
}

#[test]
fn an_invalidation_that_takes_a_pinned_page_away_waits_for_the_pin_and_no_longer() {
    for invalidation in own() {
        let bench = bench();
        let leaf = bench.world.map(&bench.paging, INPUT, 1, FIRST | 3);
        let mut pin = DmaPin::new();
        let pinned = pin_page(&bench, &mut pin);
        bench.world.set(leaf, SECOND | 3);
        assert!(
            !completes(&bench.state, &[invalidation]),
            "{invalidation:?}"
        );
        assert!(
            !completes(&bench.state, &[invalidation]),
            "{invalidation:?}"
        );
        drop(pinned);
        assert!(completes(&bench.state, &[invalidation]), "{invalidation:?}");
    }
}

#[test]
fn what_is_kept_is_waited_for_until_it_is_released_dropped_or_used_again() {
    type End = fn(&Bench, &mut DmaPin<Memory>);
    let ends: [End; 3] = [
        |_, pin| pin.release(),
        |_, pin| *pin = DmaPin::new(),
        |bench, pin| assert_eq!(pin_page(bench, pin).keep(), 0x20),
    ];
    for end in ends {
        let bench = bench();
        let leaf = bench.world.map(&bench.paging, INPUT, 1, FIRST | 3);
        let mut pin = DmaPin::new();
        assert_eq!(pin_page(&bench, &mut pin).keep(), 0x20);
        // Wherever it is.
        let mut pin = Box::new(pin);
        bench.world.set(leaf, SECOND | 3);
        assert!(!completes(&bench.state, &[page(INPUT)]));
        assert!(!completes(&bench.state, &[page(INPUT)]));
        end(&bench, &mut pin);
        assert!(completes(&bench.state, &[page(INPUT)]));
    }
}

#[test]
fn what_a_pin_is_not_allowed_any_more_is_waited_for_too() {
    let bench = bench();
    let leaf = bench.world.map(&bench.paging, INPUT, 1, FIRST | 3);
    let mut pin = DmaPin::new();
    let _pinned = pin_page(&bench, &mut pin);
    for entry in [FIRST | 1, 0] {
        bench.world.set(leaf, entry);
        assert!(!completes(&bench.state, &[page(INPUT)]), "{entry:#x}");
    }
    assert!(bench.log.take().is_empty(), "the device made no request");
    bench.world.set(leaf, FIRST | 3);
    assert!(completes(&bench.state, &[page(INPUT)]));
}

#[test]
fn invalidations_of_other_pages_domains_and_sources_do_not_look_at_a_pin() {
    let bench = bench();
    let leaf = bench.world.map(&bench.paging, INPUT, 1, FIRST | 3);
    let mut pin = DmaPin::new();
    let _pinned = pin_page(&bench, &mut pin);
    // What was taken away, nobody has invalidated yet.
    bench.world.set(leaf, SECOND | 3);
    for invalidation in [
        page(INPUT - 0x1000),
        page(INPUT + 0x1000),
        Invalidation::Iotlb(IotlbScope::Domain(8)),
        Invalidation::PasidCache(PasidCacheScope::Pasid(8, 1)),
        Invalidation::Context(ContextScope::Device {
            source: SOURCE.0 + 8,
            function_mask: 0,
        }),
    ] {
        assert!(completes(&bench.state, &[invalidation]), "{invalidation:?}");
    }
    // Two blocks of a domain are the one that holds both.
    let around = [page(INPUT - 0x1000), page(INPUT + 0x1000)];
    assert!(!completes(&bench.state, &around));
}

#[test]
fn a_pin_whose_pages_stay_holds_nothing_and_sets_the_bits_of_its_accesses_again() {
    let bench = bench();
    let paging = bench.world.first_stage(4);
    let leaf = bench.world.map(&paging, INPUT, 1, FIRST | 7);
    bench.world.set_pasid(1, &[0x49, 0x0080_0009, paging.top]);
    let mut view = bench.port.view();
    let mut pin = DmaPin::new();
    let range = [(GuestAddress(INPUT), 8)];
    let transaction = view.begin_pasid(Pasid::new(1));
    let _pinned = transaction
        .pin(&mut pin, range, Permissions::Write)
        .unwrap();
    drop(transaction);
    assert_eq!(bench.world.get(leaf), FIRST | 0x67);
    for invalidation in [
        pasid_page(9, INPUT),
        Invalidation::Iotlb(IotlbScope::Domain(9)),
        Invalidation::Iotlb(IotlbScope::Pages(9, pages(0, 0))),
        Invalidation::All,
    ] {
        bench.world.set(leaf, FIRST | 7);
        assert!(completes(&bench.state, &[invalidation]), "{invalidation:?}");
        assert_eq!(bench.world.get(leaf), FIRST | 0x67, "{invalidation:?}");
    }
    // An invalidation of a second stage takes all first-stage translations of its domain with it;
    // one of another page of the first stage does not.
    bench.world.set(leaf, SECOND | 7);
    assert!(completes(&bench.state, &[pasid_page(9, INPUT + 0x1000)]));
    let second = Invalidation::Iotlb(IotlbScope::Pages(9, pages(0, 0)));
    assert!(!completes(&bench.state, &[second]));
    assert!(!completes(&bench.state, &[pasid_page(9, INPUT)]));
}

#[test]
fn a_pin_goes_over_to_the_domain_that_its_pages_are_of_by_now() {
    let bench = bench();
    let leaf = bench.world.map(&bench.paging, INPUT, 1, FIRST | 3);
    let mut pin = DmaPin::new();
    let _pinned = pin_page(&bench, &mut pin);
    bench.world.set_pasid(0, &[bench.paging.top | 0x89, 8]);
    let entry = Invalidation::PasidCache(PasidCacheScope::Pasid(7, 0));
    assert!(completes(&bench.state, &[entry]));
    bench.world.set(leaf, 0);
    assert!(completes(&bench.state, &[page(INPUT)]), "of the old domain");
    let new = Invalidation::Iotlb(IotlbScope::Pages(8, pages(INPUT, 0)));
    assert!(!completes(&bench.state, &[new]));
}

#[test]
fn translation_that_is_switched_on_waits_for_pages_that_it_takes_away() {
    let bench = bench();
    let on = bench.world.latched;
    bench.state.set_latched(Latched::default());
    let mut view = bench.port.view();
    let mut pin = DmaPin::new();
    let range = [(GuestAddress(FIRST), 0x2000)];
    let pinned = view
        .begin()
        .pin(&mut pin, range, Permissions::Read)
        .unwrap();
    assert!(completes(
        &bench.state,
        &[Invalidation::Iotlb(IotlbScope::Domain(7))]
    ));
    bench.state.set_latched(on);
    assert!(!completes(&bench.state, &[Invalidation::All]));
    for page in [FIRST, FIRST + 0x1000] {
        bench.world.map(&bench.paging, page, 1, page | 3);
    }
    assert!(
        completes(&bench.state, &[Invalidation::All]),
        "mapped to themselves"
    );
    bench.state.set_latched(Latched::default());
    assert!(completes(&bench.state, &[Invalidation::All]));
    drop(pinned);
}

#[test]
fn kept_translations_and_those_of_a_device_itself_are_waited_for() {
    let bench = bench_of(World::scalable(), DmaState::keeping_translations);
    bench.world.map(&bench.paging, INPUT, 1, FIRST | 3);
    let mut pin = DmaPin::new();
    let pinned = pin_page(&bench, &mut pin);
    assert!(!completes(&bench.state, &[page(INPUT)]));
    drop(pinned);
    assert!(completes(&bench.state, &[page(INPUT)]));

    let mut view = bench.port.view();
    let range = [(GuestAddress(FIRST), 8)];
    let pinned = view
        .begin_translated()
        .pin(&mut pin, range, Permissions::Read)
        .unwrap();
    assert!(!completes(&bench.state, &[page(INPUT)]));
    drop(pinned);
    assert!(completes(&bench.state, &[page(INPUT)]));
}

#[test]
fn a_page_that_is_missing_is_a_fault_and_leaves_nothing_pinned() {
    let bench = bench();
    let leaf = bench.world.map(&bench.paging, INPUT, 1, FIRST | 3);
    let mut view = bench.port.view();
    let mut pin = DmaPin::new();
    let range = [(GuestAddress(INPUT), 0x1001)];
    let outcome = view.begin().pin(&mut pin, range, Permissions::Write);
    assert!(matches!(
        outcome.map(|_| ()),
        Err(GuestMemoryError::InvalidGuestAddress(GuestAddress(address))) if address == INPUT + 0x1000
    ));
    let faults = bench.log.take();
    assert_eq!(faults.len(), 1);
    assert_eq!((faults[0].0, faults[0].1), (INPUT + 0x1000, Access::Write));
    bench.world.set(leaf, 0);
    assert!(completes(&bench.state, &[Invalidation::All]));
    // Neither does what a pin held before.
    bench.world.set(leaf, FIRST | 3);
    std::mem::forget(pin_page(&bench, &mut pin));
    assert!(
        view.begin()
            .pin(&mut pin, range, Permissions::Write)
            .is_err()
    );
    bench.world.set(leaf, 0);
    assert!(completes(&bench.state, &[Invalidation::All]));
}

#[test]
fn a_pin_takes_512_pieces_and_1024_pages_at_a_time() {
    let bench = bench();
    let mut view = bench.port.view();
    let mut pin = DmaPin::new();
    // Every other page of memory, then neighbours.
    for (number, step, length) in [(600_u64, 2, 512 << 12), (1100, 1, 1024 << 12)] {
        for page in 0..number {
            let leaf = (FIRST + page * step % 1024 * 0x1000) | 3;
            bench
                .world
                .map(&bench.paging, INPUT + page * 0x1000, 1, leaf);
        }
        bench.state.invalidate_all();
        let range = [(GuestAddress(INPUT), usize::try_from(number << 12).unwrap())];
        let pinned = view
            .begin()
            .pin(&mut pin, range, Permissions::Read)
            .unwrap();
        assert_eq!(pinned.len(), length);
        assert!(pinned.slices().count() <= DmaPin::<Memory>::MOST_PIECES);
    }
}

#[test]
fn a_pin_that_has_taken_all_its_steps_takes_no_further_range() {
    let bench = bench();
    for page in 0..1025 {
        let leaf = (FIRST + page % 1024 * 0x1000) | 3;
        bench
            .world
            .map(&bench.paging, INPUT + page * 0x1000, 1, leaf);
    }
    let mut view = bench.port.view();
    let mut pin = DmaPin::new();
    let ranges = [(0, 1024 << 12), (1024 << 12, 0x1000)];
    let ranges = ranges.map(|(at, length)| (GuestAddress(INPUT + at), length));
    let pinned = view
        .begin()
        .pin(&mut pin, ranges, Permissions::Read)
        .unwrap();
    assert_eq!(pinned.len(), 1024 << 12);
}

#[test]
fn a_pin_by_what_is_remembered_of_a_domain_waits_for_that_one() {
    let bench = bench();
    let paging = bench.world.first_stage(4);
    let leaf = bench.world.map(&paging, INPUT, 1, FIRST | 7);
    bench.world.map(&paging, INPUT + 0x1000, 1, SECOND | 7);
    for pasid in [1, 2] {
        bench
            .world
            .set_pasid(pasid, &[0x49, 0x0080_0009, paging.top]);
    }
    let mut view = bench.port.view();
    for pasid in [1, 2] {
        let transaction = view.begin_pasid(Pasid::new(pasid));
        transaction.write_obj(1_u8, GuestAddress(INPUT)).unwrap();
    }
    // The first page is remembered as of domain 9, and the second is found in domain 10.
    bench.world.set_pasid(1, &[0x49, 0x0080_000a, paging.top]);
    let mut pin = DmaPin::new();
    let range = [(GuestAddress(INPUT), 0x2000)];
    let transaction = view.begin_pasid(Pasid::new(1));
    let _pinned = transaction
        .pin(&mut pin, range, Permissions::Write)
        .unwrap();
    drop(transaction);
    bench.world.set(leaf, 0);
    assert!(!completes(&bench.state, &[pasid_page(9, INPUT)]));
}

#[test]
fn pins_outlive_their_view_and_leave_nothing_behind() {
    let bench = bench();
    let leaf = bench.world.map(&bench.paging, INPUT, 1, FIRST | 3);
    let mut pins: Vec<DmaPin<Memory>> = (0..4).map(|_| DmaPin::new()).collect();
    let pinned: Vec<_> = pins.iter_mut().map(|pin| pin_page(&bench, pin)).collect();
    assert_eq!(bench.state.view_count(), 0);
    assert_eq!(bench.state.pin_count(), 4);
    bench.world.set(leaf, 0);
    assert!(!completes(&bench.state, &[page(INPUT)]));
    drop(pinned);
    assert!(completes(&bench.state, &[page(INPUT)]));
    // The same room in front of another unit.
    let other = bench_of(World::scalable(), |state| state);
    other.world.map(&other.paging, INPUT, 1, FIRST | 3);
    drop(pin_page(&other, &mut pins[0]));
    assert_eq!((bench.state.pin_count(), other.state.pin_count()), (3, 1));
    drop(pins);
    assert_eq!((bench.state.pin_count(), other.state.pin_count()), (0, 0));
}

#[test]
fn what_is_pinned_after_an_invalidation_does_not_hold_it() {
    let bench = bench();
    let leaf = bench.world.map(&bench.paging, INPUT, 1, FIRST | 3);
    let mut pin = DmaPin::new();
    bench.state.invalidate_all();
    let _pinned = pin_page(&bench, &mut pin);
    bench.world.set(leaf, 0);
    let scope: DrainScope = [page(INPUT)].iter().collect();
    assert!(bench.state.drain_pins(&scope, &mut || false));
}

type Marked = Arc<GuestMemoryMmap<AtomicBitmap>>;

/// The pages that are marked since the last call.
fn marked(memory: &Marked) -> Vec<u64> {
    let regions = memory.iter().map(|region| {
        let marks = MmapRegion::bitmap(region);
        let pages = (0..marks.len()).filter(|page| marks.is_bit_set(*page));
        let start = region.start_addr().0;
        let pages = pages
            .map(|page| start + page as u64 * 0x1000)
            .collect::<Vec<_>>();
        marks.reset();
        pages
    });
    regions.flatten().collect()
}

#[test]
fn what_is_pinned_for_writing_is_marked_when_it_is_given_back_and_not_before() {
    type End = fn(&mut DmaView<Marked>, &mut DmaPin<Marked>);
    let again: End = |view, pin| {
        let range = [(GuestAddress(0x3000), 8)];
        view.begin().pin(pin, range, Permissions::Read).unwrap();
    };
    let ends: [End; 3] = [|_, pin| pin.release(), |_, pin| *pin = DmaPin::new(), again];
    let ranges = [(0, 0x4000), (0x10_0000, 0x4000)];
    let ranges = ranges.map(|(start, size)| (GuestAddress(start), size));
    for end in ends {
        for (access, pages) in [
            (Permissions::Write, &[0, 0x1000, 0x10_2000][..]),
            (Permissions::ReadWrite, &[0, 0x1000, 0x10_2000]),
            (Permissions::Read, &[]),
        ] {
            let memory: Marked = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
            let mut view = DmaPort::direct(Arc::clone(&memory)).view();
            let mut pin = DmaPin::new();
            let range = [(GuestAddress(0xffe), 4), (GuestAddress(0x10_2fff), 1)];
            let pinned = view.begin().pin(&mut pin, range, access).unwrap();
            assert_eq!(pinned.keep(), 5);
            assert!(marked(&memory).is_empty());
            end(&mut view, &mut pin);
            assert_eq!(marked(&memory), pages, "{access:?}");
            pin.release();
            assert!(marked(&memory).is_empty(), "{access:?}");
        }
    }
}

#[test]
fn what_cannot_be_pinned_is_not_marked() {
    let memory: Marked =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap());
    let mut view = DmaPort::direct(Arc::clone(&memory)).view();
    let mut pin = DmaPin::new();
    let range = [(GuestAddress(0), 8), (GuestAddress(0x4000), 8)];
    let begun = view.begin();
    assert!(begun.pin(&mut pin, range, Permissions::Write).is_err());
    drop(begun);
    drop(pin);
    assert!(marked(&memory).is_empty());
}

/// A disk: pins the page, and writes to it when the transaction is over.
fn disk(port: &DmaPort<Memory>, stop: &AtomicBool) {
    let mut view = port.view();
    let mut pin = DmaPin::new();
    while !stop.load(Ordering::Relaxed) {
        let range = [(GuestAddress(INPUT), 8)];
        let pinned = view.begin().pin(&mut pin, range, Permissions::Write);
        let pinned = pinned.expect("the page is mapped at any time");
        thread::yield_now();
        for slice in pinned.slices() {
            slice.unwrap().store(1_u64, 0, Ordering::Relaxed).unwrap();
        }
        drop(pinned);
    }
}

/// Ends the threads beside a test, also when an assertion fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4) })]

    #[test]
    fn after_a_drain_no_disk_writes_to_the_page_that_was_taken_away(seed in any::<u64>()) {
        let bench = bench();
        let leaf = bench.world.map(&bench.paging, INPUT, 1, FIRST | 3);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                let (port, stop) = (bench.port.clone(), &stop);
                scope.spawn(move || disk(&port, stop));
            }
            let _stop = Stop(&stop);
            let (mut old, mut new, mut random) = (FIRST, SECOND, seed);
            for _ in 0..500 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(3);
                let invalidation = own()[(random >> 33) as usize % 8];
                let scope: DrainScope = [invalidation].iter().collect();
                bench.state.invalidate_all();
                // Nothing was taken away by this one.
                bench.state.drain_for(&scope);
                bench.world.set(leaf, new | 3);
                bench.state.invalidate_all();
                bench.state.drain_for(&scope);
                bench.world.set(old, 0);
                for _ in 0..8 {
                    thread::yield_now();
                    assert_eq!(bench.world.get(old), 0, "the old page was written");
                }
                (old, new) = (new, old);
            }
        });
    }
}
