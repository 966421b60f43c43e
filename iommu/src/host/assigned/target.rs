//! What the guest's tables want for a device.

use std::fmt;

use crate::memory::TableMemory;
use crate::spec::fault_reason::FaultReason;
use crate::spec::gates::Gates;
use crate::spec::ids::SourceId;
use crate::translate::{self, Access, Binding, Latched, Request, SecondStage};

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
}

/// Why a device reaches nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// The guest's tables say so: a request would have this fault.
    Guest(FaultReason),
    /// The guest's tables have a first stage, which is not shadowed: changes of it are not announced (section 6.1).
    FirstStage,
    /// The guest maps more pieces of memory than [`Limits::areas`](super::Limits::areas).
    TooManyAreas,
    /// The guest's tables are too large for [`Limits::steps_per_exit`](super::Limits::steps_per_exit).
    TooMuchWork,
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
                "the guest gave it first-stage tables, which need x-flts=on"
            ),
            Self::TooManyAreas => write!(f, "the guest maps too many pieces of memory"),
            Self::TooMuchWork => write!(
                f,
                "the guest's tables are too large to be read within one exit"
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

impl Target {
    /// What is wanted for untranslated requests of `source` without PASID; without tables, there is no unit.
    pub(crate) fn of<T: TableMemory + ?Sized>(
        tables: Option<&Tables<'_, T>>,
        source: SourceId,
    ) -> Self {
        let Some(tables) = tables.filter(|tables| tables.latched.enabled) else {
            return Self::GuestPhysical;
        };
        let request = Request::untranslated(source, 0, Access::Read);
        let resolved = translate::resolve(tables.memory, tables.gates, &tables.latched, &request);
        match resolved {
            // No request was made, so no fault is recorded.
            Err(fault) => Self::Blocked(Blocked::Guest(fault.reason)),
            Ok(resolved) => match resolved.binding {
                Binding::Blocked => Self::Blocked(Blocked::Guest(FaultReason::ContextInvalid)),
                Binding::PassThrough => Self::GuestPhysical,
                Binding::SecondStage(stage) => Self::Shadow {
                    stage: SecondStage {
                        // Only matters where bits are set.
                        snooped_walk: stage.snooped_walk || !stage.accessed_dirty,
                        ..stage
                    },
                    domain: resolved.domain,
                },
                Binding::FirstStage(_) | Binding::Nested(..) => Self::Blocked(Blocked::FirstStage),
            },
        }
    }
}
