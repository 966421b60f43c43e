//! A shadow of second-stage tables: an I/O address space of the host that maps what the guest's
//! tables map.
//!
//! One serves all devices of an iommufd that the same tables translate. It shares the pages of the
//! space that maps all of guest memory (`IOMMU_IOAS_COPY`), so nothing is pinned again.
//!
//! # What is mapped
//! What the tables map to guest RAM, within what the host can map, and never the interrupt address
//! range. Rights are never wider than the guest wrote: what changed is unmapped before anything is
//! mapped, and a page that can only be written is left out where the host would make it readable.

pub(crate) mod areas;
pub(crate) mod named;
pub(crate) mod scan;
mod spans;
pub(crate) mod users;

use std::io;
use std::ops::Range;

use crate::budget::{self, CALL, Spent};
use crate::dirty::tracking::{collect_unmapped, mark_all};
use crate::footprint::AREA;
use crate::host_iommu::IoasId;
use crate::ioas::Ioas;
use crate::resources::Resources;
use crate::run::Run;
use areas::Areas;
use intel_vtd::spec::descriptors::PageBlock;
use intel_vtd::{GuestTables, SecondStage, SourceId, TableMemory};
use spans::Spans;

/// What makes shadows the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ShadowKey {
    /// The guest's tables.
    pub(crate) stage: SecondStage,
    /// Nested page tables are on top of it. Most hosts map nothing then that cannot be written, and
    /// what the guest's tables map so is left out.
    pub(crate) parent: bool,
    /// Only this device is behind it: it brings reserved regions where the others have pages.
    pub(crate) owner: Option<SourceId>,
}

/// The shadow of one second-stage root.
pub(crate) struct Shadow {
    pub(crate) key: ShadowKey,
    pub(crate) ioas: Ioas,
    /// The space with guest-physical memory.
    source: IoasId,
    areas: Areas,
    /// The update in which all of it was compared with the guest's tables.
    compared_in: Option<u64>,
    /// What is to be compared with the guest's tables again.
    stale: Vec<Range<u64>>,
    split_reported: bool,
    write_only_reported: bool,
    read_only_reported: bool,
    outside_reported: bool,
}

/// Why a shadow does not show what the guest's tables say. Nobody may use it any more.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The machine's limit on what shadows cost.
    TooManyAreas,
    /// The limit on the work for one exit of the guest.
    TooMuchWork,
    /// The call is to end before it is done. What is left is remembered, and who is behind it stays.
    Interrupted,
    /// The host does not unmap.
    Host(io::Error),
}

impl From<Spent> for Trouble {
    fn from(spent: Spent) -> Self {
        match spent {
            Spent::Exhausted => Self::TooMuchWork,
            Spent::Interrupted => Self::Interrupted,
        }
    }
}

/// All addresses.
const EVERYTHING: Range<u64> = 0..u64::MAX;

/// Memory for lists that are made for each invalidation.
#[derive(Default)]
pub(crate) struct Scratch {
    spans: Spans,
    runs: Vec<Run>,
    changed: Vec<Run>,
    added: Vec<Run>,
}

impl Scratch {
    /// Keeps what most invalidations need, and not what the largest one needed.
    fn shrink(&mut self) {
        self.spans.clear();
        for list in [&mut self.runs, &mut self.changed, &mut self.added] {
            list.clear();
            list.shrink_to(4096);
        }
    }
}

impl Shadow {
    /// An empty one, which is to be [invalidated](Self::invalidate) and [brought up to
    /// date](Self::refresh).
    pub(crate) fn new(key: ShadowKey, ioas: Ioas, source: IoasId) -> Self {
        Self {
            key,
            ioas,
            source,
            areas: Areas::default(),
            compared_in: None,
            stale: Vec::new(),
            split_reported: false,
            write_only_reported: false,
            read_only_reported: false,
            outside_reported: false,
        }
    }

    pub(crate) const fn areas(&self) -> &Areas {
        &self.areas
    }

    /// Nothing is known any more.
    pub(crate) fn invalidate(&mut self) {
        self.compared_in = None;
        self.stale.clear();
        self.stale.push(EVERYTHING);
    }

    /// Whether it shows what the guest's tables said in this update, which the guest could have
    /// announced in no later one.
    pub(crate) fn is_complete(&self, resources: &Resources) -> bool {
        self.compared_in == Some(resources.update) && self.stale.is_empty()
    }

    /// The pages of `block` may have changed.
    pub(crate) fn invalidate_block(&mut self, block: &PageBlock) {
        let end = 1_u64
            .checked_shl(12 + u32::from(block.mask))
            .and_then(|length| block.address.checked_add(length));
        self.stale.push(block.address..end.unwrap_or(u64::MAX));
    }

    pub(crate) fn is_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Brings up to date what was invalidated: first, everything is unmapped that is no longer so;
    /// then what is new is mapped.
    ///
    /// # Errors
    /// The shadow must not be used any more, unless it is only to be refreshed again.
    pub(crate) fn refresh<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
        resources: &mut Resources,
        scratch: &mut Scratch,
    ) -> Result<(), Trouble> {
        let mut stale = std::mem::take(&mut self.stale);
        let is_whole = stale.contains(&EVERYTHING);
        let outcome = self
            .unmap_changed(&mut stale, tables, resources, scratch)
            .and_then(|()| self.map(&scratch.added, resources));
        if !matches!(outcome, Err(Trouble::Interrupted)) {
            stale.clear();
        } else if !is_whole {
            // An area that was unmapped is not found again. What of it nobody has named is to come
            // back, too.
            let unmapped = scratch.changed.iter();
            stale.extend(unmapped.map(|area| area.input..area.end()));
        }
        self.stale = stale;
        scratch.shrink();
        if is_whole {
            resources.statistics.comparisons += 1;
            self.compared_in = outcome.is_ok().then_some(resources.update);
        }
        outcome
    }

    /// Unmaps what changed in `stale`, and lists what is to be mapped.
    fn unmap_changed<T: TableMemory>(
        &mut self,
        stale: &mut Vec<Range<u64>>,
        tables: &GuestTables<'_, T>,
        resources: &mut Resources,
        scratch: &mut Scratch,
    ) -> Result<(), Trouble> {
        scratch.spans.fill(stale);
        self.compare(tables, resources, scratch)?;
        let Scratch {
            spans,
            runs,
            changed,
            added,
        } = scratch;
        self.unmap(changed, resources)?;
        spans.cut(runs);
        let splits = self.areas.find_added(runs, changed, added);
        if splits != 0 {
            self.count_splits(splits, resources);
        }
        Ok(())
    }

    /// Lists what the tables map in the spans that were invalidated, and the areas there of which
    /// something is not so any more.
    fn compare<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
        resources: &mut Resources,
        scratch: &mut Scratch,
    ) -> Result<(), Trouble> {
        let Scratch {
            spans,
            runs,
            changed,
            ..
        } = scratch;
        let areas = resources.limits.of_one_shadow() / AREA;
        let areas = usize::try_from(areas).unwrap_or(usize::MAX);
        // One area may be found in pieces, one for each block.
        let limit = areas.saturating_add(spans.blocks());
        for span in spans.iter() {
            let before = runs.len();
            self.scan(span, tables, resources, runs, limit)?;
            let found = runs.get(before..).unwrap_or_default();
            self.areas
                .find_changed(span, found, changed, &mut resources.exit.budget)?;
        }
        // One may be in several spans.
        changed.dedup();
        // Areas go as a whole. What of them is outside of the spans is looked at again, too.
        let inside = runs.len();
        for area in changed.iter() {
            for part in spans.outside(area.input..area.end()) {
                self.scan(&part, tables, resources, runs, limit)?;
            }
        }
        if runs.len() != inside {
            runs.sort_unstable_by_key(|run| run.input);
        }
        Ok(())
    }

    /// Adds what can be mapped of what the guest's tables map in `inputs`, as long as there are not
    /// more than `limit`.
    fn scan<T: TableMemory>(
        &mut self,
        inputs: &Range<u64>,
        tables: &GuestTables<'_, T>,
        resources: &mut Resources,
        runs: &mut Vec<Run>,
        limit: usize,
    ) -> Result<(), Trouble> {
        let exact_rights = self.ioas.has_exact_rights();
        let takes_read_only = !self.ioas.no_read_only;
        let (mut write_only, mut read_only, mut outside) = (0, 0, 0);
        let mut first_outside = None;
        let outcome = scan::scan(
            tables.memory(),
            tables.gates(),
            &self.key.stage,
            inputs,
            &mut resources.exit.budget,
            |run| {
                if !run.rights.read && !exact_rights {
                    write_only += run.length;
                }
                if !run.rights.write && !takes_read_only {
                    read_only += run.length;
                    return;
                }
                for output in resources.ram.within(run.output..run.output + run.length) {
                    let start = run.input + (output.start - run.output);
                    let piece = start..start + (output.end - output.start);
                    for hole in self.ioas.unmappable(&piece) {
                        outside += hole.end - hole.start;
                        first_outside.get_or_insert(hole);
                    }
                    for input in self.ioas.mappable(piece) {
                        // One more than the limit is enough to know.
                        if runs.len() <= limit {
                            runs.push(run.part(&input));
                        }
                    }
                }
            },
        );
        if write_only != 0 {
            self.count_write_only(write_only, resources);
        }
        if read_only != 0 {
            self.count_read_only(read_only, resources);
        }
        if let Some(first) = first_outside {
            self.count_outside(outside, &first, resources);
        }
        outcome?;
        if runs.len() > limit {
            return Err(Trouble::TooManyAreas);
        }
        Ok(())
    }

    /// Unmaps whole areas: neighbours, and those with nothing mapped between them, by one call, as
    /// far as that goes at once.
    fn unmap(&mut self, areas: &[Run], resources: &mut Resources) -> Result<(), Trouble> {
        let mut left = areas;
        while let Some((first, rest)) = left.split_first() {
            resources.exit.budget.steps(CALL)?;
            let (all, mut last) = (left, *first);
            left = rest;
            self.forget(first, resources);
            while let Some((next, rest)) = left.split_first()
                && self
                    .areas
                    .overlapping(&(last.end()..next.input))
                    .next()
                    .is_none()
                // What is left is unmapped by the next call of the host, or the next one of us.
                && resources.exit.budget.owed(budget::AREA).is_ok()
            {
                last = *next;
                left = rest;
                self.forget(next, resources);
            }
            let unmapped =
                self.ioas
                    .host
                    .unmap(self.ioas.id, first.input, last.end() - first.input);
            if let Err(error) = unmapped {
                // They stay until who is behind them is detached.
                let count = all.len() - left.len();
                mark_all(all.iter().take(count), resources);
                return Err(Trouble::Host(error));
            }
            resources.statistics.unmaps += 1;
        }
        Ok(())
    }

    /// An area is about to be unmapped.
    fn forget(&mut self, area: &Run, resources: &mut Resources) {
        collect_unmapped(&self.ioas, area, resources);
        resources.shadow_bytes -= self.areas.remove(area);
    }

    fn map(&mut self, runs: &[Run], resources: &mut Resources) -> Result<(), Trouble> {
        for run in runs {
            resources.exit.budget.steps(CALL)?;
            let cost = self.areas.cost_of(run);
            if self.areas.cost() + cost > resources.limits.of_one_shadow()
                || resources.shadow_bytes + cost > resources.limits.shadow_memory
            {
                return Err(Trouble::TooManyAreas);
            }
            let outcome =
                self.ioas
                    .share(self.source, run.output, run.input, run.length, run.rights);
            match outcome {
                Ok(()) => {
                    resources.statistics.maps += 1;
                    resources.shadow_bytes += cost;
                    self.areas.insert(*run, cost);
                }
                Err(error) => {
                    resources.statistics.map_failures += 1;
                    resources.details(|| {
                        format!(
                            "the host does not map {:#x} bytes at {:#x} of the guest's tables at {:#x}, so devices do not reach \
                             them: {error}",
                            run.length, run.input, self.key.stage.table
                        )
                    });
                }
            }
        }
        Ok(())
    }

    fn count_splits(&mut self, splits: u64, resources: &mut Resources) {
        resources.statistics.splits += splits;
        if !std::mem::replace(&mut self.split_reported, true) {
            resources.details(|| {
                format!(
                    "the guest unmaps parts of what it announced as one (tables at {:#x}): what stays is mapped again, and is out \
                     of devices' reach for a moment",
                    self.key.stage.table
                )
            });
        }
    }

    fn count_write_only(&mut self, bytes: u64, resources: &mut Resources) {
        resources.statistics.write_only_bytes += bytes;
        if !std::mem::replace(&mut self.write_only_reported, true) {
            resources.details(|| {
                format!(
                    "the guest lets devices write but not read (tables at {:#x}), which the host's page tables cannot: they can \
                     read such pages, too",
                    self.key.stage.table
                )
            });
        }
    }

    fn count_read_only(&mut self, bytes: u64, resources: &mut Resources) {
        resources.statistics.read_only_bytes += bytes;
        if !std::mem::replace(&mut self.read_only_reported, true) {
            resources.details(|| {
                format!(
                    "the guest lets devices read but not write (tables at {:#x}) below first-stage tables, where the host maps \
                     nothing so: they do not reach such pages",
                    self.key.stage.table
                )
            });
        }
    }

    fn count_outside(&mut self, bytes: u64, first: &Range<u64>, resources: &mut Resources) {
        resources.statistics.outside_bytes += bytes;
        if !std::mem::replace(&mut self.outside_reported, true) {
            resources.details(|| {
                format!(
                    "the guest maps {:#x} to {:#x} (tables at {:#x}), which the host's IOMMU does not map for the devices there (see \
                     reserved_regions of their IOMMU groups): they do not reach such pages",
                    first.start,
                    first.end - 1,
                    self.key.stage.table
                )
            });
        }
    }

    /// Steps that it takes to give everything back.
    pub(crate) fn cost_of_destruction(&self) -> u64 {
        let areas = u64::try_from(self.areas.len()).unwrap_or(u64::MAX);
        areas.saturating_mul(budget::AREA).saturating_add(CALL)
    }

    /// Gives everything back to the host.
    pub(crate) fn destroy(mut self, resources: &mut Resources) {
        let areas = std::mem::take(&mut self.areas);
        for area in areas.iter() {
            collect_unmapped(&self.ioas, area, resources);
        }
        resources.shadow_bytes -= areas.cost();
        self.ioas.destroy(resources);
    }
}
