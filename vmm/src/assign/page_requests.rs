//! The threads that pass page requests of assigned devices on to the guest, one for each iommufd that has such devices.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use intel_vtd_host::ObjectId;
use intel_vtd_host::iommufd::Iommufd;
use intel_vtd_host::page_requests::{PageRequestPath, PageRequestRelay};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::irq::Unit;
use crate::memory::Memory;

/// Between two looks at a queue that can be read and gives nothing.
const PAUSE: Duration = Duration::from_millis(10);

const STOP: u64 = 0;
const REQUESTS: u64 = 1;

/// The page requests of one iommufd's devices. Dropping it ends the thread.
pub(super) struct PageRequests {
    queue: ObjectId,
    relay: Arc<PageRequestRelay<Memory>>,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl PageRequests {
    /// Makes a queue in `iommufd`, and begins to pass on to `unit` what comes there.
    pub(super) fn start(iommufd: &Iommufd, unit: &Arc<Unit>) -> io::Result<Self> {
        let queue = iommufd.allocate_fault_queue()?;
        let id = queue.id();
        let file = queue.file()?;
        let relay = Arc::new(PageRequestRelay::new(unit, Box::new(queue)));
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let epoll = Epoll::new()?;
        for (file, token) in [(stop.as_raw_fd(), STOP), (file.as_raw_fd(), REQUESTS)] {
            let interest = EpollEvent::new(EventSet::IN, token);
            epoll.ctl(ControlOperation::Add, file, interest)?;
        }
        let thread = {
            let relay = Arc::clone(&relay);
            thread::Builder::new()
                .name("page-requests".to_owned())
                .spawn(move || {
                    run(&epoll, &relay);
                    // Not before: the kernel watches it no longer once it is closed.
                    drop(file);
                })?
        };
        Ok(Self {
            queue: id,
            relay,
            stop,
            thread: Some(thread),
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

impl Drop for PageRequests {
    fn drop(&mut self) {
        // A full counter wakes the thread as well.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by then.
            let _ = thread.join();
        }
    }
}

fn run(epoll: &Epoll, relay: &PageRequestRelay<Memory>) {
    loop {
        let mut events = [EpollEvent::default(); 2];
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                log::error!("waiting for page requests of devices failed: {error}");
                return;
            }
        };
        let events = events.get(..count).unwrap_or_default();
        if events.iter().any(|event| event.data() == STOP) {
            return;
        }
        match relay.relay() {
            Ok(true) => {}
            Ok(false) => thread::sleep(PAUSE),
            Err(error) => {
                log::error!(
                    "page requests of devices cannot be read any more ({error}): devices that make some wait in vain"
                );
                return;
            }
        }
    }
}
