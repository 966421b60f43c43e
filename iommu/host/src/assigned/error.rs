//! Errors of adding an assigned device.

use std::io;
use std::sync::Arc;

use thiserror::Error;

use crate::blocked::Blocked;
use intel_vtd::SourceId;

/// Why a device is not added.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AddError {
    /// There is one with the same source id.
    #[error("{name}: {other} has the source id {source_id} already; give it another address")]
    SourceTaken {
        /// The device.
        name: String,
        /// Its source id.
        source_id: SourceId,
        /// Who has it.
        other: Arc<str>,
    },
    /// The host does not tell about its IOMMU.
    #[error("{name}: the host does not tell about the device's IOMMU (IOMMU_GET_HW_INFO): {cause}")]
    Hardware {
        /// The device.
        name: String,
        /// What the kernel said.
        cause: io::Error,
    },
    /// There is no I/O address space to be had.
    #[error("{name}: the host gives no I/O address space (IOMMU_IOAS_ALLOC): {cause}")]
    Ioas {
        /// The device.
        name: String,
        /// What the kernel said.
        cause: io::Error,
    },
    /// There is no page table to be had.
    #[error("{name}: the host makes no page table for the device (IOMMU_HWPT_ALLOC): {cause}")]
    Hwpt {
        /// The device.
        name: String,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Guest memory lies where the host's IOMMU cannot map it.
    #[error(
        "{name}: guest memory at {start:#x} to {last:#x} is not within the addresses that the host's IOMMU maps for the device; \
         give the guest less memory"
    )]
    OutOfReach {
        /// The device.
        name: String,
        /// First address.
        start: u64,
        /// Last address.
        last: u64,
    },
    /// Guest memory cannot be mapped.
    #[error(
        "{name}: the host does not map {length:#x} bytes of guest memory at {start:#x} for devices: {cause}; guest memory is locked \
         for that, so check `ulimit -l`, and that the host has this much memory"
    )]
    Map {
        /// The device.
        name: String,
        /// First guest-physical address.
        start: u64,
        /// Bytes.
        length: u64,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The device has addresses reserved where guest memory lies. An address space of its own would
    /// lack that memory, too.
    #[error(
        "{name}: the host has addresses reserved for the device at which guest memory lies (reserved_regions of its IOMMU group), \
         and memory there cannot be mapped for it; give the guest less memory, so that it ends before them, or assign another \
         device"
    )]
    Reserved {
        /// The device.
        name: String,
    },
    /// The device does not get behind guest memory.
    #[error(
        "{name}: the device cannot be put behind guest memory: {why}; see the host's log (dmesg)"
    )]
    Attach {
        /// The device.
        name: String,
        /// Why.
        why: Blocked,
    },
}
