//! Observers of translation: those who keep translations outside of the unit hear what the guest invalidates.

use std::sync::Arc;

use super::patience::{Patience, Unfinished};
use crate::spec::invalidation::Invalidation;

/// Keeps translations outside of the unit, and brings them up to date when the guest says so.
///
/// Calls come one at a time and in the order of the guest's commands, by whoever executes them: an implementation must not
/// write registers. The guest sees its command complete after them. What takes long is best done by the
/// [background](crate::Unit::run_in_background), where no register access waits for it: an implementation that has done as
/// much as the [`Patience`] is for, and is not at the end, returns [`Unfinished`]. So does one that somebody waits for. It is
/// then called again, with the same invalidations or [`Invalidation::All`], before the guest sees anything complete; what it
/// has done already may stay done. One that is always quick need not look at it.
pub trait TranslationObserver: Send + Sync {
    /// The guest latched a root table, or turned translation on or off, or the unit was reset. The unit's
    /// [`DmaState`](crate::dma::DmaState) has the new state already; GSTS shows it when this returns.
    ///
    /// # Errors
    /// It was not finished; never with [endless](Patience::endless) patience.
    fn translation_changed(&self, patience: &Patience) -> Result<(), Unfinished>;

    /// A run of the invalidation queue, or a register-based invalidation, begins. A run is what is carried out without a
    /// look at anything else: at most what software had put into the queue by then. For limits on the work of one run.
    fn run_begins(&self) {}

    /// When this returns, nothing that was read from the named tables before the call is in use any more. A wait completes
    /// after it.
    ///
    /// # Errors
    /// It was not finished; never with [endless](Patience::endless) patience.
    fn invalidated(
        &self,
        invalidations: &[Invalidation],
        patience: &Patience,
    ) -> Result<(), Unfinished>;
}

/// How many invalidations are told apart between two waits; any more are told as [`Invalidation::All`].
const LISTED: usize = 128;

/// The observers of a unit. The executor has them, so that one that is added has missed nothing that it needs: no command is
/// half-way then.
#[derive(Default)]
pub(super) struct TranslationObservers(Vec<Arc<dyn TranslationObserver>>);

impl TranslationObservers {
    pub(super) fn add(&mut self, observer: Arc<dyn TranslationObserver>) {
        self.0.push(observer);
    }

    pub(super) fn translation_changed(&self, patience: &Patience) -> Result<(), Unfinished> {
        self.0
            .iter()
            .try_for_each(|observer| observer.translation_changed(patience))
    }

    pub(super) fn run_begins(&self) {
        for observer in &self.0 {
            observer.run_begins();
        }
    }

    pub(super) fn invalidated(
        &self,
        invalidations: &[Invalidation],
        patience: &Patience,
    ) -> Result<(), Unfinished> {
        self.0
            .iter()
            .try_for_each(|observer| observer.invalidated(invalidations, patience))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
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

    /// Tells `observers` what was added since the last call. What they do not finish stays, to be told again.
    pub(super) fn tell(
        &mut self,
        observers: &TranslationObservers,
        patience: &Patience,
    ) -> Result<(), Unfinished> {
        if !self.0.is_empty() {
            observers.invalidated(&self.0, patience)?;
            self.0.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod observers_test;
