//! Subscribers that come and go while the loop runs.

use std::fs::File;
use std::sync::atomic::AtomicU32;
use std::sync::mpsc::channel;
use std::time::Instant;

use event_manager::{EventOps, EventSet};
use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;

fn event_loop() -> EventLoop {
    EventLoop::start(channel().0).expect("a thread")
}

/// Counts the looks at an event that it never reads.
struct Counter {
    event: EventFd,
    count: Arc<AtomicU32>,
    /// Time that a look takes.
    delay: Duration,
}

impl Counter {
    fn new(delay: Duration) -> (Self, EventFd, Arc<AtomicU32>) {
        let event = EventFd::new(EFD_NONBLOCK).expect("a descriptor");
        let other_end = event.try_clone().expect("a descriptor");
        let count = Arc::<AtomicU32>::default();
        let counter = Self {
            event,
            count: Arc::clone(&count),
            delay,
        };
        (counter, other_end, count)
    }

    fn source(&self) -> Events {
        Events::new(&self.event, EventSet::IN)
    }
}

impl MutEventSubscriber for Counter {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        thread::sleep(self.delay);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn init(&mut self, _ops: &mut EventOps<'_>) {}
}

fn wait_for(count: &AtomicU32) {
    let start = Instant::now();
    while count.load(Ordering::Relaxed) == 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "never called");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_subscriber_that_was_removed_is_gone_and_does_nothing_any_more() {
    let event_loop = event_loop();
    for _ in 0..20 {
        let (counter, event, count) = Counter::new(Duration::from_millis(1));
        let source = counter.source();
        let subscription = event_loop.handle().subscribe(counter, &[source]);
        let subscription = subscription.expect("it runs");
        event.write(1).expect("room");
        wait_for(&count);
        drop(subscription);
        let last = count.load(Ordering::Relaxed);
        assert_eq!(Arc::strong_count(&count), 1, "dropped");
        thread::sleep(Duration::from_millis(3));
        assert_eq!(count.load(Ordering::Relaxed), last);
    }
}

#[test]
fn one_that_always_has_something_to_do_holds_up_no_other() {
    let event_loop = event_loop();
    let (busy, event, _) = Counter::new(Duration::ZERO);
    event.write(1).expect("room");
    let source = busy.source();
    let busy = event_loop.handle().subscribe(busy, &[source]);
    let (other, event, count) = Counter::new(Duration::ZERO);
    let source = other.source();
    let other = event_loop.handle().subscribe(other, &[source]);
    event.write(1).expect("room");
    wait_for(&count);
    assert!(busy.is_ok() && other.is_ok());
}

#[test]
fn a_source_that_cannot_be_waited_for_is_an_error_and_leaves_nothing() {
    let event_loop = event_loop();
    let file = File::open("/proc/self/exe").expect("this program");
    let (counter, _event, count) = Counter::new(Duration::ZERO);
    let sources = [counter.source(), Events::new(&file, EventSet::IN)];
    let refused = event_loop.handle().subscribe(counter, &sources);
    let error = refused.err().expect("a regular file");
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    assert_eq!(Arc::strong_count(&count), 1, "dropped");
}

#[test]
fn a_subscription_may_outlive_the_loop() {
    let event_loop = event_loop();
    let (counter, _event, count) = Counter::new(Duration::ZERO);
    let source = counter.source();
    let subscription = event_loop.handle().subscribe(counter, &[source]);
    let handle = event_loop.handle().clone();
    drop(event_loop);
    assert_eq!(Arc::strong_count(&count), 1, "dropped with the loop");
    drop(subscription);
    let (counter, ..) = Counter::new(Duration::ZERO);
    assert!(handle.subscribe(counter, &[]).is_err());
}

/// Gives up its own subscription.
struct Quitter {
    event: EventFd,
    subscription: Arc<Mutex<Option<Subscription>>>,
    _alive: Arc<AtomicU32>,
}

impl MutEventSubscriber for Quitter {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        drop(self.subscription.lock().take());
    }

    fn init(&mut self, _ops: &mut EventOps<'_>) {}
}

#[test]
fn a_subscription_may_end_on_the_loop_itself() {
    let event_loop = event_loop();
    let event = EventFd::new(EFD_NONBLOCK).expect("a descriptor");
    let other_end = event.try_clone().expect("a descriptor");
    let place = Arc::<Mutex<Option<Subscription>>>::default();
    let alive = Arc::<AtomicU32>::default();
    let source = Events::new(&event, EventSet::IN);
    let quitter = Quitter {
        event,
        subscription: Arc::clone(&place),
        _alive: Arc::clone(&alive),
    };
    assert!(quitter.event.as_raw_fd() >= 0);
    let subscription = event_loop.handle().subscribe(quitter, &[source]);
    *place.lock() = subscription.ok();
    other_end.write(1).expect("room");
    let start = Instant::now();
    while Arc::strong_count(&alive) > 1 {
        assert!(start.elapsed() < Duration::from_secs(60), "still there");
        thread::sleep(Duration::from_millis(1));
    }
}
