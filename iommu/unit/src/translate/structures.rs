//! Root, context, PASID directory and PASID entries on the way of one request (sec. 9.1 to 9.6).

use super::caches::StructureCaches;
use super::guest_tables::GuestTables;
use crate::memory::TableMemory;
use crate::spec::context::{ContextEntry, ScalableContextEntry};
use crate::spec::entry::EntryError;
use crate::spec::fault_reason::FaultReason;
use crate::spec::ids::{Pasid, SourceId};
use crate::spec::pasid::{DirectoryEntry, PasidEntry};
use crate::spec::root::{self, RootEntry, RootHalf};

/// The fault reasons of a kind of entry (sec. 7.1.3).
struct Reasons {
    fetch: FaultReason,
    not_present: FaultReason,
    reserved: FaultReason,
    unsupported: FaultReason,
}

impl Reasons {
    const fn of(&self, error: EntryError) -> FaultReason {
        match error {
            EntryError::NotPresent => self.not_present,
            EntryError::ReservedBits { .. } => self.reserved,
            EntryError::Unsupported => self.unsupported,
        }
    }
}

const ROOT: Reasons = Reasons {
    fetch: FaultReason::RootFetch,
    not_present: FaultReason::RootNotPresent,
    reserved: FaultReason::RootReserved,
    unsupported: FaultReason::RootReserved,
};

const CONTEXT: Reasons = Reasons {
    fetch: FaultReason::ContextFetch,
    not_present: FaultReason::ContextNotPresent,
    reserved: FaultReason::ContextReserved,
    unsupported: FaultReason::ContextInvalid,
};

const SCALABLE_ROOT: Reasons = Reasons {
    fetch: FaultReason::ScalableRootFetch,
    not_present: FaultReason::ScalableRootNotPresent,
    reserved: FaultReason::ScalableRootReserved,
    unsupported: FaultReason::ScalableRootReserved,
};

const SCALABLE_CONTEXT: Reasons = Reasons {
    fetch: FaultReason::ScalableContextFetch,
    not_present: FaultReason::ScalableContextNotPresent,
    reserved: FaultReason::ScalableContextReserved,
    unsupported: FaultReason::ScalableContextInvalid,
};

const DIRECTORY: Reasons = Reasons {
    fetch: FaultReason::DirectoryFetch,
    not_present: FaultReason::DirectoryNotPresent,
    reserved: FaultReason::DirectoryReserved,
    unsupported: FaultReason::DirectoryReserved,
};

const PASID: Reasons = Reasons {
    fetch: FaultReason::PasidFetch,
    not_present: FaultReason::PasidNotPresent,
    reserved: FaultReason::PasidReserved,
    unsupported: FaultReason::PasidInvalid,
};

/// The entries on the way of one request, from caches or from memory.
pub(super) struct Structures<'a, T, C> {
    tables: &'a GuestTables<'a, T, C>,
    source: SourceId,
    /// The disjunction of the FPD bits so far.
    pub(super) fault_disable: bool,
}

impl<'a, T: TableMemory, C: StructureCaches> Structures<'a, T, C> {
    #[inline]
    pub(super) const fn new(tables: &'a GuestTables<'a, T, C>, source: SourceId) -> Self {
        Self {
            tables,
            source,
            fault_disable: false,
        }
    }

    /// The context entry of legacy mode.
    pub(super) fn context(&mut self) -> Result<ContextEntry, FaultReason> {
        let (caches, gates) = (self.tables.caches(), self.tables.gates());
        let context = match caches.context(self.source) {
            Some([low, high, ..]) => ContextEntry([low, high]),
            None => self.read_context()?,
        };
        self.fault_disable |= context.fault_disable();
        context.validate(gates).map_err(|error| CONTEXT.of(error))?;
        let [low, high] = context.0;
        caches.found_context(self.source, [low, high, 0, 0], Some(context.domain()));
        Ok(context)
    }

    fn read_context(&self) -> Result<ContextEntry, FaultReason> {
        let root = RootEntry(self.read_root(&ROOT)?);
        root.validate(self.tables.gates())
            .map_err(|error| ROOT.of(error))?;
        let devfn = u64::from(self.source.devfn());
        let address = root.context_table() + devfn * ContextEntry::SIZE;
        self.read(address, &CONTEXT).map(ContextEntry)
    }

    /// The context entry of scalable mode.
    pub(super) fn scalable_context(&mut self) -> Result<ScalableContextEntry, FaultReason> {
        let (caches, gates) = (self.tables.caches(), self.tables.gates());
        let words = match caches.context(self.source) {
            Some(words) => words,
            None => self.read_scalable_context()?,
        };
        let context = ScalableContextEntry(words);
        self.fault_disable |= context.fault_disable();
        context
            .validate(gates)
            .map_err(|error| SCALABLE_CONTEXT.of(error))?;
        caches.found_context(self.source, words, None);
        Ok(context)
    }

    fn read_scalable_context(&self) -> Result<[u64; 4], FaultReason> {
        let devfn = self.source.devfn();
        let half = RootHalf::select(self.read_root(&SCALABLE_ROOT)?, devfn);
        half.validate(self.tables.gates())
            .map_err(|error| SCALABLE_ROOT.of(error))?;
        // Devices 16 to 31 have a table of their own.
        let index = u64::from(devfn & 0x7f);
        let address = half.context_table() + index * ScalableContextEntry::SIZE;
        self.read(address, &SCALABLE_CONTEXT)
    }

    /// The entry of `pasid`, which is not beyond the directory of `context`.
    pub(super) fn pasid(
        &mut self,
        context: &ScalableContextEntry,
        pasid: Pasid,
    ) -> Result<PasidEntry, FaultReason> {
        let (caches, gates) = (self.tables.caches(), self.tables.gates());
        let (words, directory_fault_disable) = match caches.pasid(self.source, pasid) {
            Some(found) => found,
            None => self.read_pasid(context, pasid)?,
        };
        self.fault_disable |= directory_fault_disable;
        let entry = PasidEntry(words);
        self.fault_disable |= entry.fault_disable();
        entry.validate(gates).map_err(|error| PASID.of(error))?;
        let (source, domain) = (self.source, entry.domain());
        caches.found_pasid(source, pasid, words, directory_fault_disable, domain);
        Ok(entry)
    }

    /// The words of the entry of `pasid`, and FPD of the directory entry above it.
    fn read_pasid(
        &mut self,
        context: &ScalableContextEntry,
        pasid: Pasid,
    ) -> Result<([u64; 8], bool), FaultReason> {
        let pasid = u64::from(pasid.get());
        let address = context.directory() + (pasid >> 6) * DirectoryEntry::SIZE;
        let [word] = self.read(address, &DIRECTORY)?;
        let directory = DirectoryEntry(word);
        self.fault_disable |= directory.fault_disable();
        directory
            .validate(self.tables.gates())
            .map_err(|error| DIRECTORY.of(error))?;
        let address = directory.table() + (pasid & 0x3f) * PasidEntry::SIZE;
        let words = self.read(address, &PASID)?;
        Ok((words, directory.fault_disable()))
    }

    fn read_root(&self, reasons: &Reasons) -> Result<[u64; 2], FaultReason> {
        let table = self.tables.latched().root.address;
        let address = table.wrapping_add(u64::from(self.source.bus()) * root::SIZE);
        // RTADDR takes any bits; all other pointers are checked for reserved ones.
        if !self.tables.gates().within_host(address) {
            return Err(reasons.fetch);
        }
        self.read(address, reasons)
    }

    #[inline]
    fn read<const N: usize>(
        &self,
        address: u64,
        reasons: &Reasons,
    ) -> Result<[u64; N], FaultReason> {
        let words = self.tables.memory().read_words(address);
        words.map_err(|_| reasons.fetch)
    }
}
