//! From a request to a guest-physical address (sec. 3, 7 and 9).
//!
//! [`GuestTables::resolve`] finds out what translates the requests of a (source-id, PASID): a canonical [`Binding`].
//! [`GuestTables::translate`] then walks the tables of that binding. Both are functions of guest memory, of what the
//! guest has latched by commands, and of the capabilities; they keep nothing.

mod accessed_dirty;
mod binding;
mod caches;
mod first_stage;
mod guest_tables;
mod paging_cache;
mod request;
mod resolve;
mod rights;
mod second_stage;
mod walk;

pub use binding::{Binding, FirstStage, SecondStage};
pub use caches::{NoCaches, Stage, StructureCaches, UpperEntry};
pub use guest_tables::GuestTables;
pub(crate) use paging_cache::{Permitted, Structures, Tag, Trail};
pub use request::{
    Access, Fault, Latched, Request, RequestKind, RootPointer, Translation, TranslationType,
};
pub use resolve::{PasidDirectory, Resolved};

pub(crate) use crate::spec::gates::Gates;

use std::borrow::Borrow;

use crate::memory::TableMemory;
use crate::spec::fault_reason::{FaultReason, Reply};
use crate::spec::ids::{Pasid, SourceId};
use rights::Demand;
use walk::Walker;
pub(crate) use walk::is_interrupt_range;

impl<T: TableMemory, C: StructureCaches> GuestTables<'_, T, C> {
    /// Translates one request.
    ///
    /// A page request is only resolved: the answer stands for its tables being in order, and grants nothing.
    ///
    /// # Errors
    /// The fault for which the request is blocked. It is for the caller to record it.
    pub fn translate(&self, request: &Request) -> Result<Translation, Fault> {
        let resolve = || self.resolve_request(request);
        self.translate_with(request, resolve)
            .map(|(translation, _)| translation)
    }

    /// As [`translate`](Self::translate), with what `resolve` remembers about the source and PASID of the request. There is
    /// also what the walk leaves behind for others.
    ///
    /// # Errors
    /// As [`translate`](Self::translate).
    #[inline]
    pub(crate) fn translate_with<R: Borrow<Resolved>>(
        &self,
        request: &Request,
        resolve: impl FnOnce() -> Result<R, Fault>,
    ) -> Result<(Translation, Trail), Fault> {
        self.run(request, Demand::of(request, self.gates()), resolve)
    }

    /// What is permitted at the address of `request`, whatever access it names. No dirty bit is set.
    ///
    /// # Errors
    /// As [`translate`](Self::translate), apart from missing permissions.
    pub fn probe(&self, request: &Request) -> Result<Translation, Fault> {
        let resolve = || self.resolve_request(request);
        self.run(request, Demand::PROBE, resolve)
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

    #[inline]
    fn run<R: Borrow<Resolved>>(
        &self,
        request: &Request,
        demand: Demand,
        resolve: impl FnOnce() -> Result<R, Fault>,
    ) -> Result<(Translation, Trail), Fault> {
        if !self.latched().enabled {
            return Ok((disabled(request)?, Trail::default()));
        }
        if request.pasid.is_none()
            && is_interrupt_range(request.address)
            && let Some(outcome) = to_interrupt_range(request)
        {
            return Ok((outcome?, Trail::default()));
        }
        // Borrowed where it is remembered: copies of it are felt.
        let resolved = resolve()?;
        let resolved = resolved.borrow();
        if request.kind == RequestKind::PageRequest {
            let translation = Translation {
                domain: resolved.domain,
                ..unchanged(request.address, false, false)
            };
            return Ok((translation, Trail::default()));
        }
        let walker = Walker {
            tables: self,
            resolved,
            address: request.address,
            demand,
            to_be_kept: matches!(request.kind, RequestKind::TranslationRequest { .. }),
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
            // Legacy mode: a page that grants nothing is an answer to a translation request, not a fault.
            Err(FaultReason::ReadDenied | FaultReason::WriteDenied) => {
                let translation = Translation {
                    domain: resolved.domain,
                    ..unchanged(request.address, false, false)
                };
                Ok((translation, Trail::default()))
            }
            Err(reason) => Err(Fault::new(reason, resolved.fault_disable, request.kind)),
        }
    }
}

/// Translation is off: untranslated requests pass, all others are unsupported and not recorded (sec. 7.1).
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

/// A request without PASID to the interrupt address range, which no table translates (sec. 3.14). `None` when the
/// tables matter nevertheless.
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

#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
#[allow(missing_docs, reason = "fixtures of tests")]
pub mod testing;

#[cfg(test)]
mod accessed_dirty_test;
#[cfg(test)]
mod first_stage_test;
#[cfg(test)]
mod legacy_test;
#[cfg(test)]
mod nested_test;
#[cfg(test)]
mod property_test;
#[cfg(test)]
mod scalable_test;
#[cfg(test)]
mod second_stage_test;
