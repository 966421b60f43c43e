//! One iommufd: its devices, what they are put behind, and how both follow the guest's tables.

use std::sync::Arc;

use super::backing::{Backing, Failure};
use super::device::Device;
use super::error::AddError;
use super::groups;
use super::moves::{self, Moves};
use super::placement::Placement;
use super::report::DeviceReport;
use super::users::{Leaving, Users};
use crate::blocked::Blocked;
use crate::budget::CALL;
use crate::host_iommu::HostIommu;
use crate::ioas::Ioas;
use crate::resources::Resources;
use crate::shadow::named::Named;
use intel_vtd::{GuestTables, Invalidation, SourceId, TableMemory, Unfinished};

/// One iommufd with devices.
pub(crate) struct Host {
    pub(super) iommu: Arc<dyn HostIommu>,
    pub(super) devices: Vec<Device>,
    pub(super) backing: Backing,
    users: Users,
    /// Requests were put elsewhere since the last [`sweep`](Self::sweep).
    has_moved: bool,
}

impl Host {
    /// One without devices, that has `memory` to put them behind.
    pub(super) fn new(memory: Ioas, resources: &mut Resources) -> Self {
        Self {
            iommu: Arc::clone(&memory.host),
            devices: Vec::new(),
            backing: Backing::new(memory, resources),
            users: Users::default(),
            has_moved: false,
        }
    }

    pub(super) fn begin_exit(&mut self) {
        self.backing.nested.begin_exit();
    }

    /// Adds to `moves` which requests do not belong where they are any more, for each device. What
    /// could not be blocked before is tried again.
    ///
    /// # Errors
    /// It was interrupted, as all that returns this.
    pub(super) fn find_moves<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
        invalidations: &[Invalidation],
        moves: &mut Vec<Moves>,
        resources: &mut Resources,
    ) -> Result<(), Unfinished> {
        for device in &mut self.devices {
            device.unstick(resources);
            moves.push(moves::of_device(tables, device, invalidations, resources)?);
        }
        groups::unite(Some(tables), &mut self.devices, moves, resources)
    }

    /// The next call is to look at the PASIDs of `moves`, whatever is named then.
    pub(super) fn remember(&mut self, moves: &[Moves]) {
        for (device, moves) in self.devices.iter_mut().zip(moves) {
            device.unfinished.extend(moves.keys().flatten());
            device.unfinished.sort_unstable();
            device.unfinished.dedup();
        }
    }

    /// What an interruption had left is done.
    pub(super) fn forget(&mut self) {
        for device in &mut self.devices {
            device.unfinished.clear();
        }
    }

    /// Blocks what is to reach nothing, and takes it from `moves`.
    pub(super) fn block_moves(
        &mut self,
        moves: &mut [Moves],
        resources: &mut Resources,
    ) -> Result<(), Unfinished> {
        let mut outcome = Ok(());
        for (device, moves) in self.devices.iter_mut().zip(moves) {
            self.has_moved |= !moves.is_empty();
            outcome = outcome.and_then(|()| block(device, moves, resources));
        }
        if self.has_moved {
            self.users.follow(&mut self.devices);
        }
        outcome
    }

    /// Brings the shadows up to date that requests stay behind.
    pub(super) fn refresh<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
        named: &Named,
        moves: &[Moves],
        resources: &mut Resources,
    ) -> Result<(), Unfinished> {
        let leaving = Leaving::of(&self.devices, moves);
        let failures = self
            .backing
            .refresh(tables, named, &self.users, &leaving, resources);
        self.fail_all(&failures, resources)
    }

    /// Has the host forget what was invalidated of the tables that requests stay behind. If it does
    /// not, they are detached, and so what the guest asked for is true.
    pub(super) fn invalidate_nested(
        &mut self,
        invalidations: &[Invalidation],
        moves: &[Moves],
        resources: &mut Resources,
    ) -> Result<(), Unfinished> {
        if self.users.nested.is_empty() {
            return Ok(());
        }
        let leaving = Leaving::of(&self.devices, moves);
        let nested = &mut self.backing.nested;
        let failures = nested.invalidate(invalidations, &self.users, &leaving, resources);
        self.fail_all(&failures, resources)
    }

    /// Puts requests where they belong.
    pub(super) fn carry_out<T: TableMemory>(
        &mut self,
        tables: Option<&GuestTables<'_, T>>,
        moves: &[Moves],
        resources: &mut Resources,
    ) -> Result<(), Unfinished> {
        for (at, moves) in moves.iter().enumerate() {
            let (before, rest) = self.devices.split_at_mut(at);
            let Some((device, after)) = rest.split_first_mut() else {
                break;
            };
            let others = [before, after];
            put_all(&mut self.backing, tables, device, others, moves, resources)?;
        }
        if !moves.is_empty() {
            groups::settle(&mut self.devices, resources);
        }
        Ok(())
    }

    /// Gives back what no device uses, if any requests were put elsewhere.
    pub(super) fn sweep(&mut self, resources: &mut Resources) -> Result<(), Unfinished> {
        if self.has_moved {
            self.users.follow(&mut self.devices);
            self.backing.sweep(&mut self.users, resources)?;
            self.has_moved = false;
        }
        Ok(())
    }

    /// Puts a device where it belongs, with a budget of its own, and adds it.
    ///
    /// # Errors
    /// It belongs behind guest memory and does not get there, so it never will: the memory is
    /// there, and complete.
    pub(super) fn add<T: TableMemory>(
        &mut self,
        tables: Option<&GuestTables<'_, T>>,
        device: Device,
        resources: &mut Resources,
    ) -> Result<(), AddError> {
        let outcome = resources.apart(|resources| self.place_new(tables, device, resources));
        self.sweep_apart(resources);
        outcome
    }

    /// As [`add`](Self::add), in whatever exit this is.
    fn place_new<T: TableMemory>(
        &mut self,
        tables: Option<&GuestTables<'_, T>>,
        mut device: Device,
        resources: &mut Resources,
    ) -> Result<(), AddError> {
        groups::join(&mut self.devices, &mut device, resources);
        let moves = moves::of_all(tables, &device, resources);
        let wants_memory = moves.get(&None) == Some(&Placement::GuestPhysical);
        self.backing.nested.have_ats |= device.has_ats;
        self.devices.push(device);
        let mut all = vec![Moves::new(); self.devices.len()];
        if let Some(of_last) = all.last_mut() {
            *of_last = moves;
        }
        self.place(tables, all, resources);
        let is_in_vain = |device: &mut Device| match device.placement(None) {
            // What the guest wants for others of its group may change, and a reset ends.
            Some(Placement::Blocked(Blocked::GroupApart(_) | Blocked::Busy)) => None,
            Some(Placement::Blocked(why)) if wants_memory => Some(*why),
            _ => None,
        };
        let failed = self.devices.last_mut().and_then(is_in_vain);
        match failed.and_then(|why| Some((why, self.devices.pop()?))) {
            None => Ok(()),
            Some((why, device)) => {
                let name = device.name.to_string();
                self.release(tables, device, resources);
                Err(match why {
                    Blocked::Reserved => AddError::Reserved { name },
                    why => AddError::Attach { name, why },
                })
            }
        }
    }

    /// Takes a device away, and what nobody uses any more. Those that share its IOMMU group are put
    /// where they belong without it. Returns whether it was here.
    pub(super) fn remove<T: TableMemory>(
        &mut self,
        tables: Option<&GuestTables<'_, T>>,
        source: SourceId,
        resources: &mut Resources,
    ) -> bool {
        let mut devices = self.devices.iter();
        let Some(at) = devices.position(|device| device.source == source) else {
            return false;
        };
        let device = self.devices.swap_remove(at);
        resources.apart(|resources| self.release(tables, device, resources));
        self.sweep_apart(resources);
        true
    }

    /// As [`sweep`](Self::sweep), by someone whom nobody interrupts.
    fn sweep_apart(&mut self, resources: &mut Resources) {
        resources.sweep();
        let _ = self.sweep(resources);
    }

    /// Tries again what was not possible while the host was resetting a device. Returns whether
    /// some requests still wait.
    pub(super) fn retry<T: TableMemory>(
        &mut self,
        tables: Option<&GuestTables<'_, T>>,
        resources: &mut Resources,
    ) -> bool {
        let is_waiting = |device: &Device| device.waiting().next().is_some();
        if !self.devices.iter().any(is_waiting) {
            return false;
        }
        resources.apart(|resources| {
            let moves = self.devices.iter_mut().map(|device| {
                device.unstick(resources);
                let waiting = device.waiting();
                waiting
                    .map(|pasid| (pasid, device.wanted(tables, pasid)))
                    .collect::<Moves>()
            });
            let moves = moves.collect();
            self.place(tables, moves, resources);
        });
        self.sweep_apart(resources);
        self.devices.iter().any(is_waiting)
    }

    fn release<T: TableMemory>(
        &mut self,
        tables: Option<&GuestTables<'_, T>>,
        mut device: Device,
        resources: &mut Resources,
    ) {
        let pasids: Vec<_> = device.placements().map(|(pasid, _)| pasid).collect();
        device.release(resources);
        self.has_moved = true;
        self.users.forget(device.source, pasids.into_iter());
        if !groups::leave(&mut self.devices, device.group) {
            return;
        }
        let exit = resources.exit.number;
        let moves = self.devices.iter().map(|other| {
            if other.group != device.group {
                return Moves::new();
            }
            let mut moves = moves::of_all(tables, other, resources);
            moves.retain(|pasid, wanted| !other.stays(*pasid, wanted, exit));
            moves
        });
        let moves = moves.collect();
        self.place(tables, moves, resources);
    }

    /// Carries out what the guest did not ask for just now: `moves`, and what follows from them for
    /// groups.
    fn place<T: TableMemory>(
        &mut self,
        tables: Option<&GuestTables<'_, T>>,
        mut moves: Vec<Moves>,
        resources: &mut Resources,
    ) {
        // Nobody interrupts either.
        let _ = groups::unite(tables, &mut self.devices, &mut moves, resources);
        // It is not the guest who asks for these.
        let attached = moves.iter().filter(|moves| moves.contains_key(&None));
        let attached = u64::try_from(attached.count()).unwrap_or(u64::MAX);
        resources.exit.budget.add_attaches(attached);
        let _ = self.block_moves(&mut moves, resources);
        let _ = self.carry_out(tables, &moves, resources);
    }

    pub(super) fn reports(&self) -> impl Iterator<Item = DeviceReport> {
        let shadows = &self.backing.shadows;
        let devices = self.devices.iter();
        devices.map(|device| DeviceReport::new(device, shadows))
    }

    fn fail_all(
        &mut self,
        failures: &[Failure],
        resources: &mut Resources,
    ) -> Result<(), Unfinished> {
        let mut outcome = Ok(());
        for failure in failures {
            self.has_moved = true;
            let devices = self.devices.iter_mut();
            let failed = fail(&mut self.backing, failure, devices, resources);
            outcome = outcome.and(failed.map(|_| ()));
        }
        outcome
    }
}

/// Blocks what is to reach nothing, and takes it from `moves`.
fn block(
    device: &mut Device,
    moves: &mut Moves,
    resources: &mut Resources,
) -> Result<(), Unfinished> {
    let mut outcome = Ok(());
    moves.retain(|pasid, wanted| {
        let Placement::Blocked(why) = wanted else {
            return true;
        };
        outcome = outcome.and_then(|()| Ok(resources.exit.budget.owed(CALL)?));
        if outcome.is_ok() {
            device.block(*pasid, *why, resources);
        }
        outcome.is_err()
    });
    outcome
}

/// Puts requests of `device` where they belong, or blocks them; `others` are the other devices of
/// the iommufd.
fn put_all<T: TableMemory>(
    backing: &mut Backing,
    tables: Option<&GuestTables<'_, T>>,
    device: &mut Device,
    mut others: [&mut [Device]; 2],
    moves: &Moves,
    resources: &mut Resources,
) -> Result<(), Unfinished> {
    for (pasid, wanted) in moves {
        if let Err(failure) = backing.put(tables, device, *pasid, wanted, resources) {
            let others = others.iter_mut().flat_map(|others| others.iter_mut());
            let all = std::iter::once(&mut *device).chain(others);
            let why = fail(backing, &failure, all, resources)?;
            device.block(*pasid, why, resources);
        }
    }
    Ok(())
}

/// Blocks those of `devices` to whom a failure spreads, and gives back what is of no use any more.
fn fail<'a>(
    backing: &mut Backing,
    failure: &Failure,
    devices: impl Iterator<Item = &'a mut Device>,
    resources: &mut Resources,
) -> Result<Blocked, Unfinished> {
    let why = match *failure {
        Failure::Interrupted => return Err(Unfinished),
        Failure::Requests(why) => why,
        Failure::Shadow(key, why) => {
            for device in devices {
                device.block_those(why, resources, |placement, _| {
                    placement.shadow() == Some(key)
                });
            }
            backing.abandon(&key);
            why
        }
        Failure::Nested(id, why) => {
            for device in devices {
                let blocked = device.block_those(why, resources, |_, nested| nested == Some(id));
                resources.statistics.invalidation_detaches += blocked;
            }
            why
        }
    };
    Ok(why)
}

#[cfg(test)]
impl Host {
    /// Panics if it lost sight of some requests.
    pub(super) fn check(&self) {
        self.users.check(&self.devices);
    }
}
