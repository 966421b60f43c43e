//! The caches of table entries in front of a walk: context, PASID and paging-structure caches (sec.
//! 6.2).

use super::binding::Resolved;
use crate::spec::ids::{Pasid, SourceId};

/// The tables of which stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// First-stage tables.
    First,
    /// Second-stage tables.
    Second,
}

/// An entry that points to a table, as it was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpperEntry {
    /// Its level, 2 to 5.
    pub level: u8,
    /// Where it points to: an input of the second stage if nested, or else guest-physical.
    pub table: u64,
    /// What it and all above it grant: U/S and R/W in a first stage, reading and writing in a
    /// second one.
    pub rights: (bool, bool),
}

/// The caches of entries that a walk finds before it looks into memory: context cache, PASID cache
/// and paging-structure caches.
///
/// What a walk adds is of use only if its request is let through, as all that leads to a fault is
/// in doubt.
pub trait StructureCaches {
    /// The context entry of `source`. A legacy one is in the first two words.
    fn context(&self, source: SourceId) -> Option<[u64; 4]>;

    /// The context entry of `source` was read. A legacy one is of a domain.
    fn found_context(&self, source: SourceId, words: [u64; 4], domain: Option<u16>);

    /// The PASID entry that `source` has for `pasid`, and whether the entry of the directory above
    /// it has FPD.
    fn pasid(&self, source: SourceId, pasid: Pasid) -> Option<([u64; 8], bool)>;

    /// That entry was read, and is of `domain`.
    fn found_pasid(
        &self,
        source: SourceId,
        pasid: Pasid,
        words: [u64; 8],
        directory_fault_disable: bool,
        domain: u16,
    );

    /// A walk begins, or begins again: the following is about what `resolved` names.
    fn begin(&self, resolved: &Resolved);

    /// The lowest entry on the way of `input` to a page that is known.
    fn upper(&self, stage: Stage, input: u64) -> Option<UpperEntry>;

    /// The entry was read on the way of `input`.
    fn found_upper(&self, stage: Stage, input: u64, entry: UpperEntry);
}

/// No caches: every walk reads all of its entries.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCaches;

impl StructureCaches for NoCaches {
    #[inline]
    fn context(&self, _: SourceId) -> Option<[u64; 4]> {
        None
    }

    #[inline]
    fn found_context(&self, _: SourceId, _: [u64; 4], _: Option<u16>) {}

    #[inline]
    fn pasid(&self, _: SourceId, _: Pasid) -> Option<([u64; 8], bool)> {
        None
    }

    #[inline]
    fn found_pasid(&self, _: SourceId, _: Pasid, _: [u64; 8], _: bool, _: u16) {}

    #[inline]
    fn begin(&self, _: &Resolved) {}

    #[inline]
    fn upper(&self, _: Stage, _: u64) -> Option<UpperEntry> {
        None
    }

    #[inline]
    fn found_upper(&self, _: Stage, _: u64, _: UpperEntry) {}
}
