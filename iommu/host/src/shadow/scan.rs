//! What second-stage tables map in a range of addresses (sec. 3.7), found by reading them table by
//! table.
//!
//! A page is mapped if a request that the same tables translate would reach it: the entries of all
//! levels are in order, and the rights that all of them grant are those of the page.
//!
//! # Accessed and dirty bits
//! With SSADE the IOMMU sets them in the guest's tables. The host's IOMMU walks the shadow and
//! never sees these, so the bits are set when a page is found: accessed in each entry on the way,
//! dirty in the leaf if writing is permitted, which is what a translation request with the right to
//! write does (sec. 3.7.2). So the guest sees every page as dirty that was within reach of a
//! device, and none as clean that was written to.

use std::ops::Range;

use crate::budget::{self, Budget, Spent};
use crate::host_iommu::Rights;
use crate::run::Run;
use intel_vtd::spec::gates::Gates;
use intel_vtd::spec::second_stage::{ACCESSED, DIRTY, SecondStageEntry};
use intel_vtd::{SecondStage, TableMemory};

/// Runs end here, whatever goes on behind: no block that an invalidation names is larger (MAMV 18),
/// and it limits what has to be done over when one is taken apart.
const SEAM: u64 = 1 << 30;

/// Entries of a table.
const ENTRIES: u64 = 512;

/// Entries that are read at a time where many are wanted.
const CHUNK: usize = 16;

/// How often an entry is looked at again because the guest changes it meanwhile.
const ATTEMPTS: u32 = 16;

/// Calls `found` for the runs that `stage` maps in `inputs`, in ascending order. Each is as long as
/// can be.
///
/// # Errors
/// There is more to read than `budget` allows.
pub(crate) fn scan<T: TableMemory + ?Sized>(
    memory: &T,
    gates: &Gates,
    stage: &SecondStage,
    inputs: &Range<u64>,
    budget: &mut Budget,
    found: impl FnMut(Run),
) -> Result<(), Spent> {
    let end = inputs.end.min(1 << gates.second_stage_width(stage.levels));
    if inputs.start >= end {
        return Ok(());
    }
    let mut scan = Scan {
        memory,
        gates,
        stage,
        inputs: inputs.start..end,
        budget,
        last: None,
        found,
    };
    let outcome = scan.table(&Table {
        address: stage.table,
        level: stage.levels,
        first: 0,
        rights: Rights::ALL,
    });
    scan.flush();
    outcome
}

struct Scan<'a, T: ?Sized, F> {
    memory: &'a T,
    gates: &'a Gates,
    stage: &'a SecondStage,
    inputs: Range<u64>,
    budget: &'a mut Budget,
    /// Found, and perhaps not at its end yet.
    last: Option<Run>,
    found: F,
}

/// A table, and what leads to it.
struct Table {
    address: u64,
    level: u8,
    /// The first address that it translates.
    first: u64,
    /// What the levels above grant.
    rights: Rights,
}

impl Table {
    const fn shift(&self) -> u8 {
        12 + 9 * (self.level - 1)
    }
}

impl<T: TableMemory + ?Sized, F: FnMut(Run)> Scan<'_, T, F> {
    fn table(&mut self, table: &Table) -> Result<(), Spent> {
        self.budget.steps(budget::TABLE)?;
        let shift = table.shift();
        let mut index = self.inputs.start.saturating_sub(table.first) >> shift;
        let end = ENTRIES.min(((self.inputs.end - 1 - table.first) >> shift) + 1);
        let chunk = CHUNK as u64;
        while index < end {
            let address = table.address + index * 8;
            if index.is_multiple_of(chunk) && end - index >= chunk {
                // Where this fails, some of the entries may still be there.
                if let Ok(words) = self.memory.read_words::<CHUNK>(address) {
                    for (word, index) in words.into_iter().zip(index..) {
                        if SecondStageEntry(word).grants() {
                            self.entry(table, index, word)?;
                        }
                    }
                    index += chunk;
                    continue;
                }
            }
            if let Ok(word) = self.memory.read_u64(address) {
                self.entry(table, index, word)?;
            }
            index += 1;
        }
        Ok(())
    }

    fn entry(&mut self, table: &Table, index: u64, mut word: u64) -> Result<(), Spent> {
        for _ in 0..ATTEMPTS {
            let entry = SecondStageEntry(word);
            let mut rights = Rights {
                read: table.rights.read && entry.read(),
                write: table.rights.write && entry.write(),
            };
            if rights == Rights::NONE || entry.validate(table.level, self.gates).is_err() {
                return Ok(());
            }
            let leaf = entry.is_leaf(table.level);
            if self.stage.accessed_dirty {
                match self.mark(table.address + index * 8, word, leaf, &mut rights) {
                    Marked::Done => {}
                    Marked::Changed(now) => {
                        word = now;
                        continue;
                    }
                    Marked::Fault => return Ok(()),
                }
            }
            let shift = table.shift();
            let first = table.first + (index << shift);
            if leaf {
                return self.leaf(first, entry.page(shift), 1 << shift, rights);
            }
            return self.table(&Table {
                address: entry.table(),
                // Level 1 has leaves only.
                level: table.level - 1,
                first,
                rights,
            });
        }
        Ok(())
    }

    /// Sets the bits of an entry that a use of it sets.
    fn mark(&self, address: u64, word: u64, leaf: bool, rights: &mut Rights) -> Marked {
        if !self.stage.snooped_walk {
            // A bit that is to be set is a fault (sec. 3.10): of any access, or of writes.
            rights.write &= !leaf || word & DIRTY != 0;
            return if word & ACCESSED != 0 && *rights != Rights::NONE {
                Marked::Done
            } else {
                Marked::Fault
            };
        }
        let dirty = if leaf && rights.write { DIRTY } else { 0 };
        let marked = word | ACCESSED | dirty;
        if marked == word {
            return Marked::Done;
        }
        match self.memory.compare_exchange_u64(address, word, marked) {
            Ok(Ok(_)) => Marked::Done,
            Ok(Err(now)) => Marked::Changed(now),
            Err(_) => Marked::Fault,
        }
    }

    fn leaf(&mut self, first: u64, page: u64, size: u64, rights: Rights) -> Result<(), Spent> {
        let inputs = first.max(self.inputs.start)..(first + size).min(self.inputs.end);
        let run = Run {
            input: first,
            output: page,
            length: size,
            rights,
        }
        .part(&inputs);
        match &mut self.last {
            Some(last)
                if last.end() == run.input
                    && last.agrees(&run)
                    && !run.input.is_multiple_of(SEAM) =>
            {
                last.length += run.length;
            }
            _ => {
                self.budget.steps(budget::RUN)?;
                self.flush();
                self.last = Some(run);
            }
        }
        Ok(())
    }

    fn flush(&mut self) {
        if let Some(run) = self.last.take() {
            (self.found)(run);
        }
    }
}

/// What came of setting accessed and dirty bits.
enum Marked {
    Done,
    /// The guest has changed the entry to this.
    Changed(u64),
    Fault,
}

#[cfg(test)]
mod scan_test;
