//! The bindings of a source: which tables translate its requests, and those of each of its PASIDs.

use std::fmt;

use crate::memory::TableMemory;
use crate::spec::context::ScalableContextEntry;
use crate::spec::entry::EntryError;
use crate::spec::gates::Gates;
use crate::spec::ids::{Pasid, SourceId};
use crate::spec::pasid::{DirectoryEntry, PasidEntry};
use crate::spec::registers::TableMode;
use crate::spec::root::{self, RootHalf};
use crate::translate::{Binding, Fault, FirstStage, GuestTables, Latched, SecondStage};

/// How many PASIDs of a source are shown.
pub const SHOWN_PASIDS: usize = 64;

/// How many PASID tables of a source are searched. A guest can have 2^14 at no cost to itself, as
/// all entries of a directory may point to the same one; a search of all of them would hold its
/// caller up.
pub const SEARCHED_TABLES: usize = 128;

/// PASIDs that one directory entry covers (section 9.5).
const PASIDS_PER_TABLE: u32 = 64;

/// What translates the requests of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceBindings {
    /// The source.
    pub source: SourceId,
    /// Requests without PASID.
    pub without_pasid: Result<Bound, Fault>,
    /// Requests with each PASID whose entry is present, in ascending order, at most
    /// [`SHOWN_PASIDS`]. The one that requests without PASID are looked up with is left out.
    pub pasids: Vec<(Pasid, Result<Bound, Fault>)>,
    /// How many more PASID entries are present.
    pub more: u32,
    /// Whether there may be more than that: there are PASID tables beyond the first
    /// [`SEARCHED_TABLES`].
    pub unsearched: bool,
}

/// What translates, and under which domain id its translations are cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// What translates.
    pub binding: Binding,
    /// The domain id; 0 while translation is off.
    pub domain: u16,
}

/// Finds out what translates untranslated requests of `source`. It reads tables and nothing else.
///
/// Up to 2^14 entries of the PASID directory are looked at, and those of [`SEARCHED_TABLES`] PASID
/// tables, 64 each.
pub fn bindings_of<T: TableMemory>(
    tables: &GuestTables<'_, T>,
    source: SourceId,
) -> SourceBindings {
    let (memory, gates, latched) = (tables.memory(), tables.gates(), tables.latched());
    let bound = |pasid| {
        if !latched.enabled {
            return Ok(Bound {
                binding: Binding::PassThrough,
                domain: 0,
            });
        }
        tables.resolve(source, pasid).map(|resolved| Bound {
            binding: resolved.binding,
            domain: resolved.domain,
        })
    };
    let mut bindings = SourceBindings {
        source,
        without_pasid: bound(None),
        pasids: Vec::new(),
        more: 0,
        unsearched: false,
    };
    let scalable =
        latched.enabled && latched.root.mode == TableMode::Scalable && gates.caps.ecap.smts();
    let Some(context) = scalable
        .then(|| context(memory, gates, latched, source))
        .flatten()
    else {
        return bindings;
    };
    let rid_pasid = context.rid_pasid(gates);
    let mut pasid_tables = pasid_tables(memory, gates, &context);
    let present = pasid_tables
        .by_ref()
        .take(SEARCHED_TABLES)
        .flat_map(|(first, table)| present(memory, gates, first, table));
    for pasid in present.filter(|pasid| *pasid != rid_pasid) {
        if bindings.pasids.len() < SHOWN_PASIDS {
            bindings.pasids.push((pasid, bound(Some(pasid))));
        } else {
            bindings.more += 1;
        }
    }
    bindings.unsearched = pasid_tables.next().is_some();
    bindings
}

/// The context entry of `source` in scalable mode, if it can be used.
fn context<T: TableMemory>(
    memory: &T,
    gates: &Gates,
    latched: &Latched,
    source: SourceId,
) -> Option<ScalableContextEntry> {
    let at = latched
        .root
        .address
        .checked_add(u64::from(source.bus()) * root::SIZE)?;
    let half = RootHalf::select(memory.read_words(at).ok()?, source.devfn());
    half.validate(gates).ok()?;
    // Devices 16 to 31 have a table of their own.
    let index = u64::from(source.devfn() & 0x7f);
    let at = half.context_table() + index * ScalableContextEntry::SIZE;
    let context = ScalableContextEntry(memory.read_words(at).ok()?);
    context.validate(gates).ok()?;
    Some(context)
}

/// The PASID tables that can be used, in ascending order: the first PASID of each, and its address.
fn pasid_tables<'a, T: TableMemory>(
    memory: &'a T,
    gates: &'a Gates,
    context: &ScalableContextEntry,
) -> impl Iterator<Item = (u32, u64)> + 'a {
    let directory = context.directory();
    (0..context.pasid_count() / PASIDS_PER_TABLE).filter_map(move |index| {
        let at = directory + u64::from(index) * DirectoryEntry::SIZE;
        let entry = DirectoryEntry(memory.read_u64(at).ok()?);
        entry.validate(gates).ok()?;
        Some((index * PASIDS_PER_TABLE, entry.table()))
    })
}

/// The PASIDs from `first` on whose entry in `table` is present, in ascending order.
fn present<'a, T: TableMemory>(
    memory: &'a T,
    gates: &'a Gates,
    first: u32,
    table: u64,
) -> impl Iterator<Item = Pasid> + 'a {
    (0..PASIDS_PER_TABLE).filter_map(move |offset| {
        let at = table + u64::from(offset) * PasidEntry::SIZE;
        let entry = PasidEntry(memory.read_words(at).ok()?);
        let present = entry.validate(gates) != Err(EntryError::NotPresent);
        present.then(|| Pasid::new(first + offset))?
    })
}

impl fmt::Display for SourceBindings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, bound: &Result<Bound, Fault>| match bound {
            Ok(bound) => writeln!(f, "{}, domain {}", bound.binding, bound.domain),
            Err(fault) => writeln!(f, "{}", Blocked(fault)),
        };
        write!(f, "{} ", self.source)?;
        line(f, &self.without_pasid)?;
        for (pasid, bound) in &self.pasids {
            write!(f, "{} PASID {pasid} ", self.source)?;
            line(f, bound)?;
        }
        match self.more {
            more if self.unsearched => writeln!(
                f,
                "{} at least {more} more PASIDs; only {SEARCHED_TABLES} tables were searched",
                self.source
            ),
            0 => Ok(()),
            more => writeln!(f, "{} {more} more PASIDs", self.source),
        }
    }
}

/// A fault, in words.
pub(super) struct Blocked<'a>(pub(super) &'a Fault);

impl fmt::Display for Blocked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { reason, record, .. } = self.0;
        write!(f, "blocked: {:#04x} {reason:?}", reason.code())?;
        if *record {
            Ok(())
        } else {
            write!(f, ", not recorded")
        }
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocked => write!(f, "blocked"),
            Self::PassThrough => write!(f, "pass-through"),
            Self::SecondStage(stage) => write!(f, "{stage}"),
            Self::FirstStage(stage) => write!(f, "{stage}"),
            Self::Nested(first, second) => write!(f, "nested: {first}; {second}"),
        }
    }
}

impl fmt::Display for SecondStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, levels, .. } = self;
        write!(f, "second-stage {table:#x}, {levels} levels")?;
        let flags = [(self.accessed_dirty, "SSADE"), (self.snooped_walk, "PWSNP")];
        write_flags(f, &flags)
    }
}

impl fmt::Display for FirstStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, levels, .. } = self;
        write!(f, "first-stage {table:#x}, {levels} levels")?;
        let flags = [
            (self.supervisor_requests, "SRE"),
            (self.write_protect, "WPE"),
            (self.extended_accessed, "EAFE"),
            (self.snooped_walk, "PWSNP"),
        ];
        write_flags(f, &flags)
    }
}

fn write_flags(f: &mut fmt::Formatter<'_>, flags: &[(bool, &str)]) -> fmt::Result {
    flags
        .iter()
        .filter(|(set, _)| *set)
        .try_for_each(|(_, name)| write!(f, " {name}"))
}

#[cfg(test)]
mod bindings_test;
