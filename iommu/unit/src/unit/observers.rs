//! Observers of translation: those who keep translations outside of the unit hear what the guest invalidates.

use std::sync::Arc;

use crate::spec::invalidation::Invalidation;

/// Keeps translations outside of the unit, and brings them up to date when the guest says so.
///
/// Calls come one at a time and in the order of the guest's commands, under the unit's command mutex: an implementation must
/// not access registers. They may take as long as the host needs; the guest waits.
pub trait TranslationObserver: Send + Sync {
    /// The guest latched a root table, or turned translation on or off, or the unit was reset. The unit's
    /// [`DmaState`](crate::dma::DmaState) has the new state already; GSTS shows it when this returns.
    fn translation_changed(&self);

    /// A run of the invalidation queue, or a register-based invalidation, begins: all calls of
    /// [`invalidated`](Self::invalidated) until the next run are one exit of the guest. For limits on the work of one exit.
    fn run_begins(&self) {}

    /// When this returns, nothing that was read from the named tables before the call is in use any more. A wait completes
    /// after it.
    fn invalidated(&self, invalidations: &[Invalidation]);
}

/// How many invalidations are told apart between two waits; any more are told as [`Invalidation::All`].
const LISTED: usize = 64;

/// The observers of a unit. Under the command mutex, so that one that is added has missed nothing that it needs: no command is
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

    /// A list for a run of the queue; it stays empty if nobody would hear of it.
    pub(super) fn list(&self) -> InvalidationList {
        InvalidationList {
            wanted: !self.0.is_empty(),
            list: Vec::new(),
        }
    }
}

/// Invalidations that were taken from the queue, and that observers are still to hear of.
#[derive(Debug)]
pub(super) struct InvalidationList {
    wanted: bool,
    list: Vec<Invalidation>,
}

impl InvalidationList {
    pub(super) fn add(&mut self, invalidation: Invalidation) {
        if !self.wanted
            || matches!(self.list.last(), Some(last) if *last == invalidation || *last == Invalidation::All)
        {
            return;
        }
        if self.list.len() == LISTED {
            self.list.clear();
            self.list.push(Invalidation::All);
        } else {
            self.list.push(invalidation);
        }
    }

    /// Tells `observers` what was added since the last call.
    pub(super) fn tell(&mut self, observers: &TranslationObservers) {
        if !self.list.is_empty() {
            observers.invalidated(&self.list);
            self.list.clear();
        }
    }
}

#[cfg(test)]
mod observers_test;
