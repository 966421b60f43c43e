//! Pages that devices have written are told, whatever the host does not say or refuses meanwhile.

use super::testing::*;
use super::{Blocked, DirtyTrackingError, Placement};
use crate::fake::{Call, errno};
use crate::host_iommu::HostDeviceId;
use intel_vtd::testing::tables::Paging;
use intel_vtd::{Patience, TranslationObserver as _, Unfinished};

const RW: u64 = 3;

/// A device behind a shadow with eight pages, which is followed.
fn followed() -> (Guest, HostDeviceId, Paging) {
    let (guest, ids) = Guest::with(&[NESTING]);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x8000_0000, 0x30_0000, 8, RW);
    guest.shadow(SOURCES[0], &paging, 5);
    guest.devices.start_dirty_tracking().unwrap();
    guest.host.take_calls();
    (guest, ids[0], paging)
}

fn dirty(guest: &Guest) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let outcome = guest
        .devices
        .dirty_pages(&mut |address, pages| found.push((address, pages)));
    outcome.unwrap();
    found
}

#[test]
fn pages_of_a_shadow_that_is_still_to_be_given_back_are_told() {
    let (guest, id, _) = followed();
    guest.host.write(id, 0x8000_3000).unwrap();
    guest.enter_nothing(SOURCES[0]);
    guest.devices.run_begins();
    // Its page tables go when someone has more time.
    let outcome = guest
        .devices
        .invalidated(&[CONTEXT], &Patience::endless().with_steps(150));
    assert_eq!(outcome, Err(Unfinished));
    assert_eq!(guest.dma(id, 0x8000_3000), None);
    assert_eq!(dirty(&guest), [(0x30_3000, 1)]);
    guest.tell(&[CONTEXT]);
    assert_eq!(dirty(&guest), []);
}

#[test]
fn a_page_table_that_is_not_tracked_counts_as_written() {
    let (guest, id, paging) = followed();
    let other = guest.world.second_stage(4);
    guest.map(&other, 0, 0x40_0000, 2, RW);
    // An IOAS, a page table, its addresses, and tracking.
    guest.host.fail_after(3, errno::ENOMEM);
    guest.shadow(SOURCES[0], &other, 6);
    let calls = guest.host.take_calls();
    let failed = |(call, outcome): &(Call, _)| {
        matches!(call, Call::SetDirtyTracking { on: true, .. }) && *outcome == Err(errno::ENOMEM)
    };
    assert!(calls.iter().any(failed), "{calls:?}");
    assert!(matches!(
        guest.binding(SOURCES[0]),
        Placement::Shadow { .. }
    ));
    guest.host.write(id, 0).unwrap();
    assert_eq!(dirty(&guest), [(0x40_0000, 2)]);
    assert_eq!(dirty(&guest), [(0x40_0000, 2)]);
    guest.shadow(SOURCES[0], &paging, 5);
    assert_eq!(dirty(&guest), [(0x40_0000, 2)], "what went since");
    assert_eq!(dirty(&guest), []);
}

#[test]
fn what_the_host_does_not_unmap_counts_as_written() {
    let (guest, id, paging) = followed();
    guest.unmap(&paging, 0x8000_0000, 8);
    // What was written is read, and then nothing is unmapped.
    guest.host.fail_after(1, errno::ENOMEM);
    guest.invalidate(&[pages(5, 0x8000_0000, 3)]);
    let calls = guest.host.take_calls();
    let failed = |(call, outcome): &(Call, _)| {
        matches!(call, Call::Unmap { .. }) && *outcome == Err(errno::ENOMEM)
    };
    assert!(calls.iter().any(failed), "{calls:?}");
    assert_eq!(
        guest.binding(SOURCES[0]),
        Placement::Blocked(Blocked::Host(Some(errno::ENOMEM)))
    );
    assert_eq!(guest.dma(id, 0x8000_0000), None);
    assert_eq!(dirty(&guest), [(0x30_0000, 8)]);
}

#[test]
fn what_has_begun_is_ended_where_another_device_cannot_be_followed() {
    let (guest, _) = Guest::with(&[NESTING]);
    let other = crate::fake::FakeHost::new();
    let mut device = assigned_device(&other, SOURCES[1], SHADOWED);
    device.name = "the one".to_owned();
    guest.devices.add(device).unwrap();
    guest.host.take_calls();
    let error = guest.devices.start_dirty_tracking().unwrap_err();
    assert!(
        matches!(&error, DirtyTrackingError::Unsupported { device } if &**device == "the one"),
        "{error}"
    );
    let switched = guest.host.take_calls().into_iter();
    let switched = switched.filter_map(|(call, _)| match call {
        Call::SetDirtyTracking { on, .. } => Some(on),
        _ => None,
    });
    assert_eq!(switched.collect::<Vec<_>>(), [true, false]);
    assert!(guest.devices.dirty_pages(&mut |_, _| {}).is_err());
}
