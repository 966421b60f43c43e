//! Guest memory with kept entries in front of it, and what a walk finds in addition.

use std::cell::RefCell;

use super::caches::Store;
use crate::memory::{MemoryError, TableMemory};
use crate::spec::ids::{Pasid, SourceId};
use crate::translate::{Resolved, Stage, StructureCaches, UpperEntry};

/// What a walk has used.
#[derive(Default)]
pub(crate) struct Notes {
    pub(crate) context: Option<([u64; 4], Option<u16>)>,
    /// PASID, entry, FPD of the directory entry, domain.
    pub(crate) pasid: Option<(u32, [u64; 8], bool, u16)>,
    pub(crate) resolved: Option<Resolved>,
    /// With the input of their stage.
    pub(crate) uppers: Vec<(Stage, u64, UpperEntry)>,
}

pub(crate) struct Recorder<'a, T: ?Sized> {
    memory: &'a T,
    store: &'a Store,
    notes: RefCell<Notes>,
}

impl<'a, T: ?Sized> Recorder<'a, T> {
    pub(crate) fn new(memory: &'a T, store: &'a Store) -> Self {
        Self {
            memory,
            store,
            notes: RefCell::default(),
        }
    }

    pub(crate) fn into_notes(self) -> Notes {
        self.notes.into_inner()
    }
}

impl<T: TableMemory + ?Sized> TableMemory for Recorder<'_, T> {
    fn read_words<const N: usize>(&self, address: u64) -> Result<[u64; N], MemoryError> {
        self.memory.read_words(address)
    }

    fn compare_exchange_u64(
        &self,
        address: u64,
        old: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        self.memory.compare_exchange_u64(address, old, new)
    }

    fn write_u32(&self, address: u64, value: u32) -> Result<(), MemoryError> {
        self.memory.write_u32(address, value)
    }

    fn write_words<const N: usize>(
        &self,
        address: u64,
        words: &[u64; N],
    ) -> Result<(), MemoryError> {
        self.memory.write_words(address, words)
    }

    fn caches(&self) -> Option<&dyn StructureCaches> {
        Some(self)
    }
}

impl<T: ?Sized> StructureCaches for Recorder<'_, T> {
    fn context(&self, source: SourceId) -> Option<[u64; 4]> {
        self.store.context(source)
    }

    fn found_context(&self, _: SourceId, words: [u64; 4], domain: Option<u16>) {
        self.notes.borrow_mut().context = Some((words, domain));
    }

    fn pasid(&self, source: SourceId, pasid: Pasid) -> Option<([u64; 8], bool)> {
        self.store.pasid(source, pasid)
    }

    fn found_pasid(
        &self,
        _: SourceId,
        pasid: Pasid,
        words: [u64; 8],
        directory_fault_disable: bool,
        domain: u16,
    ) {
        self.notes.borrow_mut().pasid = Some((pasid.get(), words, directory_fault_disable, domain));
    }

    fn begin(&self, resolved: &Resolved) {
        let mut notes = self.notes.borrow_mut();
        notes.resolved = Some(*resolved);
        notes.uppers.clear();
    }

    fn upper(&self, stage: Stage, input: u64) -> Option<UpperEntry> {
        let notes = self.notes.borrow();
        self.store.upper(notes.resolved.as_ref()?, stage, input)
    }

    fn found_upper(&self, stage: Stage, input: u64, entry: UpperEntry) {
        self.notes.borrow_mut().uppers.push((stage, input, entry));
    }
}
