//! What a device asks of the kernel (<linux/vhost.h>), as a seam for tests.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::sync::Arc;

use vm_memory::Permissions;
use vmm_sys_util::eventfd::EventFd;

use super::log::Bits;

/// Where the rings of a queue are: device addresses if there is an IOTLB, and else addresses of
/// this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::virtio) struct Rings {
    /// Entries.
    pub(super) size: u16,
    /// The index of the next entry of the available ring, where the one before it ends.
    pub(super) next: u16,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    /// The guest-physical address of the used ring, for the log. With an IOTLB the kernel finds it
    /// itself.
    pub(super) used_in_guest: u64,
}

/// The events of a queue.
pub(in crate::virtio) struct Events<'a> {
    /// The guest notifies.
    pub(super) kick: &'a EventFd,
    /// The guest is to be interrupted.
    pub(super) call: &'a EventFd,
    /// The queue is in disorder.
    pub(super) error: &'a EventFd,
}

/// A translation that the kernel misses. It has stopped the queue that needs it, and goes on by
/// itself when it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::virtio) struct Miss {
    pub(super) address: u64,
    pub(super) access: Permissions,
}

/// A translation for the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::virtio) struct Update {
    /// The first device address.
    pub(super) first: u64,
    /// In bytes, not 0.
    pub(super) size: u64,
    /// Where that is in this process.
    pub(super) host: u64,
    pub(super) access: Permissions,
}

/// A device of the kernel's.
pub(in crate::virtio) trait Backend: Send + Sync {
    /// Chooses among the features that it has. With `VIRTIO_F_ACCESS_PLATFORM` the IOTLB is empty afterwards.
    fn set_features(&self, features: u64) -> io::Result<()>;
    /// Sets up queue `index`. Only while stopped.
    fn set_queue(&self, index: usize, rings: &Rings, events: &Events<'_>) -> io::Result<()>;
    /// Starts `queues`, which are set up. With an IOTLB, their used rings are to be in it by now.
    fn start(&self, queues: &[usize]) -> io::Result<()>;
    /// Stops all queues: no access is under way or begins when this returns. Does nothing to
    /// queues that are stopped.
    fn stop(&self) -> io::Result<()>;
    /// The index of the next entry of the available ring of a stopped queue.
    fn position(&self, index: usize) -> io::Result<u16>;
    /// The next miss, if there is one.
    fn next_miss(&self) -> io::Result<Option<Miss>>;
    /// Puts a translation into the IOTLB.
    fn update(&self, update: &Update) -> io::Result<()>;
    /// Takes all translations out of the IOTLB that overlap `range`. No access uses one when this
    /// returns.
    fn invalidate(&self, range: RangeInclusive<u64>) -> io::Result<()>;
    /// Whether it can log what it writes.
    fn can_log(&self) -> bool {
        false
    }
    /// Has what is written from here on be logged in this, or nothing be logged, also in queues that are
    /// set up later. It begins while stopped, and may end at any time, at which the IOTLB is emptied. What
    /// is not used any more when this returns may be dropped.
    fn set_log(&self, _log: Option<&Arc<Bits>>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Readable when there is a miss, or whoever serves the device has gone.
    fn fd(&self) -> RawFd;
    /// Whether whoever serves the device can go before the device does.
    fn may_go(&self) -> bool {
        false
    }
    /// Whether it has gone.
    fn is_gone(&self) -> bool {
        false
    }
}
