//! The state of a memory device besides its queue: how much is asked for, and what is plugged.

use serde::{Deserialize, Serialize};
use state::{RestoreError, SaveError, Section};

use super::Mem;

const KIND: &str = "mem";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemState {
    /// Bytes that are asked for.
    requested: u64,
    /// The driver was told to look at that.
    told: bool,
    /// Blocks that are plugged: of each run the number of the first, and of the one after the last.
    plugged: Vec<(u64, u64)>,
}

impl Mem {
    pub(super) fn save_part(&self) -> Result<Section, SaveError> {
        let state = MemState {
            requested: self.shared.requested(),
            told: self.told == self.shared.changes(),
            plugged: self.blocks.runs(),
        };
        Section::new(KIND, VERSION, &state)
    }

    pub(super) fn restore_part(&mut self, section: &Section) -> Result<(), RestoreError> {
        let state: MemState = section.read(KIND, VERSION)?;
        if !self.shared.can_be(state.requested) {
            let why = format_args!("{:#x} bytes cannot be asked for", state.requested);
            return Err(RestoreError::damaged("the size of the memory", why));
        }
        self.blocks.restore(&state.plugged)?;
        for range in self.blocks.plugged_of(self.blocks.all()) {
            let held = self.hold(range);
            held.map_err(|error| RestoreError::host("memory that is plugged", error))?;
        }
        self.shared.set_plugged(self.blocks.plugged());
        self.shared.set_requested(state.requested);
        self.told = if state.told { self.shared.changes() } else { 0 };
        Ok(())
    }
}

#[cfg(test)]
mod saved_test;
