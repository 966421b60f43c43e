//! Budget of the work that a guest can have done: in one exit, and before whoever does it is to return.

use intel_vtd::{Patience, Unfinished};

/// Steps for a run of pages that is found: what all else is measured by, some 50 ns.
pub(crate) const RUN: u64 = 1;
/// Steps for a table that is read.
pub(crate) const TABLE: u64 = 8;
/// Steps for a call of the host that maps, unmaps or invalidates.
pub(crate) const CALL: u64 = 100;

/// Steps for an area that is unmapped together with its neighbours.
pub(crate) const AREA: u64 = 10;

/// What attaching requests costs of the steps for PASIDs.
pub(crate) const ATTACH: u64 = 16;
/// The same in steps of 50 ns: it is a few calls of the host.
const ATTACH_CALLS: u64 = 4 * CALL;
/// A step for PASIDs in steps of 50 ns: some words are read for it, a page at most.
const PASID_STEP: u64 = 32;

/// Steps after which it is looked whether somebody waits.
const UNWATCHED: u64 = 2000;

/// Why no more is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spent {
    /// The guest has had all that it can have in one exit.
    Exhausted,
    /// The call is to end, and will be made again.
    Interrupted,
}

impl From<Spent> for Unfinished {
    /// Of what does not count for the exit.
    fn from(_: Spent) -> Self {
        Self
    }
}

/// Steps that are left. They are weighted by the time that work takes.
#[derive(Debug)]
pub(crate) struct Budget {
    left: Left,
    call: Call,
}

/// Of what the guest can have in one exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Left {
    steps: u64,
    /// For PASIDs.
    pasid_steps: u64,
}

/// A call of the unit, from which the rest may be left to another one.
#[derive(Debug)]
struct Call {
    patience: Patience,
    steps: u64,
    unwatched: u64,
    is_over: bool,
    /// What was left when it began.
    before: Left,
}

impl Budget {
    /// Of one who does not have to return before all is done.
    pub(crate) fn new(steps: u64, pasid_steps: u64) -> Self {
        let left = Left { steps, pasid_steps };
        Self {
            left,
            call: Call::new(Patience::endless(), left),
        }
    }

    /// A call begins, which is for so much.
    pub(crate) fn begin_call(&mut self, patience: &Patience) {
        self.call = Call::new(patience.clone(), self.left);
    }

    /// What `outcome` is of has ended. If it is unfinished, it will be done again, and what it took is not held against the
    /// guest.
    pub(crate) fn end_call(&mut self, outcome: Result<(), Unfinished>) {
        if outcome.is_err() {
            self.left = self.call.before;
        }
        self.call = Call::new(Patience::endless(), self.left);
    }

    /// Takes as many as that from it, or all that is left.
    pub(crate) fn steps(&mut self, count: u64) -> Result<(), Spent> {
        take(&mut self.left.steps, count)?;
        self.call.take(count)
    }

    /// A table of PASIDs is looked through, or the entry of one is read.
    pub(crate) fn pasid_step(&mut self) -> Result<(), Spent> {
        take(&mut self.left.pasid_steps, 1)?;
        self.call.take(PASID_STEP)
    }

    /// What has to be done however much the guest has had: it counts for the call alone.
    ///
    /// # Errors
    /// It is left to another call.
    pub(crate) fn owed(&mut self, steps: u64) -> Result<(), Spent> {
        self.call.take(steps)
    }

    /// Requests are attached.
    pub(crate) fn attach(&mut self) -> Result<(), Spent> {
        take(&mut self.left.pasid_steps, ATTACH)?;
        self.call.take(ATTACH_CALLS)
    }

    /// Adds what it takes to attach requests so many times.
    pub(crate) const fn add_attaches(&mut self, count: u64) {
        let steps = ATTACH.saturating_mul(count);
        self.left.pasid_steps = self.left.pasid_steps.saturating_add(steps);
    }
}

impl Call {
    const fn new(patience: Patience, before: Left) -> Self {
        Self {
            steps: patience.steps(),
            patience,
            unwatched: 0,
            is_over: false,
            before,
        }
    }

    fn take(&mut self, count: u64) -> Result<(), Spent> {
        self.unwatched = self.unwatched.saturating_add(count);
        if self.unwatched >= UNWATCHED {
            self.unwatched = 0;
            self.is_over |= self.patience.is_over();
        }
        if self.steps != u64::MAX {
            self.is_over |= take(&mut self.steps, count).is_err();
        }
        if self.is_over {
            return Err(Spent::Interrupted);
        }
        Ok(())
    }
}

fn take(left: &mut u64, count: u64) -> Result<(), Spent> {
    let rest = left.checked_sub(count);
    *left = rest.unwrap_or(0);
    rest.map(|_| ()).ok_or(Spent::Exhausted)
}
