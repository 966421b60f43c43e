//! The thread of a running device.
//!
//! It owns the device model from activation to reset and hands it back through a channel, so a reset that finds the device busy
//! in a system call can wait for a bounded time and, if that was not enough, look again later.

mod run;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use log::error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::session::{Session, Transport};
use run::{Run, STOP};

pub(super) use run::Returned;

/// A started worker.
pub(super) struct Worker {
    stop: Arc<AtomicBool>,
    wake: EventFd,
    returned: Receiver<Returned>,
    thread: Option<JoinHandle<()>>,
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
    /// Starts a thread named `name`. On failure the device comes back with the error.
    pub(super) fn start(
        name: String,
        device: Returned,
        session: Session,
        kicks: Vec<EventFd>,
        transport: Arc<dyn Transport>,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, (io::Error, Option<Returned>)> {
        let (wake, wake_reader) = match wake_pair() {
            Ok(pair) => pair,
            Err(error) => return Err((error, Some(device))),
        };
        let epoll = match poll_set(&kicks, &wake_reader) {
            Ok(epoll) => epoll,
            Err(error) => return Err((error, Some(device))),
        };
        let (give, returned) = sync_channel(1);
        let (hand_over, receive) = sync_channel::<Returned>(1);
        let body = {
            let name = name.clone();
            let stop = Arc::clone(&stop);
            move || {
                let Ok(Returned { device, limit }) = receive.recv() else {
                    return;
                };
                let run = Run {
                    name,
                    epoll,
                    kicks,
                    device,
                    session,
                    transport,
                    stop,
                    limit,
                    _wake: wake_reader,
                    pending: Vec::new(),
                    polled: Vec::new(),
                };
                run.run(&give);
            }
        };
        // The device is handed over only once the thread exists, so that a failure to create it loses nothing.
        match std::thread::Builder::new().name(name).spawn(body) {
            Ok(thread) => match hand_over.send(device) {
                Ok(()) => Ok(Self {
                    stop,
                    wake,
                    returned,
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

    /// Tells the thread to end. It begins no access to guest memory from here on.
    pub(super) fn tell(&self) {
        self.stop.store(true, Ordering::Release);
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

/// Two handles of one event.
fn wake_pair() -> io::Result<(EventFd, EventFd)> {
    let wake = EventFd::new(EFD_NONBLOCK)?;
    let reader = wake.try_clone()?;
    Ok((wake, reader))
}

/// An epoll set with the stop event and all queues.
fn poll_set(kicks: &[EventFd], wake: &EventFd) -> io::Result<Epoll> {
    let epoll = Epoll::new()?;
    let add = |fd: RawFd, token| {
        epoll.ctl(
            ControlOperation::Add,
            fd,
            EpollEvent::new(EventSet::IN, token),
        )
    };
    add(wake.as_raw_fd(), STOP)?;
    for (token, kick) in (0_u64..).zip(kicks) {
        add(kick.as_raw_fd(), token)?;
    }
    Ok(epoll)
}
