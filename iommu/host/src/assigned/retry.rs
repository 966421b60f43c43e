//! Trying again what was not possible while the kernel was resetting a device: from a thread of its
//! own, so that nobody waits for it under a lock.

use std::ops::Deref;
use std::sync::Weak;
use std::thread;
use std::time::Duration;

use vm_memory::GuestMemoryBackend;

use super::AssignedDevices;
use super::hosts::Hosts;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(5);
/// For all devices that wait together: 10 s, which is more than any reset takes. After that the
/// guest's next change of an entry is the next try.
const TRIES: u32 = 2000;

impl<M> AssignedDevices<M>
where
    M: Deref<Target: GuestMemoryBackend> + Send + Sync + 'static,
{
    /// Has a thread try again, if requests wait and there is none.
    pub(super) fn retry_later(&self, hosts: &mut Hosts) {
        if !hosts.resources.has_waiting || hosts.is_retrying {
            return;
        }
        let this = Weak::clone(&self.this);
        let thread = thread::Builder::new().name("assigned-retry".to_owned());
        match thread.spawn(move || retry(&this)) {
            Ok(_) => hosts.is_retrying = true,
            Err(error) => hosts.resources.report(|| {
                format!("devices that are being reset stay blocked until the guest sets them up anew: {error}")
            }),
        }
    }

    /// Tries again. Returns whether requests still wait.
    pub(super) fn retry(&self) -> bool {
        let mut hosts = self.hosts.lock();
        let is_waiting = self.with_tables(|tables| hosts.retry(tables));
        hosts.is_retrying &= is_waiting;
        is_waiting
    }

    fn give_up(&self) {
        let mut hosts = self.hosts.lock();
        hosts.is_retrying = false;
        hosts.resources.has_waiting = false;
        hosts.resources.report(|| {
            "a device is still being reset by the host; it stays blocked until the guest sets it up anew".to_owned()
        });
    }
}

/// Until nothing waits any more, or the machine is gone.
fn retry<M>(devices: &Weak<AssignedDevices<M>>)
where
    M: Deref<Target: GuestMemoryBackend> + Send + Sync + 'static,
{
    for _ in 0..TRIES {
        thread::sleep(PAUSE);
        match devices.upgrade() {
            Some(devices) if devices.retry() => {}
            _ => return,
        }
    }
    if let Some(devices) = devices.upgrade() {
        devices.give_up();
    }
}
