//! The threads of a running device: one for each of its parts.
//!
//! They share one stop flag: when one of them meets broken rings, or the driver resets the device,
//! none of them begins an access to guest memory any more.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use state::SaveError;

use super::worker::{Job, PartState, Returned, Stopped, Worker};
use crate::park::Park;

/// One part of a device, between activation and reset.
enum Part {
    Running(Worker),
    /// It has ended, or has nothing to do.
    Idle(Returned),
    /// Its thread died.
    Lost,
}

/// All parts of a device, between activation and reset.
pub(super) struct Workers {
    /// In the order of the device's parts.
    parts: Vec<Part>,
    stop: Arc<AtomicBool>,
    park: Arc<Park>,
}

/// How a wait for the end of all threads ended.
pub(super) enum Ended {
    /// All are gone; here are the parts, in their order.
    All(Vec<Returned>),
    /// Some are still busy; ask again.
    Busy(Workers),
    /// One died without giving its part back, which is a bug.
    Lost,
}

impl Workers {
    /// Without parts yet. They begin no access to guest memory once `stop` is true.
    pub(super) fn new(stop: Arc<AtomicBool>) -> Self {
        Self {
            parts: Vec::new(),
            stop,
            park: Arc::default(),
        }
    }

    /// Adds a part that has nothing to do.
    pub(super) fn leave(&mut self, part: Returned) {
        self.parts.push(Part::Idle(part));
    }

    /// Adds a part, on a thread named `name`.
    ///
    /// # Errors
    /// The host gives no thread: the whole device stops.
    pub(super) fn start(&mut self, name: String, part: Returned, job: Job) -> io::Result<()> {
        match Worker::start(name, part, job, &self.park) {
            Ok(worker) => {
                self.parts.push(Part::Running(worker));
                Ok(())
            }
            Err((error, returned)) => {
                self.parts.push(returned.map_or(Part::Lost, Part::Idle));
                self.stop.store(true, Ordering::Release);
                Err(error)
            }
        }
    }

    /// Tells all threads to end. They begin no access to guest memory from here on.
    pub(super) fn tell(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.park.look();
        self.wake();
    }

    /// Tells all threads to stop for a while.
    pub(super) fn park(&self) {
        self.park.ask();
        self.wake();
    }

    /// Whether all threads have stopped, or have come to their ends.
    pub(super) fn are_parked(&self) -> bool {
        self.park.is_full()
    }

    /// Has all threads go on, and those that had not stopped yet look at what they have left.
    pub(super) fn resume(&self) {
        self.park.release();
        self.wake();
    }

    /// What all parts are like, whose threads have stopped for a while, or come to their ends.
    ///
    /// # Errors
    /// What the first says that cannot be saved, or does not answer until `until`.
    pub(super) fn save(&mut self, until: Instant) -> Result<Vec<PartState>, SaveError> {
        if self.stop.load(Ordering::SeqCst) {
            // One that failed while it was to stop for a while has not woken those that had stopped.
            self.park.look();
        }
        for part in &mut self.parts {
            *part = match std::mem::replace(part, Part::Lost) {
                // One that has ended has no queues any more.
                Part::Running(worker) if self.stop.load(Ordering::SeqCst) => {
                    match worker.wait(until.saturating_duration_since(Instant::now())) {
                        Stopped::Done(returned) => Part::Idle(returned),
                        Stopped::Busy(worker) => Part::Running(worker),
                        Stopped::Lost => Part::Lost,
                    }
                }
                other => other,
            };
            if let Part::Running(worker) = part {
                worker.forget_state();
            }
        }
        self.park.call();
        let parts = self.parts.iter_mut();
        let states = parts.map(|part| match part {
            Part::Running(worker) => worker.state(until),
            Part::Idle(returned) => returned.save(),
            Part::Lost => Err(SaveError::new("a thread of the device died earlier")),
        });
        states.collect()
    }

    /// The flag that ends all of it.
    pub(super) fn stop_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    fn wake(&self) {
        for part in &self.parts {
            if let Part::Running(worker) = part {
                worker.wake();
            }
        }
    }

    /// Waits up to `limit`, in all, for the end of threads that have been told to.
    pub(super) fn wait(mut self, limit: Duration) -> Ended {
        let until = Instant::now() + limit;
        for part in &mut self.parts {
            let left = until.saturating_duration_since(Instant::now());
            *part = match std::mem::replace(part, Part::Lost) {
                Part::Running(worker) => match worker.wait(left) {
                    Stopped::Done(returned) => Part::Idle(returned),
                    Stopped::Busy(worker) => Part::Running(worker),
                    Stopped::Lost => Part::Lost,
                },
                other => other,
            };
        }
        if self
            .parts
            .iter()
            .any(|part| matches!(part, Part::Running(_)))
        {
            return Ended::Busy(self);
        }
        let parts = self.parts.into_iter().map(|part| match part {
            Part::Idle(returned) => Some(returned),
            Part::Running(_) | Part::Lost => None,
        });
        parts.collect::<Option<_>>().map_or(Ended::Lost, Ended::All)
    }
}
