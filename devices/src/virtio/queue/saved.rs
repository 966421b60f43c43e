//! The state of a queue besides its setup: where both sides go on. No chain is out.

use serde::{Deserialize, Serialize};
use state::{RestoreError, SaveError};

use super::packed::Position;
use super::{Kind, VirtQueue};

/// Where a queue goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(in crate::virtio) enum RingState {
    /// The next entries of the available ring and of the used ring, which are as many.
    Split { next: u16 },
    /// The next descriptor to be made available, and to be used; the wrap counter there.
    Packed { next: u16, wrap: bool },
}

impl VirtQueue {
    /// Where it goes on.
    ///
    /// # Errors
    /// Chains have been taken that were not returned.
    pub(in crate::virtio) fn save(&self) -> Result<RingState, SaveError> {
        let place = match &self.kind {
            Kind::Split(queue) => queue.place().map(|next| RingState::Split { next }),
            Kind::Packed(queue) => queue.place().map(|place| RingState::Packed {
                next: place.index,
                wrap: place.wrap,
            }),
        };
        let busy = || SaveError::new("requests of the guest are under way");
        place.filter(|_| !self.interrupt_due).ok_or_else(busy)
    }

    /// Has one that was just made go on where the one that was [saved](Self::save) does.
    ///
    /// # Errors
    /// It is of the other kind, or has no such place.
    pub(in crate::virtio) fn restore(&mut self, state: RingState) -> Result<(), RestoreError> {
        match (&mut self.kind, state) {
            (Kind::Split(queue), RingState::Split { next }) => queue.go_on_at(next),
            (Kind::Packed(queue), RingState::Packed { next, wrap }) if next < queue.size() => {
                queue.go_on_at(Position { index: next, wrap });
            }
            (Kind::Packed(queue), RingState::Packed { next, .. }) => {
                let why = format_args!("descriptor {next} is next, of {}", queue.size());
                return Err(RestoreError::damaged("a queue", why));
            }
            _ => {
                let why = "it is of another kind than was negotiated";
                return Err(RestoreError::damaged("a queue", why));
            }
        }
        Ok(())
    }
}
