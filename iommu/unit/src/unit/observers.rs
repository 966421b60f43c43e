//! Observers of translation: those who keep translations outside of the unit hear what the guest invalidates.

use std::sync::Arc;

use crate::spec::descriptors::{IotlbScope, PasidIotlbScope};
use crate::spec::invalidation::Invalidation;

/// Keeps translations outside of the unit, and brings them up to date when the guest says so.
///
/// Calls come one at a time and in the order of the guest's commands, by whoever executes them: an implementation must not
/// write registers. They may take as long as the host needs: the guest sees its command complete after that, and register
/// accesses do not wait if there is a [background](crate::Unit::run_in_background).
pub trait TranslationObserver: Send + Sync {
    /// The guest latched a root table, or turned translation on or off, or the unit was reset. The unit's
    /// [`DmaState`](crate::dma::DmaState) has the new state already; GSTS shows it when this returns.
    fn translation_changed(&self);

    /// A run of the invalidation queue, or a register-based invalidation, begins. A run is what is carried out without a
    /// look at anything else: at most what software had put into the queue by then. For limits on the work of one run.
    fn run_begins(&self) {}

    /// When this returns, nothing that was read from the named tables before the call is in use any more. A wait completes
    /// after it.
    fn invalidated(&self, invalidations: &[Invalidation]);

    /// Whether it keeps any translations at the moment. While none does, what is broad takes observers no time, and is carried
    /// out at once. It only matters for who carries a command out, so it may be out of date when it returns.
    fn is_in_use(&self) -> bool {
        true
    }
}

/// How many invalidations are told apart between two waits; any more are told as [`Invalidation::All`].
const LISTED: usize = 64;

/// The observers of a unit. The executor has them, so that one that is added has missed nothing that it needs: no command is
/// half-way then.
#[derive(Default)]
pub(super) struct TranslationObservers(Vec<Arc<dyn TranslationObserver>>);

impl TranslationObservers {
    pub(super) fn add(&mut self, observer: Arc<dyn TranslationObserver>) {
        self.0.push(observer);
    }

    pub(super) fn translation_changed(&self) {
        for observer in &self.0 {
            observer.translation_changed();
        }
    }

    pub(super) fn run_begins(&self) {
        for observer in &self.0 {
            observer.run_begins();
        }
    }

    pub(super) fn invalidated(&self, invalidations: &[Invalidation]) {
        for observer in &self.0 {
            observer.invalidated(invalidations);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn are_in_use(&self) -> bool {
        self.0.iter().any(|observer| observer.is_in_use())
    }
}

/// How many pages of 4 KiB are few: those of one table. What observers have to look at for them costs less than to wake a
/// thread if they are in one piece, as they mostly are, and a millisecond or two if each is by itself.
const FEW_PAGES: u64 = 512;

impl Invalidation {
    /// How many pages it names; none if it names tables, or all of a domain.
    fn pages(&self) -> Option<u64> {
        match self {
            Self::Iotlb(IotlbScope::Pages(_, block)) => 1_u64.checked_shl(block.mask.into()),
            // One call of the host, whatever their number; for that of a device-TLB, none of its own.
            Self::PasidIotlb {
                scope: PasidIotlbScope::Pages(_) | PasidIotlbScope::Pasid,
                ..
            }
            | Self::DeviceTlb { .. } => Some(1),
            _ => None,
        }
    }

    /// Whether it is known to take observers no longer than a register write should.
    pub(super) fn is_narrow(&self) -> bool {
        self.pages().is_some_and(|pages| pages <= FEW_PAGES)
    }
}

/// Invalidations that were taken from the queue, and that observers are still to hear of.
#[derive(Debug, Default)]
pub(super) struct InvalidationList(Vec<Invalidation>);

impl InvalidationList {
    pub(super) fn add(&mut self, invalidation: Invalidation) {
        if matches!(self.0.last(), Some(last) if *last == invalidation || *last == Invalidation::All)
        {
            return;
        }
        if self.0.len() == LISTED {
            self.0.clear();
            self.0.push(Invalidation::All);
        } else {
            self.0.push(invalidation);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all of it together is known to take observers no longer than a register write should.
    pub(super) fn is_narrow(&self) -> bool {
        let sum = self.0.iter().try_fold(0_u64, |sum, invalidation| {
            sum.checked_add(invalidation.pages()?)
        });
        sum.is_some_and(|pages| pages <= FEW_PAGES)
    }

    /// Tells `observers` what was added since the last call.
    pub(super) fn tell(&mut self, observers: &TranslationObservers) {
        if !self.0.is_empty() {
            observers.invalidated(&self.0);
            self.0.clear();
        }
    }
}

#[cfg(test)]
mod observers_test;
