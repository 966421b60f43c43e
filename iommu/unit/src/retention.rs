//! Translations that are retained until they are invalidated, as by hardware with large caches
//! (sec. 6.2).
//!
//! The caches of views are made for speed: small, and emptied by every invalidation, whatever it
//! names. Software that forgets an invalidation mostly gets away with that. A unit that keeps
//! translations is for those who want to see it fail: it has the caches of section 6.2 beside, as
//! large as hardware may make them, and an invalidation takes out of them what it names, and
//! nothing else.
//!
//! * Context entries are found by source; PASID entries by source and PASID, and they are of a
//!   domain; pages by source, PASID and privilege, and they are of a domain and PASID; entries that
//!   point to tables by domain, by PASID if of a first stage, and by the pointer to their top
//!   table.
//! * A page is kept in pieces of 4 KiB, so an invalidation of a large page has to name all of it
//!   (AM).
//! * What leads to a fault is not kept, in caching mode neither. But a page that is kept denies
//!   what it denied before: a permission that is widened needs an invalidation as well (section
//!   11.4.2, CM).
//! * A write through a page that is not marked dirty walks the tables, and so marks it.
//! * At a limit a cache is emptied.
//!
//! Each answer is compared with that of the tables as they are by then, and what differs is counted
//! and reported.

mod caches;
mod indexed;
mod invalidation;
mod notes;
mod recorder;

use parking_lot::Mutex;

use self::caches::{Page, Store};
use self::notes::Notes;
use self::recorder::Recorder;
use crate::memory::TableMemory;
use crate::memory::unmarked::Unmarked;
use crate::spec::fault_reason::FaultReason;
use crate::spec::invalidation::Invalidation;
use crate::translate::{
    self, Access, Binding, Fault, Gates, GuestTables, Request, RequestKind, Resolved, Translation,
    TranslationType,
};

/// The kept translations of a unit.
pub(crate) struct Kept {
    /// Leaf lock, held for a walk at most. Speed is not what this is for.
    store: Mutex<Store>,
}

/// An answer, and how it was found.
pub(crate) struct Answer {
    pub(crate) outcome: Result<Translation, Fault>,
    pub(crate) found: Found,
    /// What memory alone would have answered, if that is something else.
    pub(crate) instead: Option<Result<Translation, Fault>>,
}

pub(crate) enum Found {
    Kept,
    /// By a walk.
    Walked {
        nested: bool,
    },
}

impl Kept {
    pub(crate) fn new(gates: &Gates) -> Self {
        Self {
            store: Mutex::new(Store::new(gates.caps.guest_address_width())),
        }
    }

    /// Takes out what is invalidated while `generation` is the last one. Transactions up to that
    /// one add nothing any more, as they may have read what was before.
    pub(crate) fn forget(&self, invalidation: &Invalidation, generation: u64) {
        let mut store = self.store.lock();
        store.forget(invalidation);
        store.floor = store.floor.max(generation.saturating_add(1));
    }

    /// As [`GuestTables::translate`] in a transaction of `generation`, from what is kept if there
    /// is something, or else by a walk that leaves something behind.
    pub(crate) fn translate<T: TableMemory>(
        &self,
        tables: &GuestTables<'_, T>,
        generation: u64,
        request: &Request,
    ) -> Answer {
        let (outcome, found) = self.find(tables, generation, request);
        // No guest changes what its devices are using, so this is no race, but an invalidation that
        // is missing or to come.
        let now = tables
            .in_memory(Unmarked(tables.memory()))
            .translate(request);
        let instead = (reaches(&outcome, request) != reaches(&now, request)).then_some(now);
        Answer {
            outcome,
            found,
            instead,
        }
    }

    fn find<T: TableMemory>(
        &self,
        tables: &GuestTables<'_, T>,
        generation: u64,
        request: &Request,
    ) -> (Result<Translation, Fault>, Found) {
        let enabled = tables.latched().enabled;
        let mut store = self.store.lock();
        if enabled
            && let Some(page) = store.page(request)
            && let Some(outcome) = answer(tables, &store, page, request)
        {
            return (outcome, Found::Kept);
        }
        let cached = tables.behind(Recorder::new(&store));
        let outcome = cached.translate(request);
        let notes = cached.into_caches().into_notes();
        if let Ok(translation) = &outcome
            && enabled
            && generation >= store.floor
        {
            let page = is_for_all(request, translation, tables.gates()).then_some(translation);
            store.keep(&notes, request, page);
        }
        let nested = is_nested(&notes);
        (outcome, Found::Walked { nested })
    }

    /// As [`GuestTables::resolve_request`]. Nothing is left behind.
    pub(crate) fn resolve<T: TableMemory>(
        &self,
        tables: &GuestTables<'_, T>,
        request: &Request,
    ) -> Result<Resolved, Fault> {
        let store = self.store.lock();
        tables
            .behind(Recorder::new(&store))
            .resolve_request(request)
    }

    /// As [`GuestTables::probe`], for a read or for a write. Nothing is left behind.
    pub(crate) fn probe<T: TableMemory>(
        &self,
        tables: &GuestTables<'_, T>,
        request: &Request,
        writes: bool,
    ) -> Result<Translation, Fault> {
        let store = self.store.lock();
        match store.page(request) {
            // A write through a page that is not marked walks the tables, and goes where they say.
            Some(page) if !writes || page.translation.dirty || !page.translation.writable => {
                Ok(at(page, request))
            }
            _ => tables.behind(Recorder::new(&store)).probe(request),
        }
    }
}

/// What a kept page answers; `None` when the tables are to be walked, as something is to be set in
/// them.
fn answer<T: TableMemory>(
    tables: &GuestTables<'_, T>,
    store: &Store,
    page: &Page,
    request: &Request,
) -> Option<Result<Translation, Fault>> {
    let found = at(page, request);
    match request.kind {
        RequestKind::Untranslated => {
            let permitted = match request.access {
                Access::Read => found.readable,
                Access::Write => found.writable,
                Access::Atomic | Access::ZeroLengthRead => return None,
            };
            if !permitted {
                let reason = denial(page, request.access);
                return Some(Err(Fault::new(reason, page.fault_disable, request.kind)));
            }
            (found.dirty || request.access == Access::Read).then_some(Ok(found))
        }
        RequestKind::TranslationRequest { no_write } => {
            let withheld = no_write && tables.gates().caps.ecap.nwfs();
            // In legacy mode, what passes through (TT 10b) answers no translation requests.
            let passes = found.translated_by == Some(TranslationType::PassThrough);
            if found.writable && !found.dirty && !withheld || page.legacy && passes {
                return None;
            }
            // Whether the device may ask is said by its context entry.
            tables
                .behind(Recorder::new(store))
                .resolve_request(request)
                .ok()?;
            Some(Ok(Translation {
                writable: found.writable && !withheld,
                ..found
            }))
        }
        RequestKind::Translated | RequestKind::PageRequest => None,
    }
}

/// Where `request` may go.
fn reaches(outcome: &Result<Translation, Fault>, request: &Request) -> Option<u64> {
    let found = outcome.as_ref().ok()?;
    let permitted = match request.access {
        Access::Read | Access::ZeroLengthRead => found.readable,
        Access::Write => found.writable,
        Access::Atomic => found.readable && found.writable,
    };
    permitted.then_some(found.address)
}

/// What a kept page says about the address of `request`.
fn at(page: &Page, request: &Request) -> Translation {
    Translation {
        address: page.translation.address | request.address & 0xfff,
        ..page.translation
    }
}

/// Why a page denies `access`: it permits something, or it would not be kept.
fn denial(page: &Page, access: Access) -> FaultReason {
    match (page.legacy, access.writes()) {
        (true, true) => FaultReason::WriteDenied,
        (true, false) => FaultReason::ReadDenied,
        (false, true) => FaultReason::ScalableWriteDenied,
        (false, false) => FaultReason::ScalableReadDenied,
    }
}

/// Whether the answer holds for every request to the page: not what bypasses the tables, and not
/// what is withheld from one request only or told to one only.
fn is_for_all(request: &Request, translation: &Translation, gates: &Gates) -> bool {
    let own = match request.kind {
        RequestKind::Untranslated => false,
        RequestKind::TranslationRequest { no_write } => {
            no_write && gates.caps.ecap.nwfs() || translate::is_interrupt_range(translation.address)
        }
        RequestKind::Translated | RequestKind::PageRequest => true,
    };
    translation.translated_by.is_some() && !own
}

fn is_nested(notes: &Notes) -> bool {
    notes
        .resolved
        .is_some_and(|resolved| matches!(resolved.binding, Binding::Nested(..)))
}

#[cfg(test)]
mod retention_test;
