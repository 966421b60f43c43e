//! Events that KVM does not turn into interrupts, as a subscriber of the event loop.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::event_loop::{Handle, Subscription, Timer};

/// Rest of an event after it was reported, so that a device whose interrupts go nowhere costs
/// little, however many it sends: each event counts once per look.
const PAUSE: Duration = Duration::from_millis(1);
/// Events that are listened to again after each pause, at most.
const BATCH: usize = 32;

/// What stands for the subscriber's own sources; numbers of events are GSIs, which are far below.
mod token {
    pub(super) const CHANGED: u32 = u32::MAX;
    pub(super) const PAUSED: u32 = u32::MAX - 1;
}

/// What is to be listened to by now, where that is new.
type Changes = BTreeMap<u32, Option<Arc<EventFd>>>;

/// Watches events by their numbers.
pub(super) struct Watcher {
    /// Leaf lock. Not the loop's own list of things to do: a guest may change its mind as often as
    /// it likes.
    changes: Arc<Mutex<Changes>>,
    changed: EventFd,
    subscription: Subscription,
}

impl Watcher {
    /// Watches nothing yet. `arrived` is called on the loop's thread with the number of each event
    /// that is signalled, again and again until it is read.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub(super) fn start(
        event_loop: &Handle,
        arrived: impl Fn(u32) + Send + 'static,
    ) -> io::Result<Self> {
        let changes = Arc::<Mutex<Changes>>::default();
        let changed = EventFd::new(EFD_NONBLOCK)?;
        let listener = Listener {
            changes: Arc::clone(&changes),
            changed: changed.try_clone()?,
            timer: Timer::new()?,
            events: BTreeMap::new(),
            resting: VecDeque::new(),
            arrived,
        };
        let sources = [
            Events::with_data(&listener.changed, token::CHANGED, EventSet::IN),
            Events::with_data(&listener.timer, token::PAUSED, EventSet::IN),
        ];
        Ok(Self {
            changes,
            changed,
            subscription: event_loop.subscribe(listener, &sources)?,
        })
    }

    /// Watches `event` soon.
    pub(super) fn watch(&self, number: u32, event: &Arc<EventFd>) {
        self.change(number, Some(Arc::clone(event)));
    }

    /// Watches the event of that number no longer. It may be reported for the last time later on.
    pub(super) fn unwatch(&self, number: u32) {
        self.change(number, None);
    }

    /// Waits until no event is being reported. Not for the loop's thread.
    pub(super) fn settle(&self) {
        self.subscription.settle();
    }

    fn change(&self, number: u32, event: Option<Arc<EventFd>>) {
        self.changes.lock().insert(number, event);
        // It fails only if the counter is at its end, which tells as much.
        let _ = self.changed.write(1);
    }
}

struct Listener<F> {
    changes: Arc<Mutex<Changes>>,
    changed: EventFd,
    /// Set while events rest.
    timer: Timer,
    /// Listened to, or resting.
    events: BTreeMap<u32, Arc<EventFd>>,
    /// Each once, the one that rests longest first.
    resting: VecDeque<u32>,
    arrived: F,
}

/// The kernel tells of it once, and then no more until it is asked again.
fn once(number: u32, event: &EventFd) -> Events {
    Events::with_data(event, number, EventSet::IN | EventSet::ONE_SHOT)
}

impl<F: Fn(u32)> Listener<F> {
    fn follow(&mut self, ops: &mut EventOps<'_>) {
        // Before the changes are looked at, so that none is missed.
        let _ = self.changed.read();
        let changes = std::mem::take(&mut *self.changes.lock());
        for (number, wanted) in changes {
            let known = self.events.get(&number);
            if let (Some(known), Some(wanted)) = (known, &wanted)
                && Arc::ptr_eq(known, wanted)
            {
                continue;
            }
            if let Some(event) = self.events.remove(&number) {
                // It fails only for one that is not listened to.
                let _ = ops.remove(once(number, &event));
                self.resting.retain(|resting| *resting != number);
            }
            let Some(event) = wanted else { continue };
            match ops.add(once(number, &event)) {
                Ok(()) => drop(self.events.insert(number, event)),
                Err(error) => log::warn!("blocked interrupts are not recorded as faults: {error}"),
            }
        }
    }

    fn report(&mut self, number: u32) {
        if self.resting.is_empty() {
            self.timer.set(PAUSE);
        }
        self.resting.push_back(number);
        (self.arrived)(number);
    }

    /// Listens again to those that have rested.
    fn resume(&mut self, ops: &mut EventOps<'_>) {
        for number in self.resting.drain(..BATCH.min(self.resting.len())) {
            let Some(event) = self.events.get(&number) else {
                continue;
            };
            if let Err(error) = ops.modify(once(number, event)) {
                log::warn!("blocked interrupts are not recorded as faults: {error}");
            }
        }
        if self.resting.is_empty() {
            self.timer.stop();
        } else {
            self.timer.set(PAUSE);
        }
    }
}

impl<F: Fn(u32)> MutEventSubscriber for Listener<F> {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            token::CHANGED => self.follow(ops),
            token::PAUSED => self.resume(ops),
            number => self.report(number),
        }
    }

    fn init(&mut self, _ops: &mut EventOps<'_>) {}
}
