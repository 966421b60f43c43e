//! Models of the devices on the machine's buses.
//!
//! A device reaches guest memory only through its [`Dma`] port, which translates by the machine's
//! IOMMU, and raises interrupts only through the sinks that it is given. No device knows the
//! hypervisor.

pub mod edu;
pub mod ioapic;
pub mod limit;
pub mod marks;
pub mod output;
pub mod park;
pub mod power;
mod routes;
pub mod serial;
#[cfg(test)]
mod stress_test;
pub mod vfio;
pub mod virtio;
pub mod vtd;

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

pub use routes::{InterruptRoute, InterruptRoutes};

/// Guest memory, which marks what is written to it if somebody asks for that.
pub type GuestRam = vm_memory::GuestMemoryMmap<marks::Marks>;

/// Guest memory as devices share it.
pub type Memory = Arc<GuestRam>;

/// What a device is given to reach guest memory.
pub type Dma = intel_vtd::DmaPort<Memory>;

/// Turns guest writes to an address into events, without a trip through the VMM (ioeventfd). The
/// events come for writes of any length and value.
pub trait Doorbells: Send + Sync {
    /// Signals `fd` at each write to guest-physical `address`.
    ///
    /// # Errors
    /// When the hypervisor refuses; writes then reach the device's BAR as any other.
    fn add(&self, address: u64, fd: &EventFd) -> io::Result<()>;

    /// Undoes [`add`](Self::add) with the same arguments.
    fn remove(&self, address: u64, fd: &EventFd);
}
