//! The thread that waits for what the host says about a device: its interrupt pin, errors, and that the host wants it back.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::host::{HostDevice, IrqKind};
use super::intx::Intx;
use crate::limit::LogLimit;

/// What the host says about a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// It saw an uncorrectable error of the device, which may not work any more until it is reset.
    Error,
    /// It wants the device back, and waits until this process lets go of it.
    Requested,
}

/// Told of [`HostEvent`]s, on a thread of the device's.
pub type HostListener = Box<dyn Fn(HostEvent) + Send + Sync>;

const STOP: u64 = 0;
const INTX: u64 = 1;
const ERROR: u64 = 2;
const REQUEST: u64 = 3;

/// The thread; it ends when this is dropped.
pub(super) struct Watcher {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    pub(super) fn start(
        host: &Arc<dyn HostDevice>,
        intx: Arc<Intx>,
        listener: Option<HostListener>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let error = EventFd::new(EFD_NONBLOCK)?;
        let request = EventFd::new(EFD_NONBLOCK)?;
        for (event, token) in [
            (&stop, STOP),
            (intx.event(), INTX),
            (&error, ERROR),
            (&request, REQUEST),
        ] {
            let interest = EpollEvent::new(EventSet::IN, token);
            epoll.ctl(ControlOperation::Add, event.as_raw_fd(), interest)?;
        }
        // Not every device has them, and nothing depends on them.
        for (kind, event) in [(IrqKind::Error, &error), (IrqKind::Request, &request)] {
            if host.irqs(kind).is_ok_and(|irqs| irqs.count > 0)
                && let Err(error) = host.arm(kind, 0, &[Some(event)])
            {
                log::debug!("{}: no {kind:?} interrupt: {error}", host.name());
            }
        }
        let name = host.name();
        let thread = thread::Builder::new()
            .name("vfio".to_owned())
            .spawn(move || {
                let watching = Loop {
                    name,
                    intx,
                    error,
                    request,
                    listener,
                };
                watching.run(&epoll);
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // A full counter wakes the thread as well.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Loop {
    name: String,
    intx: Arc<Intx>,
    error: EventFd,
    request: EventFd,
    listener: Option<HostListener>,
}

impl Loop {
    fn run(&self, epoll: &Epoll) {
        let mut requested = false;
        // What a guest has the device do can be an error each time.
        let mut limit = LogLimit::default();
        loop {
            let mut events = [EpollEvent::default(); 4];
            let count = match epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::error!("{}: waiting for the host failed: {error}", self.name);
                    return;
                }
            };
            for event in events.iter().take(count) {
                match event.data() {
                    STOP => return,
                    INTX => self.intx.raised(),
                    ERROR => {
                        let _ = self.error.read();
                        if let Some(held_back) = limit.pass() {
                            log::error!(
                                "{}: the host reports an uncorrectable error; the device may not work until it is reset \
                                 ({held_back} messages held back)",
                                self.name
                            );
                        }
                        self.tell(HostEvent::Error);
                    }
                    _ => {
                        let _ = self.request.read();
                        // The host asks again every few seconds.
                        if !std::mem::replace(&mut requested, true) {
                            log::warn!(
                                "{}: the host wants the device back (its driver is being unbound); it waits until the \
                                 device is removed from the guest, or the guest is stopped",
                                self.name
                            );
                        }
                        self.tell(HostEvent::Requested);
                    }
                }
            }
        }
    }

    fn tell(&self, event: HostEvent) {
        if let Some(listener) = &self.listener {
            listener(event);
        }
    }
}
