//! Guest memory is pinned and unpinned while the guest goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::testing::*;
use super::*;
use crate::fake::{Call, FakeFeatures, FakeHost, errno};

/// Each time that `host` pins or unpins memory, the guest invalidates something; tells how often it
/// could, and how often not.
fn invalidate_meanwhile(guest: &Guest, host: &FakeHost) -> Arc<[AtomicUsize; 2]> {
    let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let (devices, counted) = (Arc::clone(&guest.devices), Arc::clone(&counts));
    host.before_pinning(move || {
        let is_free = devices.hosts.try_lock().is_some();
        if is_free {
            devices.run_begins();
            let list = [CONTEXT, first_stage_all(5)];
            devices.invalidated(&list, &Patience::endless()).unwrap();
        }
        counted[usize::from(!is_free)].fetch_add(1, Ordering::Relaxed);
    });
    counts
}

fn counted(counts: &[AtomicUsize; 2]) -> [usize; 2] {
    [0, 1].map(|at| counts[at].swap(0, Ordering::Relaxed))
}

#[test]
fn the_guest_invalidates_while_memory_is_pinned_for_a_first_device_and_unpinned_with_the_last() {
    let (guest, ids) = Guest::with(&[FakeFeatures::default()]);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x1000, 0x10_0000, 1, 3);
    guest.shadow(SOURCES[0], &paging, 5);
    let host = FakeHost::new();
    let counts = invalidate_meanwhile(&guest, &host);
    guest.add_of(&host, SOURCES[1]);
    assert_eq!(counted(&counts), [2, 0], "one for each piece of memory");
    guest.devices.remove(SOURCES[1]);
    assert_eq!(counted(&counts), [1, 0]);
    assert_eq!(host.objects(), 0);
    assert_eq!(guest.dma(ids[0], 0x1000), Some((0x10_0000, "rw")));
}

#[test]
fn what_was_pinned_in_vain_is_unpinned_while_the_guest_goes_on() {
    let guest = Guest::new(Limits::default());
    let host = FakeHost::new();
    let counts = invalidate_meanwhile(&guest, &host);
    // The second piece is not mapped.
    host.fail_after(6, errno::ENOMEM);
    let device = assigned_device(&host, SOURCES[0], FakeFeatures::default());
    let error = guest.devices.add(device).unwrap_err();
    assert!(matches!(error, AddError::Map { .. }), "{error}");
    assert_eq!(counted(&counts), [3, 0]);
    assert_eq!(host.objects(), 0);
}

#[test]
fn two_that_are_added_to_an_iommufd_at_once_share_what_is_pinned() {
    let guest = Guest::new(Limits::default());
    let host = FakeHost::new();
    let devices = [0, 1].map(|at| assigned_device(&host, SOURCES[at], FakeFeatures::default()));
    thread::scope(|scope| {
        for device in devices {
            scope.spawn(|| guest.devices.add(device).unwrap());
        }
    });
    let calls = host.take_calls();
    let maps = calls
        .iter()
        .filter(|(call, _)| matches!(call, Call::Map { .. }));
    assert_eq!(maps.count(), 2, "each piece of memory once");
    assert_eq!(guest.devices.describe().len(), 2);
    for source in [SOURCES[0], SOURCES[1]] {
        guest.devices.remove(source);
    }
    assert_eq!(host.objects(), 0);
}
