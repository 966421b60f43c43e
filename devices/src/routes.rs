//! Interrupt routes: messages that the hypervisor sends by itself when an event is signalled (irqfd,
//! `KVM_IRQFD` of <linux/kvm.h>), for devices whose interrupts come from elsewhere.

use std::io;

use pci::{Bdf, MsiMessage};
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
