//! The state of a root port: its registers, and how far the guest is with a removal. What is in the
//! slot is a function of its own.

use serde::{Deserialize, Serialize};
use state::{RestoreError, SaveError, Section};

use super::RootPort;
use crate::config::ConfigState;
use crate::hotplug::Removal;

const KIND: &str = "root-port";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortState {
    config: ConfigState,
    /// Whether firmware has run.
    started: bool,
    removal: Removal,
}

impl RootPort {
    pub(super) fn save_port(&self) -> Result<Section, SaveError> {
        let state = self.lock();
        let saved = PortState {
            config: state.registers.config.save(),
            started: state.started,
            removal: state.removal,
        };
        drop(state);
        Section::new(KIND, VERSION, &saved)
    }

    pub(super) fn restore_port(&self, section: &Section) -> Result<(), RestoreError> {
        let saved: PortState = section.read(KIND, VERSION)?;
        let _order = self.in_order();
        let mut state = self.lock();
        state.registers.restore(&saved.config)?;
        state.started = saved.started;
        state.removal = saved.removal;
        drop(state);
        self.show_link();
        self.changed.notify_all();
        Ok(())
    }
}
