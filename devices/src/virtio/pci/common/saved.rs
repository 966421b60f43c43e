//! The state of the common configuration.

use serde::{Deserialize, Serialize};
use state::RestoreError;
use virtio_queue::QueueState;

use super::CommonRegisters;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::virtio::pci) struct RegistersState {
    offered: u64,
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    queues: Vec<QueueSetup>,
}

/// A queue as the driver has set it up.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct QueueSetup {
    max_size: u16,
    size: u16,
    enabled: bool,
    descriptors: u64,
    driver: u64,
    device: u64,
}

impl CommonRegisters {
    pub(in crate::virtio::pci) fn save(&self) -> RegistersState {
        let queues = self.queues.iter().map(|queue| QueueSetup {
            max_size: queue.max_size,
            size: queue.size,
            enabled: queue.ready,
            descriptors: queue.desc_table,
            driver: queue.avail_ring,
            device: queue.used_ring,
        });
        RegistersState {
            offered: self.offered,
            accepted: self.accepted,
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            queue_select: self.queue_select,
            queues: queues.collect(),
        }
    }

    /// Whether the driver's setup makes sense is looked at when the device is started, as always.
    pub(in crate::virtio::pci) fn restore(
        &mut self,
        state: &RegistersState,
    ) -> Result<(), RestoreError> {
        // A device that offers more goes on offering what it did.
        let missing = state.offered & !self.offered;
        if missing != 0 {
            let [saved, here] = [state.offered, self.offered].map(|bits| format!("{bits:#018x}"));
            return RestoreError::unless_equal("what features it offers", saved, here);
        }
        let (saved, here) = (state.queues.len(), self.queues.len());
        RestoreError::unless_equal("its number of queues", saved, here)?;
        for (index, (saved, here)) in state.queues.iter().zip(&self.queues).enumerate() {
            let what = format_args!("the largest size of queue {index}");
            RestoreError::unless_equal(what, saved.max_size, here.max_size)?;
        }
        self.offered = state.offered;
        self.accepted = state.accepted;
        self.device_feature_select = state.device_feature_select;
        self.driver_feature_select = state.driver_feature_select;
        self.queue_select = state.queue_select;
        for (saved, here) in state.queues.iter().zip(&mut self.queues) {
            *here = QueueState {
                max_size: saved.max_size,
                size: saved.size,
                ready: saved.enabled,
                desc_table: saved.descriptors,
                avail_ring: saved.driver,
                used_ring: saved.device,
                ..QueueState::default()
            };
        }
        Ok(())
    }
}
