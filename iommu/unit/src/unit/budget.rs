//! How much of what software has asked for is carried out at a time, and by whom.
//!
//! Hardware is asynchronous: nothing in section 6.5.2 or 11.4.4 says that a command is complete when
//! the write that asked for it is. So a register write that meets a long queue, a long transaction
//! of a device or an observer with much to do leaves the rest to the background, if there is one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockWriteGuard};

use super::patience::{Patience, Unfinished};

/// What a register write carries out itself before it leaves the rest to the background.
///
/// See [`Unit::run_in_background`](super::Unit::run_in_background).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InlineBudget {
    /// How often the invalidations that were gathered are made true, which takes as long as the DMA
    /// transactions in flight and the observers do.
    pub settles: u32,
    /// For how long. It is looked at between descriptors and while transactions are waited for. Each
    /// call of an observer of translations may do as much [work](Patience::STEP).
    pub time: Duration,
}

impl InlineBudget {
    /// Nothing: all is left to the background.
    pub const NOTHING: Self = Self {
        settles: 0,
        time: Duration::ZERO,
    };
}

impl Default for InlineBudget {
    /// 64 and 300 µs: a guest that waits for some pages to be unmapped finds its status written, and
    /// one that fills its queue does not hold its vCPU for longer than a time slice of a host.
    fn default() -> Self {
        Self {
            settles: 64,
            time: Duration::from_micros(300),
        }
    }
}

/// It would take longer than the budget has: what is left is kept, and whoever is next goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Later;

impl From<Unfinished> for Later {
    fn from(Unfinished: Unfinished) -> Self {
        Self
    }
}

/// When an access began, if it did something that may take time. One that did not is over within
/// less than a microsecond, and is spared the two looks at the clock.
#[derive(Debug, Default)]
pub(crate) struct Clock(Option<Instant>);

impl Clock {
    /// Something that may take time begins.
    pub(super) fn start(&mut self) -> Instant {
        *self.0.get_or_insert_with(Instant::now)
    }

    /// How long it took.
    pub(super) fn elapsed(&self) -> Duration {
        self.0.map_or(Duration::ZERO, |began| began.elapsed())
    }
}

/// Who executes.
#[derive(Clone, Copy, Debug)]
enum Executor<'a> {
    /// Nobody else can go on: it ends with the work.
    Alone(Purpose),
    /// A thread that goes on until the work is done, but lets others in who have a claim, and gives
    /// up when it is told to.
    Patient(Option<&'a Arc<AtomicBool>>, Claims<'a>),
    /// A register write beside a background.
    Inline(InlineBudget, Claims<'a>),
}

/// What somebody does who may not stop half-way.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    /// What is not over when it is tired of waiting is dropped.
    Reset,
    /// What is not over then is not saved as if it was.
    Save,
}

/// How many wait to be the executor, for a reset or a snapshot.
#[derive(Clone, Copy, Debug)]
struct Claims<'a>(&'a Arc<AtomicUsize>);

impl Claims<'_> {
    fn are_there(self) -> bool {
        self.0.load(Ordering::SeqCst) != 0
    }
}

/// What is left of what an executor may do.
#[derive(Debug)]
pub(super) struct Budget<'a> {
    executor: Executor<'a>,
    settles: u32,
    pub(super) clock: Clock,
}

impl<'a> Budget<'a> {
    /// Of a reset, which may not stop half-way.
    pub(super) fn to_reset() -> Self {
        Self::new(Executor::Alone(Purpose::Reset), Clock::default())
    }

    /// Of a snapshot, which does so for pages only that a device has pinned.
    pub(super) fn to_save() -> Self {
        Self::new(Executor::Alone(Purpose::Save), Clock::default())
    }

    /// Of one who comes back after `Later`, unless `stop` is true.
    pub(super) fn patient(
        claims: &'a Arc<AtomicUsize>,
        stop: Option<&'a Arc<AtomicBool>>,
        clock: Clock,
    ) -> Self {
        Self::new(Executor::Patient(stop, Claims(claims)), clock)
    }

    /// Of a register write that leaves the rest to another thread.
    pub(super) fn inline(claims: &'a Arc<AtomicUsize>, budget: InlineBudget, clock: Clock) -> Self {
        Self::new(Executor::Inline(budget, Claims(claims)), clock)
    }

    fn new(executor: Executor<'a>, clock: Clock) -> Self {
        Self {
            executor,
            settles: 0,
            clock,
        }
    }

    /// What observers may do in a call.
    pub(super) fn of_observers(&self) -> Patience {
        let patience = |claims: Claims<'_>, stop: Option<&Arc<AtomicBool>>| {
            Patience::new(Arc::clone(claims.0), stop.cloned())
        };
        match self.executor {
            Executor::Alone(_) => Patience::endless(),
            Executor::Patient(stop, claims) => patience(claims, stop),
            Executor::Inline(budget, claims) => {
                let steps = budget.time.as_nanos() / Patience::STEP.as_nanos();
                patience(claims, None).with_steps(u64::try_from(steps).unwrap_or(u64::MAX))
            }
        }
    }

    /// Invalidations were made true once more.
    pub(super) const fn settled(&mut self) {
        self.settles = self.settles.saturating_add(1);
    }

    /// Whether anything may begin.
    pub(super) fn begin(&self) -> Result<(), Later> {
        let may = match self.executor {
            Executor::Alone(_) => true,
            Executor::Patient(stop, claims) => !is_to_end(stop, claims),
            Executor::Inline(budget, claims) => budget.settles != 0 && !claims.are_there(),
        };
        if may { Ok(()) } else { Err(Later) }
    }

    /// Whether something further may begin.
    pub(super) fn more(&mut self) -> Result<(), Later> {
        if let Executor::Inline(budget, _) = self.executor
            && self.settles >= budget.settles
        {
            return Err(Later);
        }
        self.patience()
    }

    /// Whether to go on with, or to wait for, what has begun.
    pub(super) fn patience(&mut self) -> Result<(), Later> {
        let began = self.clock.start();
        let goes_on = match self.executor {
            Executor::Alone(_) => true,
            Executor::Patient(stop, claims) => !is_to_end(stop, claims),
            Executor::Inline(budget, claims) => {
                !claims.are_there() && began.elapsed() < budget.time
            }
        };
        if goes_on { Ok(()) } else { Err(Later) }
    }

    /// Whether to go on waiting, as it `began` to, for pages that a device has pinned. Who may not
    /// stop half-way does not wait for a disk that hangs, either.
    pub(super) fn patience_for_pins(&mut self, began: &mut Option<Instant>) -> Result<(), Later> {
        /// How long a reset and a snapshot do: longer than a device's I/O takes.
        const LONGEST: Duration = Duration::from_millis(500);
        match self.executor {
            Executor::Alone(_) if began.get_or_insert_with(Instant::now).elapsed() >= LONGEST => {
                Err(Later)
            }
            _ => self.patience(),
        }
    }

    /// [`Later`], unless there is none, for a reset.
    pub(super) const fn comes_back(&self) -> Result<(), Later> {
        match self.executor {
            Executor::Alone(Purpose::Reset) => Ok(()),
            _ => Err(Later),
        }
    }

    /// The write side of `lock`, whose read side requests in flight hold.
    pub(super) fn wait_for<'l, T>(
        &mut self,
        lock: &'l RwLock<T>,
    ) -> Result<RwLockWriteGuard<'l, T>, Later> {
        /// How long to wait between two looks at what is left.
        const TURN: Duration = Duration::from_micros(50);
        loop {
            if let Some(guard) = lock.try_write_for(TURN) {
                return Ok(guard);
            }
            self.patience()?;
        }
    }
}

fn is_to_end(stop: Option<&Arc<AtomicBool>>, claims: Claims<'_>) -> bool {
    claims.are_there() || stop.is_some_and(|stop| stop.load(Ordering::SeqCst))
}

#[cfg(test)]
mod budget_test;
