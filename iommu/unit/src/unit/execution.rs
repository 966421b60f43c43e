//! Who carries out what software has asked for, and when.
//!
//! A register write notes what it asks for under the lock of the [`Registers`](super::registers::Registers),
//! and then tries to become the executor. If another thread is, that one looks for new work after
//! it has let go of [`Execution`], so nothing is left lying. What takes longer than the write's
//! budget goes on in [`Unit::run_backlog`].

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::MutexGuard;
use vm_memory::GuestMemoryBackend;

use super::Unit;
use super::budget::{Budget, Clock, InlineBudget, Later};
use super::observers::TranslationObservers;
use super::queue::Pending;
use super::registers::Work;
use crate::translate::RootPointer;

/// What the executor alone knows. Its lock may be held for as long as a device's transaction or an
/// observer takes.
#[derive(Default)]
pub(super) struct Execution {
    /// RTADDR, as SRTP latched it.
    pub(super) root: RootPointer,
    pub(super) observers: TranslationObservers,
    /// What was taken from the queue and is not true yet.
    pub(super) pending: Pending,
    pub(super) halfway: Halfway,
}

/// What was begun to be switched on or off, so that it may be in use already, while GSTS does not show it: if the guest
/// takes it back before that, it is to be switched again.
#[derive(Debug, Default)]
pub(super) struct Halfway {
    pub(super) translation: bool,
    pub(super) interrupts: bool,
}

impl Execution {
    /// Observers stay.
    pub(super) fn reset(&mut self) {
        self.root = RootPointer::default();
        self.pending = Pending::default();
    }
}

/// As long as it lives, whoever executes leaves off as soon as it can, and nobody begins.
///
/// See [`Unit::interrupt`].
#[derive(Debug)]
pub struct Interruption<'a>(&'a AtomicUsize);

impl Drop for Interruption<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How a register write leaves work to another thread.
pub(super) struct Background {
    inline: InlineBudget,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl<M> Unit<M> {
    /// From now on, a register write carries out no more than `inline`, and calls `wake` if there is
    /// more: [`run_backlog`](Self::run_backlog) is then to be called soon, by another thread. The
    /// guest sees the rest complete later, as with hardware.
    ///
    /// `wake` may be called by any thread that calls the unit, under none of its locks. It must
    /// not wait for `run_backlog`.
    ///
    /// Without this, and that is how a unit begins, every register write returns when all is done
    /// that it asks for. Only the first call has an effect.
    pub fn run_in_background(&self, inline: InlineBudget, wake: Arc<dyn Fn() + Send + Sync>) {
        // A unit has one background.
        let _ = self.background.set(Background { inline, wake });
    }

    /// Interrupts what is being executed, observers included, for someone who waits for a lock of theirs. To be let go
    /// once that is taken: whoever executed goes on then.
    pub fn interrupt(&self) -> Interruption<'_> {
        self.claims.fetch_add(1, Ordering::SeqCst);
        Interruption(&self.claims)
    }
}

impl<M: Deref<Target: GuestMemoryBackend>> Unit<M> {
    /// Carries out what register writes have left, until nothing is left or `stop` is true.
    ///
    /// `stop` is looked at before anything further begins, while transactions are waited for, and by observers that
    /// take long. What is left then stays: the next call goes on with it, also in another unit that
    /// [`restore`](Self::restore)s the state. To save a state that does not change any more, stop this first.
    pub fn run_backlog(&self, stop: &Arc<AtomicBool>) {
        self.run_patiently(Some(stop), Clock::default());
    }

    /// Carries out what was asked for: all of it, or as much as the budget of register writes has.
    pub(super) fn work(&self, clock: Clock) -> Clock {
        let Some(background) = self.background.get() else {
            return self.run_patiently(None, clock);
        };
        let mut budget = Budget::inline(&self.claims, background.inline, clock);
        if self.run_inline(&mut budget).is_err() {
            self.shared.counters.left_to_background.add();
            (background.wake)();
        }
        budget.clock
    }

    fn run_inline(&self, budget: &mut Budget<'_>) -> Result<(), Later> {
        loop {
            // If somebody else executes, that one looks for work again after it has let go: either
            // it sees what was noted before this, or this finds the lock free.
            let Some(mut execution) = self.execution.try_lock() else {
                return Ok(());
            };
            let outcome = self.carry_out(&mut execution, budget);
            MutexGuard::unlock_fair(execution);
            outcome?;
            if !self.registers().has_work() {
                return Ok(());
            }
            budget.more()?;
        }
    }

    fn run_patiently(&self, stop: Option<&Arc<AtomicBool>>, clock: Clock) -> Clock {
        let mut budget = Budget::patient(&self.claims, stop, clock);
        loop {
            let mut execution = self.execution.try_lock().unwrap_or_else(|| {
                budget.clock.start();
                self.execution.lock()
            });
            let outcome = self.carry_out(&mut execution, &mut budget);
            // Those with a claim are next.
            MutexGuard::unlock_fair(execution);
            let goes_on = outcome.is_err() || self.registers().has_work();
            if !goes_on || stop.is_some_and(|stop| stop.load(Ordering::SeqCst)) {
                return budget.clock;
            }
        }
    }

    /// Gives `change` the place of the executor, before anyone who would go on with the queue.
    pub(super) fn as_executor<R>(&self, change: impl FnOnce(&mut Execution) -> R) -> R {
        let claim = self.interrupt();
        let mut execution = self.execution.lock();
        drop(claim);
        let result = change(&mut execution);
        drop(execution);
        // Who found the lock taken has left its work.
        if self.registers().has_work() {
            self.wake_background();
        }
        result
    }

    /// There is something to go on with.
    pub(super) fn wake_background(&self) {
        if let Some(background) = self.background.get() {
            (background.wake)();
        }
    }

    /// Carries out commands that were noted, and finishes what was taken from the queue. The rest of the queue stays.
    ///
    /// What waits for pages that a device does not release is kept.
    pub(super) fn finish_commands(&self, execution: &mut Execution) -> Result<(), Later> {
        let mut budget = Budget::to_save();
        self.finish(execution, &mut budget)?;
        loop {
            let command = {
                let mut registers = self.registers();
                registers.has_command().then(|| registers.next()).flatten()
            };
            let Some(command) = command else {
                return Ok(());
            };
            self.command(execution, command, &mut budget)?;
        }
    }

    /// Finishes what was begun, and carries out what is next. What is left of that is kept.
    fn carry_out(&self, execution: &mut Execution, budget: &mut Budget<'_>) -> Result<(), Later> {
        budget.begin()?;
        self.finish(execution, budget)?;
        let mut registers = self.registers();
        let Some(work) = registers.next() else {
            return Ok(());
        };
        let span = (work == Work::Queue).then(|| self.span(&registers.file));
        drop(registers);
        match span {
            None => self.command(execution, work, budget),
            Some(None) => Ok(()),
            Some(Some(span)) => self.run_queue(execution, span, budget),
        }
    }

    fn command(
        &self,
        execution: &mut Execution,
        work: Work,
        budget: &mut Budget<'_>,
    ) -> Result<(), Later> {
        match work {
            Work::Global(asked) => self.global_command(execution, asked, budget),
            Work::Context => self.context_command(execution, budget),
            Work::Iotlb => self.iotlb_command(execution, budget),
            Work::Queue => Ok(()),
        }
    }
}
