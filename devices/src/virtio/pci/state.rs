//! The status state machine of a device on the PCI transport (sections 2.1 and 3.1), with
//! activation and reset.

pub(super) mod saved;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use log::{error, warn};
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::EventFd;

use super::common::CommonRegisters;
use super::link::{Link, status};
use crate::Dma;
use crate::limit::LogLimit;
use crate::virtio::device::VirtioDevice;
use crate::virtio::error::QueueError;
use crate::virtio::queue::VirtQueue;
use crate::virtio::session::{Session, Transport as _};
use crate::virtio::worker::{Job, Returned};
use crate::virtio::workers::{Ended, Workers};

/// Status bits that a driver can set.
const DRIVER_BITS: u8 =
    status::ACKNOWLEDGE | status::DRIVER | status::DRIVER_OK | status::FEATURES_OK | status::FAILED;

/// How long resets wait for the device's thread, all of them together, before they leave the rest
/// to later reads of the status.
pub(super) const RESET_WAIT: Duration = Duration::from_millis(500);
/// How long a reset of the driver's does. A thread that is not within a system call needs less, and
/// a driver has to look at the status again in any case.
pub(super) const DRIVER_WAIT: Duration = Duration::from_millis(5);

/// Where the device model is.
enum Slot {
    /// Here, in its parts: no driver.
    Idle(Vec<Returned>),
    /// With its threads.
    Running(Workers),
    /// With its threads, which have been told to end, and for which nobody waits beyond that time.
    Stopping(Workers, Instant),
    /// Nowhere: a thread of it died.
    Lost,
}

/// What activation needs besides the registers.
pub(super) struct Parts {
    /// Name of the thread and in messages.
    pub(super) name: String,
    pub(super) dma: Dma,
    pub(super) kicks: Vec<EventFd>,
}

/// The device, its registers and its threads. Guarded by the function's lock, which is not taken by
/// the threads: waiting for them under it is safe.
pub(super) struct State {
    pub(super) registers: CommonRegisters,
    slot: Slot,
    parts: Parts,
    /// Features that the driver has to accept.
    mandatory: u64,
    limit: LogLimit,
    /// For how long the device's thread may have been waited for.
    #[cfg(test)]
    pub(super) waited: Duration,
}

impl State {
    pub(super) fn new(mut device: Box<dyn VirtioDevice>, parts: Parts) -> Self {
        let mandatory = device.mandatory_features();
        let features = device.features() | device.ring_features() | mandatory;
        let registers = CommonRegisters::new(features, device.queue_sizes());
        let others = device.take_parts();
        let all = std::iter::once(device).chain(others);
        let slot = Slot::Idle(all.map(Returned::new).collect());
        Self {
            registers,
            slot,
            parts,
            mandatory,
            limit: LogLimit::default(),
            #[cfg(test)]
            waited: Duration::ZERO,
        }
    }

    /// Reads common configuration. While a reset is under way the old status is shown, so that the
    /// driver waits (section 4.1.4.3.2).
    pub(super) fn read_common(&mut self, offset: u64, data: &mut [u8], link: &Link) {
        self.finish_stopping(Duration::ZERO, link);
        self.registers.read(offset, data, link);
    }

    /// Writes common configuration.
    pub(super) fn write_common(&mut self, offset: u64, data: &[u8], link: &Arc<Link>) {
        self.finish_stopping(Duration::ZERO, link);
        if let Slot::Stopping(..) = self.slot {
            return;
        }
        if let Some(value) = self.registers.write(offset, data, link) {
            self.write_status(value, link);
        }
    }

    /// Tells the device's thread to stop, if there is one, and does not wait for it.
    pub(super) fn quiesce(&mut self) {
        self.slot = match std::mem::replace(&mut self.slot, Slot::Lost) {
            Slot::Running(workers) => {
                workers.tell();
                Slot::Stopping(workers, Instant::now() + RESET_WAIT)
            }
            other => other,
        };
    }

    /// Resets the virtio device: stops its thread, and waits for that, for `most` at most. The rest
    /// of a reset that takes longer happens in [`State::read_common`].
    pub(super) fn reset(&mut self, link: &Link, most: Duration) {
        self.quiesce();
        match &self.slot {
            // Once the time is over, further resets do not hold their vCPUs.
            Slot::Stopping(_, until) => {
                let wait = until.saturating_duration_since(Instant::now());
                self.finish_stopping(wait.min(most), link);
            }
            _ => self.clear(link),
        }
    }

    /// Whether no thread that has been told to end is still within a system call.
    pub(super) fn is_quiet(&mut self, link: &Link) -> bool {
        self.finish_stopping(Duration::ZERO, link);
        !matches!(self.slot, Slot::Stopping(..))
    }

    /// Tells the device's threads to stop for a while.
    pub(super) fn park(&self) {
        if let Slot::Running(workers) = &self.slot {
            workers.park();
        }
    }

    /// Whether none of the device's threads is at work.
    pub(super) fn is_parked(&mut self, link: &Link) -> bool {
        self.finish_stopping(Duration::ZERO, link);
        match &self.slot {
            Slot::Running(workers) => workers.are_parked(),
            Slot::Stopping(..) => false,
            Slot::Idle(_) | Slot::Lost => true,
        }
    }

    /// Has the device's threads go on.
    pub(super) fn resume(&self) {
        if let Slot::Running(workers) = &self.slot {
            workers.resume();
        }
    }

    /// The name of the device's threads.
    pub(super) fn name(&self) -> &str {
        &self.parts.name
    }

    /// Takes the device back from threads that have been told to end, if they have within `wait`.
    fn finish_stopping(&mut self, wait: Duration, link: &Link) {
        if !matches!(self.slot, Slot::Stopping(..)) {
            return;
        }
        let Slot::Stopping(workers, until) = std::mem::replace(&mut self.slot, Slot::Lost) else {
            return;
        };
        #[cfg(test)]
        {
            self.waited += wait;
        }
        self.slot = match workers.wait(wait) {
            Ended::All(parts) => Slot::Idle(parts),
            Ended::Busy(workers) => Slot::Stopping(workers, until),
            Ended::Lost => {
                error!(
                    "virtio {}: a thread of the device is gone; the device stays dead",
                    self.parts.name
                );
                Slot::Lost
            }
        };
        if !matches!(self.slot, Slot::Stopping(..)) {
            self.clear(link);
        }
    }

    fn clear(&mut self, link: &Link) {
        self.registers.reset();
        link.reset();
    }

    fn write_status(&mut self, value: u8, link: &Arc<Link>) {
        if value == 0 {
            return self.reset(link, DRIVER_WAIT);
        }
        // 2.1.1: a driver never clears a bit, except by reset.
        let old = link.status.load(Ordering::Acquire);
        let mut new_bits = value & DRIVER_BITS & !old;
        if new_bits & status::FEATURES_OK != 0 && !self.features_agree(old | new_bits) {
            new_bits &= !status::FEATURES_OK;
        }
        let now = old | new_bits;
        // A driver that skips negotiation is a legacy one, and gets nothing.
        if new_bits & status::DRIVER_OK != 0 && now & status::FEATURES_OK == 0 {
            new_bits &= !status::DRIVER_OK;
        }
        link.status.fetch_or(new_bits, Ordering::AcqRel);
        if new_bits & status::DRIVER_OK != 0
            && let Err(error) = self.activate(link)
        {
            if let Some(held_back) = self.limit.pass() {
                let name = &self.parts.name;
                warn!("virtio {name}: cannot start: {error} ({held_back} messages held back)");
            }
            link.needs_reset();
        }
    }

    /// Whether `FEATURES_OK` stays set (section 2.2.2).
    fn features_agree(&self, status: u8) -> bool {
        let accepted = self.registers.accepted();
        let Slot::Idle(parts) = &self.slot else {
            return false;
        };
        status & status::DRIVER != 0
            && accepted & !self.registers.offered() == 0
            && accepted & self.mandatory == self.mandatory
            && parts
                .first()
                .is_some_and(|part| part.device.check_features(accepted))
    }

    /// Starts the device's threads. If the host does not give all of them, those that run end at
    /// once, and the parts come back with the next reset.
    fn activate(&mut self, link: &Arc<Link>) -> Result<(), StartError> {
        let queues = self.enabled_queues()?;
        self.start(link, queues, Workers::new(Arc::<AtomicBool>::default()))
    }

    /// The same for queues that are somewhere, and threads that may be told something before.
    fn start(
        &mut self,
        link: &Arc<Link>,
        queues: Vec<Option<VirtQueue>>,
        mut workers: Workers,
    ) -> Result<(), StartError> {
        let jobs = self.jobs(link, queues, &workers.stop_flag())?;
        let parts = match std::mem::replace(&mut self.slot, Slot::Lost) {
            Slot::Idle(parts) => parts,
            other => {
                self.slot = other;
                return Err(StartError::Gone);
            }
        };
        let several = parts.len() > 1;
        let mut outcome = Ok(());
        for ((number, part), job) in parts.into_iter().enumerate().zip(jobs) {
            match job {
                Some(job) if outcome.is_ok() => {
                    let name = match several {
                        true => format!("{}.{number}", self.parts.name),
                        false => self.parts.name.clone(),
                    };
                    outcome = workers.start(name, part, job);
                }
                _ => workers.leave(part),
            }
        }
        self.slot = Slot::Running(workers);
        outcome.map_err(StartError::Host)
    }

    /// What each part of the device is to do with `queues`, until `stop` is true. The first part is always there;
    /// of others that have no queue enabled, nothing is wanted.
    fn jobs(
        &self,
        link: &Arc<Link>,
        mut queues: Vec<Option<VirtQueue>>,
        stop: &Arc<AtomicBool>,
    ) -> Result<Vec<Option<Job>>, StartError> {
        let Slot::Idle(parts) = &self.slot else {
            return Err(StartError::Gone);
        };
        let features = self.registers.accepted();
        let mut jobs = Vec::new();
        for (number, part) in parts.iter().enumerate() {
            let served = part.device.queues(features);
            let mut own: Vec<_> = queues.iter().map(|_| None).collect();
            for (index, (from, to)) in queues.iter_mut().zip(&mut own).enumerate() {
                if served.contains(&index) {
                    *to = from.take();
                }
            }
            let is_idle = number != 0 && own.iter().all(Option::is_none);
            let job = || {
                let (view, transport) = (self.parts.dma.view(), Arc::<Link>::clone(link));
                io::Result::Ok(Job {
                    kicks: self.kicks(&served)?,
                    session: Session::new(own, view, transport, features, Arc::clone(stop)),
                })
            };
            jobs.push((!is_idle).then(job).transpose()?);
        }
        Ok(jobs)
    }

    /// All queues, of which those are there that the driver has enabled.
    fn enabled_queues(&self) -> Result<Vec<Option<VirtQueue>>, StartError> {
        let features = self.registers.accepted();
        let queues = self.registers.queues().iter();
        let enabled = queues.map(|queue| enabled_queue(queue, features));
        Ok(enabled.collect::<Result<_, _>>()?)
    }

    /// The events of queues, by index.
    fn kicks(&self, queues: &[usize]) -> io::Result<Vec<(usize, EventFd)>> {
        let kick = |queue: &usize| {
            let kick = self.parts.kicks.get(*queue);
            kick.map(|kick| Ok((*queue, kick.try_clone()?)))
        };
        queues.iter().filter_map(kick).collect()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.quiesce();
        if let Slot::Stopping(workers, until) = std::mem::replace(&mut self.slot, Slot::Lost)
            && let Ended::Busy(_) = workers.wait(until.saturating_duration_since(Instant::now()))
        {
            warn!(
                "virtio {}: a thread of the device is still busy; left behind",
                self.parts.name
            );
        }
    }
}

/// A queue that the driver enabled, checked; `None` for one that it left alone.
fn enabled_queue(state: &QueueState, features: u64) -> Result<Option<VirtQueue>, QueueError> {
    if !state.ready {
        return Ok(None);
    }
    VirtQueue::new(*state, features).map(Some)
}

/// Why `DRIVER_OK` did not start the device.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("host error: {0}")]
    Host(#[from] io::Error),
    #[error("a thread of the device died earlier")]
    Gone,
}
