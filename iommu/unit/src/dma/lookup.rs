//! The lookup of a translation: in the guest's tables, or in what the unit retains (sec. 6.2).
//!
//! Views, ATS and page requests ask here and nowhere else.

use std::cell::{Cell, OnceCell};
use std::ops::Deref;

use vm_memory::GuestMemoryBackend;

use super::iotlb::Iotlb;
use super::shared::DmaState;
use super::slot::Slot;
use crate::memory::{Nearby, TableMemory};
use crate::retention::{Answer, Found, Kept};
use crate::translate::{
    Access, Binding, Fault, GuestTables, Latched, PagingCache, Permitted, Request, RequestKind,
    Resolved, Tag, Translation,
};

/// What a view remembers of its walks: context and PASID entries, paging-structure entries, pages.
#[derive(Default)]
pub(super) struct ViewCaches {
    pub(super) iotlb: Iotlb,
    paging: PagingCache,
    /// What root, context, directory and PASID entry say about the requests of `bound_for`. A view
    /// has one source, and mostly one PASID.
    bound: OnceCell<Resolved>,
    bound_for: Tag,
    /// In this generation there were requests of several tags: what is remembered of one may be
    /// older than `bound`.
    mixed: bool,
    walks: Cell<u64>,
}

impl ViewCaches {
    /// Untranslated requests of `tag` are to follow.
    #[inline]
    pub(super) fn begin(&mut self, tag: Tag) {
        if self.bound_for != tag {
            self.mixed = self.bound_for.generation == tag.generation;
            self.bound = OnceCell::new();
            self.bound_for = tag;
        }
    }

    /// Translates an untranslated request by what is remembered of the structures above its page.
    /// Translated requests, and those of a unit that retains translations, leave nothing to be
    /// found here.
    #[inline]
    pub(super) fn recall<T: TableMemory>(
        &self,
        tables: &GuestTables<'_, T>,
        tag: Tag,
        address: u64,
        access: Access,
        slot: &Slot,
    ) -> Option<Permitted> {
        let resolved = self.bound.get()?;
        let found = self
            .paging
            .translate(tables, resolved, tag, address, access)?;
        self.count_walk();
        self.iotlb.insert(tag, address, &found);
        count_nested(slot, resolved);
        Some(found)
    }

    /// What translates the requests of the tag that began last, if one of them had to look and all
    /// of them have that from it.
    pub(super) fn bound(&self) -> Option<&Resolved> {
        self.bound.get().filter(|_| !self.mixed)
    }

    /// How many times a table walk was needed.
    #[inline]
    pub(super) fn walks(&self) -> u64 {
        self.walks.get()
    }

    pub(super) fn count_walk(&self) {
        self.walks.set(self.walks.get().wrapping_add(1));
    }
}

/// One transaction's way to the answers.
pub(super) struct Lookup<'a, 'v, M: Deref<Target: GuestMemoryBackend>> {
    pub(super) state: &'a DmaState<M>,
    pub(super) slot: &'a Slot,
    /// As the transaction sees them.
    pub(super) tables: GuestTables<'a, &'a Nearby<'v, M::Target>>,
    /// Under which the transaction runs.
    pub(super) generation: u64,
}

impl<M: Deref<Target: GuestMemoryBackend>> Lookup<'_, '_, M> {
    /// Translates a request whose answer is kept elsewhere, which makes it rare: it looks up nothing
    /// that a view remembers.
    ///
    /// # Errors
    /// The fault for which the request is blocked. It has been reported.
    pub(super) fn translate(&self, request: &Request) -> Result<Translation, Fault> {
        self.attempt(request)
            .inspect_err(|fault| self.report(request, fault))
    }

    /// The same, but the fault is for the caller to report.
    ///
    /// # Errors
    /// The fault for which the request is blocked.
    pub(super) fn attempt(&self, request: &Request) -> Result<Translation, Fault> {
        self.publish_any();
        match self.state.kept() {
            Some(kept) => self.ask(kept, request).outcome,
            None => self.tables.translate(request),
        }
    }

    /// What answers a read of the address of `request`, or a write if it `writes`. No request is made:
    /// nothing is reported, no bit set.
    ///
    /// # Errors
    /// The fault for which such a request would be blocked, apart from missing permissions.
    pub(super) fn probe(&self, request: &Request, writes: bool) -> Result<Translation, Fault> {
        match self.state.kept() {
            Some(kept) => kept.probe(&self.tables, request, writes),
            None => self.tables.probe(request),
        }
    }

    /// Translates a request that `caches` do not answer.
    ///
    /// # Errors
    /// The fault for which the request is blocked. It has been reported.
    pub(super) fn page(
        &self,
        caches: &ViewCaches,
        tag: Tag,
        request: &Request,
    ) -> Result<Permitted, Fault> {
        let outcome = match self.state.kept() {
            Some(kept) => self.kept_page(kept, caches, request),
            None => {
                caches.count_walk();
                self.table_page(caches, tag, request)
            }
        };
        outcome.inspect_err(|fault| self.report(request, fault))
    }

    /// Any drain is to wait for this transaction: not all that it uses is of one binding.
    fn publish_any(&self) {
        let _ = self.slot.resolving();
    }

    fn table_page(
        &self,
        caches: &ViewCaches,
        tag: Tag,
        request: &Request,
    ) -> Result<Permitted, Fault> {
        let (tables, address) = (&self.tables, request.address);
        if request.kind != RequestKind::Untranslated {
            self.publish_any();
            // What untranslated requests are bound to is no permission for translated ones, nor the
            // other way round.
            return tables
                .translate(request)
                .map(|translation| Permitted::new(&translation));
        }
        let keep = |found| {
            caches.iotlb.insert(tag, address, &found);
            found
        };
        if let Some(outcome) = tables.without_tables(request) {
            return outcome.map(|translation| keep(Permitted::new(&translation)));
        }
        let resolved = match caches.bound.get() {
            Some(resolved) => resolved,
            None => {
                let resolving = self.slot.resolving();
                let resolved = tables.resolve_request(request)?;
                self.slot.resolved(resolving, resolved.domain);
                caches.bound.get_or_init(|| resolved)
            }
        };
        count_nested(self.slot, resolved);
        let (translation, trail) = tables.walk(resolved, request)?;
        caches.paging.keep(tag, address, &trail);
        Ok(keep(Permitted::new(&translation)))
    }

    /// The caches of the view stay empty, so that every use of what is kept is compared with the
    /// tables.
    #[cold]
    #[inline(never)]
    fn kept_page(
        &self,
        kept: &Kept,
        caches: &ViewCaches,
        request: &Request,
    ) -> Result<Permitted, Fault> {
        self.publish_any();
        let answer = self.ask(kept, request);
        match answer.found {
            Found::Kept => self.slot.count_kept(),
            Found::Walked { nested } => {
                caches.count_walk();
                if nested {
                    self.slot.count_nested();
                }
            }
        }
        let translation = self.together(answer.outcome?);
        Ok(Permitted::new(&translation))
    }

    /// `translation`, for as much as was looked up at the same time: what is kept of its neighbours
    /// may be from another.
    pub(super) fn together(&self, translation: Translation) -> Translation {
        match self.state.kept() {
            Some(_) => Translation {
                page_shift: 12,
                ..translation
            },
            None => translation,
        }
    }

    /// Asks what is kept, and counts and reports an answer that the tables no longer give.
    fn ask(&self, kept: &Kept, request: &Request) -> Answer {
        let answer = kept.translate(&self.tables, self.generation, request);
        if let Some(now) = &answer.instead {
            self.slot.count_stale();
            self.state.report_stale(request, &answer.outcome, now);
        }
        answer
    }

    /// Reports a blocked request, if there is anything to say: translation that is off, and
    /// conditions that a device may meet when it asks for a translation, are no faults.
    fn report(&self, request: &Request, fault: &Fault) {
        let asks = matches!(request.kind, RequestKind::TranslationRequest { .. });
        let recoverable = asks && fault.reason.is_recoverable();
        if self.tables.latched().enabled && !recoverable {
            self.state.report(request, fault);
        }
    }
}

#[inline]
fn count_nested(slot: &Slot, resolved: &Resolved) {
    if let Binding::Nested(..) = &resolved.binding {
        slot.count_nested();
    }
}

impl<M: Deref<Target: GuestMemoryBackend>> DmaState<M> {
    /// What translates a request that no transaction makes.
    ///
    /// # Errors
    /// The fault for which the request is blocked.
    pub(crate) fn resolve(&self, latched: &Latched, request: &Request) -> Result<Resolved, Fault> {
        let tables = GuestTables::new(self.guest_memory(), self.gates(), *latched);
        match self.kept() {
            Some(kept) => kept.resolve(&tables, request),
            None => tables.resolve_request(request),
        }
    }
}
