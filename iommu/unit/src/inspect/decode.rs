//! The fields of one entry, decoded from its words (sections 9.1 to 9.8).

use super::entry::{EntryKind, Leads, Step};
use super::field::{Field, FieldValue};
use crate::spec::context::{ContextEntry, ContextType, ScalableContextEntry};
use crate::spec::entry::EntryError;
use crate::spec::first_stage::{self, FirstStageEntry};
use crate::spec::gates::Gates;
use crate::spec::pasid::{DirectoryEntry, GuestTranslationType, PasidEntry};
use crate::spec::root::{RootEntry, RootHalf};
use crate::spec::second_stage::{self, SecondStageEntry};

/// What the words of an entry say.
pub(super) struct Decoded {
    pub(super) fields: Vec<Field>,
    /// Where it would point to if it can be used.
    pub(super) leads: Option<Leads>,
    /// Whether it can be used.
    pub(super) outcome: Result<(), EntryError>,
}

impl Default for Decoded {
    /// Where there is no memory.
    fn default() -> Self {
        Self {
            fields: Vec::new(),
            leads: None,
            outcome: Ok(()),
        }
    }
}

impl Step {
    /// Decodes `words`. `devfn` selects the half of a root entry; `scalable` is the mode of root
    /// and context entries.
    pub(super) fn decode(
        entry: EntryKind,
        address: u64,
        words: Vec<u64>,
        gates: &Gates,
        scalable: bool,
        devfn: u8,
    ) -> Self {
        let Decoded {
            fields,
            leads,
            outcome,
        } = decode(entry, &words, gates, scalable, devfn).unwrap_or_default();
        Self {
            entry,
            address,
            words,
            fields,
            leads: leads.filter(|_| outcome.is_ok()),
            error: outcome.err(),
        }
    }
}

/// Decodes `words`, if there are as many as the entry has. `devfn` selects the half of a root
/// entry; `scalable` is the mode of root and context entries.
pub(super) fn decode(
    entry: EntryKind,
    words: &[u64],
    gates: &Gates,
    scalable: bool,
    devfn: u8,
) -> Option<Decoded> {
    match entry {
        EntryKind::Root => root(words, gates, scalable, devfn),
        EntryKind::Context if scalable => scalable_context(words, gates),
        EntryKind::Context => context(words, gates),
        EntryKind::PasidDirectory => directory(words, gates),
        EntryKind::PasidEntry => pasid(words, gates),
        EntryKind::FirstStage { level } => first_stage(words, gates, level),
        EntryKind::SecondStage { level, .. } => second_stage(words, gates, level),
    }
}

/// An entry that is no page-table entry, and begins with P.
fn structure(outcome: Result<(), EntryError>, mut fields: Vec<Field>) -> Option<Decoded> {
    fields.insert(0, Field::new("P", outcome != Err(EntryError::NotPresent)));
    Some(Decoded {
        fields,
        leads: None,
        outcome,
    })
}

fn root(words: &[u64], gates: &Gates, scalable: bool, devfn: u8) -> Option<Decoded> {
    let words = words.try_into().ok()?;
    if !scalable {
        let entry = RootEntry(words);
        return structure(
            entry.validate(gates),
            vec![Field::hex("CTP", entry.context_table())],
        );
    }
    let half = RootHalf::select(words, devfn);
    let pointer = if devfn < 0x80 { "LCTP" } else { "UCTP" };
    structure(
        half.validate(gates),
        vec![Field::hex(pointer, half.context_table())],
    )
}

fn context(words: &[u64], gates: &Gates) -> Option<Decoded> {
    let entry = ContextEntry(words.try_into().ok()?);
    let kind = match entry.translation_type(gates) {
        Some(ContextType::Untranslated) => "second-stage",
        Some(ContextType::DeviceTlb) => "second-stage,device-TLB",
        Some(ContextType::PassThrough) => "pass-through",
        None => UNSUPPORTED,
    };
    structure(
        entry.validate(gates),
        vec![
            Field::new("FPD", entry.fault_disable()),
            Field::new("TT", FieldValue::Name(kind)),
            Field::hex("SSPTPTR", entry.table()),
            levels("AW", entry.levels(gates)),
            Field::new("DID", entry.domain()),
        ],
    )
}

fn scalable_context(words: &[u64], gates: &Gates) -> Option<Decoded> {
    let entry = ScalableContextEntry(words.try_into().ok()?);
    structure(
        entry.validate(gates),
        vec![
            Field::new("FPD", entry.fault_disable()),
            Field::new("DTE", entry.device_tlb()),
            Field::new("PASIDE", entry.pasid()),
            Field::new("PRE", entry.page_requests()),
            Field::new("EPTR", entry.pasid_in_translated()),
            Field::hex("PASIDDIRPTR", entry.directory()),
            Field::hex("PASIDs", entry.pasid_count()),
            Field::hex("RID_PASID", entry.rid_pasid(gates).get()),
            Field::new("RID_PRIV", entry.rid_privileged(gates)),
        ],
    )
}

fn directory(words: &[u64], gates: &Gates) -> Option<Decoded> {
    let entry = DirectoryEntry(*words.first()?);
    structure(
        entry.validate(gates),
        vec![
            Field::new("FPD", entry.fault_disable()),
            Field::hex("SMPTBLPTR", entry.table()),
        ],
    )
}

fn pasid(words: &[u64], gates: &Gates) -> Option<Decoded> {
    let entry = PasidEntry(words.try_into().ok()?);
    let kind = entry.translation_type(gates);
    let (first, second) = match kind {
        Some(GuestTranslationType::FirstStage) => (true, false),
        Some(GuestTranslationType::SecondStage) => (false, true),
        Some(GuestTranslationType::Nested) => (true, true),
        Some(GuestTranslationType::PassThrough) | None => (false, false),
    };
    let name = match kind {
        Some(GuestTranslationType::FirstStage) => "first-stage",
        Some(GuestTranslationType::SecondStage) => "second-stage",
        Some(GuestTranslationType::Nested) => "nested",
        Some(GuestTranslationType::PassThrough) => "pass-through",
        None => UNSUPPORTED,
    };
    let mut fields = vec![
        Field::new("FPD", entry.fault_disable()),
        Field::new("PGTT", FieldValue::Name(name)),
        Field::new("DID", entry.domain()),
        Field::new("PWSNP", entry.walk_snoop()),
        Field::new("PGSNP", entry.page_snoop()),
    ];
    if second {
        fields.extend([
            Field::hex("SSPTPTR", entry.second_stage_table()),
            levels("AW", entry.second_stage_levels(gates)),
            Field::new("SSADE", entry.second_stage_accessed_dirty()),
        ]);
    }
    if first {
        fields.extend([
            Field::hex("FSPTPTR", entry.first_stage_table()),
            levels("FSPM", entry.first_stage_levels(gates)),
            Field::new("WPE", entry.write_protect()),
            Field::new("EAFE", entry.extended_accessed()),
        ]);
    }
    fields.push(Field::new("SRE", entry.supervisor_requests()));
    structure(entry.validate(gates), fields)
}

fn first_stage(words: &[u64], gates: &Gates, level: u8) -> Option<Decoded> {
    let word = *words.first()?;
    let entry = FirstStageEntry(word);
    let flags = [
        ("P", first_stage::PRESENT),
        ("R/W", first_stage::WRITABLE),
        ("U/S", first_stage::USER),
        ("A", first_stage::ACCESSED),
        ("D", first_stage::DIRTY),
        ("EA", first_stage::EXTENDED_ACCESSED),
    ];
    let leads = leads(level, entry.is_leaf(level), entry.table(), |shift| {
        entry.page(shift)
    });
    Some(page_table(
        word,
        &flags,
        leads,
        entry.validate(level, gates),
    ))
}

fn second_stage(words: &[u64], gates: &Gates, level: u8) -> Option<Decoded> {
    let word = *words.first()?;
    let entry = SecondStageEntry(word);
    let flags = [
        ("R", second_stage::READ),
        ("W", second_stage::WRITE),
        ("A", second_stage::ACCESSED),
        ("D", second_stage::DIRTY),
        ("SNP", second_stage::SNOOP),
    ];
    let leads = leads(level, entry.is_leaf(level), entry.table(), |shift| {
        entry.page(shift)
    });
    Some(page_table(
        word,
        &flags,
        leads,
        entry.validate(level, gates),
    ))
}

/// A page-table entry with these flags: names and masks.
fn page_table(
    word: u64,
    flags: &[(&'static str, u64)],
    leads: Leads,
    outcome: Result<(), EntryError>,
) -> Decoded {
    Decoded {
        fields: flags
            .iter()
            .map(|(name, mask)| Field::new(name, word & mask != 0))
            .collect(),
        leads: Some(leads),
        outcome,
    }
}

/// Where an entry of `level`, 1 to 5, points to: to `table`, or to the page that `page` finds with
/// log2 of its size.
fn leads(level: u8, leaf: bool, table: u64, page: impl FnOnce(u8) -> u64) -> Leads {
    if !leaf {
        return Leads::Table(table);
    }
    let shift = 12 + 9 * (level - 1);
    Leads::Page {
        address: page(shift),
        shift,
    }
}

const UNSUPPORTED: &str = "unsupported";

/// A depth, by the number of levels that the field stands for.
fn levels(name: &'static str, levels: Option<u8>) -> Field {
    let value = match levels {
        Some(3) => "3-level",
        Some(4) => "4-level",
        Some(5) => "5-level",
        _ => UNSUPPORTED,
    };
    Field::new(name, FieldValue::Name(value))
}
