//! The slot of a pin: which pages a device uses outside of its transactions, for the drain.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use vm_memory::Permissions;

use super::drain_scope::DrainScope;
use super::used::{Run, Used};
use crate::spec::ids::{Pasid, SourceId};
use crate::translate::{Access, Request, RequestKind};

/// Who has pages pinned, what for, and which.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) source: SourceId,
    pub(super) pasid: Option<Pasid>,
    pub(super) privileged: bool,
    pub(super) kind: RequestKind,
    pub(super) access: Permissions,
    pub(super) used: Used,
}

impl Held {
    /// The requests that the device makes of the page at `address`.
    pub(super) fn requests(&self, address: u64) -> impl Iterator<Item = Request> + use<> {
        let request = Request {
            source: self.source,
            pasid: self.pasid,
            address,
            access: Access::Read,
            privileged: self.privileged,
            kind: self.kind,
        };
        let writes = self.access.has_write().then_some(Access::Write);
        let reads = (self.access != Permissions::Write).then_some(Access::Read);
        let accesses = [writes, reads].into_iter().flatten();
        accesses.map(move |access| Request { access, ..request })
    }
}

/// How long a drain sleeps at a time before it asks whether to go on: this long at first, and then
/// longer. A release wakes it.
const NAP: Duration = Duration::from_micros(100);
const LONGEST_NAP: Duration = Duration::from_millis(3);

/// What one pin tells the drain.
#[derive(Debug)]
pub(super) struct PinSlot {
    /// As of which generation the pages are what the tables say; 0 if there are none.
    since: AtomicU64,
    /// Leaf lock. Tables are read under it, and nothing is called.
    held: Mutex<Option<Held>>,
    released: Condvar,
}

impl PinSlot {
    /// As of no generation.
    const FREE: u64 = 0;

    pub(super) const fn new() -> Self {
        Self {
            since: AtomicU64::new(Self::FREE),
            held: Mutex::new(None),
            released: Condvar::new(),
        }
    }

    /// The pages in `held` are used from now on, until [`release`](Self::release). To be called
    /// within the transaction of `generation` that has translated them: whoever waits for that one
    /// finds them here afterwards.
    pub(super) fn hold(&self, generation: u64, held: Held) {
        *self.held.lock() = Some(held);
        self.since.store(generation, Ordering::Release);
    }

    /// The pages are not used any more. Gives their list back, for the next ones.
    pub(super) fn release(&self) -> Vec<Run> {
        let held = {
            let mut held = self.held.lock();
            self.since.store(Self::FREE, Ordering::Release);
            held.take()
        };
        // A drain that finds the slot held sleeps before it lets go of the lock.
        self.released.notify_all();
        held.map_or_else(Vec::new, |held| held.used.runs)
    }

    /// Whether a drain has to wait for it, or to look at its pages.
    pub(super) fn holds(&self, generation: u64, scope: &DrainScope) -> bool {
        let concerned = |held: &Held| scope.takes_in_pages(held.source, &held.used);
        self.is_older(generation) && self.held.lock().as_ref().is_some_and(concerned)
    }

    fn is_older(&self, generation: u64) -> bool {
        let since = self.since.load(Ordering::Acquire);
        since != Self::FREE && since < generation
    }

    /// Waits until the pages are released, or are what the tables say as of `generation`, which is
    /// for `renew` to find out. Returns whether that is so: it gives up when `goes_on` says so.
    pub(super) fn wait(
        &self,
        generation: u64,
        renew: impl FnOnce(&mut Held) -> bool,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> bool {
        let mut guard = self.held.lock();
        if !self.is_older(generation) {
            return true;
        }
        if guard.as_mut().is_some_and(renew) {
            self.since.store(generation, Ordering::Release);
            return true;
        }
        let mut nap = NAP;
        while self.is_older(generation) {
            if !goes_on() {
                return false;
            }
            self.released.wait_for(&mut guard, nap);
            nap = (nap * 2).min(LONGEST_NAP);
        }
        true
    }
}
