//! A thread that waits for events that KVM does not turn into interrupts.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Between two looks, so that a device whose interrupts go nowhere costs little, however many it sends: each event counts once
/// per look.
const PAUSE: Duration = Duration::from_millis(1);
/// What stands for the wish to end; GSIs have 32 bits.
const STOP: u64 = u64::MAX;

/// The thread. Dropping it ends it.
pub(super) struct Watcher {
    epoll: Arc<Epoll>,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts to watch; `arrived` is called with the number of each event that is signalled, again and again until it is read.
    pub(super) fn start(arrived: impl Fn(u32) + Send + 'static) -> io::Result<Self> {
        let epoll = Arc::new(Epoll::new()?);
        let stop = EventFd::new(EFD_NONBLOCK)?;
        epoll.ctl(
            ControlOperation::Add,
            stop.as_raw_fd(),
            EpollEvent::new(EventSet::IN, STOP),
        )?;
        let thread = {
            let epoll = Arc::clone(&epoll);
            thread::Builder::new()
                .name("interrupts".to_owned())
                .spawn(move || run(&epoll, &arrived))?
        };
        Ok(Self {
            epoll,
            stop,
            thread: Some(thread),
        })
    }

    pub(super) fn watch(&self, number: u32, event: &EventFd) -> io::Result<()> {
        self.epoll.ctl(
            ControlOperation::Add,
            event.as_raw_fd(),
            EpollEvent::new(EventSet::IN, u64::from(number)),
        )
    }

    /// The thread may be about to report the event for the last time.
    pub(super) fn unwatch(&self, event: &EventFd) {
        // It fails only for one that is not watched.
        let _ = self.epoll.ctl(
            ControlOperation::Delete,
            event.as_raw_fd(),
            EpollEvent::default(),
        );
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // It fails only if the counter is at its end, which stops the thread as well.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // A panic has been reported by then.
            let _ = thread.join();
        }
    }
}

fn run(epoll: &Epoll, arrived: &impl Fn(u32)) {
    let mut events = [EpollEvent::default(); 32];
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => {
                log::warn!("blocked interrupts are lost from now on: {error}");
                return;
            }
        };
        for event in events.iter().take(count) {
            match u32::try_from(event.data()) {
                Ok(number) => arrived(number),
                Err(_) => return,
            }
        }
        thread::sleep(PAUSE);
    }
}
