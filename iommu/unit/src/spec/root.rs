//! Root entries (sec. 9.1 and 9.2): one per bus, 128 bits.

use super::entry::{EntryError, bit, check_reserved, field};
use super::gates::Gates;

/// Size of an entry in bytes.
pub const SIZE: u64 = 16;

const PRESENT: u64 = bit(0);
const RESERVED_LOW: u64 = field(11, 1);
const POINTER: u64 = field(51, 12);

/// Root entry of legacy mode (sec. 9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootEntry(pub [u64; 2]);

impl RootEntry {
    /// CTP: where the context table of the bus is.
    pub const fn context_table(&self) -> u64 {
        self.0[0] & POINTER
    }

    /// Checks the entry.
    ///
    /// # Errors
    /// Not present, or reserved bits.
    pub fn validate(&self, gates: &Gates) -> Result<(), EntryError> {
        if self.0[0] & PRESENT == 0 {
            return Err(EntryError::NotPresent);
        }
        check_reserved(&self.0, &[RESERVED_LOW | gates.beyond_host(), u64::MAX])
    }
}

/// The half of a scalable-mode root entry (sec. 9.2) that is in charge of a function: low for devices 0 to 15 of the
/// bus, high for 16 to 31. The other half is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootHalf(pub u64);

impl RootHalf {
    /// The half of the entry `words` for `devfn`.
    pub const fn select(words: [u64; 2], devfn: u8) -> Self {
        let [low, high] = words;
        Self(if devfn < 0x80 { low } else { high })
    }

    /// LCTP or UCTP: where the context table is.
    pub const fn context_table(&self) -> u64 {
        self.0 & POINTER
    }

    /// Checks the half.
    ///
    /// # Errors
    /// Not present, or reserved bits.
    pub fn validate(&self, gates: &Gates) -> Result<(), EntryError> {
        if self.0 & PRESENT == 0 {
            return Err(EntryError::NotPresent);
        }
        check_reserved(&[self.0], &[RESERVED_LOW | gates.beyond_host()])
    }
}
