//! What one entry that a translation reads means (sections 9.1 to 9.8).

use std::fmt;

use super::field::{Field, FieldValue, write_set};
use crate::spec::context::{ContextEntry, ContextType, ScalableContextEntry};
use crate::spec::entry::EntryError;
use crate::spec::first_stage::{self, FirstStageEntry};
use crate::spec::gates::Gates;
use crate::spec::pasid::{DirectoryEntry, GuestTranslationType, PasidEntry};
use crate::spec::root::{RootEntry, RootHalf};
use crate::spec::second_stage::{self, SecondStageEntry};

/// Which structure an entry belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// Root table.
    Root,
    /// Context table.
    Context,
    /// PASID directory.
    PasidDirectory,
    /// PASID table.
    PasidEntry,
    /// First-stage table of a level, 1 to 5.
    FirstStage {
        /// The level.
        level: u8,
    },
    /// Second-stage table of a level, 1 to 5.
    SecondStage {
        /// The level.
        level: u8,
        /// What the second stage translates here.
        of: SecondStageInput,
    },
}

/// What a second-stage walk translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecondStageInput {
    /// The address of the request.
    Request,
    /// The address of the first-stage entry of a level.
    FirstStageEntry {
        /// The level.
        level: u8,
    },
    /// The address that the first stage came to.
    Page,
}

impl fmt::Display for EntryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Root => f.pad("root"),
            Self::Context => f.pad("context"),
            Self::PasidDirectory => f.pad("PASID directory"),
            Self::PasidEntry => f.pad("PASID entry"),
            Self::FirstStage { level } => f.pad(&format!("first stage {level}")),
            Self::SecondStage { level, of } => f.pad(&match of {
                SecondStageInput::Request => format!("second stage {level}"),
                SecondStageInput::FirstStageEntry { level: first } => {
                    format!("second stage {level} for first {first}")
                }
                SecondStageInput::Page => format!("second stage {level} for page"),
            }),
        }
    }
}

/// Where a page-table entry points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leads {
    /// To the next table.
    Table(u64),
    /// To a page: a leaf.
    Page {
        /// Where the page is.
        address: u64,
        /// Log2 of its size.
        shift: u8,
    },
}

/// One entry that a translation read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it is.
    pub entry: EntryKind,
    /// Its guest-physical address.
    pub address: u64,
    /// Its words; none where there is no memory.
    pub words: Vec<u64>,
    /// Its fields. Those of an entry that is not present are of no meaning, but for FPD.
    pub fields: Vec<Field>,
    /// Where it points to, if it is a page-table entry that can be used.
    pub leads: Option<Leads>,
    /// Why it cannot be used.
    pub error: Option<EntryError>,
}

impl Step {
    /// Decodes `words`. `devfn` selects the half of a root entry; `scalable` is the mode of root and context entries.
    pub(super) fn decode(
        entry: EntryKind,
        address: u64,
        words: Vec<u64>,
        gates: &Gates,
        scalable: bool,
        devfn: u8,
    ) -> Self {
        let decoded = match entry {
            EntryKind::Root => root(&words, gates, scalable, devfn),
            EntryKind::Context if scalable => scalable_context(&words, gates),
            EntryKind::Context => context(&words, gates),
            EntryKind::PasidDirectory => directory(&words, gates),
            EntryKind::PasidEntry => pasid(&words, gates),
            EntryKind::FirstStage { level } => first_stage(&words, gates, level),
            EntryKind::SecondStage { level, .. } => second_stage(&words, gates, level),
        };
        let Decoded {
            fields,
            leads,
            outcome,
        } = decoded.unwrap_or_default();
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

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<26} {:#014x}:", self.entry, self.address)?;
        if self.words.is_empty() {
            return write!(f, " no memory");
        }
        // The last words of large entries are mostly empty.
        let used = self.words.iter().rposition(|word| *word != 0).unwrap_or(0);
        for word in self.words.iter().take(used + 1) {
            write!(f, " {word:#x}")?;
        }
        write!(f, " =")?;
        match self.error {
            Some(EntryError::NotPresent) => {
                write!(f, " not present")?;
                let fpd = self.fields.iter().find(|field| field.name == "FPD");
                return match fpd {
                    Some(fpd) if fpd.is_set() => write!(f, ", FPD"),
                    _ => Ok(()),
                };
            }
            Some(EntryError::ReservedBits { word, bits }) => {
                write_set(f, &self.fields)?;
                write!(f, ", reserved bits {bits:#x} in word {word}")?;
            }
            Some(EntryError::Unsupported) => {
                write_set(f, &self.fields)?;
                write!(f, ", unsupported")?;
            }
            None => write_set(f, &self.fields)?,
        }
        match self.leads {
            Some(Leads::Table(table)) => write!(f, " -> table {table:#x}"),
            Some(Leads::Page { address, shift }) => {
                write!(f, " -> page of {} at {address:#x}", Size(shift))
            }
            None => Ok(()),
        }
    }
}

/// 2^n bytes, from 4 KiB on.
pub(super) struct Size(pub(super) u8);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, shift) = match self.0 {
            40.. => ("TiB", 40),
            30..40 => ("GiB", 30),
            20..30 => ("MiB", 20),
            10..20 => ("KiB", 10),
            0..10 => ("bytes", 0),
        };
        let number = 1_u64.checked_shl(u32::from(self.0 - shift)).unwrap_or(0);
        write!(f, "{number} {unit}")
    }
}

struct Decoded {
    fields: Vec<Field>,
    leads: Option<Leads>,
    outcome: Result<(), EntryError>,
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
    let leads = if entry.is_leaf(level) {
        let shift = page_shift(level);
        Leads::Page {
            address: entry.page(shift),
            shift,
        }
    } else {
        Leads::Table(entry.table())
    };
    let flag = |name, bit| Field::new(name, word & bit != 0);
    Some(Decoded {
        fields: vec![
            flag("P", first_stage::PRESENT),
            flag("R/W", first_stage::WRITABLE),
            flag("U/S", first_stage::USER),
            flag("A", first_stage::ACCESSED),
            flag("D", first_stage::DIRTY),
            flag("EA", first_stage::EXTENDED_ACCESSED),
        ],
        leads: Some(leads),
        outcome: entry.validate(level, gates),
    })
}

fn second_stage(words: &[u64], gates: &Gates, level: u8) -> Option<Decoded> {
    let word = *words.first()?;
    let entry = SecondStageEntry(word);
    let leads = if entry.is_leaf(level) {
        let shift = page_shift(level);
        Leads::Page {
            address: entry.page(shift),
            shift,
        }
    } else {
        Leads::Table(entry.table())
    };
    let flag = |name, bit| Field::new(name, word & bit != 0);
    Some(Decoded {
        fields: vec![
            flag("R", second_stage::READ),
            flag("W", second_stage::WRITE),
            flag("A", second_stage::ACCESSED),
            flag("D", second_stage::DIRTY),
            flag("SNP", second_stage::SNOOP),
        ],
        leads: Some(leads),
        outcome: entry.validate(level, gates),
    })
}

/// Log2 of what an entry of `level`, 1 to 5, covers.
const fn page_shift(level: u8) -> u8 {
    12 + 9 * (level - 1)
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
