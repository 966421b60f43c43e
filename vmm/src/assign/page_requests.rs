//! Page requests of assigned devices on their way to the guest: a subscriber of the event loop for
//! each iommufd that has such devices.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use intel_vtd_host::FaultQueueId;
use intel_vtd_host::Iommufd;
use intel_vtd_host::{PageRequestPath, PageRequestRelay};

use crate::event_loop::{Handle, Subscription, Timer};
use crate::irq::Unit;
use crate::memory::Memory;

/// Between two looks at a queue that can be read and gives nothing.
const PAUSE: Duration = Duration::from_millis(10);

/// The page requests of one iommufd's devices. Once it is dropped nothing more is passed on.
pub(super) struct PageRequests {
    queue: FaultQueueId,
    relay: Arc<PageRequestRelay<Memory>>,
    _subscription: Subscription,
}

impl PageRequests {
    /// Makes a queue in `iommufd`, and begins to pass on to `unit` what comes there.
    pub(super) fn start(
        iommufd: &Iommufd,
        unit: &Arc<Unit>,
        event_loop: &Handle,
    ) -> io::Result<Self> {
        let queue = iommufd.allocate_fault_queue()?;
        let id = queue.id();
        let file = queue.file()?;
        let relay = Arc::new(PageRequestRelay::new(unit, Box::new(queue)));
        let listener = Listener {
            file,
            timer: Timer::new()?,
            relay: Arc::clone(&relay),
        };
        let sources = [
            listener.requests(),
            Events::new(&listener.timer, EventSet::IN),
        ];
        Ok(Self {
            queue: id,
            relay,
            _subscription: event_loop.subscribe(listener, &sources)?,
        })
    }

    /// For a device whose page requests are to come this way.
    pub(super) fn path(&self) -> PageRequestPath {
        PageRequestPath {
            queue: self.queue,
            responses: Arc::clone(&self.relay) as _,
        }
    }

    /// Which device of the host is which of the guest.
    pub(super) fn relay(&self) -> &PageRequestRelay<Memory> {
        &self.relay
    }
}

struct Listener {
    file: File,
    /// For the next look, after one that was in vain.
    timer: Timer,
    relay: Arc<PageRequestRelay<Memory>>,
}

impl Listener {
    fn requests(&self) -> Events {
        Events::new(&self.file, EventSet::IN)
    }

    fn relay(&mut self, ops: &mut EventOps<'_>) {
        match self.relay.relay() {
            Ok(true) => return,
            Ok(false) => self.timer.set(PAUSE),
            Err(error) => log::error!(
                "page requests of devices cannot be read any more ({error}): devices that make some wait in vain"
            ),
        }
        // It fails only for one that is not listened to.
        let _ = ops.remove(self.requests());
    }
}

impl MutEventSubscriber for Listener {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() == self.file.as_raw_fd() {
            self.relay(ops);
            return;
        }
        self.timer.stop();
        if let Err(error) = ops.add(self.requests()) {
            log::debug!("page requests of devices wait: {error}");
            self.timer.set(PAUSE);
        }
    }

    fn init(&mut self, _ops: &mut EventOps<'_>) {}
}
