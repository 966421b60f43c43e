//! The machine's event loop: one thread with an [`EventManager`] for all that is no vCPU's and no
//! device queue's business: clients of the control socket, standard input, ending signals, what the
//! host says about assigned devices, and interrupts that KVM does not send by itself.
//!
//! # Rules for subscribers
//! * They never wait: all the others wait with them. What takes time has a thread of its own, what
//!   is to come later a [`Timer`].
//! * They own the descriptors that they listen to, and stop listening before they close one: the
//!   manager panics at an event of a descriptor that it does not know.
//! * Whoever adds or removes one waits for the loop, so nobody does it with a lock that a subscriber
//!   takes.

use std::any::Any;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use event_manager::{
    Error, EventManager, Events, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps,
};
use vmm_sys_util::timerfd::TimerFd;

use crate::event::Event;

type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// The thread. Dropping it ends it, and drops the subscribers that are left.
pub(crate) struct EventLoop {
    handle: Handle,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EventLoop {
    /// Starts the loop without subscribers. If the host lets it down later, `events` are told.
    ///
    /// # Errors
    /// When the host has no descriptor or thread left.
    pub(crate) fn start(events: Sender<Event>) -> io::Result<Self> {
        let mut manager = EventManager::<Subscriber>::new().map_err(io_error)?;
        let endpoint = manager.remote_endpoint();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let run = move || {
            while !stopped.load(Ordering::Acquire) {
                if let Err(error) = manager.run() {
                    let message = format!("waiting for events failed: {error}");
                    // Nobody listens any more only when the machine ends anyway.
                    let _ = events.send(Event::Failed(message));
                    return;
                }
            }
        };
        let thread = thread::Builder::new()
            .name("events".to_owned())
            .spawn(run)?;
        Ok(Self {
            handle: Handle {
                endpoint,
                thread: thread.thread().id(),
            },
            stop,
            thread: Some(thread),
        })
    }

    /// For those who have something to subscribe.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // It fails only if the counter is at its end, which wakes the thread as well.
        let _ = self.handle.endpoint.kick();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by then.
            let _ = thread.join();
        }
    }
}

/// Adds subscribers to an [`EventLoop`], from any thread but its own.
#[derive(Clone)]
pub(crate) struct Handle {
    endpoint: RemoteEndpoint<Subscriber>,
    thread: ThreadId,
}

impl Handle {
    /// Has `subscriber` process the events of `sources`, and of those that it adds itself. It may
    /// begin before this returns.
    ///
    /// # Errors
    /// When the kernel cannot wait for one of the sources (`EPERM` for a regular file), or the loop
    /// has ended.
    pub(crate) fn subscribe(
        &self,
        subscriber: impl MutEventSubscriber + Send + 'static,
        sources: &[Events],
    ) -> io::Result<Subscription> {
        self.subscribe_boxed(Box::new(subscriber), sources.to_vec())
    }

    /// Waits until the loop is done with the event that it is at, if there is one. Not for its own thread.
    pub(crate) fn settle(&self) {
        if !self.is_current() {
            // It fails only when the loop has ended.
            let _ = self.endpoint.call_blocking(|_| Ok::<_, Error>(()));
        }
    }

    fn subscribe_boxed(
        &self,
        subscriber: Subscriber,
        sources: Vec<Events>,
    ) -> io::Result<Subscription> {
        if self.is_current() {
            return Err(io::ErrorKind::Deadlock.into());
        }
        let add = move |ops: &mut dyn SubscriberOps<Subscriber = Subscriber>| {
            let id = ops.add_subscriber(subscriber);
            listen(ops, id, &sources)
                .map(|()| id)
                .inspect_err(|_| drop(ops.remove_subscriber(id)))
        };
        let id = self.endpoint.call_blocking(add).map_err(io_error)?;
        Ok(Subscription {
            handle: self.clone(),
            id,
        })
    }

    fn is_current(&self) -> bool {
        thread::current().id() == self.thread
    }
}

fn listen(
    ops: &mut dyn SubscriberOps<Subscriber = Subscriber>,
    id: SubscriberId,
    sources: &[Events],
) -> Result<(), Error> {
    let mut ops = ops.event_ops(id)?;
    sources.iter().try_for_each(|source| ops.add(*source))
}

impl devices::vfio::EventLoop for Handle {
    fn subscribe(
        &self,
        subscriber: Subscriber,
        sources: &[Events],
    ) -> io::Result<Box<dyn Any + Send + Sync>> {
        let subscription = self.subscribe_boxed(subscriber, sources.to_vec())?;
        Ok(Box::new(subscription))
    }
}

/// A subscriber at work. When dropping it returns, the subscriber is dropped; it processes nothing
/// at that time, nor later. Only on the loop's own thread it stays until the events at hand are
/// processed.
pub(crate) struct Subscription {
    handle: Handle,
    id: SubscriberId,
}

impl Subscription {
    /// Waits until the subscriber is done with the event that it is processing, if there is one. Not
    /// for the loop's own thread.
    pub(crate) fn settle(&self) {
        self.handle.settle();
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let id = self.id;
        let endpoint = &self.handle.endpoint;
        // Both fail only when the loop has ended, and has dropped it.
        if self.handle.is_current() {
            let _ = endpoint.fire(move |ops| drop(ops.remove_subscriber(id)));
        } else {
            // It comes back to be dropped here, as what it owns may have subscriptions in turn.
            drop(endpoint.call_blocking(move |ops| ops.remove_subscriber(id)));
        }
    }
}

/// A source that a subscriber has for what is to be done later. It stays ready until it is set anew
/// or stopped.
pub(crate) struct Timer(TimerFd);

impl Timer {
    /// One that is not set.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(TimerFd::new()?))
    }

    /// Makes it ready once `delay` has passed, and not before.
    pub(crate) fn set(&mut self, delay: Duration) {
        // Zero would stop it.
        if let Err(error) = self.0.reset(delay.max(Duration::from_nanos(1)), None) {
            log::error!("a timer cannot be set: {}", io::Error::from(error));
        }
    }

    /// Makes it unready until it is set.
    pub(crate) fn stop(&mut self) {
        if let Err(error) = self.0.clear() {
            log::error!("a timer cannot be stopped: {}", io::Error::from(error));
        }
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// What the manager says, with the number of the kernel's error if that is where it comes from.
pub(crate) fn io_error(error: Error) -> io::Error {
    match error {
        Error::EventFd(errno) | Error::Epoll(errno) => errno.into(),
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod event_loop_test;
