//! Guest RAM that comes and goes under devices.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use super::testing::*;
use super::*;
use crate::fake::{FakeFeatures, FakeHost, errno};

/// Blocks, each a piece of its own, which are far from the guest's other memory.
const BLOCK: u64 = 0x20_0000;
const REGION: u64 = 0x1_0000_0000;
/// Where they are in the file.
const OFFSET: u64 = 0x4000_0000;

fn block(number: u64) -> RamPiece {
    RamPiece {
        guest_address: REGION + number * BLOCK,
        file: Arc::new(File::open("/dev/null").unwrap()),
        offset: OFFSET + number * BLOCK,
        host_address: 0x7100_0000_0000 + number * BLOCK,
        length: BLOCK,
    }
}

fn plug(guest: &Guest, blocks: Range<u64>) -> Result<(), PlugError> {
    let pieces: Vec<_> = blocks.map(block).collect();
    guest.devices.plug(&pieces)
}

fn unplug(guest: &Guest, blocks: Range<u64>) -> Result<(), PlugError> {
    let start = REGION + blocks.start * BLOCK;
    guest.devices.unplug(&(start..REGION + blocks.end * BLOCK))
}

#[test]
fn a_device_behind_all_memory_reaches_what_is_plugged_for_as_long_as_it_is() {
    let (guest, ids) = Guest::with(&[FakeFeatures::default()]);
    guest.enter_pass_through(SOURCES[0]);
    guest.announce_entry(1);
    let reached = |at| guest.dma(ids[0], at);
    assert_eq!(reached(REGION), None);
    plug(&guest, 0..3).unwrap();
    assert_eq!(reached(REGION), Some((OFFSET, "rw")));
    let last = 3 * BLOCK - 0x1000;
    assert_eq!(reached(REGION + last), Some((OFFSET + last, "rw")));
    assert_eq!(reached(REGION + 3 * BLOCK), None);
    unplug(&guest, 1..2).unwrap();
    assert_eq!(reached(REGION), Some((OFFSET, "rw")));
    assert_eq!(reached(REGION + BLOCK), None);
    assert_eq!(
        reached(REGION + 2 * BLOCK),
        Some((OFFSET + 2 * BLOCK, "rw"))
    );
    // Whatever there is.
    unplug(&guest, 0..100).unwrap();
    assert_eq!(reached(REGION + 2 * BLOCK), None);
    assert_eq!(reached(0x1000), Some((0x1000, "rw")));
    unplug(&guest, 0..100).unwrap();
}

#[test]
fn a_shadow_maps_what_the_tables_say_of_blocks_while_they_are_plugged() {
    let (guest, ids) = Guest::with(&[FakeFeatures::default()]);
    let paging = guest.world.second_stage(4);
    // From the last page of a block into the next, and memory besides; before any is there.
    guest.map(&paging, 0x1000, REGION + BLOCK - 0x1000, 3, 3);
    guest.map(&paging, 0x8000, 0x10_0000, 1, 1);
    guest.shadow(SOURCES[0], &paging, 5);
    let reached = || [0x1000, 0x2000, 0x3000, 0x8000].map(|at| guest.dma(ids[0], at));
    let besides = Some((0x10_0000, "r"));
    let first = Some((OFFSET + BLOCK - 0x1000, "rw"));
    let second = Some((OFFSET + BLOCK, "rw"));
    let third = Some((OFFSET + BLOCK + 0x1000, "rw"));
    assert_eq!(reached(), [None, None, None, besides]);
    plug(&guest, 0..2).unwrap();
    assert_eq!(reached(), [first, second, third, besides]);
    unplug(&guest, 0..1).unwrap();
    assert_eq!(reached(), [None, second, third, besides]);
    plug(&guest, 0..1).unwrap();
    unplug(&guest, 1..2).unwrap();
    assert_eq!(reached(), [first, None, None, besides]);
    // The guest goes on to announce what it does.
    guest.unmap(&paging, 0x1000, 1);
    guest.invalidate(&[Invalidation::All]);
    assert_eq!(reached(), [None, None, None, besides]);
    unplug(&guest, 0..1).unwrap();
    assert_eq!(reached(), [None, None, None, besides]);
}

#[test]
fn a_device_that_comes_later_reaches_what_is_plugged_and_each_iommufd_lets_go_of_it() {
    let (guest, ids) = Guest::with(&[FakeFeatures::default()]);
    guest.enter_pass_through(SOURCES[0]);
    guest.enter_pass_through(SOURCES[1]);
    guest.announce_entry(1);
    plug(&guest, 0..2).unwrap();
    let host = FakeHost::new();
    let later = guest.add_of(&host, SOURCES[1]);
    let offset = |at| host.dma(later, at).map(|reached| reached.offset);
    assert_eq!(offset(REGION + BLOCK), Some(OFFSET + BLOCK));
    plug(&guest, 2..3).unwrap();
    assert_eq!(offset(REGION + 2 * BLOCK), Some(OFFSET + 2 * BLOCK));
    unplug(&guest, 1..3).unwrap();
    for number in [1, 2] {
        assert_eq!(offset(REGION + number * BLOCK), None);
        assert_eq!(guest.dma(ids[0], REGION + number * BLOCK), None);
    }
    assert_eq!(offset(REGION), Some(OFFSET));
    guest.devices.remove(SOURCES[1]);
    guest.devices.remove(SOURCES[0]);
    assert_eq!((host.objects(), guest.host.objects()), (0, 0));
    // Without devices there is nothing to be mapped.
    unplug(&guest, 0..1).unwrap();
    plug(&guest, 0..1).unwrap();
}

#[test]
fn a_host_that_does_not_map_has_nothing_be_plugged() {
    let (guest, ids) = Guest::with(&[FakeFeatures::default()]);
    guest.enter_pass_through(SOURCES[0]);
    guest.announce_entry(1);
    for calls in 0..3 {
        guest.host.fail_after(calls, errno::ENOMEM);
        let error = plug(&guest, 0..3).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("ulimit -l"), "{text}");
        guest.host.fail_no_more();
        for number in 0..3 {
            assert_eq!(guest.dma(ids[0], REGION + number * BLOCK), None, "{calls}");
        }
    }
    plug(&guest, 0..3).unwrap();
    assert_eq!(guest.dma(ids[0], REGION), Some((OFFSET, "rw")));
}

#[test]
fn a_host_that_does_not_unmap_is_asked_again() {
    let (guest, ids) = Guest::with(&[FakeFeatures::default()]);
    guest.enter_pass_through(SOURCES[0]);
    guest.announce_entry(1);
    plug(&guest, 0..1).unwrap();
    guest.host.fail_after(0, errno::ENOMEM);
    assert!(matches!(
        unplug(&guest, 0..1),
        Err(PlugError::Host { what: "unmap", .. })
    ));
    guest.host.fail_no_more();
    unplug(&guest, 0..1).unwrap();
    assert_eq!(guest.dma(ids[0], REGION), None);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let (guest, ids) = Guest::with(&[FakeFeatures::default()]);
    guest.enter_pass_through(SOURCES[0]);
    guest.announce_entry(1);
    plug(&guest, 1..2).unwrap();
    assert!(matches!(plug(&guest, 0..2), Err(PlugError::Taken(_))));
    let low = RamPiece {
        guest_address: 0x1000,
        ..block(0)
    };
    assert!(matches!(
        guest.devices.plug(&[low]),
        Err(PlugError::Taken(_))
    ));
    let far = RamPiece {
        guest_address: 1 << 60,
        ..block(0)
    };
    assert!(matches!(
        guest.devices.plug(&[far]),
        Err(PlugError::OutOfReach(_))
    ));
    let half = REGION + BLOCK + 0x1000..REGION + 2 * BLOCK;
    assert!(matches!(
        guest.devices.unplug(&half),
        Err(PlugError::Together(_))
    ));
    let half = REGION + BLOCK..REGION + 2 * BLOCK - 0x1000;
    assert!(matches!(
        guest.devices.unplug(&half),
        Err(PlugError::Together(_))
    ));
    assert_eq!(guest.dma(ids[0], REGION), None);
    assert_eq!(
        guest.dma(ids[0], REGION + BLOCK),
        Some((OFFSET + BLOCK, "rw"))
    );
}

/// Numbers that are as good as random.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % end
    }
}

/// What a page of the guest's tables leads to: a page of the region, or of memory that stays.
fn output(page: u64) -> u64 {
    match page % 3 {
        0 => 0x10_0000 + page * 0x1000,
        // The last and the first pages of blocks, so that runs go from one into the next.
        1 => REGION + (page % 4 + 1) * BLOCK - 0x1000,
        _ => REGION + (page % 4) * BLOCK,
    }
}

#[test]
fn whatever_comes_and_goes_devices_reach_what_is_mapped_to_memory_that_is_there() {
    const PAGES: u64 = 24;
    for seed in 0..20 {
        let mut numbers = Numbers(seed);
        let (guest, ids) = Guest::with(&[FakeFeatures::default(); 2]);
        let paging = guest.world.second_stage(4);
        guest.shadow(SOURCES[0], &paging, 5);
        guest.enter_pass_through(SOURCES[1]);
        guest.announce_entry(1);
        let mut mapped = std::collections::BTreeMap::new();
        let mut plugged = std::collections::BTreeSet::new();
        for step in 0..60 {
            match numbers.below(4) {
                0 => {
                    let number = numbers.below(5);
                    let outcome = plug(&guest, number..number + 1);
                    assert_eq!(outcome.is_ok(), !plugged.contains(&number));
                    plugged.insert(number);
                }
                1 => {
                    let (one, other) = (numbers.below(5), numbers.below(6));
                    let range = one.min(other)..one.max(other);
                    unplug(&guest, range.clone()).unwrap();
                    plugged.retain(|number| !range.contains(number));
                }
                _ => {
                    let (page, to) = (numbers.below(PAGES), numbers.below(PAGES));
                    mapped.insert(page, output(to));
                    guest.map(&paging, page * 0x1000, output(to), 1, 3);
                    guest.invalidate(&[Invalidation::All]);
                }
            }
            let there = |output: u64| match output.checked_sub(REGION) {
                None => Some((output, "rw")),
                Some(at) => plugged
                    .contains(&(at / BLOCK))
                    .then_some((OFFSET + at, "rw")),
            };
            for page in 0..PAGES {
                let expected = mapped.get(&page).copied().and_then(there);
                let found = guest.dma(ids[0], page * 0x1000);
                assert_eq!(found, expected, "seed {seed} step {step} page {page}");
            }
            for number in 0..5 {
                let at = REGION + number * BLOCK;
                assert_eq!(guest.dma(ids[1], at), there(at), "seed {seed} step {step}");
            }
        }
    }
}
