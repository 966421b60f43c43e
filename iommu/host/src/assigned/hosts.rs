//! The iommufds of a machine, with what they share.

use std::sync::Arc;

use super::device::Device;
use super::error::AddError;
use super::host::Host;
use super::moves::Moves;
use super::report::DeviceReport;
use crate::host_iommu::HostIommu;
use crate::ioas::Ioas;
use crate::resources::{Exit, Resources};
use crate::shadow::Shadow;
use crate::shadow::named::Named;
use intel_vtd::{GuestTables, Invalidation, Patience, SourceId, TableMemory, Unfinished};

/// The iommufds that have devices.
pub(crate) struct Hosts {
    pub(super) resources: Resources,
    list: Vec<Host>,
    /// What the guest invalidates: memory that is used for each update.
    named: Named,
    /// Of iommufds that have no devices any more.
    unused: Vec<Ioas>,
    /// There is a thread that tries again what was not possible during a reset.
    pub(super) is_retrying: bool,
}

fn is_same(one: &Arc<dyn HostIommu>, other: &Arc<dyn HostIommu>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(one), Arc::as_ptr(other))
}

impl Hosts {
    pub(super) fn new(resources: Resources) -> Self {
        Self {
            resources,
            list: Vec::new(),
            named: Named::default(),
            unused: Vec::new(),
            is_retrying: false,
        }
    }

    /// Another exit of the guest begins.
    pub(super) fn begin_exit(&mut self) {
        self.resources.begin_exit();
        self.list.iter_mut().for_each(Host::begin_exit);
    }

    /// Brings everything up to date that `invalidations` name.
    ///
    /// What is to be reached no more goes first, then shadows follow the guest's tables, then the
    /// host forgets what it keeps of first-stage tables, then devices are put behind others. So a
    /// device is attached to what is complete, and only what nobody uses any more is torn down.
    ///
    /// # Errors
    /// It was more than `patience` is for, and is to be done again.
    pub(super) fn update<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
        invalidations: &[Invalidation],
        patience: &Patience,
    ) -> Result<(), Unfinished> {
        self.resources.begin_update();
        self.resources.exit.budget.begin_call(patience);
        let mut moves = Vec::new();
        let outcome = self.follow(tables, invalidations, &mut moves);
        if outcome.is_err() {
            for (host, moves) in self.list.iter_mut().zip(&moves) {
                host.remember(moves);
            }
        }
        self.resources.exit.budget.end_call(outcome);
        outcome
    }

    fn follow<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
        invalidations: &[Invalidation],
        moves: &mut Vec<Vec<Moves>>,
    ) -> Result<(), Unfinished> {
        let Self {
            resources,
            list,
            named,
            ..
        } = self;
        let has_entries = invalidations.iter().any(|invalidation| {
            matches!(
                invalidation,
                Invalidation::All | Invalidation::Context(_) | Invalidation::PasidCache(_)
            )
        });
        if has_entries {
            moves.resize_with(list.len(), Vec::new);
            for (host, moves) in list.iter_mut().zip(moves.iter_mut()) {
                host.find_moves(tables, invalidations, moves, resources)?;
            }
        }
        for (at, host) in list.iter_mut().enumerate() {
            let moves = moves.get_mut(at).map_or(&mut [][..], Vec::as_mut_slice);
            host.block_moves(moves, resources)?;
        }
        // Without any, there is no list of them.
        let of_host = |at: usize| moves.get(at).map_or(&[][..], Vec::as_slice);
        named.fill(invalidations);
        for (at, host) in list.iter_mut().enumerate() {
            host.refresh(tables, named, of_host(at), resources)?;
        }
        for (at, host) in list.iter_mut().enumerate() {
            host.invalidate_nested(invalidations, of_host(at), resources)?;
        }
        for (at, host) in list.iter_mut().enumerate() {
            host.carry_out(Some(tables), of_host(at), resources)?;
        }
        if has_entries {
            resources.sweep();
        }
        for host in list {
            host.sweep(resources)?;
            if has_entries {
                host.forget();
            }
            #[cfg(test)]
            host.check();
        }
        Ok(())
    }

    /// Whether `source` is free, and whether `iommu` has devices.
    ///
    /// # Errors
    /// It is not free for a device of this `name`.
    pub(super) fn check_new(
        &self,
        name: &str,
        source: SourceId,
        iommu: &Arc<dyn HostIommu>,
    ) -> Result<bool, AddError> {
        match self.device(source) {
            None => Ok(self.list.iter().any(|host| is_same(&host.iommu, iommu))),
            Some(other) => Err(AddError::SourceTaken {
                name: name.to_owned(),
                source_id: source,
                other: Arc::clone(&other.name),
            }),
        }
    }

    /// Puts a device of `iommu` where the guest's tables say, and adds it. The first of an iommufd
    /// comes with the `memory` there.
    pub(super) fn add<T: TableMemory>(
        &mut self,
        tables: Option<&GuestTables<'_, T>>,
        device: Device,
        iommu: &Arc<dyn HostIommu>,
        memory: Option<Ioas>,
    ) -> Result<(), AddError> {
        let Self {
            resources, list, ..
        } = self;
        resources.begin_update();
        list.extend(memory.map(|memory| Host::new(memory, resources)));
        let mut hosts = list.iter_mut();
        let outcome = match hosts.find(|host| is_same(&host.iommu, iommu)) {
            Some(host) => host.add(tables, device, resources),
            None => Ok(()),
        };
        self.close_unused();
        outcome
    }

    /// Takes a device away, and what nobody uses any more. Returns whether there was one.
    pub(super) fn remove<T: TableMemory>(
        &mut self,
        tables: Option<&GuestTables<'_, T>>,
        source: SourceId,
    ) -> bool {
        let Self {
            resources, list, ..
        } = self;
        resources.begin_update();
        let mut hosts = list.iter_mut();
        let is_removed = hosts.any(|host| host.remove(tables, source, resources));
        self.close_unused();
        is_removed
    }

    fn close_unused(&mut self) {
        let Self {
            resources,
            list,
            unused,
            ..
        } = self;
        let closed = list.extract_if(.., |host| host.devices.is_empty());
        unused.extend(closed.map(|host| host.backing.close(resources)));
    }

    /// Tries again what was not possible while the host was resetting a device. Returns whether
    /// some requests still wait.
    pub(super) fn retry<T: TableMemory>(&mut self, tables: Option<&GuestTables<'_, T>>) -> bool {
        let Self {
            resources, list, ..
        } = self;
        resources.begin_update();
        let is_waiting = |host: &mut Host| host.retry(tables, resources);
        let waiting = list.iter_mut().map(is_waiting);
        let waiting = waiting.fold(false, |any, is_waiting| any | is_waiting);
        resources.has_waiting = waiting;
        waiting
    }

    /// What is to be given back, under no lock.
    pub(super) fn take_unused(&mut self) -> Vec<Ioas> {
        std::mem::take(&mut self.unused)
    }

    /// The device with this source id.
    pub(super) fn device(&self, source: SourceId) -> Option<&Device> {
        let mut devices = self.list.iter().flat_map(|host| &host.devices);
        devices.find(|device| device.source == source)
    }

    /// Where each device is, in the order of their source ids.
    pub(super) fn reports(&self) -> Vec<DeviceReport> {
        let mut reports: Vec<_> = self.list.iter().flat_map(Host::reports).collect();
        reports.sort_unstable_by_key(|report| report.source);
        reports
    }

    /// How many nested HWPTs there are.
    pub(super) fn nested(&self) -> usize {
        let hosts = self.list.iter();
        hosts.map(|host| host.backing.nested.len()).sum()
    }

    /// The address spaces that map all guest memory.
    pub(super) fn memories(&self) -> impl Iterator<Item = &Ioas> {
        self.list.iter().map(|host| &host.backing.memory)
    }

    /// Has shadows map what the guest's tables map to RAM, which is another one now: what is RAM no more is in
    /// none of them when this returns. It is no exit of the guest.
    pub(super) fn ram_has_changed<T: TableMemory>(&mut self, tables: &GuestTables<'_, T>) {
        let number = self.resources.exit.number.wrapping_add(1);
        let next = Exit::new(number, &self.resources.limits);
        let mut of_guest = std::mem::replace(&mut self.resources.exit, next);
        of_guest.number = number;
        let patience = Patience::endless();
        // Nobody is as patient, so it is done at once.
        while self
            .update(tables, &[Invalidation::All], &patience)
            .is_err()
        {}
        self.resources.exit = of_guest;
    }

    /// Every IOAS in use, and the shadow that it is of.
    pub(super) fn ioases(&self) -> impl Iterator<Item = (&Ioas, Option<&Shadow>)> {
        self.list.iter().flat_map(|host| host.backing.ioases())
    }
}
