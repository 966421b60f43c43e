//! Moves: requests of a device that do not belong where they are any more.

use std::collections::BTreeMap;

use super::device::Device;
use super::pasids::{Asked, Candidates};
use super::placement::Placement;
use crate::blocked::Blocked;
use crate::budget::Spent;
use crate::resources::Resources;
use intel_vtd::spec::descriptors::{ContextScope, PasidCacheScope};
use intel_vtd::{GuestTables, Invalidation, Pasid, SourceId, TableMemory, Unfinished};

/// Where requests of a device are to go, by PASID.
pub(super) type Moves = BTreeMap<Option<Pasid>, Placement>;

/// Compares where requests are with what the guest's tables say, for all entries that
/// `invalidations` name.
///
/// # Errors
/// It was interrupted.
pub(super) fn of_device<T: TableMemory>(
    tables: &GuestTables<'_, T>,
    device: &Device,
    invalidations: &[Invalidation],
    resources: &mut Resources,
) -> Result<Moves, Unfinished> {
    let mut moves = Moves::new();
    let wanted = device.wanted(Some(tables), None);
    if !device.stays(None, &wanted, resources.exit.number)
        && (!device.is_over_limit(None) || names(invalidations, device.source, &wanted))
    {
        moves.insert(None, wanted);
    }
    if device.has_pasids {
        of_pasids(tables, device, invalidations, &mut moves, resources)?;
    }
    Ok(moves)
}

/// Whether the guest has named the entry of requests that are looked at, which are `wanted` there:
/// by a PASID, it names it together with the domain id.
fn names(invalidations: &[Invalidation], source: SourceId, wanted: &Placement) -> bool {
    let is_domain = |domain: u16| domain == 0 || Some(domain) == wanted.domain();
    invalidations
        .iter()
        .any(|invalidation| match *invalidation {
            Invalidation::All | Invalidation::PasidCache(PasidCacheScope::Global) => true,
            Invalidation::Context(ContextScope::Domain(domain))
            | Invalidation::PasidCache(
                PasidCacheScope::Domain(domain) | PasidCacheScope::Pasid(domain, _),
            ) => is_domain(domain),
            Invalidation::Context(scope) => scope.concerns(source),
            Invalidation::Iotlb(_)
            | Invalidation::PasidIotlb { .. }
            | Invalidation::DeviceTlb { .. } => false,
        })
}

/// Where all requests go of a device, wherever they are. Nobody interrupts that.
pub(super) fn of_all<T: TableMemory>(
    tables: Option<&GuestTables<'_, T>>,
    device: &Device,
    resources: &mut Resources,
) -> Moves {
    let wanted = device.wanted(tables, None);
    let mut moves = Moves::from([(None, wanted)]);
    if let Some(tables) = tables
        && device.has_pasids
    {
        let _ = of_pasids(tables, device, &[Invalidation::All], &mut moves, resources);
    }
    moves
}

fn of_pasids<T: TableMemory>(
    tables: &GuestTables<'_, T>,
    device: &Device,
    invalidations: &[Invalidation],
    moves: &mut Moves,
    resources: &mut Resources,
) -> Result<(), Unfinished> {
    let mut asked = Asked::by(invalidations, device.source);
    asked.named.extend_from_slice(&device.unfinished);
    let budget = &mut resources.exit.budget;
    let mut room = Room::beside(device.pasids().len(), resources.limits.pasids);
    let mut is_complete = true;
    // What is looked through now finds what there was no room for before.
    let mut has_more = !asked.all && device.has_more.get();
    let mut candidates = Candidates::new(tables, device.source, &asked, device.pasids());
    loop {
        let pasid = match candidates.next(budget) {
            Some(Ok(pasid)) => pasid,
            Some(Err(Spent::Exhausted)) => {
                is_complete = false;
                break;
            }
            Some(Err(Spent::Interrupted)) => return Err(Unfinished),
            // Others have gone, and made room.
            None if has_more && room.is_left() && candidates.go_on() => {
                has_more = false;
                continue;
            }
            None => break,
        };
        let is_known = device.placement(Some(pasid)).is_some();
        if candidates.is_scanning() && (is_known || moves.contains_key(&Some(pasid))) {
            continue;
        }
        let wanted = match budget.pasid_step() {
            Ok(()) => device.wanted(Some(tables), Some(pasid)),
            // What is not known to be so reaches nothing.
            Err(Spent::Interrupted) => return Err(Unfinished),
            Err(Spent::Exhausted) if is_known => Placement::Blocked(Blocked::TooMuchWork),
            Err(Spent::Exhausted) => {
                is_complete = false;
                continue;
            }
        };
        if device.is_over_limit(Some(pasid)) && !names(invalidations, device.source, &wanted) {
            continue;
        }
        if !device.stays(Some(pasid), &wanted, resources.exit.number) {
            room.leaves(&wanted);
            moves.insert(Some(pasid), wanted);
        }
        let is_new = !is_known && !matches!(wanted, Placement::Blocked(_));
        // One more than there is room for is enough to know that.
        if is_new && !room.take() {
            has_more = true;
            if candidates.is_scanning() {
                break;
            }
        }
    }
    device.has_more.set(has_more || !is_complete);
    if !is_complete {
        resources.report(|| {
            format!(
                "{}: the guest's PASID tables are too large to be read within one exit; PASIDs that were not found are blocked",
                device.name
            )
        });
    }
    Ok(())
}

/// PASIDs for which there is room.
struct Room(usize);

impl Room {
    /// Beside `known` ones, if there may be `limit`.
    const fn beside(known: usize, limit: usize) -> Self {
        Self(limit.saturating_sub(known))
    }

    /// One goes there; if it is blocked as the guest wants, it takes no room any more.
    fn leaves(&mut self, wanted: &Placement) {
        self.0 += usize::from(matches!(wanted, Placement::Blocked(Blocked::Guest(_))));
    }

    const fn is_left(&self) -> bool {
        self.0 != 0
    }

    /// Takes room for one more, if there is some.
    fn take(&mut self) -> bool {
        let left = self.0.checked_sub(1);
        self.0 = left.unwrap_or(0);
        left.is_some()
    }
}
