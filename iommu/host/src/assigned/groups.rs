//! IOMMU groups: devices that the host's IOMMU cannot keep apart are placed together, or not at all.
//!
//! iommufd has one page table for each (group, PASID). To replace it for one device is to replace
//! it for all, and what one is detached from, its requests go on to reach while another one is
//! attached. So where the guest wants all of them behind the same, all are put there, one after the
//! other, from a clean state. Where it does not, all are detached, and so is the hardware then.

use std::collections::{BTreeMap, BTreeSet};

use super::device::Device;
use super::moves::Moves;
use super::placement::Placement;
use crate::blocked::Blocked;
use crate::budget::Spent;
use crate::host_iommu::HostGroupId;
use crate::resources::Resources;
use intel_vtd::{GuestTables, Pasid, TableMemory, Unfinished};

/// Devices that have their group in common, by their places in the list.
type Members = Vec<usize>;

/// What the guest wants for requests with one PASID, or without, of each member that can make such.
type Wanted = Vec<(usize, Placement)>;

/// Makes of `moves` what can be done for whole groups: of requests without PASID, and with each
/// PASID of which any member has a move.
///
/// # Errors
/// It was interrupted.
pub(super) fn unite<T: TableMemory>(
    tables: Option<&GuestTables<'_, T>>,
    devices: &mut [Device],
    moves: &mut [Moves],
    resources: &mut Resources,
) -> Result<(), Unfinished> {
    for members in shared(devices) {
        let of_members = members.iter().filter_map(|at| moves.get(*at));
        let mut pasids: BTreeSet<_> = of_members.flat_map(|moves| moves.keys().copied()).collect();
        pasids.insert(None);
        for pasid in pasids {
            let wanted = wanted(tables, devices, &members, pasid, resources)?;
            let decided = decide(devices, &wanted, pasid, resources);
            for (at, placement) in decided {
                set_move(devices, moves, at, pasid, placement, resources);
            }
        }
    }
    Ok(())
}

/// After moves: where some member was not put where it belongs, no other one stays there.
pub(super) fn settle(devices: &mut [Device], resources: &mut Resources) {
    for members in shared(devices) {
        let of_members = members.iter().filter_map(|at| devices.get(*at));
        let pasids: BTreeSet<_> = of_members
            .flat_map(|device| device.placements().map(|(pasid, _)| pasid))
            .collect();
        for pasid in pasids {
            let of_members = members.iter().filter_map(|at| devices.get(*at));
            let mut blocked = of_members
                .filter(|device| device.can_have(pasid))
                .filter(|device| !device.is_placed(pasid));
            let Some(other) = blocked.next().map(|device| device.source) else {
                continue;
            };
            for at in &members {
                if let Some(device) = devices.get_mut(*at)
                    && device.is_placed(pasid)
                {
                    device.block(pasid, Blocked::GroupFailed(other), resources);
                }
            }
        }
    }
}

/// `device` is to be one of `devices`. Members that need other page tables because of it are
/// detached, and so are all of them where iommufd has to begin anew.
pub(super) fn join(devices: &mut [Device], device: &mut Device, resources: &mut Resources) {
    let others = || devices.iter().filter(|other| other.group == device.group);
    let has_others = others().next().is_some();
    let pasids = device.has_pasids || others().any(|other| other.has_pasids);
    device.share(has_others, pasids);
    for other in devices {
        if other.group == device.group && other.share(true, pasids) {
            other.lift_all(resources);
        }
    }
}

/// One of the members of `group` is no more; `devices` are left. Tells whether there are others.
pub(super) fn leave(devices: &mut [Device], group: HostGroupId) -> bool {
    let mut others: Vec<_> = devices
        .iter_mut()
        .filter(|device| device.group == group)
        .collect();
    let pasids = others.iter().any(|device| device.has_pasids);
    if let [last] = others.as_mut_slice() {
        last.share(false, pasids);
    }
    !others.is_empty()
}

/// The groups of which there are several devices.
fn shared(devices: &[Device]) -> Vec<Members> {
    let mut groups: BTreeMap<HostGroupId, Members> = BTreeMap::new();
    for (at, device) in devices.iter().enumerate() {
        if device.is_sharing() {
            groups.entry(device.group).or_default().push(at);
        }
    }
    groups.into_values().collect()
}

fn wanted<T: TableMemory>(
    tables: Option<&GuestTables<'_, T>>,
    devices: &[Device],
    members: &[usize],
    pasid: Option<Pasid>,
    resources: &mut Resources,
) -> Result<Wanted, Unfinished> {
    let members = members
        .iter()
        .filter_map(|at| Some((*at, devices.get(*at)?)));
    let members = members.filter(|(_, device)| device.can_have(pasid));
    let wanted = members.map(|(at, device)| {
        // Of requests without PASID all are looked at, whatever the guest named.
        let budget = &mut resources.exit.budget;
        let step = pasid.map_or(Ok(()), |_| budget.pasid_step());
        let placement = match step {
            Ok(()) => device.wanted(tables, pasid),
            Err(Spent::Exhausted) => Placement::Blocked(Blocked::TooMuchWork),
            Err(Spent::Interrupted) => return Err(Unfinished),
        };
        Ok((at, placement))
    });
    wanted.collect()
}

/// Where the requests go that are `wanted` somewhere.
fn decide(
    devices: &mut [Device],
    wanted: &Wanted,
    pasid: Option<Pasid>,
    resources: &mut Resources,
) -> Wanted {
    let Some((_, first)) = wanted.first() else {
        return Vec::new();
    };
    let is_blocked = |placement: &Placement| matches!(placement, Placement::Blocked(_));
    if wanted.iter().all(|(_, placement)| is_blocked(placement)) {
        return wanted.clone();
    }
    if !wanted
        .iter()
        .all(|(_, placement)| placement.has_table_of(first))
    {
        return part(devices, wanted, pasid, resources);
    }
    let exit = resources.exit.number;
    let members = || wanted.iter().filter_map(|(at, _)| devices.get(*at));
    if members().any(|device| device.has_failed(pasid, exit)) {
        // All are blocked, until the next exit.
        return Vec::new();
    }
    let is_there = |device: &Device| {
        let placement = device.placement(pasid);
        placement.is_some_and(|placement| placement.has_table_of(first))
    };
    if !members().all(is_there) {
        for (at, _) in wanted {
            if let Some(device) = devices.get_mut(*at) {
                device.lift(pasid, resources);
            }
        }
    }
    wanted.clone()
}

/// Blocks all, as they do not belong to the same place.
fn part(
    devices: &mut [Device],
    wanted: &Wanted,
    pasid: Option<Pasid>,
    resources: &mut Resources,
) -> Wanted {
    let mut decided = Wanted::new();
    let mut is_new = false;
    for (at, placement) in wanted {
        let other = wanted
            .iter()
            .find(|(_, other)| !other.has_table_of(placement));
        let other = other.and_then(|(other, _)| devices.get(*other));
        let other = other.map(|other| other.source);
        let (Some(other), Some(device)) = (other, devices.get_mut(*at)) else {
            continue;
        };
        let mut decision = *placement;
        if !matches!(placement, Placement::Blocked(_)) {
            decision = Placement::Blocked(Blocked::GroupApart(other));
            // Without room for it, it is blocked all the same.
            let _ = device.open(pasid, resources.limits.pasids);
            is_new |= device.belongs(pasid, *placement);
        }
        decided.push((*at, decision));
    }
    if is_new {
        resources.report(|| describe(devices, wanted, pasid));
    }
    decided
}

fn describe(devices: &[Device], wanted: &Wanted, pasid: Option<Pasid>) -> String {
    let members = wanted.iter().filter_map(|(at, placement)| {
        let device = devices.get(*at)?;
        Some((device, format!("{}: {placement}", device.describe(pasid))))
    });
    let (members, places): (Vec<_>, Vec<_>) = members.unzip();
    let group = members.first().map_or(0, |device| device.group.0);
    format!(
        "IOMMU group {group} of the host has one page table for all of its devices, and the guest wants them in different \
         places, so all of them are blocked; put them into one domain of the guest, or assign one only ({})",
        places.join("; ")
    )
}

/// Requests go to `placement`, unless they are there.
fn set_move(
    devices: &[Device],
    moves: &mut [Moves],
    at: usize,
    pasid: Option<Pasid>,
    placement: Placement,
    resources: &Resources,
) {
    let (Some(device), Some(moves)) = (devices.get(at), moves.get_mut(at)) else {
        return;
    };
    if device.stays(pasid, &placement, resources.exit.number) {
        moves.remove(&pasid);
    } else {
        moves.insert(pasid, placement);
    }
}
