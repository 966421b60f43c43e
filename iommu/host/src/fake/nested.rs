//! First-stage tables of a guest, walked by the fake as an IOMMU does that keeps whatever it has
//! read, until it is told to forget.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::Reached;
use super::ioas::FakeIoas;
use crate::host_iommu::{FaultQueueId, NestedInvalidation, NestedTable, Rights};

/// Reads a word of guest memory, by its offset in the file.
pub(super) type Memory = Box<dyn Fn(u64) -> Option<u64> + Send>;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// An entry that was read, and whether those above it permit writing.
#[derive(Clone, Copy)]
struct Entry {
    word: u64,
    writable_above: bool,
}

/// A nested page table.
pub(super) struct FakeNested {
    pub(super) table: NestedTable,
    /// Where page requests go.
    pub(super) page_requests: Option<FaultQueueId>,
    /// By level, and by the address in units of what an entry of the level covers.
    kept: RefCell<BTreeMap<(u8, u64), Entry>>,
}

const fn shift(level: u8) -> u32 {
    12 + 9 * (level as u32 - 1)
}

impl FakeNested {
    pub(super) fn new(table: NestedTable, page_requests: Option<FaultQueueId>) -> Self {
        Self {
            table,
            page_requests,
            kept: RefCell::default(),
        }
    }

    pub(super) fn levels(&self) -> u8 {
        (self.table.address_width - 12) / 9
    }

    /// Where `address` goes on top of `ioas`.
    pub(super) fn reach(&self, address: u64, ioas: &FakeIoas, memory: &Memory) -> Option<Reached> {
        let (output, writable) = self.translate(address, ioas, memory)?;
        let (offset, rights) = ioas.find(output)?;
        let rights = Rights {
            read: rights.read,
            write: rights.write && writable,
        };
        (rights != Rights::NONE).then_some(Reached { offset, rights })
    }

    /// What `address` is in `ioas`, whose mappings lead to the tables, and whether it can be
    /// written.
    pub(super) fn translate(
        &self,
        address: u64,
        ioas: &FakeIoas,
        memory: &Memory,
    ) -> Option<(u64, bool)> {
        let unused = 64 - u32::from(self.table.address_width);
        if ((address << unused).cast_signed() >> unused).cast_unsigned() != address {
            return None;
        }
        let kept = |level: u8| {
            let kept = self.kept.borrow();
            kept.get(&(level, address >> shift(level))).copied()
        };
        let mut table = self.table.table;
        let mut writable = true;
        // What lies deepest is used first, whatever became of the entries above.
        let first = (1..=self.levels())
            .find(|level| kept(*level).is_some())
            .unwrap_or_else(|| self.levels());
        for level in (1..=first).rev() {
            let entry = match kept(level) {
                Some(entry) => entry,
                None => {
                    let at = table + (address >> shift(level) & 0x1ff) * 8;
                    let (offset, rights) = ioas.find(at)?;
                    let word = memory(offset).filter(|word| rights.read && word & PRESENT != 0)?;
                    let entry = Entry {
                        word,
                        writable_above: writable,
                    };
                    self.kept
                        .borrow_mut()
                        .insert((level, address >> shift(level)), entry);
                    entry
                }
            };
            if entry.word & USER == 0 {
                return None;
            }
            writable = entry.writable_above && entry.word & WRITABLE != 0;
            if level == 1 || entry.word & LARGE != 0 {
                let within = !(u64::MAX << shift(level));
                return Some((entry.word & ADDRESS & !within | address & within, writable));
            }
            table = entry.word & ADDRESS;
        }
        None
    }

    /// Forgets what is named.
    pub(super) fn forget(&self, what: &NestedInvalidation) {
        let end = what
            .pages
            .saturating_mul(0x1000)
            .saturating_add(what.address);
        self.kept.borrow_mut().retain(|(level, index), entry| {
            let first = index << shift(*level);
            let last = first | !(u64::MAX << shift(*level));
            let is_leaf = *level == 1 || entry.word & LARGE != 0;
            let overlaps = first < end && last >= what.address;
            !(overlaps && (is_leaf || !what.leaf_only))
        });
    }

    pub(super) fn forget_all(&self) {
        self.kept.borrow_mut().clear();
    }
}
