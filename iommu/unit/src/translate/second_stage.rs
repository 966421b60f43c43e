//! The walk of second-stage tables (sec. 3.7).

use super::accessed_dirty::Updates;
use super::binding::SecondStage;
use super::caches::{Stage, StructureCaches, UpperEntry};
use super::guest_tables::GuestTables;
use super::paging_cache::Upper;
use crate::memory::TableMemory;
use crate::spec::fault_reason::FaultReason;
use crate::spec::second_stage::{ACCESSED, DIRTY, SecondStageEntry};

/// The fault reasons of a walk. Legacy and scalable mode differ in them only.
#[derive(Clone, Copy)]
pub(super) struct Reasons {
    pub(super) beyond: FaultReason,
    top_fetch: FaultReason,
    fetch: FaultReason,
    reserved: FaultReason,
}

pub(super) const LEGACY: Reasons = Reasons {
    beyond: FaultReason::AddressBeyondWidth,
    top_fetch: FaultReason::ContextInvalid,
    fetch: FaultReason::SecondStageFetch,
    reserved: FaultReason::SecondStageReserved,
};

pub(super) const SCALABLE: Reasons = Reasons {
    beyond: FaultReason::BeyondSecondStage,
    top_fetch: FaultReason::ScalableSecondStageTopFetch,
    fetch: FaultReason::ScalableSecondStageFetch,
    reserved: FaultReason::ScalableSecondStageReserved,
};

/// Where a walk ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaf {
    pub(super) address: u64,
    pub(super) page_shift: u8,
    /// Granted by the entries of all levels.
    pub(super) read: bool,
    /// Granted by the entries of all levels.
    pub(super) write: bool,
    pub(super) snoop: bool,
    /// Nothing has to be done before a write.
    pub(super) dirty: bool,
    /// Granted by the entries above: reading and writing.
    above: (bool, bool),
    entry_address: u64,
    entry: u64,
}

impl Leaf {
    /// What the walk leaves behind.
    pub(super) fn upper(&self) -> Upper {
        let all = (self.read, self.write && self.dirty);
        Upper::new(
            self.entry_address,
            self.page_shift,
            self.address,
            self.above,
            all,
        )
    }
}

/// Walks the tables for `input`, which is within their width.
///
/// `denied` is asked at each level about the rights that are left (read, write): it can end the walk.
pub(super) fn walk<T: TableMemory, C: StructureCaches>(
    tables: &GuestTables<'_, T, C>,
    stage: &SecondStage,
    reasons: &Reasons,
    input: u64,
    updates: &mut Updates,
    denied: impl Fn(bool, bool) -> Option<FaultReason>,
) -> Result<Leaf, FaultReason> {
    let (mut read, mut write) = (true, true);
    let mut table = stage.table;
    let mut level = stage.levels;
    let caches = tables.caches();
    if let Some(upper) = caches.upper(Stage::Second, input) {
        (read, write) = upper.rights;
        table = upper.table;
        level = upper.level - 1;
    }
    loop {
        let page_shift = 12 + 9 * (level - 1);
        let entry_address = table + (input >> page_shift & 0x1ff) * 8;
        let word = tables.memory().read_u64(entry_address).map_err(|_| {
            if level == stage.levels {
                reasons.top_fetch
            } else {
                reasons.fetch
            }
        })?;
        let entry = SecondStageEntry(word);
        let above = (read, write);
        read &= entry.read();
        write &= entry.write();
        if let Some(reason) = denied(read, write) {
            return Err(reason);
        }
        entry
            .validate(level, tables.gates())
            .map_err(|_| reasons.reserved)?;
        if stage.accessed_dirty && word & ACCESSED == 0 {
            require_snoop(stage)?;
            push(updates, entry_address, word, ACCESSED);
        }
        if entry.is_leaf(level) {
            let within = input & !(u64::MAX << page_shift);
            return Ok(Leaf {
                address: entry.page(page_shift) | within,
                page_shift,
                read,
                write,
                snoop: entry.snoop(),
                dirty: !stage.accessed_dirty || word & DIRTY != 0,
                above,
                entry_address,
                entry: word,
            });
        }
        table = entry.table();
        let upper = UpperEntry {
            level,
            table,
            rights: (read, write),
        };
        caches.found_upper(Stage::Second, input, upper);
        // A leaf at level 1 ends the loop.
        level -= 1;
    }
}

/// Notes that a permitted write through `leaf` is about to happen.
pub(super) fn mark_dirty(
    stage: &SecondStage,
    leaf: &mut Leaf,
    updates: &mut Updates,
) -> Result<(), FaultReason> {
    if !leaf.dirty {
        require_snoop(stage)?;
        push(updates, leaf.entry_address, leaf.entry, ACCESSED | DIRTY);
        leaf.dirty = true;
    }
    Ok(())
}

/// In scalable mode, a walk ends where neither right is left.
pub(super) fn nothing_granted(read: bool, write: bool) -> Option<FaultReason> {
    (!read && !write).then_some(FaultReason::ScalableSecondStageNotPresent)
}

fn require_snoop(stage: &SecondStage) -> Result<(), FaultReason> {
    if stage.snooped_walk {
        Ok(())
    } else {
        Err(FaultReason::SecondStageUpdateUnsnooped)
    }
}

fn push(updates: &mut Updates, address: u64, seen: u64, set: u64) {
    updates.push(
        address,
        seen,
        set,
        ACCESSED | DIRTY,
        FaultReason::SecondStageUpdateFailed,
    );
}
