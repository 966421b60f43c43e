//! The interfaces of the machine that an assigned device needs besides those of every PCI function:
//! interrupt routes and guest mappings.

use std::any::Any;
use std::io;
use std::sync::Arc;

use pci::{Bdf, MsiMessage};
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

/// Messages that the hypervisor sends by itself when an event is signalled (irqfd).
pub trait InterruptRoutes: Send + Sync {
    /// A route for a message of `source` that is sent whenever `event` is signalled, of which reads
    /// do not block (`EFD_NONBLOCK`). It has no message yet.
    ///
    /// # Errors
    /// When the hypervisor has no more routes.
    fn add(&self, source: Bdf, event: EventFd) -> io::Result<Box<dyn InterruptRoute>>;

    /// Has routes, by number, send these messages from now on, remapped by the IOMMU as it says at
    /// each time. With `None` nothing is sent, and events stay in the eventfd until there is a
    /// message again, which is then sent at once. To change many at once costs little more than to
    /// change one.
    ///
    /// # Errors
    /// When the hypervisor refuses; nothing is sent then.
    fn set_messages(&self, messages: &[(u32, Option<MsiMessage>)]) -> io::Result<()>;
}

/// One of [`InterruptRoutes`]. It goes away when it is dropped.
pub trait InterruptRoute: Send + Sync {
    /// Its number, which no other route has at that time.
    fn number(&self) -> u32;
}

/// Puts memory of the host, such as a BAR of an assigned device, into the guest's address space.
pub trait GuestMappings: Send + Sync {
    /// Maps `length` bytes of `memory` from `offset` on at guest-physical `address`, until the
    /// returned value is dropped. All three are multiples of the page size.
    ///
    /// # Errors
    /// When the hypervisor refuses; accesses then reach the device's BAR as any other.
    fn map(
        &self,
        address: u64,
        memory: &Arc<MmapRegion>,
        offset: u64,
        length: u64,
    ) -> io::Result<Box<dyn Any + Send + Sync>>;
}
