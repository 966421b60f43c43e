//! The binding of a request: which tables translate it, by its context and PASID entries (sec. 3.4
//! and 9).

use super::binding::{Binding, FirstStage, Resolved, SecondStage};
use super::caches::StructureCaches;
use super::guest_tables::GuestTables;
use super::request::{Access, Fault, Request, RequestKind};
use super::structures::Structures;
use crate::memory::TableMemory;
use crate::spec::context::{ContextType, ScalableContextEntry};
use crate::spec::fault_reason::FaultReason;
use crate::spec::gates::Gates;
use crate::spec::ids::{Pasid, SourceId};
use crate::spec::pasid::{GuestTranslationType, PasidEntry};
use crate::spec::registers::TableMode;

/// The PASID directory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasidDirectory {
    /// Guest-physical address of its first entry.
    pub address: u64,
    /// PASIDs that requests of the device can have: 64 for each entry, and at least as many entries
    /// as that needs.
    pub pasids: u32,
}

impl<T: TableMemory, C: StructureCaches> GuestTables<'_, T, C> {
    /// Finds out what translates the untranslated requests of `source`, with `pasid` or without,
    /// while translation is enabled.
    ///
    /// # Errors
    /// The fault for which such a request is blocked.
    pub fn resolve(&self, source: SourceId, pasid: Option<Pasid>) -> Result<Resolved, Fault> {
        self.resolve_request(&Request {
            pasid,
            ..Request::untranslated(source, 0, Access::Read)
        })
    }

    /// Finds out what translates `request`, while translation is enabled.
    ///
    /// # Errors
    /// The fault for which the request is blocked.
    pub fn resolve_request(&self, request: &Request) -> Result<Resolved, Fault> {
        let caps = self.gates().caps;
        let mut resolver = Resolver::new(self, request);
        let outcome = match self.latched().root.mode {
            TableMode::Legacy => resolver.legacy(),
            TableMode::Scalable if caps.ecap.smts() => resolver.scalable(),
            TableMode::AbortDma if caps.ecap.adms() => Err(FaultReason::AbortDmaMode),
            TableMode::Scalable | TableMode::AbortDma | TableMode::Reserved => {
                Err(FaultReason::RootPointerInvalid)
            }
        };
        outcome
            .map_err(|reason| Fault::new(reason, resolver.structures.fault_disable, request.kind))
    }

    /// The PASID directory of `source`, while translation is enabled; `None` if its requests with
    /// PASIDs do not get that far.
    pub fn pasid_directory(&self, source: SourceId) -> Option<PasidDirectory> {
        let caps = self.gates().caps;
        if self.latched().root.mode != TableMode::Scalable || !caps.ecap.smts() {
            return None;
        }
        let context = Structures::new(self, source).scalable_context().ok()?;
        let width = 1 << (u32::from(caps.ecap.pss()) + 1);
        context.pasid().then(|| PasidDirectory {
            address: context.directory(),
            pasids: context.pasid_count().min(width),
        })
    }
}

struct Resolver<'a, T, C> {
    structures: Structures<'a, T, C>,
    gates: &'a Gates,
    request: &'a Request,
}

impl<'a, T: TableMemory, C: StructureCaches> Resolver<'a, T, C> {
    #[inline]
    const fn new(tables: &'a GuestTables<'a, T, C>, request: &'a Request) -> Self {
        Self {
            structures: Structures::new(tables, request.source),
            gates: tables.gates(),
            request,
        }
    }

    fn is_translation_or_translated(&self) -> bool {
        matches!(
            self.request.kind,
            RequestKind::TranslationRequest { .. } | RequestKind::Translated
        )
    }

    fn legacy(&mut self) -> Result<Resolved, FaultReason> {
        let (gates, request) = (self.gates, self.request);
        if request.kind == RequestKind::PageRequest {
            return Err(FaultReason::PageRequestInLegacyMode);
        }
        if request.pasid.is_some() {
            return Err(FaultReason::PasidInLegacyMode);
        }

        let context = self.structures.context()?;
        let (Some(kind), Some(levels)) = (context.translation_type(gates), context.levels(gates))
        else {
            return Err(FaultReason::ContextInvalid);
        };
        if self.is_translation_or_translated() && kind != ContextType::DeviceTlb {
            return Err(FaultReason::TranslationTypeBlocks);
        }
        let binding = if kind == ContextType::PassThrough || request.kind == RequestKind::Translated
        {
            Binding::PassThrough
        } else {
            Binding::SecondStage(SecondStage {
                table: context.table(),
                levels,
                accessed_dirty: false,
                snooped_walk: gates.caps.ecap.c(),
            })
        };
        Ok(Resolved {
            binding,
            domain: context.domain(),
            pasid: None,
            privileged: false,
            snooped_pages: false,
            fault_disable: self.structures.fault_disable,
            legacy: true,
        })
    }

    fn scalable(&mut self) -> Result<Resolved, FaultReason> {
        let (gates, request) = (self.gates, self.request);
        let is_page_request = request.kind == RequestKind::PageRequest;
        // Page requests do not fail for this (section 7.4): what they find in the directory decides.
        let beyond = |pasid: Pasid| pasid.get() >> gates.caps.ecap.pss() >> 1 != 0;
        if request.pasid.is_some_and(beyond) && !is_page_request {
            return Err(FaultReason::PasidBeyondWidth);
        }
        let context = self.structures.scalable_context()?;
        let rid_pasid = context.rid_pasid(gates);
        self.check_request(&context, rid_pasid)?;

        let (pasid, privileged) = match request.pasid {
            Some(pasid) => (pasid, request.privileged),
            None => (rid_pasid, context.rid_privileged(gates)),
        };
        if request.kind == RequestKind::Translated {
            return Ok(Resolved {
                binding: Binding::PassThrough,
                domain: 0,
                pasid: Some(pasid),
                privileged,
                snooped_pages: false,
                fault_disable: self.structures.fault_disable,
                legacy: false,
            });
        }

        let entry = self.structures.pasid(&context, pasid)?;
        if privileged && !entry.supervisor_requests() && !is_page_request {
            return Err(FaultReason::SupervisorDisabled);
        }
        Ok(Resolved {
            binding: self.binding(&entry).ok_or(FaultReason::PasidInvalid)?,
            domain: entry.domain(),
            pasid: Some(pasid),
            privileged,
            snooped_pages: entry.page_snoop(),
            fault_disable: self.structures.fault_disable,
            legacy: false,
        })
    }

    /// Whether the context entry lets the request through to the PASID directory.
    fn check_request(
        &self,
        context: &ScalableContextEntry,
        rid_pasid: Pasid,
    ) -> Result<(), FaultReason> {
        let request = self.request;
        if self.is_translation_or_translated() && !context.device_tlb() {
            return Err(FaultReason::DeviceTlbDisabled);
        }
        if let Some(pasid) = request.pasid {
            if !context.pasid() {
                return Err(FaultReason::PasidDisabled);
            }
            if pasid.get() >= context.pasid_count() {
                return Err(FaultReason::PasidBeyondDirectory);
            }
        }
        if request.kind == RequestKind::PageRequest && !context.page_requests() {
            return Err(FaultReason::PageRequestDisabled);
        }
        if request.pasid == Some(rid_pasid) {
            return Err(FaultReason::PasidIsRidPasid);
        }
        let translated_with_pasid =
            request.kind == RequestKind::Translated && request.pasid.is_some();
        if translated_with_pasid && !context.pasid_in_translated() {
            return Err(FaultReason::PasidInTranslatedRequest);
        }
        Ok(())
    }

    fn binding(&self, entry: &PasidEntry) -> Option<Binding> {
        let gates = self.gates;
        let first_stage = || {
            Some(FirstStage {
                table: entry.first_stage_table(),
                levels: entry.first_stage_levels(gates)?,
                supervisor_requests: entry.supervisor_requests(),
                write_protect: entry.write_protect(),
                extended_accessed: entry.extended_accessed(),
                snooped_walk: entry.walk_snoop(),
            })
        };
        let second_stage = || {
            Some(SecondStage {
                table: entry.second_stage_table(),
                levels: entry.second_stage_levels(gates)?,
                accessed_dirty: entry.second_stage_accessed_dirty(),
                snooped_walk: entry.walk_snoop(),
            })
        };
        Some(match entry.translation_type(gates)? {
            GuestTranslationType::FirstStage => Binding::FirstStage(first_stage()?),
            GuestTranslationType::SecondStage => Binding::SecondStage(second_stage()?),
            GuestTranslationType::Nested => Binding::Nested(first_stage()?, second_stage()?),
            GuestTranslationType::PassThrough => Binding::PassThrough,
        })
    }
}
