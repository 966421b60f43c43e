//! The state that a unit shares with the views of its devices.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use vm_memory::GuestMemoryBackend;

use super::pin_slot::PinSlot;
use super::slot::{DmaCounts, Slot};
use crate::memory::Nearby;
use crate::retention::Kept;
use crate::spec::ids::SourceId;
use crate::spec::invalidation::Invalidation;
use crate::translate::{Fault, Gates, GuestTables, Latched, Request, Translation};

/// Where blocked requests are reported.
///
/// It is called within a DMA transaction, for which a drain may be waiting: an implementation takes
/// leaf locks only, and never one that is held across [`DmaState::drain`].
pub trait FaultSink: Send + Sync {
    /// `request` was blocked. Called for faults whose record is suppressed, too.
    fn dma_fault(&self, request: &Request, fault: &Fault);

    /// A device asks for a translation (ATS), whatever comes of it.
    fn translation_requested(&self) {}

    /// `request` got `answer` of what is kept, and would have got `now` of the tables: they have
    /// changed, and what says so is missing, or still to come. Called as
    /// [`dma_fault`](Self::dma_fault) is.
    fn stale(
        &self,
        _request: &Request,
        _answer: &Result<Translation, Fault>,
        _now: &Result<Translation, Fault>,
    ) {
    }
}

/// The part of a unit that DMA depends on. The unit writes it, views read it.
///
/// # Order
/// A change is published (`set_latched`, or by the guest in its tables), then the generation is
/// raised, then `drain` waits for every transaction that began before that. A transaction declares
/// the generation under which it runs before it touches anything, and looks again afterwards
/// whether that generation still holds. So after `drain`, no access uses anything older than the
/// change, and views that are idle cost one load each.
///
/// What a transaction has pinned, it has published before it is over. So a drain that looks at pins
/// once it has waited for transactions finds those of all that it waited for.
///
/// A drain for some invalidations only leaves out the views of other sources and domains. What a
/// view uses, it publishes in its slot before it reads the tables that lead there.
pub struct DmaState<M> {
    memory: M,
    gates: Gates,
    faults: Arc<dyn FaultSink>,
    /// Never 0, which stands for "idle" in a [`Slot`].
    generation: AtomicU64,
    /// Leaf lock; nothing is called while it is held.
    latched: RwLock<Latched>,
    /// Leaf lock, but for those of pins; nothing is called while it is held.
    slots: Mutex<Slots>,
    /// What stays across generations, if anything does.
    kept: Option<Box<Kept>>,
}

#[derive(Default)]
struct Slots {
    list: Vec<Arc<Slot>>,
    pins: Vec<Arc<PinSlot>>,
    /// What views that are gone have counted.
    past: DmaCounts,
}

impl<M> DmaState<M> {
    /// The state of a unit out of reset: translation is off.
    pub fn new(memory: M, gates: Gates, faults: Arc<dyn FaultSink>) -> Self {
        Self {
            memory,
            gates,
            faults,
            generation: AtomicU64::new(1),
            latched: RwLock::default(),
            slots: Mutex::default(),
            kept: None,
        }
    }

    /// With translations that are kept until [`forget`](Self::forget) names them, as long as
    /// hardware may keep them.
    #[must_use]
    pub fn keeping_translations(self) -> Self {
        let kept = Kept::new(&self.gates);
        Self {
            kept: Some(Box::new(kept)),
            ..self
        }
    }

    /// The handle on guest memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Capabilities and widths.
    pub fn gates(&self) -> &Gates {
        &self.gates
    }

    /// What the guest has latched.
    pub fn latched(&self) -> Latched {
        *self.latched.read()
    }

    /// Latches, and invalidates all that was cached. A [`drain`](Self::drain) is to follow before
    /// the guest learns that the command is complete.
    ///
    /// What is kept stays if this just switches translation on or off, and the unit has no scalable
    /// mode (section 11.4.4.1).
    pub fn set_latched(&self, latched: Latched) {
        let old = std::mem::replace(&mut *self.latched.write(), latched);
        let switches = old.enabled != latched.enabled && old.root == latched.root;
        if !switches || self.gates.caps.ecap.smts() {
            self.forget(&Invalidation::All);
        }
        self.invalidate_all();
    }

    /// Takes `invalidation` out of what is kept. [`invalidate_all`](Self::invalidate_all) is to
    /// follow, and then a [`drain`](Self::drain), before the guest learns that it is complete.
    pub fn forget(&self, invalidation: &Invalidation) {
        if let Some(kept) = &self.kept {
            kept.forget(invalidation, self.generation.load(Ordering::SeqCst));
        }
    }

    #[inline]
    pub(super) fn kept(&self) -> Option<&Kept> {
        self.kept.as_deref()
    }

    /// What all views have counted since the unit was made, those of transactions that are running
    /// in part.
    pub fn counts(&self) -> DmaCounts {
        let slots = self.slots.lock();
        let mut counts = slots.past;
        slots.list.iter().for_each(|slot| counts.add(slot));
        counts
    }

    /// Makes every transaction that begins from now on walk the tables anew, or look up what is
    /// kept.
    pub fn invalidate_all(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Looks at the slots of all views. Nothing is called but what reads them.
    pub(super) fn slots<R>(&self, look: impl FnOnce(&[Arc<Slot>]) -> R) -> R {
        look(&self.slots.lock().list)
    }

    /// The same of pins.
    pub(super) fn pins<R>(&self, look: impl FnOnce(&[Arc<PinSlot>]) -> R) -> R {
        look(&self.slots.lock().pins)
    }

    /// Declares a transaction in `slot`, and returns the generation under which it runs.
    #[inline]
    pub(super) fn enter(&self, slot: &Slot) -> u64 {
        let mut generation = self.generation.load(Ordering::SeqCst);
        loop {
            slot.declare(generation);
            // If this still reads the old value, then the store above comes before the raise of the
            // generation in the single order of these operations, and the drain behind that raise
            // sees it.
            let now = self.generation.load(Ordering::SeqCst);
            if now == generation {
                return generation;
            }
            generation = now;
        }
    }

    pub(super) fn count_translation_request(&self) {
        self.faults.translation_requested();
    }

    pub(super) fn report(&self, request: &Request, fault: &Fault) {
        self.faults.dma_fault(request, fault);
    }

    pub(super) fn report_stale(
        &self,
        request: &Request,
        answer: &Result<Translation, Fault>,
        now: &Result<Translation, Fault>,
    ) {
        self.faults.stale(request, answer, now);
    }

    pub(super) fn register(&self, source: SourceId) -> Arc<Slot> {
        let slot = Arc::new(Slot::new(source));
        self.slots.lock().list.push(Arc::clone(&slot));
        slot
    }

    /// The number of views.
    #[cfg(test)]
    pub(super) fn view_count(&self) -> usize {
        self.slots.lock().list.len()
    }

    /// The number of pins.
    #[cfg(test)]
    pub(super) fn pin_count(&self) -> usize {
        self.slots.lock().pins.len()
    }

    /// Whether a drain sleeps.
    #[cfg(test)]
    pub(crate) fn is_awaited(&self) -> bool {
        self.slots.lock().list.iter().any(|slot| slot.is_awaited())
    }

    pub(super) fn register_pin(&self) -> Arc<PinSlot> {
        let slot = Arc::new(PinSlot::new());
        self.slots.lock().pins.push(Arc::clone(&slot));
        slot
    }

    pub(super) fn unregister_pin(&self, slot: &Arc<PinSlot>) {
        let mut slots = self.slots.lock();
        slots.pins.retain(|other| !Arc::ptr_eq(other, slot));
    }

    pub(super) fn unregister(&self, slot: &Arc<Slot>) {
        let mut slots = self.slots.lock();
        slots.list.retain(|other| !Arc::ptr_eq(other, slot));
        slots.past.add(slot);
    }
}

impl<M: Deref<Target: GuestMemoryBackend>> DmaState<M> {
    /// The guest's tables, as the guest has latched them by now.
    pub fn tables(&self) -> GuestTables<'_, Nearby<'_, M::Target>> {
        GuestTables::new(self.guest_memory(), &self.gates, self.latched())
    }

    /// Guest memory.
    pub fn guest_memory(&self) -> Nearby<'_, M::Target> {
        Nearby::new(&*self.memory)
    }
}
