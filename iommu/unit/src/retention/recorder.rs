//! The retained caches in front of a walk, and what it finds in addition (sec. 6.2).

use std::cell::RefCell;

use super::caches::Store;
use super::notes::Notes;
use crate::spec::ids::{Pasid, SourceId};
use crate::translate::{Resolved, Stage, StructureCaches, UpperEntry};

/// The caches that a walk asks, and notes of what it has used.
pub(crate) struct Recorder<'a> {
    store: &'a Store,
    notes: RefCell<Notes>,
}

impl<'a> Recorder<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self {
            store,
            notes: RefCell::default(),
        }
    }

    pub(crate) fn into_notes(self) -> Notes {
        self.notes.into_inner()
    }
}

impl StructureCaches for Recorder<'_> {
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
