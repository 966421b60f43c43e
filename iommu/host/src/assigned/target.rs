//! What the guest's tables want for a device.

use std::fmt;

use crate::nested::batch::Tag;
use crate::shadow::ShadowKey;
use intel_vtd::memory::TableMemory;
use intel_vtd::spec::fault_reason::FaultReason;
use intel_vtd::spec::gates::Gates;
use intel_vtd::spec::ids::{Pasid, SourceId};
use intel_vtd::translate::{
    self, Access, Binding, FirstStage, Latched, Request, Resolved, SecondStage,
};

/// The guest's tables, and what the guest has latched.
pub(crate) struct Tables<'a, T: ?Sized> {
    pub(crate) memory: &'a T,
    pub(crate) gates: &'a Gates,
    pub(crate) latched: Latched,
}

/// Where a device is to be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// It is to reach nothing.
    Blocked(Blocked),
    /// It is to reach all guest memory.
    GuestPhysical,
    /// It is to reach what second-stage tables map.
    Shadow {
        /// The tables.
        stage: SecondStage,
        /// DID, under which the guest invalidates them.
        domain: u16,
    },
    /// It is to reach what first-stage tables map.
    Nested {
        /// The tables.
        first: FirstStage,
        /// The second-stage tables that their addresses go through, if they do.
        below: Option<SecondStage>,
        /// What the guest invalidates them by.
        tag: Tag,
    },
}

/// Why a device reaches nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Blocked {
    /// The guest's tables say so: a request would have this fault.
    Guest(FaultReason),
    /// The guest's tables have a first stage, which the host does not nest; it is not shadowed either, as changes of it are not
    /// announced (section 6.1).
    FirstStage,
    /// The host's IOMMU lacks this, and the guest's first-stage tables need it.
    Missing(&'static str),
    /// The guest maps more pieces of memory than [`Limits::areas`](super::Limits::areas).
    TooManyAreas,
    /// The guest's tables are too large for [`Limits::steps_per_exit`](super::Limits::steps_per_exit), or for
    /// [`Limits::pasid_steps_per_exit`](super::Limits::pasid_steps_per_exit).
    TooMuchWork,
    /// The guest uses more PASIDs of the device than [`Limits::pasids`](super::Limits::pasids).
    TooManyPasids,
    /// PASID 0, while the guest has requests without PASID use another one (RID_PASID): in the host it is the one that they use.
    PasidZero,
    /// The device has fewer PASIDs in the host.
    PasidTooLarge {
        /// Width of a PASID there; 0 if it has none.
        bits: u8,
    },
    /// The host did not forget what it kept of the guest's first-stage tables, with this error number, if there was one.
    NotInvalidated(Option<i32>),
    /// The host refused what the guest's tables want, with this error number, if there was one.
    Host(Option<i32>),
}

impl Blocked {
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
            Self::NotInvalidated(error) => {
                write!(f, "the host did not invalidate what the guest had unmapped")?;
                error.map_or(Ok(()), |error| {
                    write!(f, ": {}", std::io::Error::from_raw_os_error(error))
                })
            }
            Self::Host(Some(error)) => write!(
                f,
                "the host refused: {}",
                std::io::Error::from_raw_os_error(*error)
            ),
            Self::Host(None) => write!(f, "the host refused"),
        }
    }
}

impl Target {
    /// What is wanted for untranslated requests of `source` with `pasid`, or without; without tables, there is no unit.
    ///
    /// A PASID that is RID_PASID is blocked, and one of which the entry is not present, or not reached. So are all of them while
    /// translation is off or legacy: then there are none.
    pub(crate) fn of<T: TableMemory + ?Sized>(
        tables: Option<&Tables<'_, T>>,
        source: SourceId,
        pasid: Option<Pasid>,
    ) -> Self {
        let Some(tables) = tables.filter(|tables| tables.latched.enabled) else {
            return match pasid {
                None => Self::GuestPhysical,
                Some(_) => Self::Blocked(Blocked::Guest(FaultReason::PasidDisabled)),
            };
        };
        let request = Request {
            pasid,
            ..Request::untranslated(source, 0, Access::Read)
        };
        let resolved = translate::resolve(tables.memory, tables.gates, &tables.latched, &request);
        match resolved {
            // No request was made, so no fault is recorded.
            Err(fault) => Self::Blocked(Blocked::Guest(fault.reason)),
            Ok(resolved) => match resolved.binding {
                Binding::Blocked => Self::Blocked(Blocked::Guest(FaultReason::ContextInvalid)),
                Binding::PassThrough => Self::GuestPhysical,
                Binding::SecondStage(stage) => Self::Shadow {
                    stage: canonical(stage),
                    domain: resolved.domain,
                },
                Binding::FirstStage(first) => Self::nested(first, None, &resolved),
                Binding::Nested(first, below) => Self::nested(first, Some(below), &resolved),
            },
        }
    }

    fn nested(first: FirstStage, below: Option<SecondStage>, resolved: &Resolved) -> Self {
        Self::Nested {
            first: FirstStage {
                // Only matters where supervisors are let in.
                write_protect: first.write_protect && first.supervisor_requests,
                // For the host to choose.
                snooped_walk: false,
                ..first
            },
            below: below.map(canonical),
            tag: Tag {
                domain: resolved.domain,
                pasid: resolved.pasid.map_or(0, Pasid::get),
            },
        }
    }

    /// The shadow that the device is to use.
    pub(crate) fn shadow(&self) -> Option<ShadowKey> {
        match *self {
            Self::Shadow { stage, .. } => Some(ShadowKey {
                stage,
                parent: false,
            }),
            Self::Nested { below, .. } => below.map(|stage| ShadowKey {
                stage,
                parent: true,
            }),
            Self::Blocked(_) | Self::GuestPhysical => None,
        }
    }
}

/// Without what makes no difference.
fn canonical(stage: SecondStage) -> SecondStage {
    SecondStage {
        // Only matters where bits are set.
        snooped_walk: stage.snooped_walk || !stage.accessed_dirty,
        ..stage
    }
}
