//! Reasons why requests of an assigned device reach nothing.

use std::fmt;

use intel_vtd::SourceId;
use intel_vtd::spec::fault_reason::FaultReason;

/// Why a device reaches nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Blocked {
    /// The guest's tables say so: a request would have this fault.
    Guest(FaultReason),
    /// The guest's tables have a first stage, which the host does not nest; it is not shadowed
    /// either, as changes of it are not announced (section 6.1).
    FirstStage,
    /// The host's IOMMU lacks this, and the guest's first-stage tables need it.
    Missing(&'static str),
    /// The guest maps more pieces of memory than
    /// [`Limits::shadow_memory`](crate::assigned::Limits::shadow_memory) is for.
    TooManyAreas,
    /// The guest's tables are too large for
    /// [`Limits::steps_per_exit`](crate::assigned::Limits::steps_per_exit), or for
    /// [`Limits::pasid_steps_per_exit`](crate::assigned::Limits::pasid_steps_per_exit).
    TooMuchWork,
    /// The guest uses more PASIDs of the device than
    /// [`Limits::pasids`](crate::assigned::Limits::pasids).
    TooManyPasids,
    /// PASID 0, while the guest has requests without PASID use another one (RID_PASID): in the host
    /// it is the one that they use.
    PasidZero,
    /// The device has fewer PASIDs in the host.
    PasidTooLarge {
        /// Width of a PASID there; 0 if it has none.
        bits: u8,
    },
    /// VFIO was resetting the device. It is tried again once that is over, whatever the guest does.
    Busy,
    /// The guest has this device elsewhere, which is of the same IOMMU group of the host: so both
    /// are blocked, and all others of the group.
    GroupApart(SourceId),
    /// This device of the same IOMMU group of the host could not be put where both belong.
    GroupFailed(SourceId),
    /// The host did not forget what it kept of the guest's first-stage tables, with this error
    /// number, if there was one.
    NotInvalidated(Option<i32>),
    /// The device has addresses reserved in the host at which it would have to reach memory.
    Reserved,
    /// The host refused what the guest's tables want, with this error number, if there was one.
    Host(Option<i32>),
}

impl Blocked {
    /// Whether a limit was reached, so that it is of no use to try again for what others do.
    pub(crate) const fn is_limit(&self) -> bool {
        matches!(self, Self::TooManyAreas | Self::TooMuchWork)
    }

    /// Whether it is what the guest asked for.
    pub const fn is_asked_for(&self) -> bool {
        matches!(self, Self::Guest(_))
    }
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guest(reason) => {
                write!(
                    f,
                    "the guest's tables block it ({:#04x} {reason:?})",
                    reason.code()
                )
            }
            Self::FirstStage => write!(
                f,
                "the guest gave it first-stage tables, which the host does not nest for this device"
            ),
            Self::Missing(what) => write!(
                f,
                "the guest gave it first-stage tables that need what the host's IOMMU lacks: {what}"
            ),
            Self::TooManyAreas => write!(f, "the guest maps too many pieces of memory"),
            Self::TooMuchWork => write!(
                f,
                "the guest's tables are too large to be read within one exit"
            ),
            Self::TooManyPasids => write!(
                f,
                "the guest uses more PASIDs of the device at a time than are bound"
            ),
            Self::PasidZero => write!(
                f,
                "the host has no PASID 0 to offer: it stands for requests without PASID, for which the guest uses another one"
            ),
            Self::PasidTooLarge { bits: 0 } => write!(f, "the device has no PASIDs in the host"),
            Self::PasidTooLarge { bits } => {
                write!(f, "the device's PASIDs have {bits} bits in the host")
            }
            Self::Busy => write!(
                f,
                "the host is resetting the device; it is tried again until that is over"
            ),
            Self::GroupApart(other) => write!(
                f,
                "it shares its IOMMU group of the host with {other}, which the guest has elsewhere; put both into one domain of \
                 the guest, or assign one of them only"
            ),
            Self::GroupFailed(other) => write!(
                f,
                "it shares its IOMMU group of the host with {other}, which is blocked"
            ),
            Self::NotInvalidated(error) => {
                write!(f, "the host did not invalidate what the guest had unmapped")?;
                error.map_or(Ok(()), |error| {
                    write!(f, ": {}", std::io::Error::from_raw_os_error(error))
                })
            }
            Self::Reserved => write!(
                f,
                "addresses at which it is to reach memory are reserved for it in the host (reserved_regions of its IOMMU group)"
            ),
            Self::Host(Some(error)) => write!(
                f,
                "the host refused: {}",
                std::io::Error::from_raw_os_error(*error)
            ),
            Self::Host(None) => write!(f, "the host refused"),
        }
    }
}
