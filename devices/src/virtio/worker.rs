//! The thread of a part of a running device.
//!
//! The thread owns its part of the device model from activation to reset and hands it back through a channel. A
//! reset that finds the device busy in a system call waits for a bounded time, and looks again
//! later.

mod run;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_manager::EventManager;
use log::error;
use state::SaveError;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::session::Session;
use crate::park::Park;
use run::Run;

pub(super) use run::{PartState, Returned};

/// Events taken per wait.
const EVENTS: usize = 16;

/// A started worker.
pub(super) struct Worker {
    wake: EventFd,
    returned: Receiver<Returned>,
    /// What the thread says its part is like, when it is asked.
    states: Receiver<Result<PartState, SaveError>>,
    thread: Option<JoinHandle<()>>,
}

/// What a thread serves.
pub(super) struct Job {
    pub(super) session: Session,
    /// By queue; those of other threads are not in it.
    pub(super) kicks: Vec<(usize, EventFd)>,
}

/// How a stop ended.
pub(super) enum Stopped {
    /// The thread is gone; here is the device.
    Done(Returned),
    /// The thread is still busy; ask again.
    Busy(Worker),
    /// The thread died without giving the device back, which is a bug.
    Lost,
}

impl Worker {
    /// Starts a thread named `name`, which stops for a while when `park` says so. On failure the
    /// device comes back with the error.
    pub(super) fn start(
        name: String,
        device: Returned,
        mut job: Job,
        park: &Arc<Park>,
    ) -> Result<Self, (io::Error, Option<Returned>)> {
        let (wake, wake_reader, manager) = match event_sources() {
            Ok(sources) => sources,
            Err(error) => return Err((error, Some(device))),
        };
        job.session.obey(park);
        let parkable = park.enter();
        let (give, returned) = sync_channel(1);
        let (hand_over, receive) = sync_channel(1);
        let (say, states) = channel();
        let body = {
            let name = name.clone();
            move || {
                let Ok(device) = receive.recv() else {
                    return;
                };
                let run = Run::new(name, device, job, wake_reader, say);
                if let Some(device) = run.serve(manager) {
                    // The receiver is gone only if the whole device is being dropped.
                    let _ = give.send(device);
                }
                drop(parkable);
            }
        };
        // The device is handed over only once the thread exists, so that a failure to create it
        // loses nothing.
        match std::thread::Builder::new().name(name).spawn(body) {
            Ok(thread) => match hand_over.send(device) {
                Ok(()) => Ok(Self {
                    wake,
                    returned,
                    states,
                    thread: Some(thread),
                }),
                Err(lost) => Err((
                    io::Error::other("worker thread ended at once"),
                    Some(lost.0),
                )),
            },
            Err(error) => Err((error, Some(device))),
        }
    }

    /// Has the thread look at what it was told by flags.
    pub(super) fn wake(&self) {
        if let Err(error) = self.wake.write(1) {
            error!("virtio: cannot wake a worker: {error}");
        }
    }

    /// Waits up to `limit` for the end of a thread that has been told to.
    pub(super) fn wait(mut self, limit: Duration) -> Stopped {
        match self.returned.recv_timeout(limit) {
            Ok(returned) => {
                self.join();
                Stopped::Done(returned)
            }
            Err(RecvTimeoutError::Timeout) => Stopped::Busy(self),
            Err(RecvTimeoutError::Disconnected) => {
                self.join();
                Stopped::Lost
            }
        }
    }

    /// Forgets what the thread has said so far.
    pub(super) fn forget_state(&self) {
        self.states.try_iter().for_each(drop);
    }

    /// What the thread says its part is like, once it was asked.
    ///
    /// # Errors
    /// What the part says instead, or that it has said nothing until `until`.
    pub(super) fn state(&self, until: Instant) -> Result<PartState, SaveError> {
        let left = until.saturating_duration_since(Instant::now());
        let late = |error| {
            SaveError::new(match error {
                RecvTimeoutError::Timeout => "its thread does not answer; try again",
                RecvTimeoutError::Disconnected => "its thread has ended; please report this",
            })
        };
        self.states.recv_timeout(left).map_err(late)?
    }

    fn join(&mut self) {
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            error!("virtio: a worker thread panicked");
        }
    }
}

/// Two handles of the stop event, and a manager of events.
fn event_sources() -> io::Result<(EventFd, EventFd, EventManager<Run>)> {
    let wake = EventFd::new(EFD_NONBLOCK)?;
    let reader = wake.try_clone()?;
    let manager = EventManager::new_with_capacity(EVENTS).map_err(io::Error::other)?;
    Ok((wake, reader, manager))
}
