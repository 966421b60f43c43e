//! The state of status and interrupts.

use std::sync::atomic::Ordering;

use pci::MsixState;
use serde::{Deserialize, Serialize};
use state::RestoreError;

use super::{ISR_CONFIG, ISR_QUEUE, Link, status};
use crate::virtio::session::Transport as _;

/// All bits of the device status that there are.
const STATUS: u8 = status::ACKNOWLEDGE
    | status::DRIVER
    | status::DRIVER_OK
    | status::FEATURES_OK
    | status::NEEDS_RESET
    | status::FAILED;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::virtio::pci) struct LinkState {
    status: u8,
    isr: u8,
    config_vector: u16,
    /// By queue.
    queue_vectors: Vec<u16>,
    msix: MsixState,
}

impl Link {
    /// Nobody signals a call at the moment. One that is held back is in the state: what holds it stays
    /// here.
    pub(in crate::virtio::pci) fn save(&self) -> LinkState {
        self.calls.collect(|queue| self.queue_interrupt(queue));
        let queues = 0..self.queue_vectors.len();
        LinkState {
            status: self.status.load(Ordering::Acquire),
            isr: self.isr.load(Ordering::Acquire),
            config_vector: self.config_vector(),
            queue_vectors: queues.map(|queue| self.queue_vector(queue)).collect(),
            msix: self.msix.save(),
        }
    }

    /// `control` is MSI-X Enable and Function Mask. Sends nothing.
    pub(in crate::virtio::pci) fn restore(
        &self,
        state: &LinkState,
        control: (bool, bool),
    ) -> Result<(), RestoreError> {
        let (saved, here) = (state.queue_vectors.len(), self.queue_vectors.len());
        RestoreError::unless_equal("its number of queues", saved, here)?;
        let mut vectors = state.queue_vectors.iter().chain([&state.config_vector]);
        if let Some(vector) = vectors.find(|vector| self.valid(**vector) != **vector) {
            let why = format_args!("there is no vector {vector}");
            return Err(RestoreError::damaged("an interrupt vector", why));
        }
        let odd = [
            ("the device status", state.status & !STATUS),
            ("the ISR status", state.isr & !(ISR_QUEUE | ISR_CONFIG)),
        ];
        if let Some((what, bits)) = odd.into_iter().find(|(_, bits)| *bits != 0) {
            let why = format_args!("there are no bits {bits:#04x}");
            return Err(RestoreError::damaged(what, why));
        }
        self.change(|| {
            for (here, saved) in self.queue_vectors.iter().zip(&state.queue_vectors) {
                here.store(*saved, Ordering::Release);
            }
            self.msix.restore(&state.msix, control)
        })?;
        self.config_vector
            .store(state.config_vector, Ordering::Release);
        self.isr.store(state.isr, Ordering::Release);
        self.status.store(state.status, Ordering::Release);
        Ok(())
    }
}
