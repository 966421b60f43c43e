//! The slot of a view: which transaction it runs, for the drain; and what it has counted.

use std::sync::atomic::{AtomicU64, Ordering};

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

/// What one view tells the drain. Alone on its cache lines, as only its view writes it.
#[repr(align(128))]
pub(super) struct Slot {
    /// The generation under which a transaction is running, or 0.
    running: AtomicU64,
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

    pub(super) const fn new() -> Self {
        Self {
            running: AtomicU64::new(Self::IDLE),
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

    /// Whether a transaction runs that began before `generation`.
    pub(super) fn is_behind(&self, generation: u64) -> bool {
        let running = self.running.load(Ordering::SeqCst);
        running != Self::IDLE && running < generation
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
    }
}
