//! The state of a root port's registers: its configuration space. What follows from that is found
//! again.

use state::RestoreError;

use super::{LINK_STATUS, PRESENT, Registers, SLOT_STATUS};
use crate::config::ConfigState;

impl Registers {
    /// Makes them, of a port that was just made, what they were when `config` was saved. No message
    /// is due for that.
    pub(crate) fn restore(&mut self, config: &ConfigState) -> Result<(), RestoreError> {
        self.config.restore(config)?;
        let present = self.get(SLOT_STATUS) & PRESENT != 0;
        RestoreError::unless_equal("the slot", filling(present), filling(self.occupied))?;
        if self.get(LINK_STATUS) != self.link_status() {
            let why = "power and control say otherwise";
            return Err(RestoreError::damaged("the link's status", why));
        }
        self.asserted = self.wants_interrupt();
        Ok(())
    }
}

fn filling(occupied: bool) -> &'static str {
    if occupied { "occupied" } else { "empty" }
}
