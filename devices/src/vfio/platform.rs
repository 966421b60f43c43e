//! The interface of the machine that an assigned device needs besides those of other devices: guest
//! mappings.

use std::any::Any;
use std::io;
use std::sync::Arc;

use vm_memory::MmapRegion;

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
