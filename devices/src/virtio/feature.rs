//! Feature bits that belong to the queues and the transport (section 6).

/// `VIRTIO_F_INDIRECT_DESC`: a descriptor may name a table of descriptors (section 2.7.5.3).
pub const INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`: notifications are suppressed by index (section 2.7.10).
pub const EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`: not a legacy device.
pub const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_ACCESS_PLATFORM`: addresses are those of the platform's DMA, that is, they pass the IOMMU.
pub const ACCESS_PLATFORM: u64 = 1 << 33;
