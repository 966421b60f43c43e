//! Which requests do not belong where they are any more.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::State;
use crate::assigned::device::Place;
use crate::assigned::pasids::{self, Asked};
use crate::assigned::target::Target;
use crate::blocked::Blocked;
use crate::budget::{Budget, Exhausted};
use intel_vtd::{GuestTables, Invalidation, Pasid, TableMemory};

/// Where requests are to go.
pub(super) type Moves = BTreeMap<Place, Target>;

impl State {
    /// Compares where requests are with what the guest's tables say, for all entries that `invalidations` name.
    pub(super) fn moves<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
        invalidations: &[Invalidation],
    ) -> Moves {
        let mut moves = Moves::new();
        for index in 0..self.devices.len() {
            let Some(device) = self.devices.get(index) else {
                continue;
            };
            let target = Target::of(Some(tables), device.source, None);
            if !device.stays(None, &target, self.run) {
                let place = Place {
                    device: index,
                    pasid: None,
                };
                moves.insert(place, target);
            }
            if device.has_pasids {
                let asked = Asked::by(invalidations, device.source);
                self.moves_of_pasids(tables, index, &asked, &mut moves);
            }
        }
        moves
    }

    /// As [`moves`](Self::moves), for the PASIDs of the device at `index`.
    pub(super) fn moves_of_pasids<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
        index: usize,
        asked: &Asked,
        moves: &mut Moves,
    ) {
        let run = self.run;
        let Some(device) = self.devices.get(index) else {
            return;
        };
        let mut budget = self.pasid_budget;
        let mut is_complete = true;
        let limit = self.common.limits.pasids;
        let mut room = limit.saturating_sub(device.pasids().len());
        // Whether one that is not known is to be bound.
        let mut look = |pasid: Pasid, budget: &mut Budget| {
            let is_known = device.binding(Some(pasid)).is_some();
            let target = match budget.step() {
                Ok(()) => Target::of(Some(tables), device.source, Some(pasid)),
                // What is not known to be so reaches nothing.
                Err(Exhausted) if is_known => Target::Blocked(Blocked::TooMuchWork),
                Err(Exhausted) => return Err(Exhausted),
            };
            let is_new = !is_known && !matches!(target, Target::Blocked(_));
            if !device.stays(Some(pasid), &target, run) {
                room += usize::from(matches!(target, Target::Blocked(Blocked::Guest(_))));
                let place = Place {
                    device: index,
                    pasid: Some(pasid),
                };
                moves.insert(place, target);
            }
            let fits = room > 0;
            room = room.saturating_sub(usize::from(is_new));
            // One more than there is room for is enough to know that.
            Ok(if is_new && !fits {
                ControlFlow::Break(Ok(()))
            } else {
                ControlFlow::Continue(())
            })
        };
        if asked.known {
            for pasid in device.pasids() {
                is_complete &= look(pasid, &mut budget).is_ok();
            }
        }
        for pasid in &asked.named {
            is_complete &= look(*pasid, &mut budget).is_ok();
        }
        if asked.all {
            let outcome = pasids::scan(tables, device.source, &mut budget, |pasid, budget| {
                if device.binding(Some(pasid)).is_some() {
                    return ControlFlow::Continue(());
                }
                look(pasid, budget).unwrap_or_else(|error| ControlFlow::Break(Err(error)))
            });
            is_complete &= outcome.is_ok();
        }
        let name = device.name.clone();
        self.pasid_budget = budget;
        if !is_complete {
            self.common.report(|| {
                format!(
                    "{name}: the guest's PASID tables are too large to be read within one exit; PASIDs that were not found are \
                     blocked"
                )
            });
        }
    }
}
