//! Requests with PASIDs: which of them are bound, to what, and when no more.

use std::time::{Duration, Instant};

use super::testing::*;
use super::*;
use crate::fake::{Call, FakeFeatures, errno};
use crate::host_iommu::{HostDeviceId, HwptOptions, NestedInvalidation};
use intel_vtd::spec::descriptors::{IotlbScope, PasidCacheScope};
use intel_vtd::spec::registers::TableMode;
use intel_vtd::testing::tables::Paging;
use intel_vtd::{DeviceTlbInvalidation, DeviceTlbTarget, Latched, Pasid};

const A: SourceId = SOURCES[0];
const B: SourceId = SOURCES[1];
/// Leaves of the first stage: P, R/W, U/S.
const LEAF: u64 = 7;

const PASIDS: FakeFeatures = FakeFeatures {
    pasid_bits: 20,
    ..NESTING
};

/// Every device is to be read again.
const ENTRIES: Invalidation = Invalidation::PasidCache(PasidCacheScope::Global);

/// An entry with first-stage tables.
fn first_stage(paging: &Paging, domain: u64) -> [u64; 3] {
    entry::first_stage(paging.top, domain)
}

use entry::{NOTHING, PASS_THROUGH};

/// First-stage tables in which 0x8000_0000 is `output`.
fn tables(guest: &Guest, output: u64) -> Paging {
    let paging = guest.world.first_stage(4);
    guest.map(&paging, 0x8000_0000, output, 1, LEAF);
    paging
}

/// A device that is passed through, and has first-stage tables for PASID 7 of domain 5, in which
/// 0x8000_0000 is 0x30_0000.
fn one() -> (Guest, HostDeviceId, Paging) {
    let (guest, ids) = Guest::with(&[PASIDS]);
    guest.enter_pass_through(A);
    guest.announce_entry(1);
    let paging = tables(&guest, 0x30_0000);
    guest.enter_with(A, 7, first_stage(&paging, 5));
    guest.announce_pasid(5, 7);
    assert_eq!(
        guest.dma_with(ids[0], 7, 0x8000_0000),
        Some((0x30_0000, "rw"))
    );
    guest.host.take_calls();
    guest.host.take_invalidations();
    (guest, ids[0], paging)
}

fn numbers(guest: &Guest, device: HostDeviceId) -> Vec<u32> {
    let pasids = guest.host.pasids(device);
    pasids.into_iter().map(Pasid::get).collect()
}

fn why(guest: &Guest, source: SourceId, pasid: u32) -> Option<Blocked> {
    match guest.binding_of(source, pasid) {
        Some(Placement::Blocked(why)) => Some(why),
        _ => None,
    }
}

fn enable(guest: &Guest, latched: Latched) {
    guest.unit.dma_state().set_latched(latched);
    guest.change_translation();
}

fn device_tlb(source: SourceId, target: DeviceTlbTarget, address: u64, shift: u8) -> Invalidation {
    Invalidation::DeviceTlb {
        source,
        invalidation: DeviceTlbInvalidation {
            target,
            address,
            shift,
        },
    }
}

fn page(address: u64, pages: u64) -> NestedInvalidation {
    NestedInvalidation {
        address,
        pages,
        leaf_only: true,
    }
}

fn invalidations(guest: &Guest) -> Vec<Vec<NestedInvalidation>> {
    let calls = guest.host.take_invalidations();
    calls.into_iter().map(|(_, list)| list).collect()
}

#[test]
fn tables_are_reached_with_their_pasid_and_with_no_other() {
    let (guest, device, paging) = one();
    assert_eq!(guest.dma_with(device, 6, 0x8000_0000), None);
    assert_eq!(guest.dma_with(device, 7, 0x30_0000), None);
    assert_eq!(guest.dma(device, 0x8000_0000), None);
    assert_eq!(guest.dma(device, 0x30_0000), Some((0x30_0000, "rw")));
    assert_eq!(
        guest.devices.to_string(),
        format!(
            "00:03.0 fake1: guest-physical memory\n  PASID 0x7: nested first-stage {:#x}, 4 levels on guest memory, domain 5\n",
            paging.top
        )
    );
    let done = guest.devices.statistics();
    assert_eq!((done.pasid_attaches, done.pasid_failures), (1, 0));
}

#[test]
fn each_kind_of_entry_is_followed_and_one_that_goes_is_detached() {
    let (guest, device, _) = one();
    let below = guest.world.second_stage(4);
    guest.map(&below, 0x9000_0000, 0x31_0000, 1, 3);
    guest.enter_with(A, 7, entry::second_stage(&below, 6));
    guest.announce_pasid(6, 7);
    assert_eq!(
        guest.dma_with(device, 7, 0x9000_0000),
        Some((0x31_0000, "rw"))
    );
    assert_eq!(guest.dma_with(device, 7, 0x8000_0000), None);
    // What the guest maps there later is said by pages of the domain.
    guest.map(&below, 0x9000_1000, 0x32_0000, 1, 3);
    guest.invalidate(&[pages(6, 0x9000_1000, 0)]);
    assert_eq!(
        guest.dma_with(device, 7, 0x9000_1000),
        Some((0x32_0000, "rw"))
    );

    guest.enter_with(A, 7, PASS_THROUGH);
    guest.announce_pasid(1, 7);
    assert_eq!(
        guest.dma_with(device, 7, 0x30_0000),
        Some((0x30_0000, "rw"))
    );

    // First-stage tables that lie where the second stage has them.
    let first = guest.world.first_stage(4);
    guest.map(&first, 0x8000_0000, 0x9000_0000, 1, LEAF);
    for table in (0x10_0000..guest.world.page()).step_by(0x1000) {
        guest.world.map(&below, table, 1, table | 3);
    }
    guest.enter_with(A, 7, entry::nested(first.top, &below, 6));
    guest.announce_pasid(6, 7);
    assert_eq!(
        guest.dma_with(device, 7, 0x8000_0000),
        Some((0x31_0000, "rw"))
    );

    guest.enter_with(A, 7, NOTHING);
    guest.announce_pasid(6, 7);
    assert_eq!(guest.dma_with(device, 7, 0x8000_0000), None);
    assert!(numbers(&guest, device).is_empty());
    assert_eq!(guest.binding_of(A, 7), None);
    assert_eq!(
        (guest.devices.nested(), guest.devices.mapped()),
        (0, (0, 0))
    );
}

#[test]
fn page_tables_are_of_the_kinds_that_the_kernel_takes_for_pasids() {
    let (guest, ids) = Guest::with(&[PASIDS]);
    let mut made = Vec::new();
    guest.enter_pass_through(A);
    guest.announce_entry(1);
    let paging = tables(&guest, 0x30_0000);
    for (pasid, words) in [(7, first_stage(&paging, 5)), (8, PASS_THROUGH)] {
        guest.enter_with(A, pasid, words);
        guest.announce_pasid(1, pasid);
    }
    let mut refused = 0;
    for (call, outcome) in guest.host.take_calls() {
        match call {
            Call::Attach { .. } if outcome == Err(errno::EINVAL) => refused += 1,
            _ => assert_eq!(outcome, Ok(()), "{call:?}"),
        }
        match call {
            Call::AllocateHwpt { options, .. } => made.push(options),
            Call::AllocateNested { options, .. } => assert!(options.pasid),
            _ => {}
        }
    }
    // The one for requests without PASID was made before. It has dirty tracking, as has another one
    // that is made for the first PASID; the host takes neither, and that is known from then on.
    let parent = |dirty_tracking| HwptOptions {
        nesting_parent: true,
        dirty_tracking,
        pasid: true,
    };
    assert_eq!(made, [parent(true), parent(false)]);
    assert_eq!(refused, 2);
    assert_eq!(numbers(&guest, ids[0]), [7, 8]);
    let error = guest.devices.start_dirty_tracking().unwrap_err();
    assert!(
        matches!(error, DirtyTrackingError::Pasids { .. }),
        "{error}"
    );
}

#[test]
fn dirty_pages_of_pasids_are_tracked_where_the_kernel_can() {
    let tracking = FakeFeatures {
        tracks_pasids: true,
        ..PASIDS
    };
    let (guest, ids) = Guest::with(&[tracking]);
    let nested = tables(&guest, 0x30_0000);
    let second = guest.world.second_stage(4);
    guest.map(&second, 0x8000_0000, 0x40_0000, 1, 3);
    let entries = [
        (7, first_stage(&nested, 5)),
        (8, entry::second_stage(&second, 6)),
        (9, PASS_THROUGH),
    ];
    for (pasid, words) in entries {
        guest.enter_with(A, pasid, words);
        guest.announce_pasid(5, pasid);
    }
    assert_eq!(numbers(&guest, ids[0]), [7, 8, 9]);
    for (call, outcome) in guest.host.take_calls() {
        assert_eq!(outcome, Ok(()), "{call:?}");
        if let Call::AllocateHwpt { options, .. } = call {
            assert!(options.dirty_tracking && options.pasid, "{options:?}");
        }
    }
    guest.devices.start_dirty_tracking().unwrap();
}

#[test]
fn devices_and_pasids_with_the_same_tables_share_a_page_table() {
    let (guest, ids) = Guest::with(&[PASIDS, PASIDS]);
    let paging = tables(&guest, 0x30_0000);
    for (source, pasid) in [(A, 7), (A, 8), (B, 7)] {
        guest.enter_with(source, pasid, first_stage(&paging, 5));
        guest.announce_pasid(5, pasid);
    }
    assert_eq!(guest.devices.nested(), 1);
    let table = guest.host.attached_with(ids[0], Pasid::new(7));
    assert!(table.is_some());
    assert_eq!(table, guest.host.attached_with(ids[1], Pasid::new(7)));
}

#[test]
fn a_device_that_is_shown_without_pasids_has_none() {
    let (guest, ids) = Guest::with(&[NESTING]);
    let paging = tables(&guest, 0x30_0000);
    guest.enter_with(A, 7, first_stage(&paging, 5));
    guest.announce_pasid(5, 7);
    guest.invalidate(&[CONTEXT]);
    assert_eq!(guest.binding_of(A, 7), None);
    assert_eq!(guest.host.take_calls(), []);
    assert!(numbers(&guest, ids[0]).is_empty());
}

#[test]
fn requests_without_pasid_are_never_bound_a_second_time_by_their_own_pasid() {
    let (guest, device, paging) = one();
    // RID_PASID is 9.
    guest.world.set(guest.context(A) + 8, 9);
    guest.enter_with(A, 9, first_stage(&paging, 5));
    guest.invalidate(&[CONTEXT]);
    assert_eq!(guest.dma(device, 0x8000_0000), Some((0x30_0000, "rw")));
    guest.announce_pasid(5, 9);
    assert_eq!(guest.dma_with(device, 9, 0x8000_0000), None);
    assert_eq!(numbers(&guest, device), [7]);
    // PASID 0 is one like any other for the guest, and not to be had from the host.
    assert_eq!(why(&guest, A, 0), Some(Blocked::PasidZero));
    assert!(
        guest
            .devices
            .to_string()
            .contains("\n  PASID 0x0: blocked: the host has no PASID 0")
    );
    let zero = Pasid::ZERO;
    let tried = guest.host.take_calls();
    let tried = tried
        .iter()
        .filter(|(call, _)| matches!(call, Call::Attach { pasid, .. } if *pasid == Some(zero)));
    assert_eq!(tried.count(), 0);
    // Once RID_PASID is 0 again, it is what requests without have.
    guest.world.set(guest.context(A) + 8, 0);
    guest.invalidate(&[CONTEXT]);
    assert_eq!(guest.binding_of(A, 0), None);
    assert_eq!(guest.binding(A), Placement::GuestPhysical);
    assert_eq!(numbers(&guest, device), [7, 9]);
}

#[test]
fn pasids_beyond_what_the_device_has_in_the_host_are_blocked_with_the_reason() {
    let few = FakeFeatures {
        pasid_bits: 6,
        ..PASIDS
    };
    let (guest, ids) = Guest::with(&[few]);
    let paging = tables(&guest, 0x30_0000);
    for pasid in [63, 64] {
        guest.enter_with(A, pasid, first_stage(&paging, 5));
        guest.announce_pasid(5, pasid);
    }
    assert_eq!(numbers(&guest, ids[0]), [63]);
    assert_eq!(why(&guest, A, 64), Some(Blocked::PasidTooLarge { bits: 6 }));
}

#[test]
fn without_pasids_in_the_host_nothing_is_taken_for_attached() {
    // The kernel says yes to attaching them, and does nothing.
    let (guest, ids) = Guest::with(&[]);
    assert_eq!(ids, []);
    let mut device = assigned_device(&guest.host, A, NESTING);
    device.pasids = true;
    let id = device.id;
    guest.devices.add(device).unwrap();
    let paging = tables(&guest, 0x30_0000);
    guest.enter_with(A, 7, first_stage(&paging, 5));
    guest.announce_pasid(5, 7);
    assert_eq!(why(&guest, A, 7), Some(Blocked::PasidTooLarge { bits: 0 }));
    assert_eq!(guest.dma_with(id, 7, 0x8000_0000), None);
}

#[test]
fn what_the_context_entry_does_not_let_through_is_detached() {
    let (guest, device, _) = one();
    guest.world.clear(guest.context(A), 1 << 3);
    guest.invalidate(&[CONTEXT]);
    assert!(numbers(&guest, device).is_empty());
    guest.world.or(guest.context(A), 1 << 3);
    // The guest announces the context entry; the others were there.
    guest.invalidate(&[CONTEXT]);
    assert_eq!(numbers(&guest, device), [7]);
    let directory = guest.world.get(guest.context(A)) & !0xfff;
    let tables = guest.world.get(directory);
    guest.world.set(directory, 0);
    guest.invalidate(&[ENTRIES]);
    assert!(numbers(&guest, device).is_empty());
    // PASIDs 8192 and up are beyond the directory.
    guest.world.set(directory, tables);
    guest.world.set(directory + 128 * 8, tables);
    guest.announce_pasid(5, 8192 + 7);
    assert!(numbers(&guest, device).is_empty());
    guest.world.set(guest.context(A), 0);
    guest.invalidate(&[CONTEXT]);
    assert!(numbers(&guest, device).is_empty());
    assert!(matches!(
        guest.binding(A),
        Placement::Blocked(Blocked::Guest(_))
    ));
}

#[test]
fn without_translation_or_in_legacy_mode_there_are_no_pasids() {
    let (guest, device, _) = one();
    let on = guest.world.latched;
    enable(
        &guest,
        Latched {
            enabled: false,
            ..on
        },
    );
    assert!(numbers(&guest, device).is_empty());
    assert_eq!(guest.binding(A), Placement::GuestPhysical);
    enable(&guest, on);
    assert_eq!(numbers(&guest, device), [7]);
    let mut legacy = on;
    legacy.root.mode = TableMode::Legacy;
    enable(&guest, legacy);
    assert!(numbers(&guest, device).is_empty());
    enable(&guest, on);
    assert_eq!(
        guest.dma_with(device, 7, 0x8000_0000),
        Some((0x30_0000, "rw"))
    );
}

#[test]
fn a_pasid_stays_bound_while_requests_without_are_blocked_and_come_back() {
    let (guest, device, _) = one();
    guest.enter_nothing(A);
    guest.announce_entry(1);
    assert_eq!(guest.dma(device, 0x30_0000), None);
    assert!(guest.dma_with(device, 7, 0x8000_0000).is_some());
    guest.enter_pass_through(A);
    guest.announce_entry(1);
    assert!(guest.dma(device, 0x30_0000).is_some());
    assert!(guest.dma_with(device, 7, 0x8000_0000).is_some());
    let calls = guest.host.take_calls();
    assert!(
        calls.iter().all(|(_, outcome)| outcome.is_ok()),
        "{calls:?}"
    );
}

#[test]
fn pasids_are_detached_before_the_rest_of_a_device_that_is_taken_away() {
    let (guest, device, _) = one();
    assert!(guest.devices.remove(A));
    let calls = guest.host.take_calls();
    let detached: Vec<_> = calls
        .iter()
        .filter_map(|(call, _)| match call {
            Call::Detach { pasid, .. } => Some(*pasid),
            _ => None,
        })
        .collect();
    assert_eq!(detached, [Pasid::new(7), None]);
    assert!(numbers(&guest, device).is_empty());
    assert_eq!(objects(&[&guest.host]), 0);
}

#[test]
fn entries_that_were_there_before_the_device_are_found() {
    let (guest, _) = Guest::with(&[]);
    let paging = tables(&guest, 0x30_0000);
    for pasid in [1, 63, 64, 8191] {
        guest.enter_with(A, pasid, first_stage(&paging, 5));
    }
    let device = guest.add(A, PASIDS);
    assert_eq!(numbers(&guest, device), [1, 63, 64, 8191]);
}

#[test]
fn entries_are_found_by_what_names_them_and_not_by_other_names() {
    let (guest, device, paging) = one();
    for pasid in [8, 9] {
        guest.enter_with(A, pasid, first_stage(&paging, 5));
    }
    guest.announce_pasid(5, 9);
    assert_eq!(numbers(&guest, device), [7, 9]);
    guest.invalidate(&[Invalidation::PasidCache(PasidCacheScope::Domain(5))]);
    assert_eq!(numbers(&guest, device), [7, 9], "those that are known");
    guest.enter_with(A, 7, NOTHING);
    guest.invalidate(&[Invalidation::PasidCache(PasidCacheScope::Domain(5))]);
    assert_eq!(numbers(&guest, device), [9]);
    // What was not present is of domain 0.
    guest.invalidate(&[Invalidation::PasidCache(PasidCacheScope::Domain(0))]);
    assert_eq!(numbers(&guest, device), [8, 9]);
}

#[test]
fn another_device_is_not_looked_through() {
    let (guest, ids) = Guest::with(&[PASIDS, PASIDS]);
    let paging = tables(&guest, 0x30_0000);
    for source in [A, B] {
        guest.enter_with(source, 7, first_stage(&paging, 5));
    }
    guest.invalidate(&[Invalidation::Context(
        intel_vtd::spec::descriptors::ContextScope::Device {
            source: B.0,
            function_mask: 0,
        },
    )]);
    assert!(numbers(&guest, ids[0]).is_empty());
    assert_eq!(numbers(&guest, ids[1]), [7]);
}

#[test]
fn a_replacement_that_fails_is_repeated_from_a_clean_state_and_then_reported_and_tried_again() {
    let (guest, device, _) = one();
    let other = tables(&guest, 0x40_0000);
    guest.enter_with(A, 7, first_stage(&other, 5));
    // The nested page table is made, and then attached.
    guest.host.fail_after(1, errno::ENOMEM);
    guest.announce_pasid(5, 7);
    assert_eq!(
        guest.dma_with(device, 7, 0x8000_0000),
        Some((0x40_0000, "rw"))
    );
    assert_eq!(guest.devices.statistics().recoveries, 1);

    let third = tables(&guest, 0x50_0000);
    guest.enter_with(A, 7, first_stage(&third, 5));
    // Attached, detached, attached.
    for call in [1, 3] {
        guest.host.fail_after(call, errno::ENOMEM);
    }
    guest.announce_pasid(5, 7);
    assert_eq!(why(&guest, A, 7), Some(Blocked::Host(Some(errno::ENOMEM))));
    assert_eq!(guest.dma_with(device, 7, 0x8000_0000), None);
    assert_eq!(guest.devices.statistics().pasid_failures, 1);
    // Whoever else is named brings it back only if all that is known is looked at.
    guest.announce_pasid(5, 8);
    assert!(why(&guest, A, 7).is_some());
    guest.invalidate(&[Invalidation::PasidCache(PasidCacheScope::Domain(9))]);
    assert_eq!(
        guest.dma_with(device, 7, 0x8000_0000),
        Some((0x50_0000, "rw"))
    );
}

#[test]
fn a_pasid_that_cannot_be_detached_is_tried_again_and_kept_in_mind() {
    let (guest, device, paging) = one();
    guest.enter_with(A, 7, NOTHING);
    for call in 0..20 {
        guest.host.fail_after(call, errno::ENOENT);
    }
    guest.announce_pasid(5, 7);
    assert!(
        guest.dma_with(device, 7, 0x8000_0000).is_some(),
        "it is stuck"
    );
    assert!(why(&guest, A, 7).is_some());
    // The page table is not given back under it.
    assert!(guest.host.attached_with(device, Pasid::new(7)).is_some());
    guest.host.fail_no_more();
    // Any entry that is invalidated is an opportunity.
    guest.announce_pasid(5, 8);
    assert_eq!(guest.dma_with(device, 7, 0x8000_0000), None);
    assert_eq!(guest.binding_of(A, 7), None);
    guest.enter_with(A, 7, first_stage(&paging, 5));
    guest.announce_pasid(5, 7);
    assert!(guest.dma_with(device, 7, 0x8000_0000).is_some());
    guest.devices.remove(A);
    assert_eq!(objects(&[&guest.host]), 0);
}

#[test]
fn a_kernel_that_takes_no_page_table_for_a_pasid_is_not_asked_for_more_and_more_of_them() {
    let (guest, device, paging) = one();
    let before = objects(&[&guest.host]);
    for round in 0..50 {
        guest.enter_with(A, 9, PASS_THROUGH);
        // The page table that is there; then one more.
        guest.host.fail_after(0, errno::EINVAL);
        guest.host.fail_after(4, errno::EINVAL);
        guest.announce_pasid(1, 9);
        assert_eq!(
            why(&guest, A, 9),
            Some(Blocked::Host(Some(errno::EINVAL))),
            "{round}"
        );
        guest.enter_with(A, 10, first_stage(&paging, 5));
        guest.host.fail_no_more();
        guest.host.fail_after(1, errno::EINVAL);
        guest.host.fail_after(6, errno::EINVAL);
        guest.announce_pasid(5, 10);
        guest.host.fail_no_more();
        guest.enter_with(A, 10, NOTHING);
        guest.announce_pasid(5, 10);
        assert!(objects(&[&guest.host]) <= before + 1, "{round}");
    }
    assert_eq!(numbers(&guest, device), [7]);
}

#[test]
fn no_more_are_bound_than_the_limit_and_room_is_used_again() {
    let guest = Guest::new(Limits {
        pasids: 3,
        ..Limits::default()
    });
    let device = guest.add(A, PASIDS);
    let paging = tables(&guest, 0x30_0000);
    for pasid in 1..=6 {
        guest.enter_with(A, pasid, first_stage(&paging, 5));
        guest.announce_pasid(5, pasid);
    }
    assert_eq!(numbers(&guest, device), [1, 2, 3]);
    assert_eq!(guest.devices.statistics().pasid_failures, 3);
    assert_eq!(guest.binding_of(A, 4), None);
    for pasid in [1, 2] {
        guest.enter_with(A, pasid, NOTHING);
    }
    guest.invalidate(&[CONTEXT]);
    assert_eq!(numbers(&guest, device), [3, 4, 5]);
    // Entries that are present and in disorder take nobody's place.
    for pasid in [3, 4] {
        guest.enter_with(A, pasid, [1, 0, 0]);
    }
    guest.invalidate(&[CONTEXT]);
    assert_eq!(numbers(&guest, device), [5, 6]);
}

#[test]
fn pasids_beyond_the_limit_are_bound_when_others_leave() {
    let guest = Guest::new(Limits {
        pasids: 3,
        ..Limits::default()
    });
    let device = guest.add(A, PASIDS);
    let paging = tables(&guest, 0x30_0000);
    for pasid in 1..=6 {
        guest.enter_with(A, pasid, first_stage(&paging, 5));
        guest.announce_pasid(5, pasid);
    }
    assert_eq!(numbers(&guest, device), [1, 2, 3]);
    // Only what goes is announced, as Linux does it.
    for (gone, left) in [(1, vec![2, 3, 4]), (3, vec![2, 4, 5]), (5, vec![2, 4, 6])] {
        guest.enter_with(A, gone, NOTHING);
        guest.announce_pasid(5, gone);
        assert_eq!(numbers(&guest, device), left);
    }
    // None is left over, so nobody looks for more.
    guest.enter_with(A, 2, NOTHING);
    guest.enter_with(A, 8, first_stage(&paging, 5));
    guest.announce_pasid(5, 2);
    assert_eq!(numbers(&guest, device), [4, 6]);
}

/// A device whose directory has 2^14 entries, each of which leads to `table`.
fn crowded(limits: Limits, table: impl Fn(&Guest) -> u64) -> (Guest, HostDeviceId) {
    let guest = Guest::new(limits);
    let directory = guest.world.page();
    (1..32).for_each(|_| {
        guest.world.page();
    });
    let table = table(&guest);
    for index in 0..1 << 14 {
        guest.world.set(directory + index * 8, table | 1);
    }
    let device = guest.add(A, PASIDS);
    // PDTS of 7.
    guest
        .world
        .set(guest.context(A), directory | 7 << 9 | 1 << 3 | 1);
    (guest, device)
}

#[test]
fn a_directory_full_of_present_entries_costs_a_bounded_time_and_binds_the_limit() {
    let (guest, device) = crowded(Limits::default(), |guest| {
        let paging = tables(guest, 0x30_0000);
        let table = guest.world.page();
        for entry in 0..64 {
            for (index, word) in (0..).zip(first_stage(&paging, 5)) {
                guest.world.set(table + entry * 64 + index * 8, word);
            }
        }
        table
    });
    let start = Instant::now();
    guest.invalidate(&[CONTEXT]);
    println!("{:?} to bind the first 256 of 2^20 PASIDs", start.elapsed());
    assert_eq!(numbers(&guest, device).len(), 256);
    // One for requests without PASID.
    assert_eq!(guest.devices.nested(), 2);
    let start = Instant::now();
    for _ in 0..10 {
        guest.invalidate(&[ENTRIES]);
    }
    println!("{:?} to find that again", start.elapsed() / 10);
    assert_eq!(numbers(&guest, device).len(), 256);
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_directory_full_of_empty_tables_is_read_to_the_end_once() {
    let (guest, device) = crowded(Limits::default(), |guest| guest.world.page());
    let start = Instant::now();
    guest.invalidate(&[CONTEXT]);
    println!("{:?} to read 2^14 PASID tables", start.elapsed());
    assert!(numbers(&guest, device).is_empty());
    // Within one exit, what is left of the budget is all that there is.
    let start = Instant::now();
    guest.devices.run_begins();
    for _ in 0..1000 {
        guest.tell(&[CONTEXT]);
    }
    println!(
        "{:?} for one exit that asks for it a thousand times",
        start.elapsed()
    );
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn what_was_not_read_again_for_want_of_budget_is_blocked() {
    let guest = Guest::new(Limits {
        pasid_steps_per_exit: 40,
        ..Limits::default()
    });
    let device = guest.add(A, PASIDS);
    let paging = tables(&guest, 0x30_0000);
    for pasid in 1..=4 {
        guest.enter_with(A, pasid, first_stage(&paging, 5));
        guest.announce_pasid(5, pasid);
    }
    assert_eq!(numbers(&guest, device), [1, 2, 3, 4]);
    guest.devices.run_begins();
    for _ in 0..20 {
        guest.tell(&[ENTRIES]);
    }
    assert!(numbers(&guest, device).is_empty());
    assert_eq!(why(&guest, A, 1), Some(Blocked::TooMuchWork));
    guest.invalidate(&[ENTRIES]);
    assert!(
        !numbers(&guest, device).is_empty(),
        "the next exit is another one"
    );
}

#[test]
fn a_guest_that_changes_entries_for_ever_has_a_bounded_number_of_host_calls_in_each_exit() {
    let (guest, device, paging) = one();
    let other = tables(&guest, 0x40_0000);
    guest.devices.run_begins();
    for round in 0..20_000 {
        let paging = if round % 2 == 0 { &other } else { &paging };
        guest.enter_with(A, 7, first_stage(paging, 5));
        let named = Invalidation::PasidCache(PasidCacheScope::Pasid(5, 7));
        guest.tell(&[named]);
    }
    let done = guest.devices.statistics();
    assert!(done.pasid_attaches < (1 << 16) / 16 + 2, "{done:?}");
    assert_eq!(why(&guest, A, 7), Some(Blocked::TooMuchWork));
    assert_eq!(guest.dma_with(device, 7, 0x8000_0000), None);
    assert_eq!(guest.devices.nested(), 0);
    guest.announce_pasid(5, 7);
    assert!(guest.dma_with(device, 7, 0x8000_0000).is_some());
}

#[test]
fn a_guest_that_invalidates_for_ever_has_a_bounded_number_of_host_calls_in_each_exit() {
    let guest = Guest::new(Limits {
        steps_per_exit: 50 * 100,
        ..Limits::default()
    });
    let device = guest.add(A, PASIDS);
    let paging = tables(&guest, 0x30_0000);
    for pasid in [7, 8] {
        guest.enter_with(A, pasid, first_stage(&paging, 5));
        guest.announce_pasid(5, pasid);
    }
    guest.host.take_invalidations();
    guest.devices.run_begins();
    for _ in 0..1000 {
        guest.tell(&[pasid_pages(5, 7, 0x8000_0000, 0)]);
    }
    // Each is one for either PASID.
    assert_eq!(invalidations(&guest).len(), 25);
    // What the host was not told to forget is not reached.
    assert!(numbers(&guest, device).is_empty());
    assert_eq!(why(&guest, A, 8), Some(Blocked::TooMuchWork));
    guest.announce_pasid(5, 8);
    assert_eq!(numbers(&guest, device), [8]);
}

#[test]
fn a_guest_with_many_shadows_has_a_bounded_number_of_blocks_noted_in_each_exit() {
    let guest = Guest::new(Limits {
        steps_per_exit: 50 * 16,
        ..Limits::default()
    });
    guest.add(A, PASIDS);
    let pagings: Vec<Paging> = (0..4).map(|_| guest.world.second_stage(4)).collect();
    for (pasid, paging) in (1..).zip(&pagings) {
        guest.enter_with(A, pasid, [paging.top | 0x89, 5, 0]);
        guest.announce_pasid(5, pasid);
    }
    let bound = |guest: &Guest| {
        (1..=4)
            .filter(|pasid| why(guest, A, *pasid).is_none())
            .count()
    };
    assert_eq!(bound(&guest), 4);
    guest.devices.run_begins();
    let nobodys = Invalidation::Iotlb(IotlbScope::Domain(99));
    // What names none of them is no work for any.
    for _ in 0..100 {
        guest.tell(&[nobodys; 64]);
    }
    assert_eq!(bound(&guest), 4);
    // Beyond what the tables translate nothing is read, but all 4 are told.
    let beyond = pages(5, 1 << 50, 0);
    for _ in 0..12 {
        guest.tell(&[beyond; 64]);
    }
    assert_eq!(bound(&guest), 4);
    guest.tell(&[beyond; 64]);
    assert!(bound(&guest) < 4);
    guest.tell(&[beyond; 64]);
    assert_eq!(bound(&guest), 0);
    assert_eq!(why(&guest, A, 1), Some(Blocked::TooMuchWork));
}

#[test]
fn an_invalidation_reaches_the_tables_of_its_domain_and_pasid_and_no_others() {
    let (guest, ids) = Guest::with(&[PASIDS, PASIDS]);
    // Domain 5 has PASIDs 7 and 8 of one device and PASID 7 of another, which has PASID 8 in domain
    // 6.
    let places = [(A, 7, 5), (A, 8, 5), (B, 7, 5), (B, 8, 6)];
    let mut found = Vec::new();
    for (source, pasid, domain) in places {
        let paging = tables(&guest, 0x30_0000);
        guest.enter_with(source, pasid, first_stage(&paging, domain.into()));
        guest.announce_pasid(domain, pasid);
        let id = ids[usize::from(source == B)];
        found.push(guest.host.attached_with(id, Pasid::new(pasid)).unwrap());
    }
    let reached = |invalidation| {
        guest.host.take_invalidations();
        guest.invalidate(&[invalidation]);
        let mut reached: Vec<_> = guest
            .host
            .take_invalidations()
            .iter()
            .map(|(table, _)| found.iter().position(|is| is == table).unwrap())
            .collect();
        reached.sort_unstable();
        reached
    };
    assert_eq!(reached(pasid_pages(5, 7, 0x8000_0000, 0)), [0, 2]);
    assert_eq!(reached(pasid_pages(5, 8, 0x8000_0000, 0)), [1]);
    assert!(reached(pasid_pages(6, 7, 0x8000_0000, 0)).is_empty());
    assert_eq!(
        reached(Invalidation::Iotlb(IotlbScope::Domain(5))),
        [0, 1, 2]
    );
    assert_eq!(reached(Invalidation::Iotlb(IotlbScope::Domain(6))), [3]);
    assert_eq!(
        reached(Invalidation::Iotlb(IotlbScope::Global)),
        [0, 1, 2, 3]
    );
}

#[test]
fn a_rejected_invalidation_of_a_shared_table_detaches_everyone_who_uses_it() {
    let (guest, ids) = Guest::with(&[PASIDS, PASIDS]);
    let paging = tables(&guest, 0x30_0000);
    for (source, pasid) in [(A, 7), (B, 8)] {
        guest.enter_with(source, pasid, first_stage(&paging, 5));
        guest.announce_pasid(5, pasid);
    }
    for call in [0, 1] {
        guest.host.fail_after(call, errno::ENOMEM);
    }
    guest.invalidate(&[pasid_pages(5, 7, 0x8000_0000, 0)]);
    assert_eq!(guest.devices.statistics().invalidation_detaches, 2);
    assert_eq!(
        (numbers(&guest, ids[0]), numbers(&guest, ids[1])),
        (vec![], vec![])
    );
    assert!(matches!(
        why(&guest, A, 7),
        Some(Blocked::NotInvalidated(_))
    ));
}

/// As [`one`], with a device that keeps translations itself.
fn with_device_tlb() -> (Guest, HostDeviceId) {
    let (guest, _) = Guest::with(&[]);
    let mut device = assigned_device(&guest.host, A, PASIDS);
    device.ats = true;
    let id = device.id;
    guest.devices.add(device).unwrap();
    let tables = [tables(&guest, 0x30_0000), tables(&guest, 0x40_0000)];
    for (pasid, paging) in [(0, &tables[0]), (7, &tables[1])] {
        guest.enter_with(A, pasid, first_stage(paging, 5));
        guest.announce_pasid(5, pasid);
    }
    guest.host.take_invalidations();
    (guest, id)
}

#[test]
fn what_a_device_alone_is_to_forget_is_passed_on_for_the_tables_of_the_pasid() {
    let (guest, id) = with_device_tlb();
    let pasid = Pasid::new(7).unwrap();
    let reached = |list: &[Invalidation]| {
        guest.invalidate(list);
        guest.host.take_invalidations()
    };
    let (without, with) = (
        guest.host.attached(id).unwrap(),
        guest.host.attached_with(id, Some(pasid)).unwrap(),
    );
    let block = page(0x8000_0000, 2);
    assert_eq!(
        reached(&[device_tlb(
            A,
            DeviceTlbTarget::Pasid(pasid),
            0x8000_0000,
            13
        )]),
        [(with, vec![block])]
    );
    assert_eq!(
        reached(&[device_tlb(
            A,
            DeviceTlbTarget::WithoutPasid,
            0x8000_0000,
            13
        )]),
        [(without, vec![block])]
    );
    assert_eq!(
        reached(&[device_tlb(A, DeviceTlbTarget::AllPasids, 0, 64)]),
        [(with, vec![ALL])]
    );
    assert_eq!(
        reached(&[device_tlb(B, DeviceTlbTarget::WithoutPasid, 0, 64)]),
        []
    );
}

#[test]
fn what_was_invalidated_since_the_guest_asked_is_not_passed_on_for_the_device_again() {
    let (guest, _) = with_device_tlb();
    let pasid = Pasid::new(7).unwrap();
    let two = device_tlb(A, DeviceTlbTarget::Pasid(pasid), 0x8000_0000, 13);
    let asked = pasid_pages(5, 7, 0x8000_0000, 1);
    let block = page(0x8000_0000, 2);
    // Together, as the queue tells it; and apart, within one exit.
    guest.invalidate(&[asked, two]);
    assert_eq!(invalidations(&guest), [vec![block]]);
    guest.devices.run_begins();
    guest.tell(&[asked]);
    guest.tell(&[two]);
    assert_eq!(invalidations(&guest), [vec![block]]);
    // The next exit is another one.
    guest.invalidate(&[two]);
    assert_eq!(invalidations(&guest), [vec![block]]);
    // More than was invalidated, and what was invalidated for somebody else.
    let four = device_tlb(A, DeviceTlbTarget::Pasid(pasid), 0x8000_0000, 14);
    guest.invalidate(&[asked, four]);
    assert_eq!(invalidations(&guest), [vec![block, page(0x8000_0000, 4)]]);
    guest.invalidate(&[pasid_pages(5, 0, 0x8000_0000, 1), two]);
    assert_eq!(invalidations(&guest), [vec![block], vec![block]]);
}

#[test]
fn a_device_with_ats_has_a_device_tlb_for_as_long_as_it_is_there() {
    let (guest, _) = with_device_tlb();
    // Found by the unit, or it would time out.
    assert!(guest.unit.has_device_tlb(A));
    assert!(!guest.unit.has_device_tlb(B));
    guest.devices.remove(A);
    assert!(!guest.unit.has_device_tlb(A));
}
