//! Virtio 1.2 devices behind a modern PCI transport.
//!
//! A device model is a [`VirtioDevice`]: its identity, its features and what it does when a queue
//! or one of its own file descriptors becomes ready. [`pci::VirtioPci`] is the transport:
//! registers, interrupts, the status state machine. Between the two stands one thread per running
//! device (`worker`), which owns the device model, its queues and its own view of guest memory, so
//! that a device model needs no locks at all. A device with many queues consists of parts, each with
//! a thread, a view and queues of its own (`workers`).
//!
//! Every access to guest memory goes through the IOMMU: `VIRTIO_F_ACCESS_PLATFORM` is not optional
//! for the driver. But for the [`balloon`], which is not behind one.
//!
//! A guest that breaks the rules of the rings gets `DEVICE_NEEDS_RESET` (section 2.1.1) and a
//! device that does nothing more until it is reset; a request that merely asks for something
//! impossible gets that request's own error status.
//!
//! Section numbers are those of the Virtio specification, version 1.2.

pub mod balloon;
pub mod blk;
mod chain;
pub mod console;
mod device;
mod error;
mod feature;
pub mod mem;
pub mod net;
pub mod pci;
mod queue;
mod random;
pub mod rng;
mod session;
pub mod vhost;
pub mod vsock;
mod worker;
mod workers;

#[cfg(test)]
mod chain_test;
#[cfg(test)]
mod console_test;
#[cfg(test)]
mod iommu_test;
#[cfg(test)]
mod marks_test;
#[cfg(test)]
mod moving;
#[cfg(test)]
mod rng_test;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod workers_test;

pub use chain::Chain;
pub use device::{DeviceKind, Halt, LiveConfig, VirtioDevice};
pub use error::QueueError;
pub use queue::VirtQueue;
pub use session::{Progress, Session, Transport};
