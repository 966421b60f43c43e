//! Where the rings of a queue are (section 2.7), and how many bytes the kernel accesses of each.

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError, Permissions};

use super::backend::Rings;
use crate::Memory;
use crate::virtio::error::QueueError;
use crate::virtio::queue::VirtQueue;

/// A ring: address, bytes, how the device accesses it.
pub(super) type Ring = (u64, u64, Permissions);

/// The rings of `queue`, as the driver has set it up. With the events behind available and used
/// ring, whether or not they are negotiated.
pub(super) fn rings_of(queue: &VirtQueue) -> Result<[Ring; 3], QueueError> {
    let size = u64::from(queue.size());
    let [descriptors, available, used] = queue.rings()?;
    Ok([
        (descriptors, 16 * size, Permissions::Read),
        (available, 6 + 2 * size, Permissions::Read),
        // Where the last driver has left off is read.
        (used, 6 + 8 * size, Permissions::ReadWrite),
    ])
}

/// For the kernel's IOTLB: device addresses.
pub(super) fn translated(queue: &VirtQueue) -> Result<Rings, QueueError> {
    let [descriptors, available, used] = queue.rings()?;
    Ok(Rings {
        size: queue.size(),
        next: queue.next()?,
        descriptors,
        available,
        used,
        used_in_guest: 0,
    })
}

/// Without: where guest memory is in this process.
pub(super) fn direct(queue: &VirtQueue, memory: &Memory) -> Result<Rings, QueueError> {
    let mut addresses = [0; 3];
    for (host, (address, bytes, _)) in addresses.iter_mut().zip(rings_of(queue)?) {
        let address = GuestAddress(address);
        let bytes = usize::try_from(bytes).map_err(|_| QueueError::Address)?;
        // All of it is in one piece.
        let slice = memory.get_slice(address, bytes)?;
        if slice.len() != bytes {
            return Err(GuestMemoryError::InvalidGuestAddress(address).into());
        }
        *host = slice.ptr_guard_mut().as_ptr().expose_provenance() as u64;
    }
    let [descriptors, available, used] = addresses;
    let [_, _, used_in_guest] = queue.rings()?;
    Ok(Rings {
        size: queue.size(),
        next: queue.next()?,
        descriptors,
        available,
        used,
        used_in_guest,
    })
}
