//! Budget of the work that a guest can have done in one exit.

/// Tables to be read, runs to be found and calls of the host that are left.
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
