//! From a request to the tables that translate it: root, context, PASID directory, PASID table.

use super::binding::{Binding, FirstStage, SecondStage};
use super::caches::StructureCaches;
use super::guest_tables::GuestTables;
use super::request::{Access, Fault, Request, RequestKind};
use crate::memory::TableMemory;
use crate::spec::context::{ContextEntry, ContextType, ScalableContextEntry};
use crate::spec::entry::EntryError;
use crate::spec::fault_reason::FaultReason;
use crate::spec::gates::Gates;
use crate::spec::ids::{Pasid, SourceId};
use crate::spec::pasid::{DirectoryEntry, GuestTranslationType, PasidEntry};
use crate::spec::registers::TableMode;
use crate::spec::root::{self, RootEntry, RootHalf};

/// What the tables say about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// What translates it. Never [`Binding::Blocked`]. A translated request is passed through.
    pub binding: Binding,
    /// The domain id.
    pub domain: u16,
    /// The PASID under which it is translated; `None` in legacy mode.
    pub pasid: Option<Pasid>,
    /// It has supervisor privilege.
    pub privileged: bool,
    /// Accesses to pages are snooped, whatever the request says (PGSNP).
    pub snooped_pages: bool,
    /// A Fault Processing Disable bit was met: what happens from here on is not recorded.
    pub fault_disable: bool,
    /// Legacy mode, which has fault reasons of its own.
    pub legacy: bool,
}

/// The PASID directory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasidDirectory {
    /// Guest-physical address of its first entry.
    pub address: u64,
    /// PASIDs that requests of the device can have: 64 for each entry, and at least as many entries as that needs.
    pub pasids: u32,
}

impl<T: TableMemory, C: StructureCaches> GuestTables<'_, T, C> {
    /// Finds out what translates the untranslated requests of `source`, with `pasid` or without, while translation is
    /// enabled.
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
        outcome.map_err(|reason| Fault::new(reason, resolver.fault_disable, request.kind))
    }

    /// The PASID directory of `source`, while translation is enabled; `None` if its requests with PASIDs do not get that
    /// far.
    pub fn pasid_directory(&self, source: SourceId) -> Option<PasidDirectory> {
        let caps = self.gates().caps;
        if self.latched().root.mode != TableMode::Scalable || !caps.ecap.smts() {
            return None;
        }
        let request = Request::untranslated(source, 0, Access::Read);
        let context = Resolver::new(self, &request).scalable_context().ok()?;
        let width = 1 << (u32::from(caps.ecap.pss()) + 1);
        context.pasid().then(|| PasidDirectory {
            address: context.directory(),
            pasids: context.pasid_count().min(width),
        })
    }
}

/// The fault reasons of an entry: not present, reserved bits, unsupported.
fn entry_fault(
    error: EntryError,
    not_present: FaultReason,
    reserved: FaultReason,
    unsupported: FaultReason,
) -> FaultReason {
    match error {
        EntryError::NotPresent => not_present,
        EntryError::ReservedBits { .. } => reserved,
        EntryError::Unsupported => unsupported,
    }
}

struct Resolver<'a, T, C> {
    tables: &'a GuestTables<'a, T, C>,
    gates: &'a Gates,
    request: &'a Request,
    /// The disjunction of the FPD bits so far.
    fault_disable: bool,
}

impl<'a, T: TableMemory, C: StructureCaches> Resolver<'a, T, C> {
    #[inline]
    fn new(tables: &'a GuestTables<'a, T, C>, request: &'a Request) -> Self {
        Self {
            tables,
            gates: tables.gates(),
            request,
            fault_disable: false,
        }
    }

    fn is_translation_or_translated(&self) -> bool {
        matches!(
            self.request.kind,
            RequestKind::TranslationRequest { .. } | RequestKind::Translated
        )
    }

    fn root_words(&self, fetch: FaultReason) -> Result<[u64; 2], FaultReason> {
        let table = self.tables.latched().root.address;
        let address = table.wrapping_add(u64::from(self.request.source.bus()) * root::SIZE);
        // RTADDR takes any bits; all other pointers are checked for reserved ones.
        if !self.gates.within_host(address) {
            return Err(fetch);
        }
        self.tables.memory().read_words(address).map_err(|_| fetch)
    }

    fn legacy(&mut self) -> Result<Resolved, FaultReason> {
        let (gates, request) = (self.gates, self.request);
        if request.pasid.is_some() {
            return Err(FaultReason::PasidInLegacyMode);
        }
        if request.kind == RequestKind::PageRequest {
            return Err(FaultReason::PageRequestInLegacyMode);
        }

        let caches = self.tables.caches();
        let context = match caches.context(request.source) {
            Some([low, high, ..]) => ContextEntry([low, high]),
            None => self.legacy_context()?,
        };
        self.fault_disable |= context.fault_disable();
        context.validate(gates).map_err(|error| {
            entry_fault(
                error,
                FaultReason::ContextNotPresent,
                FaultReason::ContextReserved,
                FaultReason::ContextInvalid,
            )
        })?;
        let (Some(kind), Some(levels)) = (context.translation_type(gates), context.levels(gates))
        else {
            return Err(FaultReason::ContextInvalid);
        };
        let [low, high] = context.0;
        caches.found_context(request.source, [low, high, 0, 0], Some(context.domain()));
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
            fault_disable: self.fault_disable,
            legacy: true,
        })
    }

    fn legacy_context(&self) -> Result<ContextEntry, FaultReason> {
        let root = RootEntry(self.root_words(FaultReason::RootFetch)?);
        root.validate(self.gates).map_err(|error| {
            entry_fault(
                error,
                FaultReason::RootNotPresent,
                FaultReason::RootReserved,
                FaultReason::RootReserved,
            )
        })?;
        let devfn = u64::from(self.request.source.devfn());
        self.tables
            .memory()
            .read_words(root.context_table() + devfn * ContextEntry::SIZE)
            .map(ContextEntry)
            .map_err(|_| FaultReason::ContextFetch)
    }

    fn scalable(&mut self) -> Result<Resolved, FaultReason> {
        let (gates, request) = (self.gates, self.request);
        if request
            .pasid
            .is_some_and(|pasid| pasid.get() >> gates.caps.ecap.pss() >> 1 != 0)
        {
            return Err(FaultReason::PasidBeyondWidth);
        }
        let context = self.scalable_context()?;
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
                fault_disable: self.fault_disable,
                legacy: false,
            });
        }

        let entry = self.pasid_entry(&context, pasid)?;
        let is_page_request = request.kind == RequestKind::PageRequest;
        if privileged && !entry.supervisor_requests() && !is_page_request {
            return Err(FaultReason::SupervisorDisabled);
        }
        Ok(Resolved {
            binding: self.binding(&entry).ok_or(FaultReason::PasidInvalid)?,
            domain: entry.domain(),
            pasid: Some(pasid),
            privileged,
            snooped_pages: entry.page_snoop(),
            fault_disable: self.fault_disable,
            legacy: false,
        })
    }

    fn scalable_context(&mut self) -> Result<ScalableContextEntry, FaultReason> {
        let source = self.request.source;
        let caches = self.tables.caches();
        let words = match caches.context(source) {
            Some(words) => words,
            None => self.scalable_context_words()?,
        };
        let context = ScalableContextEntry(words);
        self.fault_disable |= context.fault_disable();
        context.validate(self.gates).map_err(|error| {
            entry_fault(
                error,
                FaultReason::ScalableContextNotPresent,
                FaultReason::ScalableContextReserved,
                FaultReason::ScalableContextInvalid,
            )
        })?;
        caches.found_context(source, words, None);
        Ok(context)
    }

    fn scalable_context_words(&self) -> Result<[u64; 4], FaultReason> {
        let devfn = self.request.source.devfn();
        let half = RootHalf::select(self.root_words(FaultReason::ScalableRootFetch)?, devfn);
        half.validate(self.gates).map_err(|error| {
            entry_fault(
                error,
                FaultReason::ScalableRootNotPresent,
                FaultReason::ScalableRootReserved,
                FaultReason::ScalableRootReserved,
            )
        })?;
        let address = half.context_table() + u64::from(devfn & 0x7f) * ScalableContextEntry::SIZE;
        self.tables
            .memory()
            .read_words(address)
            .map_err(|_| FaultReason::ScalableContextFetch)
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

    fn pasid_entry(
        &mut self,
        context: &ScalableContextEntry,
        pasid: Pasid,
    ) -> Result<PasidEntry, FaultReason> {
        let source = self.request.source;
        let caches = self.tables.caches();
        let (words, directory_fault_disable) = match caches.pasid(source, pasid) {
            Some(found) => found,
            None => self.pasid_words(context, pasid)?,
        };
        self.fault_disable |= directory_fault_disable;
        let entry = PasidEntry(words);
        self.fault_disable |= entry.fault_disable();
        entry.validate(self.gates).map_err(|error| {
            entry_fault(
                error,
                FaultReason::PasidNotPresent,
                FaultReason::PasidReserved,
                FaultReason::PasidInvalid,
            )
        })?;
        let domain = entry.domain();
        caches.found_pasid(source, pasid, words, directory_fault_disable, domain);
        Ok(entry)
    }

    /// The words of the entry of `pasid`, and FPD of the directory entry above it.
    fn pasid_words(
        &mut self,
        context: &ScalableContextEntry,
        pasid: Pasid,
    ) -> Result<([u64; 8], bool), FaultReason> {
        let pasid = u64::from(pasid.get());
        let address = context.directory() + (pasid >> 6) * DirectoryEntry::SIZE;
        let word = self
            .tables
            .memory()
            .read_u64(address)
            .map_err(|_| FaultReason::DirectoryFetch)?;
        let directory = DirectoryEntry(word);
        self.fault_disable |= directory.fault_disable();
        directory.validate(self.gates).map_err(|error| {
            entry_fault(
                error,
                FaultReason::DirectoryNotPresent,
                FaultReason::DirectoryReserved,
                FaultReason::DirectoryReserved,
            )
        })?;

        let address = directory.table() + (pasid & 0x3f) * PasidEntry::SIZE;
        let words = self
            .tables
            .memory()
            .read_words(address)
            .map_err(|_| FaultReason::PasidFetch)?;
        Ok((words, directory.fault_disable()))
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
