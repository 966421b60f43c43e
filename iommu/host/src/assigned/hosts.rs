//! The iommufds of a machine, with what they share.

use std::sync::Arc;

use super::device::{AssignedDevice, Device};
use super::error::AddError;
use super::host::Host;
use super::moves::Moves;
use super::report::DeviceReport;
use crate::ioas::Ioas;
use crate::resources::Resources;
use crate::shadow::Shadow;
use crate::shadow::named::Named;
use intel_vtd::{GuestTables, Invalidation, SourceId, TableMemory};

/// The iommufds that have devices.
pub(crate) struct Hosts {
    pub(super) resources: Resources,
    list: Vec<Host>,
}

impl Hosts {
    pub(super) const fn new(resources: Resources) -> Self {
        Self {
            resources,
            list: Vec::new(),
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
    pub(super) fn update<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
        invalidations: &[Invalidation],
    ) {
        let Self { resources, list } = self;
        resources.begin_update();
        let has_entries = invalidations.iter().any(|invalidation| {
            matches!(
                invalidation,
                Invalidation::All | Invalidation::Context(_) | Invalidation::PasidCache(_)
            )
        });
        let mut moves: Vec<Vec<Moves>> = Vec::new();
        if has_entries {
            let found = list.iter_mut();
            let found = found.map(|host| host.find_moves(tables, invalidations, resources));
            moves = found.collect();
        }
        moves.resize_with(list.len(), Vec::new);
        for (host, moves) in list.iter_mut().zip(&mut moves) {
            host.block_moves(moves, resources);
        }
        let named = Named::by(invalidations);
        for (host, moves) in list.iter_mut().zip(&moves) {
            host.refresh(tables, &named, moves, resources);
        }
        for (host, moves) in list.iter_mut().zip(&moves) {
            host.invalidate_nested(invalidations, moves, resources);
        }
        for (host, moves) in list.iter_mut().zip(&moves) {
            host.carry_out(Some(tables), moves, resources);
        }
        if has_entries {
            resources.sweep();
        }
        for host in list {
            host.sweep(resources);
            #[cfg(test)]
            host.check();
        }
    }

    /// Puts a device where the guest's tables say, and adds it.
    pub(super) fn add<T: TableMemory>(
        &mut self,
        tables: Option<&GuestTables<'_, T>>,
        device: AssignedDevice,
    ) -> Result<(), AddError> {
        if let Some(other) = self.device(device.source) {
            return Err(AddError::SourceTaken {
                name: device.name,
                source_id: device.source,
                other: Arc::clone(&other.name),
            });
        }
        let iommu = Arc::clone(&device.host);
        let info = iommu
            .hardware_info(device.id)
            .map_err(|cause| AddError::Hardware {
                name: device.name.clone(),
                cause,
            })?;
        let device = Device::new(device, info);
        let Self { resources, list } = self;
        resources.begin_update();
        let known = list
            .iter_mut()
            .find(|host| std::ptr::addr_eq(Arc::as_ptr(&host.iommu), Arc::as_ptr(&iommu)));
        if let Some(host) = known {
            return host.add(tables, device, resources);
        }
        let mut host = Host::new(iommu, &device, resources)?;
        let outcome = host.add(tables, device, resources);
        match outcome {
            Ok(()) => list.push(host),
            Err(_) => host.backing.destroy(resources),
        }
        outcome
    }

    /// Takes a device away, and what nobody uses any more. Returns whether there was one.
    pub(super) fn remove<T: TableMemory>(
        &mut self,
        tables: Option<&GuestTables<'_, T>>,
        source: SourceId,
    ) -> bool {
        let Self { resources, list } = self;
        let mut hosts = list.iter_mut();
        let is_removed = hosts.any(|host| host.remove(tables, source, resources));
        for unused in list.extract_if(.., |host| host.devices.is_empty()) {
            unused.backing.destroy(resources);
        }
        is_removed
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

    /// Every IOAS in use, and the shadow that it is of.
    pub(super) fn ioases(&self) -> impl Iterator<Item = (&Ioas, Option<&Shadow>)> {
        self.list.iter().flat_map(|host| host.backing.ioases())
    }
}
