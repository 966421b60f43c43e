//! How long an observer of translations goes on with what it was called for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// An observer was not able to do all that it was called for with the [`Patience`] that it was given. It is called again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished;

/// How much an observer may do in a call, and whether somebody waits for it to return.
#[derive(Clone, Debug, Default)]
pub struct Patience {
    /// `None`: as many as it takes.
    steps: Option<u64>,
    /// How many wait for the one who calls; `None` where nobody can.
    waiting: Option<Arc<AtomicUsize>>,
    stop: Option<Arc<AtomicBool>>,
}

impl Patience {
    /// How long a step of work takes, by and large.
    pub const STEP: Duration = Duration::from_nanos(50);

    /// For as much as there is to do: nobody waits.
    pub fn endless() -> Self {
        Self::default()
    }

    pub(super) fn new(waiting: Arc<AtomicUsize>, stop: Option<Arc<AtomicBool>>) -> Self {
        Self {
            steps: None,
            waiting: Some(waiting),
            stop,
        }
    }

    /// The same, for so many steps at most.
    #[must_use]
    pub fn with_steps(self, steps: u64) -> Self {
        Self {
            steps: Some(steps),
            ..self
        }
    }

    /// How many [steps](Self::STEP) of work it is for, or `u64::MAX`. That is a measure of work and not of time, so it is the
    /// same on a machine that is slow or has been preempted.
    pub const fn steps(&self) -> u64 {
        match self.steps {
            Some(steps) => steps,
            None => u64::MAX,
        }
    }

    /// Whether somebody waits for the call to return: to reset the unit, to take an assigned device away, or to end. To be
    /// looked at every 100 µs or so.
    pub fn is_over(&self) -> bool {
        let waits = |waiting: &Arc<AtomicUsize>| waiting.load(Ordering::SeqCst) != 0;
        let stops = |stop: &Arc<AtomicBool>| stop.load(Ordering::SeqCst);
        self.waiting.as_ref().is_some_and(waits) || self.stop.as_ref().is_some_and(stops)
    }
}
