//! Devices that the kernel is resetting: nothing waits for them under a lock.

use std::thread;
use std::time::Duration;

use super::testing::*;
use super::*;
use crate::fake::{Call, FakeFeatures};
use crate::host_iommu::HostDeviceId;
use intel_vtd::testing::tables::Paging;

const A: SourceId = SOURCES[0];
const BUSY: Placement = Placement::Blocked(Blocked::Busy);
const THERE: Option<(u64, &str)> = Some((0x20_0000, "rw"));

/// A device that is being reset when the guest gives it other tables.
fn moved_while_busy() -> (Guest, HostDeviceId, Paging) {
    let (guest, ids) = Guest::with(&[FakeFeatures::default()]);
    let pagings = [4, 3].map(|levels| guest.world.second_stage(levels));
    guest.map(&pagings[0], 0x1000, 0x10_0000, 1, 3);
    guest.map(&pagings[1], 0x1000, 0x20_0000, 1, 3);
    guest.shadow(A, &pagings[0], 5);
    assert_eq!(guest.dma(ids[0], 0x1000), Some((0x10_0000, "rw")));
    guest.host.set_busy(ids[0], true);
    guest.host.take_calls();
    guest.shadow(A, &pagings[1], 6);
    let [_, other] = pagings;
    (guest, ids[0], other)
}

#[test]
fn a_device_that_is_being_reset_is_blocked_at_once() {
    let (guest, id, _) = moved_while_busy();
    assert_eq!(guest.binding(A), BUSY);
    assert_eq!(guest.dma(id, 0x1000), None);
    let calls = guest.host.take_calls();
    let tries = calls
        .iter()
        .filter(|(call, _)| matches!(call, Call::Attach { .. }));
    assert_eq!(tries.count(), 2, "nothing is waited for");
    assert!(guest.devices.to_string().contains("resetting"));
}

#[test]
fn a_device_is_put_where_it_belongs_once_its_reset_is_over() {
    let (guest, id, paging) = moved_while_busy();
    assert!(guest.devices.retry());
    assert_eq!(guest.binding(A), BUSY);
    // What it is to reach may change meanwhile.
    guest.map(&paging, 0x2000, 0x21_0000, 1, 3);
    guest.host.set_busy(id, false);
    assert!(!guest.devices.retry());
    assert_eq!(guest.dma(id, 0x1000), THERE);
    assert_eq!(guest.dma(id, 0x2000), Some((0x21_0000, "rw")));
    assert!(!guest.devices.retry());
    assert!(!guest.devices.hosts.lock().resources.has_waiting);
}

#[test]
fn what_the_guest_blocks_meanwhile_is_not_put_anywhere() {
    let (guest, id, _) = moved_while_busy();
    guest.enter_nothing(A);
    guest.announce_entry(6);
    guest.host.set_busy(id, false);
    assert!(!guest.devices.retry());
    assert_eq!(guest.dma(id, 0x1000), None);
}

#[test]
fn devices_of_a_group_wait_together() {
    let guest = Guest::new(Limits::default());
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x1000, 0x20_0000, 1, 3);
    let ids = [0, 1].map(|at| {
        let device = grouped_device(&guest.host, SOURCES[at], FakeFeatures::default());
        let id = device.id;
        guest.devices.add(device).unwrap();
        guest.enter_second_stage(SOURCES[at], &paging, 5);
        id
    });
    guest.host.set_busy(ids[1], true);
    guest.invalidate(&[CONTEXT]);
    assert_eq!(ids.map(|id| guest.dma(id, 0x1000)), [None; 2]);
    guest.host.set_busy(ids[1], false);
    assert!(!guest.devices.retry());
    assert_eq!(ids.map(|id| guest.dma(id, 0x1000)), [THERE; 2]);
}

#[test]
fn a_thread_tries_until_the_reset_is_over() {
    let (guest, id, _) = moved_while_busy();
    // Tests do without the thread otherwise.
    guest.devices.hosts.lock().is_retrying = false;
    guest.announce_entry(6);
    assert!(guest.devices.hosts.lock().is_retrying);
    guest.host.set_busy(id, false);
    while guest.binding(A) == BUSY {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(guest.dma(id, 0x1000), THERE);
}
