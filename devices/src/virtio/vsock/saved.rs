//! The state of a socket device besides its queues: whether there is a driver. Connections are the
//! host's, and stay behind.

use serde::{Deserialize, Serialize};
use state::{RestoreError, SaveError, Section};

use super::Vsock;

const KIND: &str = "vhost-vsock";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VsockState {
    /// A driver is at work, which is to be told that its connections have ended.
    active: bool,
}

impl Vsock {
    pub(super) fn save_part(&self) -> Result<Section, SaveError> {
        let active = self.active;
        Section::new(KIND, VERSION, &VsockState { active })
    }

    pub(super) fn restore_part(&mut self, section: &Section) -> Result<(), RestoreError> {
        let state: VsockState = section.read(KIND, VERSION)?;
        self.reset_owed = state.active;
        Ok(())
    }
}

#[cfg(test)]
mod saved_test;
