//! An event loop for tests: a thread for each subscriber.

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use event_manager::{EventManager, Events, MutEventSubscriber, SubscriberOps};

use super::watcher::EventLoop;

pub(super) struct FakeLoop;

/// Ends its thread when it is dropped.
struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EventLoop for FakeLoop {
    fn subscribe(
        &self,
        subscriber: Box<dyn MutEventSubscriber + Send>,
        sources: &[Events],
    ) -> io::Result<Box<dyn Any + Send + Sync>> {
        let mut manager =
            EventManager::<Box<dyn MutEventSubscriber + Send>>::new().map_err(io::Error::other)?;
        let id = manager.add_subscriber(subscriber);
        let mut ops = manager.event_ops(id).map_err(io::Error::other)?;
        for source in sources {
            ops.add(*source).map_err(io::Error::other)?;
        }
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                manager.run_with_timeout(1).expect("sources");
            }
        });
        Ok(Box::new(Running {
            stop,
            thread: Some(thread),
        }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.take().expect("it ends once");
        thread.join().expect("no panic");
    }
}
