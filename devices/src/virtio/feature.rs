//! Feature bits (sections 2.2 and 6). virtio-bindings numbers them, devices and drivers exchange
//! masks of 64 bits.

use virtio_bindings::virtio_config::{
    VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Features without which there is no negotiation: a driver that does not know that its addresses
/// are translated would hand out wrong ones (section 6.1).
pub(super) const MANDATORY: u64 = mask(&[VIRTIO_F_VERSION_1, VIRTIO_F_ACCESS_PLATFORM]);

/// The same of a device that takes physical addresses, in front of which there is no unit.
pub(super) const PHYSICAL: u64 = mask(&[VIRTIO_F_VERSION_1]);

/// Features that the queues here have.
pub(super) const RINGS: u64 = SPLIT_RINGS | mask(&[VIRTIO_F_RING_PACKED]);

/// Of them, those of split queues, which are all that others serve.
pub(super) const SPLIT_RINGS: u64 = mask(&[VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_RING_F_EVENT_IDX]);

/// The mask of the features with these numbers, which are below 64.
pub(super) const fn mask(numbers: &[u32]) -> u64 {
    let mut mask = 0;
    let mut rest = numbers;
    while let [number, others @ ..] = rest {
        mask |= 1_u64 << *number;
        rest = others;
    }
    mask
}

/// Whether the feature with this number, which is below 64, is in `features`.
pub(super) const fn has(features: u64, number: u32) -> bool {
    features & mask(&[number]) != 0
}
