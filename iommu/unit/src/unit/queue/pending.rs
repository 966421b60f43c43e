//! What the invalidation queue has taken and not yet made true (section 6.5.2).

use std::collections::VecDeque;
use std::ops::Range;

use super::Flow;
use crate::dma::DrainScope;
use crate::spec::descriptors::{InterruptScope, Wait};
use crate::spec::ids::SourceId;
use crate::spec::invalidation::Invalidation;
use crate::spec::registers::QueueError;
use crate::unit::observers::InvalidationList;

/// Invalidations that were taken from the queue and did not take effect yet, and what is to follow when they do.
#[derive(Debug, Default)]
pub(in crate::unit) struct Pending {
    /// Whose transactions to wait for.
    pub(super) concerned: DrainScope,
    /// What observers of translations are to hear of.
    pub(super) invalidations: InvalidationList,
    /// Indices of interrupt entries, a range for each descriptor unless they touch or are too many.
    pub(super) interrupts: VecDeque<Range<u32>>,
    /// Whose requests that were in flight when this run of the queue began are over: tables that software changed before are
    /// not in use by them any more. That much a device-TLB relies on, and once for each is enough.
    pub(super) drained: DrainScope,
    /// Waits that complete, in this order, once all of the above is true.
    pub(super) waits: Vec<Wait>,
    /// One of the waits is for page requests that devices are making, too (PD).
    pub(super) page_drain: bool,
    /// Whose device-TLB does not answer. Everything up to the next fence is started nevertheless, but no wait completes:
    /// so it looks to software when the time-out is noticed.
    pub(super) timed_out: Option<SourceId>,
    /// What the queue stops with once all of the above is done.
    pub(super) error: Option<QueueError>,
}

/// How many waits are completed together. Each time, the transactions in flight are waited for, which takes as long as they
/// do.
const WAITS_AT_ONCE: usize = 64;

/// How many ranges of interrupt entries observers hear apart; further ones widen the first.
const RANGES_AT_ONCE: usize = 16;

impl Pending {
    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.concerned.is_empty()
            && self.invalidations.is_empty()
            && self.interrupts.is_empty()
            && self.waits.is_empty()
            && self.timed_out.is_none()
            && self.error.is_none()
    }

    /// A wait is to complete once all before it is true; or never, behind a device that does not answer.
    pub(super) fn wait(&mut self, wait: Wait) -> Flow {
        if self.timed_out.is_some() {
            // Aborted: software sees neither its status nor its interrupt.
            return if wait.fence {
                Flow::Held
            } else {
                Flow::Continue
            };
        }
        let is_now = wait.fence || wait.page_drain;
        self.page_drain |= wait.page_drain;
        self.waits.push(wait);
        if is_now || self.waits.len() == WAITS_AT_ONCE {
            Flow::Complete
        } else {
            Flow::Continue
        }
    }

    /// `is_told` says that somebody hears of it.
    pub(super) fn add(&mut self, invalidation: Invalidation, is_told: bool) {
        self.concerned.add(&invalidation);
        if is_told {
            self.invalidations.add(invalidation);
        }
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
            None => self.interrupts.push_back(added),
        }
    }
}
