//! What views and pins use of the tables, as far as the drain tells it apart.

use std::ops::RangeInclusive;

use super::block::{Block, Stage};
use crate::translate::{Binding, Resolved};

/// The domains of what a view has in its caches, of what a running transaction uses, and of what
/// somebody holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Domains {
    /// It uses nothing yet.
    #[default]
    None,
    /// One.
    One(u16),
    /// Several, or it is not known which.
    Any,
}

impl Domains {
    /// With `domain` besides.
    pub(super) fn and(self, domain: u16) -> Self {
        match self {
            Self::None => Self::One(domain),
            Self::One(same) if same == domain => self,
            _ => Self::Any,
        }
    }

    pub(super) fn may_include(self, domain: u16) -> bool {
        match self {
            Self::None => false,
            Self::One(used) => used == domain,
            Self::Any => true,
        }
    }
}

/// Neighbouring pages that lead to neighbouring memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The address of the device's request.
    pub(super) input: u64,
    /// Guest-physical.
    pub(super) output: u64,
    /// In bytes; not 0.
    pub(super) length: u64,
}

impl Run {
    fn addresses(&self) -> RangeInclusive<u64> {
        self.input..=self.input.saturating_add(self.length - 1)
    }
}

/// Which translations the pages were found by.
#[derive(Clone, Debug)]
pub(super) struct Used {
    pub(super) domains: Domains,
    /// Of what kind they are; `None` if that is not known.
    pub(super) stage: Option<Stage>,
    pub(super) runs: Vec<Run>,
}

impl Used {
    /// Notes what translates.
    pub(super) fn by(&mut self, resolved: &Resolved) {
        self.domains = Domains::One(resolved.domain);
        self.stage = Some(match resolved.binding {
            Binding::FirstStage(_) | Binding::Nested(..) => Stage::First,
            Binding::SecondStage(_) | Binding::PassThrough | Binding::Blocked => Stage::Second,
        });
    }

    /// Whether the invalidation of a block in their domain may be of one of them.
    pub(super) fn may_touch(&self, block: &Block) -> bool {
        self.stage != Some(block.stage)
            || self.runs.iter().any(|run| block.touches(&run.addresses()))
    }
}
