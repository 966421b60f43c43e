//! Virtio 1.2 devices behind a modern PCI transport.
//!
//! A device model is a [`VirtioDevice`]: its identity, its features and what it does when a queue or one of its own file
//! descriptors becomes ready. [`pci::VirtioPci`] is the transport: registers, interrupts, the status state machine. Between
//! the two stands one thread per running device (`worker`), which owns the device model, its queues and its own view of
//! guest memory, so that a device model needs no locks at all.
//!
//! Every access to guest memory goes through the IOMMU: `VIRTIO_F_ACCESS_PLATFORM` is not optional for the driver.
//!
//! A guest that breaks the rules of the rings gets `DEVICE_NEEDS_RESET` (section 2.1.1) and a device that does nothing more until
//! it is reset; a request that merely asks for something impossible gets that request's own error status.
//!
//! Section numbers are those of the Virtio specification, version 1.2.

pub mod blk;
mod blk_request;
mod chain;
pub mod console;
pub mod net;
mod net_feature;
mod net_tap;
pub mod pci;
mod pci_bar;
mod pci_cap;
mod pci_common;
mod pci_link;
mod pci_state;
mod queue;
pub mod rng;
mod session;
mod sys;
mod worker;
mod worker_loop;

use std::io;
use std::os::fd::RawFd;

pub use chain::Chain;
pub use queue::{QueueError, VirtQueue};
pub use session::{Session, Transport};

#[cfg(test)]
mod blk_test;
#[cfg(test)]
mod chain_test;
#[cfg(test)]
mod console_test;
#[cfg(test)]
mod iommu_test;
#[cfg(test)]
mod net_test;
#[cfg(test)]
mod pci_test;
#[cfg(test)]
mod rng_test;
#[cfg(test)]
mod test_driver;

/// Feature bits that belong to the queues and the transport (section 6).
pub mod feature {
    /// `VIRTIO_F_INDIRECT_DESC`: a descriptor may name a table of descriptors (section 2.7.5.3).
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `VIRTIO_F_EVENT_IDX`: notifications are suppressed by index (section 2.7.10).
    pub const EVENT_IDX: u64 = 1 << 29;
    /// `VIRTIO_F_VERSION_1`: not a legacy device.
    pub const VERSION_1: u64 = 1 << 32;
    /// `VIRTIO_F_ACCESS_PLATFORM`: addresses are those of the platform's DMA, that is, they pass the IOMMU.
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
}

/// The kinds of devices that exist here, by virtio device ID (section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum DeviceKind {
    /// Network card, section 5.1.
    Net = 1,
    /// Block device, section 5.2.
    Block = 2,
    /// Console, section 5.3.
    Console = 3,
    /// Entropy source, section 5.4.
    Entropy = 4,
}

/// Whether a device model has more to do right away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// Everything that was there has been handled; the driver's next notification will come.
    Idle,
    /// The bound on one turn was reached; call again without waiting for a notification.
    More,
}

/// A device model, independent of the transport.
///
/// The first group of methods is called when the device is created or while it is idle. The second group is called by the
/// device's own thread between `DRIVER_OK` and reset.
pub trait VirtioDevice: Send {
    /// Which device this is.
    fn kind(&self) -> DeviceKind;
    /// Device-specific feature bits on offer (bits 0 to 23 and 50 to 63). The transport adds those of [`feature`].
    fn features(&self) -> u64;
    /// Whether the driver's choice is consistent. `accepted` is a subset of what was offered.
    fn check_features(&self, _accepted: u64) -> bool {
        true
    }
    /// Largest size of each queue; powers of two.
    fn queue_sizes(&self) -> &'static [u16];
    /// The device-specific configuration, at most 256 bytes. It is read once: these devices never change it.
    fn config(&self) -> Vec<u8>;

    /// The driver is ready. An error leaves the device in need of a reset.
    fn activate(&mut self, features: u64) -> io::Result<()>;
    /// File descriptors of the device's back end to wait for (readable), in an order that stays the same while active.
    fn sources(&self) -> Vec<RawFd> {
        Vec::new()
    }
    /// Whether `source` (an index into [`VirtioDevice::sources`]) is to be waited for at the moment.
    fn wants(&self, _source: usize) -> bool {
        true
    }
    /// The driver notified queue `index`, or the last turn ended with [`Progress::More`]. One turn handles at most
    /// as many chains as the queue has entries. An error means that the rings are broken.
    fn queue_ready(&mut self, index: usize, session: &mut Session) -> Result<Progress, QueueError>;
    /// Source `source` is readable. It is polled level-triggered: what is left over is reported again.
    fn source_ready(&mut self, _source: usize, _session: &mut Session) -> Result<(), QueueError> {
        Ok(())
    }
    /// The device was reset; the next call is `activate` again.
    fn deactivate(&mut self) {}
}
