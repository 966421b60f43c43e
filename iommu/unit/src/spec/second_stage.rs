//! Second-stage paging-structure entries (sec. 9.8).

use super::entry::{EntryError, bit, check_reserved, field, reserved_without};
use super::gates::Gates;

/// R.
pub const READ: u64 = bit(0);
/// W.
pub const WRITE: u64 = bit(1);
/// PS.
pub const PAGE_SIZE: u64 = bit(7);
/// A.
pub const ACCESSED: u64 = bit(8);
/// D.
pub const DIRTY: u64 = bit(9);
/// SNP.
pub const SNOOP: u64 = bit(11);
/// IW, which is reserved as SSIRWE is never set.
const IO_WRITE: u64 = bit(62);

/// An entry of any level: 5 is the PML5E, 1 the PTE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondStageEntry(pub u64);

impl SecondStageEntry {
    /// R.
    pub const fn read(self) -> bool {
        self.0 & READ != 0
    }

    /// W.
    pub const fn write(self) -> bool {
        self.0 & WRITE != 0
    }

    /// R or W: without either, nothing else in the entry means anything.
    pub const fn grants(self) -> bool {
        self.0 & (READ | WRITE) != 0
    }

    /// SNP, of a leaf.
    pub const fn snoop(self) -> bool {
        self.0 & SNOOP != 0
    }

    /// Whether the entry maps a page, of 4 KiB, 2 MiB or 1 GiB at level 1, 2 or 3.
    pub const fn is_leaf(self, level: u8) -> bool {
        level == 1 || level <= 3 && self.0 & PAGE_SIZE != 0
    }

    /// ADDR of a pointer to a table.
    pub const fn table(self) -> u64 {
        self.0 & field(51, 12)
    }

    /// ADDR of a leaf that maps a page of 2^`shift` bytes.
    pub const fn page(self, shift: u8) -> u64 {
        self.0 & field(51, 12) & (u64::MAX << shift)
    }

    /// Checks the entry.
    ///
    /// # Errors
    /// Not present, which is to grant neither reading nor writing; or reserved bits.
    pub fn validate(self, level: u8, gates: &Gates) -> Result<(), EntryError> {
        if !self.grants() {
            return Err(EntryError::NotPresent);
        }
        let large = gates.caps.cap.sslps();
        let specific = match level {
            1 => 0,
            2 if self.is_leaf(level) && large & 1 != 0 => field(20, 12),
            3 if self.is_leaf(level) && large & 2 != 0 => field(29, 12),
            _ => PAGE_SIZE,
        };
        let snoop = reserved_without(self.is_leaf(level) && gates.caps.ecap.sc(), SNOOP);
        check_reserved(
            &[self.0],
            &[specific | snoop | IO_WRITE | gates.beyond_host_in_page_tables()],
        )
    }
}
