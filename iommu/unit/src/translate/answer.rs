//! The answer to a request: what no table translates, the walk of those that do, and the rules for
//! translation requests (sec. 3.14, 4.1 and 7.1).

use super::binding::{Binding, Resolved};
use super::caches::StructureCaches;
use super::guest_tables::GuestTables;
use super::interrupt_range::is_interrupt_range;
use super::paging_cache::Trail;
use super::request::{Access, Fault, Request, RequestKind, Translation};
use super::rights::Demand;
use super::walk::Walker;
use crate::memory::TableMemory;
use crate::spec::fault_reason::{FaultReason, Reply};
use crate::spec::ids::{Pasid, SourceId};

impl<T: TableMemory, C: StructureCaches> GuestTables<'_, T, C> {
    /// Translates one request.
    ///
    /// A page request is only resolved: the answer stands for its tables being in order, and grants
    /// nothing.
    ///
    /// # Errors
    /// The fault for which the request is blocked. It is for the caller to record it.
    pub fn translate(&self, request: &Request) -> Result<Translation, Fault> {
        if let Some(outcome) = self.without_tables(request) {
            return outcome;
        }
        let resolved = self.resolve_request(request)?;
        self.walk(&resolved, request)
            .map(|(translation, _)| translation)
    }

    /// What is permitted at the address of `request`, whatever access it names. No dirty bit is
    /// set.
    ///
    /// # Errors
    /// As [`translate`](Self::translate), apart from missing permissions.
    pub fn probe(&self, request: &Request) -> Result<Translation, Fault> {
        if let Some(outcome) = self.without_tables(request) {
            return outcome;
        }
        let resolved = self.resolve_request(request)?;
        self.walk_for(&resolved, request, Demand::PROBE)
            .map(|(translation, _)| translation)
    }

    /// What translates the untranslated requests of `source`, with `pasid` or without.
    pub fn binding(&self, source: SourceId, pasid: Option<Pasid>) -> Binding {
        if !self.latched().enabled {
            return Binding::PassThrough;
        }
        self.resolve(source, pasid)
            .map_or(Binding::Blocked, |resolved| resolved.binding)
    }

    /// The answer to a request that no table translates: while translation is off, or without PASID
    /// to the interrupt address range. `None` when the tables matter.
    #[inline]
    pub(crate) fn without_tables(&self, request: &Request) -> Option<Result<Translation, Fault>> {
        if !self.latched().enabled {
            return Some(disabled(request));
        }
        if request.pasid.is_none() && is_interrupt_range(request.address) {
            return to_interrupt_range(request);
        }
        None
    }

    /// Walks the tables that translate `request` according to `resolved`. There is also what the
    /// walk leaves behind for others.
    ///
    /// # Errors
    /// As [`translate`](Self::translate).
    #[inline]
    pub(crate) fn walk(
        &self,
        resolved: &Resolved,
        request: &Request,
    ) -> Result<(Translation, Trail), Fault> {
        self.walk_for(resolved, request, Demand::of(request, self.gates()))
    }

    #[inline]
    fn walk_for(
        &self,
        resolved: &Resolved,
        request: &Request,
        demand: Demand,
    ) -> Result<(Translation, Trail), Fault> {
        let nothing = || {
            let translation = Translation {
                domain: resolved.domain,
                ..unchanged(request.address, false, false)
            };
            (translation, Trail::default())
        };
        if request.kind == RequestKind::PageRequest {
            return Ok(nothing());
        }
        let walker = Walker {
            tables: self,
            resolved,
            address: request.address,
            demand,
            kind: request.kind,
        };
        let outcome = walker.run();
        let RequestKind::TranslationRequest { no_write } = request.kind else {
            return outcome
                .map_err(|reason| Fault::new(reason, resolved.fault_disable, request.kind));
        };
        match outcome {
            Ok((translation, trail)) => {
                let withheld = no_write && self.gates().caps.ecap.nwfs();
                let translation = Translation {
                    writable: translation.writable && !withheld,
                    ..translation
                };
                Ok((translation, trail))
            }
            // Legacy mode: a page that grants nothing is an answer to a translation request, not a
            // fault.
            Err(FaultReason::ReadDenied | FaultReason::WriteDenied) => Ok(nothing()),
            Err(reason) => Err(Fault::new(reason, resolved.fault_disable, request.kind)),
        }
    }
}

/// Translation is off: untranslated requests pass, all others are unsupported and not recorded
/// (sec. 7.1).
fn disabled(request: &Request) -> Result<Translation, Fault> {
    if request.kind == RequestKind::Untranslated {
        return Ok(unchanged(request.address, true, true));
    }
    Err(Fault {
        reason: FaultReason::TranslationTypeBlocks,
        record: false,
        reply: Reply::UnsupportedRequest,
    })
}

/// A request without PASID to the interrupt address range, which no table translates (sec. 3.14).
/// `None` when the tables matter nevertheless.
fn to_interrupt_range(request: &Request) -> Option<Result<Translation, Fault>> {
    match request.kind {
        RequestKind::Untranslated if request.access == Access::ZeroLengthRead => {
            Some(Ok(unchanged(request.address, true, false)))
        }
        RequestKind::Untranslated => Some(Err(Fault::new(
            FaultReason::NotAnInterrupt,
            false,
            request.kind,
        ))),
        RequestKind::TranslationRequest { no_write } => Some(Ok(Translation {
            untranslated_only: !no_write,
            ..unchanged(request.address, false, !no_write)
        })),
        RequestKind::Translated | RequestKind::PageRequest => None,
    }
}

/// An address that stands for itself.
fn unchanged(address: u64, readable: bool, writable: bool) -> Translation {
    Translation {
        address,
        page_shift: 12,
        readable,
        writable,
        dirty: true,
        force_snoop: false,
        untranslated_only: false,
        translated_by: None,
        domain: 0,
    }
}
