//! The drain (sec. 6.5.2.8): what uses a translation from before an invalidation is waited for.
//!
//! Transactions first, then the pages that they have pinned. A pin whose pages the tables lead to as
//! before is nothing to wait for: whatever its device does from here on, it could do as well after
//! it had asked again. So the flush of a whole domain, as a guest makes it now and then, does not
//! wait for the disk.

use std::cell::{Cell, OnceCell};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::GuestMemoryBackend;

use super::drain_scope::DrainScope;
use super::pin::MOST_STEPS;
use super::pin_slot::{Held, PinSlot};
use super::shared::DmaState;
use super::slot::Slot;
use super::used::{Domains, Run};
use crate::memory::TableMemory;
use crate::translate::{GuestTables, Permitted, Request, RequestKind, Resolved};

impl<M> DmaState<M> {
    /// As [`drain`](Self::drain) of what `scope` takes in, but for transactions only, and gives up
    /// when `goes_on` says so while one takes long. Returns whether all of them are over.
    pub fn drain_transactions(
        &self,
        scope: &DrainScope,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> bool {
        if scope.is_empty() {
            return true;
        }
        let generation = self.generation();
        let mut holding = self.holding(generation, scope).into_iter();
        holding.all(|slot| slot.wait(generation, scope, goes_on))
    }

    /// The slots for which a drain that begins now has to wait.
    pub(super) fn holding(&self, generation: u64, scope: &DrainScope) -> Vec<Arc<Slot>> {
        // See `Slot::resolving`.
        fence(Ordering::SeqCst);
        self.slots(|slots| {
            let holding = slots.iter().filter(|slot| slot.holds(generation, scope));
            holding.cloned().collect()
        })
    }

    /// The pins at which a drain has to look.
    pub(super) fn pinned(&self, generation: u64, scope: &DrainScope) -> Vec<Arc<PinSlot>> {
        self.pins(|pins| {
            let pinned = pins.iter().filter(|pin| pin.holds(generation, scope));
            pinned.cloned().collect()
        })
    }

    /// Whether a drain for `scope` would wait, if there was an invalidation before.
    #[cfg(test)]
    pub(super) fn would_hold(&self, scope: &DrainScope) -> bool {
        let next = self.generation() + 1;
        !self.holding(next, scope).is_empty()
    }
}

impl<M: Deref<Target: GuestMemoryBackend>> DmaState<M> {
    /// Waits until every transaction that began before the last invalidation is over, and what it
    /// has pinned is released, or still is what the tables say.
    ///
    /// Transactions are short and never wait for anything; a pin lasts as long as the I/O of its
    /// device. It must not be called within a transaction.
    pub fn drain(&self) {
        self.drain_for(&DrainScope::ALL);
    }

    /// As [`drain`](Self::drain), but only for what `scope` takes in: what the invalidations in it
    /// name is in no use when this returns. Others go on, and read anything of that only as it is by
    /// now.
    pub fn drain_for(&self, scope: &DrainScope) {
        self.drain_transactions(scope, &mut || true);
        self.drain_pins(scope, &mut || true);
    }

    /// As [`drain_for`](Self::drain_for), once transactions are over, for what they have pinned. It
    /// gives up when `goes_on` says so. Returns whether nothing old is pinned any more.
    pub fn drain_pins(&self, scope: &DrainScope, goes_on: &mut dyn FnMut() -> bool) -> bool {
        if scope.is_empty() {
            return true;
        }
        let generation = self.generation();
        let mut pinned = self.pinned(generation, scope).into_iter().enumerate();
        // A look at one of them takes as long as a walk for each page, and there may be many.
        pinned.all(|(number, pin)| {
            (number == 0 || goes_on()) && pin.wait(generation, |held| self.renew(held), goes_on)
        })
    }

    /// Makes the requests of a pin once more, with their effects on the tables. Returns whether they
    /// lead to the same pages, which is not found out if that takes too long.
    ///
    /// It is no such thing if translations are kept, as what is kept may be older than the tables,
    /// or if they are the device's own.
    fn renew(&self, held: &mut Held) -> bool {
        if self.kept().is_some() || held.kind != RequestKind::Untranslated {
            return false;
        }
        let walk = Renewal {
            tables: self.tables(),
            resolved: OnceCell::new(),
            left: Cell::new(MOST_STEPS),
        };
        if !held.used.runs.iter().all(|run| walk.leads_to(held, run)) {
            return false;
        }
        match walk.resolved.get() {
            Some(resolved) => held.used.by(resolved),
            None => held.used.domains = Domains::None,
        }
        true
    }
}

/// Requests that are made once more.
struct Renewal<'a, T> {
    tables: GuestTables<'a, T>,
    /// All of them are of one source and PASID.
    resolved: OnceCell<Resolved>,
    /// How many more walks it may take. The guest may have split the pages since.
    left: Cell<usize>,
}

impl<T: TableMemory> Renewal<'_, T> {
    fn leads_to(&self, held: &Held, run: &Run) -> bool {
        let mut done = 0;
        while done < run.length {
            let Some(address) = run.input.checked_add(done) else {
                return false;
            };
            let mut block = u64::MAX;
            for request in held.requests(address) {
                let Some(left) = self.left.get().checked_sub(1) else {
                    return false;
                };
                self.left.set(left);
                match self.translate(&request) {
                    Some(found) if found.address == run.output.wrapping_add(done) => {
                        block = block.min(1 << found.page_shift);
                    }
                    _ => return false,
                }
            }
            let Some(rest) = block.checked_sub(address & (block - 1)) else {
                return false;
            };
            done = done.saturating_add(rest);
        }
        true
    }

    /// Faults are not reported: the device does not learn of this.
    fn translate(&self, request: &Request) -> Option<Permitted> {
        let translation = match self.tables.without_tables(request) {
            Some(outcome) => outcome,
            None => {
                let resolved = match self.resolved.get() {
                    Some(resolved) => resolved,
                    None => {
                        let resolved = self.tables.resolve_request(request).ok()?;
                        self.resolved.get_or_init(|| resolved)
                    }
                };
                self.tables
                    .walk(resolved, request)
                    .map(|(translation, _)| translation)
            }
        };
        translation.ok().map(|found| Permitted::new(&found))
    }
}
