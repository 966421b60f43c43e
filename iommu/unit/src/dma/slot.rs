//! The slot of a view: which transaction it runs and what that uses, for the drain; and what it has
//! counted.

use std::hint;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::drain_scope::DrainScope;
use super::used::Domains;
use crate::spec::ids::SourceId;

/// How accesses through a unit found their translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DmaCounts {
    /// In the cache of their view.
    pub translation_hits: u64,
    /// By a walk of the tables, if only the last of them; or not at all.
    pub table_walks: u64,
    /// By such a walk, through a first stage nested on a second one.
    pub nested_walks: u64,
    /// Among the translations that are kept until they are invalidated, a fault included.
    pub kept_hits: u64,
    /// With an answer of what is kept that the tables no longer gave.
    pub kept_stale: u64,
}

impl DmaCounts {
    pub(super) fn add(&mut self, slot: &Slot) {
        self.translation_hits += slot.hits.load(Ordering::Relaxed);
        self.table_walks += slot.walks.load(Ordering::Relaxed);
        self.nested_walks += slot.nested.load(Ordering::Relaxed);
        self.kept_hits += slot.kept.load(Ordering::Relaxed);
        self.kept_stale += slot.stale.load(Ordering::Relaxed);
    }
}

/// How often a drain looks at a slot in turn: for some 20 us, which is what a transaction takes.
const SPINS: u32 = 512;
/// How often it then lets others run.
const YIELDS: u32 = 64;
/// How long it then sleeps at a time, unless it is woken.
const NAP: Duration = Duration::from_micros(100);

/// What a slot had published before a view began to look for its binding.
#[must_use]
pub(super) struct Resolving(u32);

/// What one view tells the drain. Alone on its cache lines, as only its view writes it.
#[repr(align(128))]
pub(super) struct Slot {
    /// The generation under which a transaction is running, or 0.
    running: AtomicU64,
    /// Who makes the requests of the view.
    source: SourceId,
    /// The domain of what the view has remembered in its present generation, or one of the values
    /// above all domains.
    domain: AtomicU32,
    /// A drain sleeps until the transaction is over.
    awaited: AtomicBool,
    /// Leaf lock.
    sleep: Mutex<()>,
    over: Condvar,
    /// What the view has counted, as of its last transaction.
    hits: AtomicU64,
    walks: AtomicU64,
    /// These are counted as they happen, which is out of the way of hits.
    nested: AtomicU64,
    kept: AtomicU64,
    stale: AtomicU64,
}

impl Slot {
    /// Of no generation.
    const IDLE: u64 = 0;
    /// Nothing is remembered.
    const NO_DOMAIN: u32 = 1 << 16;
    /// More than one domain, or it is not known which.
    const ANY_DOMAIN: u32 = 1 << 17;

    pub(super) const fn new(source: SourceId) -> Self {
        Self {
            running: AtomicU64::new(Self::IDLE),
            source,
            domain: AtomicU32::new(Self::NO_DOMAIN),
            awaited: AtomicBool::new(false),
            sleep: Mutex::new(()),
            over: Condvar::new(),
            hits: AtomicU64::new(0),
            walks: AtomicU64::new(0),
            nested: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            stale: AtomicU64::new(0),
        }
    }

    /// A transaction declares the generation under which it is about to run.
    #[inline]
    pub(super) fn declare(&self, generation: u64) {
        self.running.store(generation, Ordering::SeqCst);
    }

    /// Whether a transaction runs that began before `generation`, and may use what `scope` takes
    /// in. The fence of the drain comes before.
    pub(super) fn holds(&self, generation: u64, scope: &DrainScope) -> bool {
        let running = self.running.load(Ordering::SeqCst);
        running != Self::IDLE && running < generation && scope.takes_in(self.source, self.domains())
    }

    fn domains(&self) -> Domains {
        let domain = self.domain.load(Ordering::Acquire);
        match u16::try_from(domain) {
            Ok(domain) => Domains::One(domain),
            Err(_) if domain == Self::NO_DOMAIN => Domains::None,
            Err(_) => Domains::Any,
        }
    }

    /// Waits until the slot no longer [`holds`](Self::holds) a drain. Returns whether that is so:
    /// it gives up when `goes_on` says so.
    pub(super) fn wait(
        &self,
        generation: u64,
        scope: &DrainScope,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> bool {
        for round in 0..SPINS + YIELDS {
            if !self.holds(generation, scope) {
                return true;
            }
            if round < SPINS {
                hint::spin_loop();
            } else if goes_on() {
                thread::yield_now();
            } else {
                return false;
            }
        }
        // The thread of the view may have been preempted.
        let mut sleep = self.sleep.lock();
        while self.holds(generation, scope) {
            if !goes_on() {
                return false;
            }
            self.awaited.store(true, Ordering::SeqCst);
            self.over.wait_for(&mut sleep, NAP);
        }
        true
    }

    /// The view has emptied its caches.
    pub(super) fn forget_domains(&self) {
        self.domain.store(Self::NO_DOMAIN, Ordering::Release);
    }

    /// The view is about to read tables, and it is not known of which domain. Returns what
    /// [`resolved`](Self::resolved) asks for.
    ///
    /// A drain may have skipped this slot, as it had not published what it goes on to use. Then it
    /// misses nothing: the drain has a fence after the change that the guest announced, and before
    /// it looks at the slot; here is a fence after the publication, and before the tables are read.
    /// One of the two comes first. If it is this one, the drain sees what is published here, or
    /// something later, and waits. If it is the drain's, the tables are read as they are after the
    /// change.
    ///
    /// What is published stays until the caches of the view are emptied, so what is in them needs
    /// no publication: a drain that sees the slot without it sees a view that had not read a table
    /// by then.
    pub(super) fn resolving(&self) -> Resolving {
        let before = self.domain.load(Ordering::Relaxed);
        // Once published, it holds for further reads, too.
        if before != Self::ANY_DOMAIN {
            self.domain.store(Self::ANY_DOMAIN, Ordering::Release);
            fence(Ordering::SeqCst);
        }
        Resolving(before)
    }

    /// The tables of `domain` are what the view uses now. To be called before they are read. Where
    /// it is not called, it stays unknown what the view uses.
    pub(super) fn resolved(&self, Resolving(before): Resolving, domain: u16) {
        let domain = u32::from(domain);
        if before == Self::NO_DOMAIN || before == domain {
            self.domain.store(domain, Ordering::Release);
        }
    }

    /// The view has walked nested tables.
    pub(super) fn count_nested(&self) {
        Self::count(&self.nested);
    }

    /// The view has used a translation that is kept.
    pub(super) fn count_kept(&self) {
        Self::count(&self.kept);
    }

    /// The view has got an answer that the tables no longer gave.
    pub(super) fn count_stale(&self) {
        Self::count(&self.stale);
    }

    fn count(counter: &AtomicU64) {
        // Only its view writes a slot, so this needs to be no addition.
        counter.store(
            counter.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Relaxed,
        );
    }

    /// The transaction is over, and the view has counted this much.
    #[inline]
    pub(super) fn leave(&self, hits: u64, walks: u64) {
        // Only its view writes a slot, so these need to be no additions.
        self.hits.store(hits, Ordering::Relaxed);
        self.walks.store(walks, Ordering::Relaxed);
        self.running.store(Self::IDLE, Ordering::Release);
        // Without a fence in between, which would be at the cost of every transaction, this may
        // miss a drain that goes to sleep just now. It looks again after its nap.
        if self.awaited.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    #[cold]
    #[inline(never)]
    fn wake(&self) {
        // Whoever has set it holds the lock until it sleeps.
        let sleep = self.sleep.lock();
        self.awaited.store(false, Ordering::Relaxed);
        drop(sleep);
        self.over.notify_all();
    }

    /// Whether a drain sleeps until the transaction is over, or is about to.
    #[cfg(test)]
    pub(super) fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::SeqCst)
    }
}
