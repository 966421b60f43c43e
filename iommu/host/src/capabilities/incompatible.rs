//! What is in the way of a device behind a unit: the capability that the host's IOMMU lacks.

use std::fmt;

use thiserror::Error;

/// Why a device cannot be behind a unit, or cannot reach guest memory: the capability that is
/// missing, by register and field. What to configure instead is for the VMM to say.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Incompatible {
    /// The guest could map what the host cannot.
    #[error(
        "the host's IOMMU translates {host} bits of address for this device (IOMMU_IOAS_IOVA_RANGES), and the unit {asked} \
         (CAP.MGAW)"
    )]
    AddressWidth {
        /// Bits that the host translates.
        host: u8,
        /// Bits that the unit would.
        asked: u8,
    },
    /// Guest memory lies beyond what the host translates.
    #[error(
        "guest memory ends at {end:#x}, and the host's IOMMU translates {host} bits of address for this device \
         (IOMMU_IOAS_IOVA_RANGES)"
    )]
    Memory {
        /// The end of guest memory.
        end: u64,
        /// Bits that the host translates.
        host: u8,
    },
    /// The guest could map less at once than the host.
    #[error(
        "the host's IOMMU maps {0} bytes at least (IOMMU_IOAS_IOVA_RANGES), and the guest's tables have pages of 4096; this \
         device cannot be assigned on this host"
    )]
    PageSize(u64),
    /// Software announces no change of first-stage tables, so they cannot be mirrored, and the host
    /// does not nest them.
    #[error(
        "first-stage translation (ECAP.FSTS) of an assigned device needs nested translation in the host, and {0}"
    )]
    NoNesting(NoNesting),
    /// The guest's first-stage tables would be deeper than the host walks.
    #[error(
        "with 57-bit addresses first-stage tables have five levels, which the host's IOMMU cannot walk (CAP.FS5LP is clear)"
    )]
    FiveLevels,
    /// The unit was made without this device in mind.
    #[error(
        "the unit promises the guest {0} in first-stage tables, which the host's IOMMU does not have for this device"
    )]
    Walks(&'static str),
    /// Software would not announce new mappings.
    #[error(
        "without caching mode (CAP.CM is clear) a guest does not announce new mappings, so an assigned device would never get them"
    )]
    CachingMode,
    /// The unit was made without this device in mind.
    #[error(
        "the unit promises the guest that devices snoop caches (ECAP.SC), and the host's IOMMU does not have this one do so"
    )]
    SnoopControl,
}

/// Why a host does not nest for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoNesting {
    /// Its IOMMU is not an Intel unit.
    OtherIommu,
    /// ECAP.NEST is clear.
    NoCapability,
    /// The hardware could, and the kernel makes no nesting parent nevertheless.
    Unused,
}

impl fmt::Display for NoNesting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherIommu => "the host's IOMMU is not Intel VT-d",
            Self::NoCapability => "the host's IOMMU does not have it (ECAP.NEST is clear)",
            Self::Unused => {
                "the host's IOMMU has it (ECAP.NEST is set), but its kernel does not use it: boot the host with \
                 intel_iommu=on,sm_on"
            }
        })
    }
}
