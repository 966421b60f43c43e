//! The state of a device behind its registers: of its parts, and of their queues. A restored one that
//! runs has its threads, which are parked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use state::{RestoreError, SaveError, Section};

use super::{Slot, StartError, State};
use crate::virtio::pci::common::saved::RegistersState;
use crate::virtio::pci::link::{Link, status};
use crate::virtio::queue::{RingState, VirtQueue};
use crate::virtio::workers::Workers;

/// How long the host may take to say what it has of a part's, or to start it.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(1);

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::virtio::pci) struct DeviceState {
    registers: RegistersState,
    /// By queue: where those go on that are served.
    rings: Vec<Option<RingState>>,
    /// In their order.
    parts: Vec<Section>,
}

impl State {
    /// What the device is like, whose threads are parked.
    pub(in crate::virtio::pci) fn save(&mut self, link: &Link) -> Result<DeviceState, SaveError> {
        if !self.is_parked(link) {
            return Err(SaveError::new("it is at work; pause the guest before"));
        }
        let registers = self.registers.save();
        let mut rings = vec![None; self.registers.queues().len()];
        let states = match &mut self.slot {
            Slot::Running(workers) => workers.save(Instant::now() + PATIENCE)?,
            Slot::Idle(parts) => {
                let parts = parts.iter_mut();
                parts.map(|part| part.save()).collect::<Result<_, _>>()?
            }
            Slot::Stopping(..) | Slot::Lost => {
                return Err(SaveError::new("a thread of the device died earlier"));
            }
        };
        let mut parts = Vec::new();
        for state in states {
            for (index, ring) in state.rings {
                if let Some(slot) = rings.get_mut(index) {
                    *slot = Some(ring);
                }
            }
            parts.push(state.device);
        }
        Ok(DeviceState {
            registers,
            rings,
            parts,
        })
    }

    /// Makes a device that has never been started like the one that was saved. The status is there
    /// already.
    pub(in crate::virtio::pci) fn restore(
        &mut self,
        state: &DeviceState,
        link: &Arc<Link>,
    ) -> Result<(), RestoreError> {
        self.registers.restore(&state.registers)?;
        let now = link.status.load(Ordering::Acquire);
        if now & status::FEATURES_OK != 0 && !self.features_agree(now) {
            let why = "a driver cannot have chosen these features";
            return Err(RestoreError::damaged("the device status", why));
        }
        if now & status::DRIVER_OK != 0 && now & status::FEATURES_OK == 0 {
            let why = "a driver has started a device without having chosen features";
            return Err(RestoreError::damaged("the device status", why));
        }
        let Slot::Idle(parts) = &mut self.slot else {
            return Err(RestoreError::host("the device", "it has been started"));
        };
        RestoreError::unless_equal("its number of parts", state.parts.len(), parts.len())?;
        for (part, state) in parts.iter_mut().zip(&state.parts) {
            part.device.restore(state)?;
        }
        let (saved, here) = (state.rings.len(), self.registers.queues().len());
        RestoreError::unless_equal("its number of queues", saved, here)?;
        let runs = now & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK;
        if !runs {
            return match state.rings.iter().flatten().next() {
                Some(_) => Err(RestoreError::damaged("a queue", "the device does not run")),
                None => Ok(()),
            };
        }
        self.start_parked(&state.rings, link)
    }

    /// Starts the device's threads, which begin nothing before they are told to go on.
    fn start_parked(
        &mut self,
        rings: &[Option<RingState>],
        link: &Arc<Link>,
    ) -> Result<(), RestoreError> {
        let queues = self.queues_at(rings)?;
        let workers = Workers::new(Arc::<AtomicBool>::default());
        workers.park();
        let started = self.start(link, queues, workers);
        started.map_err(|error| RestoreError::host("the device", error))?;
        let until = Instant::now() + PATIENCE;
        loop {
            // Those that sleep are to find out as well.
            self.park();
            if self.is_parked(link) {
                break;
            }
            if Instant::now() > until {
                return Err(RestoreError::host("the device", "it does not start"));
            }
            sleep(LOOK);
        }
        if link.status.load(Ordering::Acquire) & status::NEEDS_RESET != 0 {
            let why = "it cannot start; a warning says why";
            return Err(RestoreError::host("the device", why));
        }
        Ok(())
    }

    /// The queues that the driver has enabled, each where it goes on: those that are served have a
    /// place, and no others.
    fn queues_at(
        &self,
        rings: &[Option<RingState>],
    ) -> Result<Vec<Option<VirtQueue>>, RestoreError> {
        let damaged = |error: StartError| RestoreError::damaged("the queues", error);
        let mut queues = self.enabled_queues().map_err(damaged)?;
        let served = self.served_queues();
        for (index, (queue, ring)) in queues.iter_mut().zip(rings).enumerate() {
            let queue = queue.as_mut().filter(|_| served.contains(&index));
            match (queue, ring) {
                (Some(queue), Some(ring)) => queue.restore(*ring)?,
                (None, None) => {}
                (Some(_), None) | (None, Some(_)) => {
                    let what = format_args!("queue {index}");
                    let why = "only one that is served goes on somewhere";
                    return Err(RestoreError::damaged(what, why));
                }
            }
        }
        Ok(queues)
    }

    /// The queues that parts serve for the driver.
    fn served_queues(&self) -> Vec<usize> {
        let features = self.registers.accepted();
        match &self.slot {
            Slot::Idle(parts) => {
                let parts = parts.iter();
                parts
                    .flat_map(|part| part.device.queues(features))
                    .collect()
            }
            _ => Vec::new(),
        }
    }
}
