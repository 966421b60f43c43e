//! The state of a network device that the kernel serves, besides its queues: how many queue pairs get
//! packets. Packets are in the queues or in the tap, and that is the host's.

use serde::{Deserialize, Serialize};
use state::{RestoreError, SaveError, Section};

use super::VhostNet;
use crate::virtio::net::control::{self, Control};

const KIND: &str = "vhost-net";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VhostNetState {
    /// Of the part that serves the control queue; 1 of others.
    pairs: u16,
}

impl VhostNet {
    pub(super) fn save_part(&self) -> Result<Section, SaveError> {
        let pairs = self.control.as_ref().map_or(1, Control::pairs_in_use);
        Section::new(KIND, VERSION, &VhostNetState { pairs })
    }

    pub(super) fn restore_part(&mut self, section: &Section) -> Result<(), RestoreError> {
        let state: VhostNetState = section.read(KIND, VERSION)?;
        control::restore(self.control.as_mut(), state.pairs)
    }
}
