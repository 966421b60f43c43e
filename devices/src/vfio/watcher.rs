//! Events by which the host tells about a device: its interrupt pin, errors, and that the host
//! wants it back.

use std::any::Any;
use std::io;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
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

/// Told of [`HostEvent`]s, on the event loop, which it must not hold up.
pub type HostListener = Box<dyn Fn(HostEvent) + Send + Sync>;

/// The machine's event loop.
pub trait EventLoop: Send + Sync {
    /// Has `subscriber` process the events of `sources`, which it owns, until the returned value is
    /// dropped: then it is dropped as well, and processes nothing any more.
    ///
    /// # Errors
    /// When the kernel cannot wait for one of the sources.
    fn subscribe(
        &self,
        subscriber: Box<dyn MutEventSubscriber + Send>,
        sources: &[Events],
    ) -> io::Result<Box<dyn Any + Send + Sync>>;
}

const INTX: u32 = 0;
const ERROR: u32 = 1;
const REQUEST: u32 = 2;

/// Listens to the events of a device.
pub(super) struct Watcher {
    name: String,
    intx: Arc<Intx>,
    error: EventFd,
    request: EventFd,
    listener: Option<HostListener>,
    requested: bool,
    /// What a guest has the device do can be an error each time.
    limit: LogLimit,
}

impl Watcher {
    /// Listens on `event_loop` for as long as the returned value exists.
    pub(super) fn start(
        host: &Arc<dyn HostDevice>,
        intx: Arc<Intx>,
        listener: Option<HostListener>,
        event_loop: &dyn EventLoop,
    ) -> io::Result<Box<dyn Any + Send + Sync>> {
        let watcher = Self {
            name: host.name(),
            intx,
            error: EventFd::new(EFD_NONBLOCK)?,
            request: EventFd::new(EFD_NONBLOCK)?,
            listener,
            requested: false,
            limit: LogLimit::default(),
        };
        // Not every device has them, and nothing depends on them.
        for (kind, event) in [
            (IrqKind::Error, &watcher.error),
            (IrqKind::Request, &watcher.request),
        ] {
            if host.irqs(kind).is_ok_and(|irqs| irqs.count > 0)
                && let Err(error) = host.arm(kind, 0, &[Some(event)])
            {
                log::debug!("{}: no {kind:?} interrupt: {error}", host.name());
            }
        }
        let sources = [
            Events::with_data(watcher.intx.event(), INTX, EventSet::IN),
            Events::with_data(&watcher.error, ERROR, EventSet::IN),
            Events::with_data(&watcher.request, REQUEST, EventSet::IN),
        ];
        event_loop.subscribe(Box::new(watcher), &sources)
    }

    fn failed(&mut self) {
        let _ = self.error.read();
        if let Some(held_back) = self.limit.pass() {
            log::error!(
                "{}: the host reports an uncorrectable error; the device may not work until it is reset ({held_back} messages \
                 held back)",
                self.name
            );
        }
        self.tell(HostEvent::Error);
    }

    fn requested(&mut self) {
        let _ = self.request.read();
        // The host asks again every few seconds.
        if !std::mem::replace(&mut self.requested, true) {
            log::warn!(
                "{}: the host wants the device back (its driver is being unbound); it waits until the device is removed from \
                 the guest, or the guest is stopped",
                self.name
            );
        }
        self.tell(HostEvent::Requested);
    }

    fn tell(&self, event: HostEvent) {
        if let Some(listener) = &self.listener {
            listener(event);
        }
    }
}

impl MutEventSubscriber for Watcher {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        match events.data() {
            INTX => self.intx.raised(),
            ERROR => self.failed(),
            _ => self.requested(),
        }
    }

    fn init(&mut self, _ops: &mut EventOps<'_>) {}
}
