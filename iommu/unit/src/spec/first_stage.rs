//! First-stage paging-structure entries (sec. 9.7): the format of IA-32e paging.

use super::entry::{EntryError, bit, check_reserved, field};
use super::gates::Gates;

/// P.
pub const PRESENT: u64 = bit(0);
/// R/W.
pub const WRITABLE: u64 = bit(1);
/// U/S.
pub const USER: u64 = bit(2);
/// A.
pub const ACCESSED: u64 = bit(5);
/// D.
pub const DIRTY: u64 = bit(6);
/// PS.
pub const PAGE_SIZE: u64 = bit(7);
/// EA.
pub const EXTENDED_ACCESSED: u64 = bit(10);

/// An entry of any level: 5 is the PML5E, 1 the PTE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstStageEntry(pub u64);

impl FirstStageEntry {
    /// R/W.
    pub const fn writable(self) -> bool {
        self.0 & WRITABLE != 0
    }

    /// U/S.
    pub const fn user(self) -> bool {
        self.0 & USER != 0
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

    /// Checks the entry. Bit 63 is ignored, as there are no execute requests.
    ///
    /// # Errors
    /// Not present, or reserved bits.
    pub fn validate(self, level: u8, gates: &Gates) -> Result<(), EntryError> {
        if self.0 & PRESENT == 0 {
            return Err(EntryError::NotPresent);
        }
        let specific = match level {
            1 => 0,
            // Bit 12 is PAT.
            2 if self.is_leaf(level) => field(20, 13),
            2 => 0,
            3 if self.is_leaf(level) && gates.caps.cap.fs1gp() => field(29, 13),
            _ => PAGE_SIZE,
        };
        check_reserved(&[self.0], &[specific | gates.beyond_host_in_page_tables()])
    }
}
