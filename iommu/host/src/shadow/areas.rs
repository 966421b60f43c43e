//! Areas that a shadow maps, compared with what it is to map.
//!
//! iommufd unmaps whole areas only. So an area is what one invalidation of the guest announced:
//! that is what Linux later unmaps. An invalidation names a block that may hold other mappings
//! besides what was changed. Their areas stay as they are, and what is new is never merged with
//! them.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::budget::{Budget, RUN, Spent};
use crate::footprint::{Neighbours, added_by};
use crate::run::Run;

/// The areas of one address space; they do not overlap.
#[derive(Debug, Default)]
pub(crate) struct Areas {
    by_input: BTreeMap<u64, Run>,
    bytes: u64,
    cost: u64,
}

impl Areas {
    pub(crate) fn len(&self) -> usize {
        self.by_input.len()
    }

    /// Bytes that are mapped.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Run> {
        self.by_input.values()
    }

    /// Bytes of the host's memory that they cost.
    pub(crate) const fn cost(&self) -> u64 {
        self.cost
    }

    /// Bytes by which the cost grows if `area` is inserted.
    pub(crate) fn cost_of(&self, area: &Run) -> u64 {
        let before = self.by_input.range(..area.input).next_back();
        let behind = self.by_input.range(area.end()..).next();
        let neighbours = Neighbours {
            before: before.map(|(_, area)| area.end() - 1),
            behind: behind.map(|(input, _)| *input),
        };
        added_by(area, &neighbours)
    }

    /// Inserts one that overlaps none, with its [cost](Self::cost_of).
    pub(crate) fn insert(&mut self, area: Run, cost: u64) {
        self.bytes += area.length;
        self.cost += cost;
        self.by_input.insert(area.input, area);
    }

    /// Removes one, and returns the bytes by which that lessens the cost.
    pub(crate) fn remove(&mut self, area: &Run) -> u64 {
        let Some(area) = self.by_input.remove(&area.input) else {
            return 0;
        };
        let cost = self.cost_of(&area);
        self.bytes -= area.length;
        self.cost -= cost;
        cost
    }

    /// Those that have an address of `inputs`, in descending order: that takes one search, as they
    /// end in the order in which they begin.
    pub(crate) fn overlapping(&self, inputs: &Range<u64>) -> impl Iterator<Item = &Run> {
        let start = inputs.start;
        let before_end = self.by_input.range(..inputs.end).rev();
        before_end
            .map(|(_, area)| area)
            .take_while(move |area| area.end() > start)
    }

    /// Adds the areas to `changed`, in ascending order, of which something in `inputs` is no longer as
    /// `runs` says, which is all that the guest maps there. Areas that only begin or end in `inputs` are
    /// compared as far as they are in it.
    ///
    /// # Errors
    /// They are too many for the call.
    pub(crate) fn find_changed(
        &self,
        inputs: &Range<u64>,
        runs: &[Run],
        changed: &mut Vec<Run>,
        budget: &mut Budget,
    ) -> Result<(), Spent> {
        let known = changed.len();
        let mut runs = runs.iter().rev().peekable();
        for area in self.overlapping(inputs) {
            budget.owed(RUN)?;
            let within = area.input.max(inputs.start)..area.end().min(inputs.end);
            while runs.next_if(|run| run.input >= within.end).is_some() {}
            // Runs are as long as can be: what is mapped as before is part of one.
            let stays = runs.peek().is_some_and(|run| {
                run.input <= within.start && within.end <= run.end() && run.agrees(area)
            });
            if !stays {
                changed.push(*area);
            }
        }
        if let Some(found) = changed.get_mut(known..) {
            found.reverse();
        }
        Ok(())
    }

    /// Adds what `runs` have beyond the areas to `added`, and returns how many of the `removed`
    /// areas come back in part.
    ///
    /// `removed` are areas that were removed because something of them changed, in ascending order.
    /// What stays of one is cut into naturally aligned powers of two, so that a guest that takes a
    /// large area apart page by page has few of them done over each time.
    pub(crate) fn find_added(&self, runs: &[Run], removed: &[Run], added: &mut Vec<Run>) -> u64 {
        let mut additions = Additions {
            removed,
            added,
            returning: None,
            splits: 0,
        };
        let mut free = Vec::new();
        for run in runs {
            let mut end = run.end();
            for area in self.overlapping(&(run.input..run.end())) {
                if area.end() < end {
                    free.push(area.end()..end);
                }
                end = area.input;
            }
            if run.input < end {
                additions.add(&run.part(&(run.input..end)));
            }
            for part in free.drain(..).rev() {
                additions.add(&run.part(&part));
            }
        }
        additions.splits
    }
}

struct Additions<'a> {
    removed: &'a [Run],
    added: &'a mut Vec<Run>,
    /// The last of `removed` that was found to come back in part.
    returning: Option<u64>,
    splits: u64,
}

impl Additions<'_> {
    fn add(&mut self, run: &Run) {
        let mut at = run.input;
        let first = self.removed.partition_point(|old| old.end() <= at);
        for old in self.removed.iter().skip(first) {
            if old.input >= run.end() {
                break;
            }
            if at < old.input {
                self.added.push(run.part(&(at..old.input)));
                at = old.input;
            }
            let end = old.end().min(run.end());
            let piece = run.part(&(at..end));
            if piece.agrees(old) {
                self.splits += u64::from(self.returning.replace(old.input) != Some(old.input));
                self.added.extend(piece.aligned_pieces());
            } else {
                self.added.push(piece);
            }
            at = end;
        }
        if at < run.end() {
            self.added.push(run.part(&(at..run.end())));
        }
    }
}

#[cfg(test)]
mod areas_test;
#[cfg(test)]
mod cost_test;
