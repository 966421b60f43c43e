//! What the guest's tables want for a device.

use crate::blocked::Blocked;
use crate::nested::batch::Tag;
use crate::shadow::ShadowKey;
use intel_vtd::spec::fault_reason::FaultReason;
use intel_vtd::{
    Binding, FirstStage, GuestTables, Pasid, Resolved, SecondStage, SourceId, TableMemory,
};

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

impl Target {
    /// What is wanted for untranslated requests of `source` with `pasid`, or without; without tables, there is no unit.
    ///
    /// A PASID that is RID_PASID is blocked, and one of which the entry is not present, or not reached. So are all of them while
    /// translation is off or legacy: then there are none.
    pub(crate) fn of<T: TableMemory>(
        tables: Option<&GuestTables<'_, T>>,
        source: SourceId,
        pasid: Option<Pasid>,
    ) -> Self {
        let Some(tables) = tables.filter(|tables| tables.latched().enabled) else {
            return match pasid {
                None => Self::GuestPhysical,
                Some(_) => Self::Blocked(Blocked::Guest(FaultReason::PasidDisabled)),
            };
        };
        match tables.resolve(source, pasid) {
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
