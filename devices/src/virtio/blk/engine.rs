//! Who makes the system calls of a queue's requests: io_uring where the host has it, else the
//! queue's own thread.

use std::os::fd::RawFd;
use std::sync::Arc;

use log::info;

use super::asynchronous::Asynchronous;
use super::batch::Batch;
use super::target::Target;
use super::uring::Uring;
use crate::virtio::error::QueueError;
use crate::virtio::session::{Progress, Session};

/// See the module.
pub(super) enum Engine {
    Asynchronous(Box<Asynchronous>),
    Synchronous(Batch),
}

impl Engine {
    /// The best one for `target`, or the synchronous one if that is asked for.
    pub(super) fn new(target: &Arc<Target>, synchronous: bool) -> Self {
        if !synchronous {
            match Uring::new(target) {
                Ok(uring) => {
                    return Self::Asynchronous(Box::new(Asynchronous::new(target, uring)));
                }
                Err(error) => {
                    info!("virtio-blk: no io_uring ({error}): requests of a queue wait for others");
                }
            }
        }
        Self::Synchronous(Batch::default())
    }

    /// One turn on queue `index`.
    pub(super) fn serve(
        &mut self,
        index: usize,
        target: &Target,
        session: &mut Session,
    ) -> Result<Progress, QueueError> {
        match self {
            Self::Asynchronous(engine) => engine.serve(index, session),
            Self::Synchronous(batch) => {
                session.turn(index, |session| batch.serve(index, target, session))
            }
        }
    }

    /// What else to wait for, to call [`serve_source`](Self::serve_source) then.
    pub(super) fn source(&self) -> Option<RawFd> {
        match self {
            Self::Asynchronous(engine) => Some(engine.descriptor()),
            Self::Synchronous(_) => None,
        }
    }

    /// Serves queue `index` when a call has been made.
    pub(super) fn serve_source(
        &mut self,
        index: usize,
        session: &mut Session,
    ) -> Result<(), QueueError> {
        match self {
            Self::Asynchronous(engine) => engine.serve_event(index, session),
            Self::Synchronous(_) => Ok(()),
        }
    }

    /// Whether requests have been taken that have not ended.
    pub(super) fn in_flight(&self) -> bool {
        match self {
            Self::Asynchronous(engine) => engine.in_flight(),
            Self::Synchronous(_) => false,
        }
    }

    /// Nothing accesses guest memory any more when this returns. It waits for calls that cannot be
    /// cancelled.
    pub(super) fn clear(&mut self) {
        match self {
            Self::Asynchronous(engine) => engine.clear(),
            Self::Synchronous(_) => {}
        }
    }
}
