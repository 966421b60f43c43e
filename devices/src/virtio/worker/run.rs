//! What a device's thread does: wait for queues, sources and the stop event, and call the device model.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use log::{error, warn};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::limit::LogLimit;
use crate::virtio::device::VirtioDevice;
use crate::virtio::error::QueueError;
use crate::virtio::session::{Progress, Session, Transport};

/// Epoll token of the stop event.
pub(super) const STOP: u64 = u64::MAX;

/// Epoll tokens of the device's sources start here; smaller ones are queues.
const SOURCES: u64 = 1 << 16;
/// Events taken per wait.
const EVENTS: usize = 16;

/// What a device leaves behind when it is given back.
pub(in crate::virtio) struct Returned {
    pub(in crate::virtio) device: Box<dyn VirtioDevice>,
    pub(in crate::virtio) limit: LogLimit,
}

/// The thread's state.
pub(super) struct Run {
    pub(super) name: String,
    pub(super) epoll: Epoll,
    pub(super) kicks: Vec<EventFd>,
    pub(super) device: Box<dyn VirtioDevice>,
    pub(super) session: Session,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) limit: LogLimit,
    /// Kept open for as long as the epoll set names it.
    pub(super) _wake: EventFd,
    /// By queue: there may be something to do.
    pub(super) pending: Vec<bool>,
    /// By source: the descriptor, and whether it is in the epoll set.
    pub(super) polled: Vec<(RawFd, bool)>,
}

impl Run {
    /// Serves until stopped, then gives the device back.
    pub(super) fn run(mut self, give: &SyncSender<Returned>) {
        let outcome = match self.device.activate(self.session.features()) {
            Ok(()) => {
                // Buffers that were made available before DRIVER_OK count as well.
                self.pending = (0..self.kicks.len())
                    .map(|index| self.session.enabled(index))
                    .collect();
                self.polled = self
                    .device
                    .sources()
                    .into_iter()
                    .map(|fd| (fd, false))
                    .collect();
                self.serve()
            }
            Err(error) => Err(Failure::Host(error)),
        };
        if let Err(failure) = outcome
            && !self.stop.load(Ordering::Acquire)
        {
            if let Some(held_back) = self.limit.pass() {
                warn!(
                    "virtio {}: device needs reset: {failure} ({held_back} messages held back)",
                    self.name
                );
            }
            self.transport.needs_reset();
            self.wait_for_stop();
        }
        self.device.deactivate();
        let Self {
            device,
            limit,
            session,
            ..
        } = self;
        // No translation may be held, and no access be possible, once the device counts as reset.
        drop(session);
        // The receiver is gone only if the whole device is being dropped.
        let _ = give.send(Returned { device, limit });
    }

    /// Handles events until the device is stopped.
    fn serve(&mut self) -> Result<(), Failure> {
        let mut events = [EpollEvent::default(); EVENTS];
        loop {
            self.update_sources()?;
            let timeout = if self.pending.contains(&true) { 0 } else { -1 };
            let count = match self.epoll.wait(timeout, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::Host(error)),
            };
            if self.stop.load(Ordering::Acquire) {
                return Ok(());
            }
            for event in events.iter().take(count) {
                self.event(event.data())?;
            }
            for index in 0..self.pending.len() {
                if self.stop.load(Ordering::Acquire) {
                    return Ok(());
                }
                let Some(pending) = self.pending.get_mut(index) else {
                    continue;
                };
                if std::mem::take(pending) && self.session.enabled(index) {
                    let progress = self.device.queue_ready(index, &mut self.session)?;
                    if let Some(pending) = self.pending.get_mut(index) {
                        *pending = progress == Progress::More;
                    }
                }
            }
        }
    }

    /// Takes note of one event.
    fn event(&mut self, token: u64) -> Result<(), Failure> {
        if token == STOP {
            return Ok(());
        }
        if let Some(source) = token.checked_sub(SOURCES) {
            let source = usize::try_from(source).unwrap_or(usize::MAX);
            return Ok(self.device.source_ready(source, &mut self.session)?);
        }
        let index = usize::try_from(token).unwrap_or(usize::MAX);
        if let (Some(kick), Some(pending)) = (self.kicks.get(index), self.pending.get_mut(index)) {
            // Non-blocking, and another reader may have been faster: an error means that it is empty.
            let _ = kick.read();
            *pending = true;
        }
        Ok(())
    }

    /// Brings the epoll set in line with what the device wants to wait for. A descriptor that is not wanted is taken out rather than
    /// given an empty mask, because epoll reports a hang-up regardless of the mask.
    fn update_sources(&mut self) -> Result<(), Failure> {
        for (index, (fd, active)) in self.polled.iter_mut().enumerate() {
            let wanted = self.device.wants(index);
            if wanted == *active {
                continue;
            }
            let operation = if wanted {
                ControlOperation::Add
            } else {
                ControlOperation::Delete
            };
            let token = SOURCES + index as u64;
            self.epoll
                .ctl(operation, *fd, EpollEvent::new(EventSet::IN, token))
                .map_err(Failure::Host)?;
            *active = wanted;
        }
        Ok(())
    }

    /// A device in need of a reset waits for it.
    fn wait_for_stop(&mut self) {
        for kick in &self.kicks {
            if let Err(error) = self.epoll.ctl(
                ControlOperation::Delete,
                kick.as_raw_fd(),
                EpollEvent::default(),
            ) {
                error!("virtio {}: cannot stop polling a queue: {error}", self.name);
            }
        }
        for (fd, active) in &self.polled {
            if *active
                && let Err(error) =
                    self.epoll
                        .ctl(ControlOperation::Delete, *fd, EpollEvent::default())
            {
                error!(
                    "virtio {}: cannot stop polling a source: {error}",
                    self.name
                );
            }
        }
        let mut events = [EpollEvent::default(); 1];
        while !self.stop.load(Ordering::Acquire) {
            match self.epoll.wait(-1, &mut events) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    error!("virtio {}: cannot wait for a reset: {error}", self.name);
                    return;
                }
            }
        }
    }
}

/// Why a device stopped before it was told to.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The guest's doing.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The host's doing.
    #[error("host error: {0}")]
    Host(io::Error),
}
