//! The walk of second-stage tables (sec. 3.7).

use super::accessed_dirty::Updates;
use super::binding::SecondStage;
use super::caches::{Stage, StructureCaches};
use super::descent::Descent;
use super::guest_tables::GuestTables;
use super::paging_cache::Upper;
use super::rights::Demand;
use crate::memory::TableMemory;
use crate::spec::fault_reason::FaultReason;
use crate::spec::gates::Gates;
use crate::spec::second_stage::{ACCESSED, DIRTY, SecondStageEntry};

/// Legacy and scalable mode differ in the fault reasons, and in when a walk ends for want of
/// rights.
#[derive(Clone, Copy)]
pub(super) enum Mode {
    /// At each level where the rights are missing that the request needs.
    Legacy(Demand),
    /// At the level where neither right is left.
    Scalable,
}

impl Mode {
    const fn reasons(self) -> &'static Reasons {
        match self {
            Self::Legacy(_) => &LEGACY,
            Self::Scalable => &SCALABLE,
        }
    }

    /// Why `input` is not walked for at all: it is beyond the width of the tables.
    pub(super) const fn beyond(self) -> FaultReason {
        self.reasons().beyond
    }

    /// Why a walk ends where these rights are left, if it does.
    fn denied(self, gates: &Gates, (read, write): (bool, bool)) -> Option<FaultReason> {
        match self {
            Self::Legacy(demand) => demand.denied_legacy(gates, read, write),
            Self::Scalable if read || write => None,
            Self::Scalable => Some(FaultReason::ScalableSecondStageNotPresent),
        }
    }
}

/// The fault reasons of a walk.
struct Reasons {
    beyond: FaultReason,
    top_fetch: FaultReason,
    fetch: FaultReason,
    reserved: FaultReason,
}

const LEGACY: Reasons = Reasons {
    beyond: FaultReason::AddressBeyondWidth,
    top_fetch: FaultReason::ContextInvalid,
    fetch: FaultReason::SecondStageFetch,
    reserved: FaultReason::SecondStageReserved,
};

const SCALABLE: Reasons = Reasons {
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

/// Walks the tables of `stage` for `input`, which is within their width.
pub(super) fn walk<T: TableMemory, C: StructureCaches>(
    tables: &GuestTables<'_, T, C>,
    stage: &SecondStage,
    mode: Mode,
    input: u64,
    updates: &mut Updates,
) -> Result<Leaf, FaultReason> {
    let (gates, caches, reasons) = (tables.gates(), tables.caches(), mode.reasons());
    let mut descent = Descent::begin(caches, Stage::Second, input, stage.table, stage.levels);
    loop {
        let entry_address = descent.entry_address();
        let word = tables.memory().read_u64(entry_address).map_err(|_| {
            if descent.is_top() {
                reasons.top_fetch
            } else {
                reasons.fetch
            }
        })?;
        let entry = SecondStageEntry(word);
        let above = descent.rights();
        descent.narrow((entry.read(), entry.write()));
        if let Some(reason) = mode.denied(gates, descent.rights()) {
            return Err(reason);
        }
        entry
            .validate(descent.level(), gates)
            .map_err(|_| reasons.reserved)?;
        if stage.accessed_dirty && word & ACCESSED == 0 {
            require_snoop(stage)?;
            push(updates, entry_address, word, ACCESSED);
        }
        if entry.is_leaf(descent.level()) {
            let (read, write) = descent.rights();
            return Ok(Leaf {
                address: descent.within(entry.page(descent.page_shift())),
                page_shift: descent.page_shift(),
                read,
                write,
                snoop: entry.snoop(),
                dirty: !stage.accessed_dirty || word & DIRTY != 0,
                above,
                entry_address,
                entry: word,
            });
        }
        descent.follow(caches, entry.table());
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
