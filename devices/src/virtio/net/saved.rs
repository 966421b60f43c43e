//! The state of a network device besides its queues: a packet that waits for room, and how many queue
//! pairs get packets. What is in the tap is the host's.

use serde::{Deserialize, Serialize};
use state::{Bytes, RestoreError, SaveError, Section};

use super::control::{self, Control};
use super::tap::HEADER;
use super::{MAX_PACKET, Net};

const KIND: &str = "net";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetState {
    /// A packet with its header, or nothing.
    waiting: Bytes,
    /// Of the part that serves the control queue; 1 of others.
    pairs: u16,
}

impl Net {
    pub(super) fn save_part(&self) -> Result<Section, SaveError> {
        let waiting = self.received.get(..self.waiting).unwrap_or_default();
        let state = NetState {
            waiting: Bytes::new(waiting),
            pairs: self.control.as_ref().map_or(1, Control::pairs_in_use),
        };
        Section::new(KIND, VERSION, &state)
    }

    pub(super) fn restore_part(&mut self, section: &Section) -> Result<(), RestoreError> {
        let state: NetState = section.read(KIND, VERSION)?;
        let packet = state.waiting.as_slice();
        let length = packet.len();
        if length != 0 && !(HEADER..=MAX_PACKET).contains(&length) {
            let why = format_args!("none has {length} bytes");
            return Err(RestoreError::damaged("the packet that waits", why));
        }
        control::restore(self.control.as_mut(), state.pairs)?;
        if let Some(received) = self.received.get_mut(..length) {
            received.copy_from_slice(packet);
        }
        self.waiting = length;
        Ok(())
    }
}

#[cfg(test)]
mod saved_test;
