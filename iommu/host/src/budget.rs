//! Budget of the work that a guest can have done in one exit.

/// Steps for a run of pages that is found: what all else is measured by, some 50 ns.
pub(crate) const RUN: u64 = 1;
/// Steps for a table that is read.
pub(crate) const TABLE: u64 = 8;
/// Steps for a call of the host that maps, unmaps or invalidates.
pub(crate) const CALL: u64 = 100;

/// Steps that are left. They are weighted by the time that work takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget(u64);

/// Nothing is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exhausted;

impl Budget {
    pub(crate) const fn new(steps: u64) -> Self {
        Self(steps)
    }

    /// Takes one step from it.
    pub(crate) fn step(&mut self) -> Result<(), Exhausted> {
        self.steps(1)
    }

    /// Takes as many as that from it, or all that is left.
    pub(crate) fn steps(&mut self, count: u64) -> Result<(), Exhausted> {
        let left = self.0.checked_sub(count);
        self.0 = left.unwrap_or(0);
        left.map(|_| ()).ok_or(Exhausted)
    }

    /// Adds to what is left.
    pub(crate) const fn add(&mut self, steps: u64) {
        self.0 = self.0.saturating_add(steps);
    }
}
