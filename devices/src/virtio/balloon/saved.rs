//! The state of a balloon besides its queues: how large it is to be, and what the driver has said. Which
//! pages are in it is the guest's to know: they hold zeros, as memory does that was never touched.

use serde::{Deserialize, Serialize};
use state::{RestoreError, SaveError, Section};

use super::Balloon;

const KIND: &str = "balloon";
const VERSION: u32 = 1;

/// Numbers of pages are of 4 KiB.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BalloonState {
    target: u32,
    /// The driver was told to look at it.
    told: bool,
    /// A buffer of statistics is in the queue whose contents were read.
    known: bool,
    /// What it has written to the configuration.
    actual: u32,
    poison: u32,
}

impl Balloon {
    pub(super) fn save_part(&self) -> Result<Section, SaveError> {
        let shared = &self.shared;
        let state = BalloonState {
            target: shared.target(),
            told: self.told == shared.changes(),
            known: self.retaken || self.held.is_some(),
            actual: shared.actual(),
            poison: shared.poison(),
        };
        Section::new(KIND, VERSION, &state)
    }

    pub(super) fn restore_part(&mut self, section: &Section) -> Result<(), RestoreError> {
        let state: BalloonState = section.read(KIND, VERSION)?;
        self.shared.set_target(state.target);
        self.shared.set_written(state.actual, state.poison);
        let changes = self.shared.changes();
        self.told = if state.told { changes } else { 0 };
        self.retaken = state.known;
        Ok(())
    }
}

#[cfg(test)]
mod saved_test;
