//! The walk of a resolved request through the stages of its binding, up to the permission check
//! (sec. 3).

use super::accessed_dirty::{Applied, Updates};
use super::binding::{Binding, FirstStage, Resolved, SecondStage};
use super::caches::StructureCaches;
use super::first_stage;
use super::guest_tables::GuestTables;
use super::interrupt_range::{block_shift, is_interrupt_range};
use super::paging_cache::Trail;
use super::request::{RequestKind, Translation, TranslationType};
use super::rights::Demand;
use super::second_stage::{self, Mode};
use crate::memory::TableMemory;
use crate::spec::fault_reason::FaultReason;

/// How often a walk is repeated because the guest has changed an entry under it.
const ATTEMPTS: u32 = 16;

/// Pass-through answers are given for as much at a time.
const PASS_THROUGH_SHIFT: u8 = 30;

pub(super) struct Walker<'a, T, C> {
    pub(super) tables: &'a GuestTables<'a, T, C>,
    pub(super) resolved: &'a Resolved,
    pub(super) address: u64,
    pub(super) demand: Demand,
    pub(super) kind: RequestKind,
}

/// What the walk of all stages found.
struct Found {
    address: u64,
    page_shift: u8,
    readable: bool,
    writable: bool,
    dirty: bool,
    /// SNP of a second-stage leaf.
    snoop: bool,
    trail: Trail,
}

impl<T: TableMemory, C: StructureCaches> Walker<'_, T, C> {
    #[inline]
    pub(super) fn run(&self) -> Result<(Translation, Trail), FaultReason> {
        let mut updates = Updates::default();
        for _ in 0..ATTEMPTS {
            updates.clear();
            let outcome = self.attempt(&mut updates)?;
            match updates.apply(self.tables.memory()) {
                Applied::Done => return Ok(outcome),
                Applied::Changed => {}
                Applied::Failed(reason) => return Err(reason),
            }
        }
        Err(updates
            .first_failure()
            .unwrap_or(FaultReason::FirstStageUpdateFailed))
    }

    #[inline]
    fn attempt(&self, updates: &mut Updates) -> Result<(Translation, Trail), FaultReason> {
        self.tables.caches().begin(self.resolved);
        let (found, translated_by) = match &self.resolved.binding {
            Binding::Blocked => return Err(FaultReason::ContextInvalid),
            Binding::PassThrough => (self.pass_through()?, TranslationType::PassThrough),
            Binding::SecondStage(stage) => (
                self.second_stage(stage, updates)?,
                TranslationType::SecondStage,
            ),
            Binding::FirstStage(stage) => (
                self.first_stage(stage, updates)?,
                TranslationType::FirstStage,
            ),
            Binding::Nested(first, second) => (
                self.nested(first, second, updates)?,
                TranslationType::Nested,
            ),
        };
        // Section 7.1.3, SGN.8: pass-through tells a device as much, and blocks what it does with
        // that.
        let asks = matches!(self.kind, RequestKind::TranslationRequest { .. });
        let told = asks && translated_by == TranslationType::PassThrough;
        if is_interrupt_range(found.address) && !told {
            return Err(if self.resolved.legacy {
                FaultReason::InterruptRange
            } else {
                FaultReason::ScalableInterruptRange
            });
        }
        let translation = Translation {
            address: found.address,
            page_shift: block_shift(found.page_shift, &[self.address, found.address]),
            readable: found.readable,
            writable: found.writable,
            dirty: found.dirty,
            force_snoop: found.snoop || self.resolved.snooped_pages,
            untranslated_only: false,
            translated_by: Some(translated_by),
            domain: self.resolved.domain,
        };
        Ok((translation, found.trail))
    }

    fn pass_through(&self) -> Result<Found, FaultReason> {
        let gates = self.tables.gates();
        let within = match self.kind {
            RequestKind::Translated => gates.within_host(self.address),
            _ => gates.within_pass_through(self.address),
        };
        if !within {
            return Err(if self.resolved.legacy {
                FaultReason::AddressBeyondWidth
            } else {
                FaultReason::BeyondHostWidth
            });
        }
        Ok(Found {
            address: self.address,
            page_shift: PASS_THROUGH_SHIFT.min(gates.host_address_width),
            readable: true,
            writable: true,
            dirty: true,
            snoop: false,
            trail: Trail::default(),
        })
    }

    fn second_stage(
        &self,
        stage: &SecondStage,
        updates: &mut Updates,
    ) -> Result<Found, FaultReason> {
        let (gates, demand) = (self.tables.gates(), self.demand);
        let legacy = self.resolved.legacy;
        let mode = if legacy {
            Mode::Legacy(demand)
        } else {
            Mode::Scalable
        };
        if self.address >> gates.second_stage_width(stage.levels) != 0 {
            return Err(mode.beyond());
        }
        let mut leaf = second_stage::walk(self.tables, stage, mode, self.address, updates)?;
        if !legacy {
            demand.check(gates, leaf.read, leaf.write)?;
        }
        if demand.dirties(leaf.write) {
            second_stage::mark_dirty(stage, &mut leaf, updates)?;
        }
        Ok(Found {
            address: leaf.address,
            page_shift: leaf.page_shift,
            readable: leaf.read,
            writable: leaf.write,
            dirty: leaf.dirty,
            snoop: leaf.snoop,
            trail: Trail {
                input: Some(leaf.upper()),
                below: None,
            },
        })
    }

    fn first_stage(&self, stage: &FirstStage, updates: &mut Updates) -> Result<Found, FaultReason> {
        let walk = first_stage::Walk {
            tables: self.tables,
            stage,
            below: None,
        };
        let mut leaf = self.walk_first(&walk, updates)?;
        let writable = stage.writes(leaf.write, self.resolved.privileged);
        self.demand.check(self.tables.gates(), true, writable)?;
        walk.mark(&mut leaf, self.demand.dirties(writable), updates)?;
        Ok(Found {
            address: leaf.address,
            page_shift: leaf.page_shift,
            readable: true,
            writable,
            dirty: leaf.dirty,
            snoop: false,
            trail: Trail {
                input: Some(leaf.upper(writable && leaf.dirty)),
                below: None,
            },
        })
    }

    fn nested(
        &self,
        first: &FirstStage,
        second: &SecondStage,
        updates: &mut Updates,
    ) -> Result<Found, FaultReason> {
        let walk = first_stage::Walk {
            tables: self.tables,
            stage: first,
            below: Some(second),
        };
        let mut leaf = self.walk_first(&walk, updates)?;
        let mode = Mode::Scalable;
        let mut page = second_stage::walk(self.tables, second, mode, leaf.address, updates)?;
        let first_writable = first.writes(leaf.write, self.resolved.privileged);
        let writable = first_writable && page.write;
        self.demand
            .check(self.tables.gates(), page.read, writable)?;
        let dirties = self.demand.dirties(writable);
        if dirties {
            second_stage::mark_dirty(second, &mut page, updates)?;
        }
        walk.mark(&mut leaf, dirties, updates)?;
        Ok(Found {
            address: page.address,
            page_shift: leaf.page_shift.min(page.page_shift),
            readable: page.read,
            writable,
            dirty: leaf.dirty && page.dirty,
            snoop: page.snoop,
            trail: Trail {
                input: Some(leaf.upper(first_writable && leaf.dirty)),
                below: Some((leaf.address, page.upper())),
            },
        })
    }

    fn walk_first(
        &self,
        walk: &first_stage::Walk<'_, T, C>,
        updates: &mut Updates,
    ) -> Result<first_stage::Leaf, FaultReason> {
        if !is_canonical(self.address, walk.stage.levels) {
            return Err(FaultReason::NotCanonical);
        }
        let leaf = walk.run(self.address, updates)?;
        if !self.resolved.privileged && !leaf.user {
            return Err(FaultReason::UserDenied);
        }
        Ok(leaf)
    }
}

/// Whether bits 63 to the top bit of the input width are all equal.
const fn is_canonical(address: u64, levels: u8) -> bool {
    let top = 12 + 9 * levels - 1;
    let extension = address >> top;
    extension == 0 || extension == u64::MAX >> top
}
