//! A block of addresses that an invalidation of pages names (sec. 6.5.2.3 and 6.5.2.4).

use std::ops::RangeInclusive;

use crate::spec::descriptors::PageBlock;

/// Whose addresses a block has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// First-stage and nested translations, by the address of the request.
    First,
    /// Second-stage translations. All first-stage and nested ones of the domain go with them.
    Second,
}

/// Pages of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) stage: Stage,
    first: u64,
    last: u64,
}

impl Block {
    pub(super) fn new(stage: Stage, pages: &PageBlock) -> Self {
        let (first, last) = pages.span().into_inner();
        Self { stage, first, last }
    }

    /// The smallest block that holds both; `None` if they are of two stages.
    pub(super) fn joined(self, other: Self) -> Option<Self> {
        (self.stage == other.stage).then(|| Self {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
            ..self
        })
    }

    pub(super) fn touches(&self, addresses: &RangeInclusive<u64>) -> bool {
        self.first <= *addresses.end() && *addresses.start() <= self.last
    }
}
