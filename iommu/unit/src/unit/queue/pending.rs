//! What the invalidation queue has taken and not yet made true (section 6.5.2).

use std::ops::Range;

use crate::dma::DrainScope;
use crate::spec::descriptors::{InterruptScope, Wait};
use crate::spec::ids::SourceId;
use crate::spec::invalidation::Invalidation;
use crate::unit::observers::InvalidationList;

/// Invalidations that were taken from the queue and did not take effect yet.
#[derive(Debug)]
pub(super) struct Pending {
    /// Whose transactions to wait for.
    pub(super) concerned: DrainScope,
    /// What observers of translations are to hear of.
    pub(super) invalidations: InvalidationList,
    /// Indices of interrupt entries, a range for each descriptor unless they touch or are too many.
    pub(super) interrupts: Vec<Range<u32>>,
    /// Whose requests that were in flight when this run of the queue began are over: tables that software changed before are
    /// not in use by them any more. That much a device-TLB relies on, and once for each is enough.
    pub(super) drained: DrainScope,
    /// Waits that complete, in this order, once all of the above is true.
    pub(super) waits: Vec<Wait>,
    /// Whose device-TLB does not answer. Everything up to the next fence is started nevertheless, but no wait completes:
    /// so it looks to software when the time-out is noticed.
    pub(super) timed_out: Option<SourceId>,
}

/// How many ranges of interrupt entries observers hear apart; further ones widen the first.
const RANGES_AT_ONCE: usize = 16;

impl Pending {
    pub(super) fn new(invalidations: InvalidationList) -> Self {
        Self {
            concerned: DrainScope::default(),
            invalidations,
            interrupts: Vec::new(),
            drained: DrainScope::default(),
            waits: Vec::new(),
            timed_out: None,
        }
    }

    pub(super) fn add(&mut self, invalidation: Invalidation) {
        self.concerned.add(&invalidation);
        self.invalidations.add(invalidation);
    }

    pub(super) fn add_interrupts(&mut self, scope: InterruptScope) {
        let added = match scope {
            InterruptScope::Global => 0..0x1_0000,
            InterruptScope::Entries { first, count } => {
                u32::from(first)..u32::from(first).saturating_add(count)
            }
        };
        let touches = |range: &Range<u32>| range.start <= added.end && added.start <= range.end;
        let crowded = self.interrupts.len() == RANGES_AT_ONCE;
        match self
            .interrupts
            .iter_mut()
            .find(|range| touches(range) || crowded)
        {
            Some(range) => *range = range.start.min(added.start)..range.end.max(added.end),
            None => self.interrupts.push(added),
        }
    }
}
