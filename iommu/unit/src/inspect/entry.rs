//! One entry that a translation reads, and how it is shown.

use std::fmt;

use super::field::{Field, write_set};
use crate::spec::entry::EntryError;

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
