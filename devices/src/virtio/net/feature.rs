//! Features of the network device (section 5.1.3), which of them need which, and what they mean to
//! the tap.

use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS,
};

use crate::virtio::feature::{has, mask};

/// What is on offer, whatever the number of queues.
pub(in crate::virtio) const FEATURES: u64 = mask(&[
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS,
]);

/// Each feature with those of which it needs one (section 5.1.3.1).
const REQUIREMENTS: [(u32, u64); 7] = [
    (VIRTIO_NET_F_GUEST_TSO4, mask(&[VIRTIO_NET_F_GUEST_CSUM])),
    (VIRTIO_NET_F_GUEST_TSO6, mask(&[VIRTIO_NET_F_GUEST_CSUM])),
    (
        VIRTIO_NET_F_GUEST_ECN,
        mask(&[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6]),
    ),
    (VIRTIO_NET_F_MQ, mask(&[VIRTIO_NET_F_CTRL_VQ])),
    (VIRTIO_NET_F_HOST_TSO4, mask(&[VIRTIO_NET_F_CSUM])),
    (VIRTIO_NET_F_HOST_TSO6, mask(&[VIRTIO_NET_F_CSUM])),
    (
        VIRTIO_NET_F_HOST_ECN,
        mask(&[VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6]),
    ),
];

/// What the tap may leave unfinished for the guest, by feature.
const OFFLOADS: [(u32, u32); 4] = [
    (VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, TUN_F_TSO_ECN),
];

/// Whether each accepted feature comes with what it needs.
pub(in crate::virtio) fn consistent(accepted: u64) -> bool {
    REQUIREMENTS
        .iter()
        .all(|(feature, needs)| !has(accepted, *feature) || accepted & needs != 0)
}

/// The tap's offload flags for the accepted features.
pub(super) fn offloads(accepted: u64) -> u32 {
    OFFLOADS
        .iter()
        .filter(|(feature, _)| has(accepted, *feature))
        .fold(0, |flags, (_, flag)| flags | flag)
}
