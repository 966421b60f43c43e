//! The walk of first-stage tables (sec. 3.6), on their own or nested on a second stage (sec. 3.8).

use super::accessed_dirty::Updates;
use super::binding::{FirstStage, SecondStage};
use super::caches::{Stage, StructureCaches};
use super::descent::Descent;
use super::guest_tables::GuestTables;
use super::paging_cache::Upper;
use super::second_stage::{self, Mode};
use crate::memory::TableMemory;
use crate::spec::entry::EntryError;
use crate::spec::fault_reason::FaultReason;
use crate::spec::first_stage::{ACCESSED, DIRTY, EXTENDED_ACCESSED, FirstStageEntry};

const VOLATILE: u64 = ACCESSED | DIRTY | EXTENDED_ACCESSED;

/// The fault reasons of what leads to an entry, which depend on whether it is in the top table.
struct Reasons {
    fetch: FaultReason,
    /// By the second stage.
    read_denied: FaultReason,
}

const TOP: Reasons = Reasons {
    fetch: FaultReason::FirstStageTopFetch,
    read_denied: FaultReason::FirstStageTopReadDenied,
};

const BELOW_TOP: Reasons = Reasons {
    fetch: FaultReason::FirstStageFetch,
    read_denied: FaultReason::FirstStageReadDenied,
};

/// Where a walk ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaf {
    /// Guest-physical, or an input of the second stage.
    pub(super) address: u64,
    pub(super) page_shift: u8,
    /// U/S in every entry.
    pub(super) user: bool,
    /// R/W in every entry.
    pub(super) write: bool,
    /// D is set.
    pub(super) dirty: bool,
    /// R/W in every entry above.
    write_above: bool,
    entry_address: u64,
    entry: u64,
    /// A, and EA if it is maintained, when not set yet.
    missing: u64,
    /// The second stage lets the entry be written.
    updatable: bool,
}

impl Leaf {
    /// What the walk leaves behind; `writes` is whether such requests may write, all bits being set
    /// for that.
    pub(super) fn upper(&self, writes: bool) -> Upper {
        let above = (true, self.write_above);
        let all = (true, writes);
        Upper::new(
            self.entry_address,
            self.page_shift,
            self.address,
            above,
            all,
        )
    }
}

impl FirstStage {
    /// The bits that every entry has once it was used.
    pub(super) const fn accessed_bits(&self) -> u64 {
        if self.extended_accessed {
            ACCESSED | EXTENDED_ACCESSED
        } else {
            ACCESSED
        }
    }

    /// Whether requests may write where R/W is as given: those of a supervisor ignore it unless
    /// WPE.
    pub(super) const fn writes(&self, writable: bool, privileged: bool) -> bool {
        writable || privileged && !self.write_protect
    }
}

/// A walk of `stage` on top of `below`.
pub(super) struct Walk<'a, T, C> {
    pub(super) tables: &'a GuestTables<'a, T, C>,
    pub(super) stage: &'a FirstStage,
    pub(super) below: Option<&'a SecondStage>,
}

impl<T: TableMemory, C: StructureCaches> Walk<'_, T, C> {
    /// Walks the tables for `input`, which is canonical.
    pub(super) fn run(&self, input: u64, updates: &mut Updates) -> Result<Leaf, FaultReason> {
        let (tables, stage) = (self.tables, self.stage);
        let caches = tables.caches();
        let mut descent = Descent::begin(caches, Stage::First, input, stage.table, stage.levels);
        loop {
            let reasons = if descent.is_top() { &TOP } else { &BELOW_TOP };
            let at = descent.entry_address();
            let (entry_address, updatable) = self.entry_address(at, reasons, updates)?;
            let word = tables
                .memory()
                .read_u64(entry_address)
                .map_err(|_| reasons.fetch)?;
            let entry = FirstStageEntry(word);
            entry
                .validate(descent.level(), tables.gates())
                .map_err(|error| match error {
                    EntryError::NotPresent => FaultReason::FirstStageNotPresent,
                    _ => FaultReason::FirstStageReserved,
                })?;
            let is_leaf = entry.is_leaf(descent.level());
            let next = if is_leaf {
                entry.page(descent.page_shift())
            } else {
                entry.table()
            };
            self.check_width(next)?;
            let missing = stage.accessed_bits() & !word;
            if missing != 0 {
                self.check_update(updatable)?;
            }
            let (_, write_above) = descent.rights();
            descent.narrow((entry.user(), entry.writable()));
            if is_leaf {
                let (user, write) = descent.rights();
                return Ok(Leaf {
                    address: descent.within(next),
                    page_shift: descent.page_shift(),
                    user,
                    write,
                    dirty: word & DIRTY != 0,
                    write_above,
                    entry_address,
                    entry: word,
                    missing,
                    updatable,
                });
            }
            if missing != 0 {
                push(updates, entry_address, word, missing);
            }
            descent.follow(caches, next);
        }
    }

    /// Notes what has to be set in the leaf: accessed bits, and D before a permitted write.
    pub(super) fn mark(
        &self,
        leaf: &mut Leaf,
        writes: bool,
        updates: &mut Updates,
    ) -> Result<(), FaultReason> {
        if writes && !leaf.dirty {
            self.check_update(leaf.updatable)?;
            leaf.missing |= DIRTY;
            leaf.dirty = true;
        }
        if leaf.missing != 0 {
            push(updates, leaf.entry_address, leaf.entry, leaf.missing);
        }
        Ok(())
    }

    /// Where the entry at `at` is in guest-physical memory, and whether it may be updated.
    fn entry_address(
        &self,
        at: u64,
        reasons: &Reasons,
        updates: &mut Updates,
    ) -> Result<(u64, bool), FaultReason> {
        let Some(below) = self.below else {
            return Ok((at, true));
        };
        let mut leaf = second_stage::walk(self.tables, below, Mode::Scalable, at, updates)?;
        if !leaf.read {
            return Err(reasons.read_denied);
        }
        if below.accessed_dirty {
            // While dirty bits are maintained, reading an entry counts as writing it.
            if !leaf.write {
                return Err(FaultReason::FirstStageUpdateDenied);
            }
            second_stage::mark_dirty(below, &mut leaf, updates)?;
        }
        Ok((leaf.address, leaf.write))
    }

    fn check_width(&self, address: u64) -> Result<(), FaultReason> {
        let beyond = self.below.is_some_and(|below| {
            address >> self.tables.gates().second_stage_width(below.levels) != 0
        });
        if beyond {
            Err(FaultReason::FirstStageBeyondSecond)
        } else {
            Ok(())
        }
    }

    fn check_update(&self, updatable: bool) -> Result<(), FaultReason> {
        if !self.stage.snooped_walk {
            Err(FaultReason::FirstStageUpdateUnsnooped)
        } else if !updatable {
            Err(FaultReason::FirstStageUpdateDenied)
        } else {
            Ok(())
        }
    }
}

fn push(updates: &mut Updates, address: u64, seen: u64, set: u64) {
    updates.push(
        address,
        seen,
        set,
        VOLATILE,
        FaultReason::FirstStageUpdateFailed,
    );
}
