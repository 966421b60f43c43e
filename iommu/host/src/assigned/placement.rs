//! Placements: what the requests of a device reach, as the guest's tables have it (section 3.4).

use std::fmt;

use crate::blocked::Blocked;
use crate::nested::batch::CacheTag;
use crate::shadow::ShadowKey;
use intel_vtd::spec::fault_reason::FaultReason;
use intel_vtd::{
    Binding, FirstStage, GuestTables, Pasid, Resolved, SecondStage, SourceId, TableMemory,
};

/// What requests reach, or are to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Nothing.
    Blocked(Blocked),
    /// All guest memory.
    GuestPhysical,
    /// What second-stage tables map: a shadow of them.
    Shadow {
        /// The guest's tables.
        stage: SecondStage,
        /// DID, under which the guest invalidates them.
        domain: u16,
        /// The device that has the shadow for itself, if one has.
        owner: Option<SourceId>,
    },
    /// What first-stage tables map, which the host's IOMMU walks.
    Nested {
        /// The guest's tables.
        first: FirstStage,
        /// The guest's second-stage tables on whose shadow they are; `None` for guest memory.
        below: Option<SecondStage>,
        /// What the guest invalidates them by.
        tag: CacheTag,
        /// The device that has the shadow for itself, if one has.
        owner: Option<SourceId>,
    },
}

impl Placement {
    /// What is wanted for untranslated requests of `source` with `pasid`, or without; without
    /// tables, there is no unit.
    ///
    /// A PASID that is RID_PASID is blocked, and one of which the entry is not present, or not
    /// reached. So are all of them while translation is off or legacy: then there are none.
    pub(crate) fn wanted<T: TableMemory>(
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
                    owner: None,
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
            tag: CacheTag {
                domain: resolved.domain,
                pasid: resolved.pasid.map_or(0, Pasid::get),
            },
            owner: None,
        }
    }

    /// The same, with a shadow that nobody but `owner` is behind, if there is one.
    pub(crate) fn owned_by(mut self, owner: Option<SourceId>) -> Self {
        if let Self::Shadow { owner: of, .. }
        | Self::Nested {
            owner: of,
            below: Some(_),
            ..
        } = &mut self
        {
            *of = owner;
        }
        self
    }

    /// Whether one page table of the host serves both; none does for what is blocked.
    pub(crate) fn has_table_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::GuestPhysical, Self::GuestPhysical) => true,
            (Self::Shadow { .. }, Self::Shadow { .. }) => self.shadow() == other.shadow(),
            (
                Self::Nested { first, .. },
                Self::Nested {
                    first: of_other, ..
                },
            ) => first == of_other && self.shadow() == other.shadow(),
            _ => false,
        }
    }

    /// The shadow that they go through.
    pub(crate) fn shadow(&self) -> Option<ShadowKey> {
        match *self {
            Self::Shadow { stage, owner, .. } => Some(ShadowKey {
                stage,
                parent: false,
                owner,
            }),
            Self::Nested { below, owner, .. } => below.map(|stage| ShadowKey {
                stage,
                parent: true,
                owner,
            }),
            Self::Blocked(_) | Self::GuestPhysical => None,
        }
    }

    /// DID, under which the guest invalidates what they go through.
    pub(crate) const fn domain(&self) -> Option<u16> {
        match *self {
            Self::Shadow { domain, .. }
            | Self::Nested {
                tag: CacheTag { domain, .. },
                ..
            } => Some(domain),
            Self::Blocked(_) | Self::GuestPhysical => None,
        }
    }
}

/// For people: without what a shadow maps.
impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocked(why) => write!(f, "blocked: {why}"),
            Self::GuestPhysical => f.write_str("guest-physical memory"),
            Self::Shadow {
                stage,
                domain,
                owner,
            } => {
                let own = if owner.is_some() { "own " } else { "" };
                write!(f, "{own}shadow of {stage}, domain {domain}")
            }
            Self::Nested {
                first,
                below,
                tag,
                owner,
            } => {
                write!(f, "nested {first} on ")?;
                match (below, owner) {
                    (None, _) => f.write_str("guest memory")?,
                    (Some(below), None) => write!(f, "a shadow of {below}")?,
                    (Some(below), Some(_)) => write!(f, "its own shadow of {below}")?,
                }
                write!(f, ", domain {}", tag.domain)
            }
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
