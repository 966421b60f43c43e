//! Those who hear of invalidations, and what they did not hear of yet.

use std::sync::Arc;

use super::translation_observer::{Invalidation, TranslationObserver};

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
