//! Features of the network device (section 5.1.3), which of them need which, and what they mean to the tap.

use super::tap::offload;

const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const MAC: u64 = 1 << 5;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const GUEST_ECN: u64 = 1 << 9;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const HOST_ECN: u64 = 1 << 13;
/// `VIRTIO_NET_F_MRG_RXBUF`: a received packet may be spread over several buffers.
pub(super) const MRG_RXBUF: u64 = 1 << 15;
const STATUS: u64 = 1 << 16;

/// What is on offer.
pub(super) const FEATURES: u64 = CSUM
    | GUEST_CSUM
    | MAC
    | GUEST_TSO4
    | GUEST_TSO6
    | GUEST_ECN
    | HOST_TSO4
    | HOST_TSO6
    | HOST_ECN
    | MRG_RXBUF
    | STATUS;

/// Each feature with those of which it needs one (section 5.1.3.1).
const REQUIREMENTS: [(u64, u64); 6] = [
    (GUEST_TSO4, GUEST_CSUM),
    (GUEST_TSO6, GUEST_CSUM),
    (GUEST_ECN, GUEST_TSO4 | GUEST_TSO6),
    (HOST_TSO4, CSUM),
    (HOST_TSO6, CSUM),
    (HOST_ECN, HOST_TSO4 | HOST_TSO6),
];

/// What the tap may leave unfinished for the guest, by feature.
const OFFLOADS: [(u64, u32); 4] = [
    (GUEST_CSUM, offload::CSUM),
    (GUEST_TSO4, offload::TSO4),
    (GUEST_TSO6, offload::TSO6),
    (GUEST_ECN, offload::TSO_ECN),
];

/// Whether each accepted feature comes with what it needs.
pub(super) fn consistent(accepted: u64) -> bool {
    REQUIREMENTS
        .iter()
        .all(|(feature, needs)| accepted & feature == 0 || accepted & needs != 0)
}

/// The tap's offload flags for the accepted features.
pub(super) fn offloads(accepted: u64) -> u32 {
    OFFLOADS
        .iter()
        .filter(|(feature, _)| accepted & feature != 0)
        .fold(0, |flags, (_, flag)| flags | flag)
}
