//! IOMMU groups of the fake, with what their devices are attached to, as `iommufd/device.c` has it:
//! one page table for each (group, PASID).

use std::collections::{BTreeMap, BTreeSet};

use super::errno::{EADDRINUSE, EBUSY, EINVAL, ENODEV, ENOENT};
use super::{FakeFeatures, FakeState};
use crate::host_iommu::{HostDeviceId, HostGroupId, HwptId};
use intel_vtd::Pasid;

/// A group: what its requests are behind, by PASID.
#[derive(Default)]
pub(super) struct FakeGroup(BTreeMap<Option<Pasid>, Attached>);

struct Attached {
    /// The devices that were attached one by one.
    devices: BTreeSet<HostDeviceId>,
    /// What iommufd takes all of them to be behind.
    believed: HwptId,
    /// What all devices of the group are behind.
    actual: Option<HwptId>,
}

impl FakeGroup {
    pub(super) fn believes_in(&self, table: HwptId) -> bool {
        self.0.values().any(|attached| attached.believed == table)
    }

    /// The devices that are attached without PASID to what `is_meant`.
    pub(super) fn behind(
        &self,
        is_meant: impl Fn(HwptId) -> bool,
    ) -> impl Iterator<Item = HostDeviceId> {
        let attached = self.0.get(&None);
        let attached = attached.filter(|attached| is_meant(attached.believed));
        attached
            .into_iter()
            .flat_map(|attached| attached.devices.iter().copied())
    }

    /// The PASIDs that `device` is attached with.
    pub(super) fn pasids_of(&self, device: HostDeviceId) -> Vec<Pasid> {
        let attached = self.0.iter();
        let attached = attached.filter(|(_, attached)| attached.devices.contains(&device));
        attached.filter_map(|(pasid, _)| *pasid).collect()
    }
}

impl FakeState {
    fn group_of(&mut self, device: HostDeviceId) -> Result<&mut FakeGroup, i32> {
        let group = self.devices.get(&device).ok_or(ENOENT)?.group;
        self.groups.get_mut(&group).ok_or(ENOENT)
    }

    /// What requests of `device` are behind. It makes none with PASIDs that it has not.
    pub(super) fn actual(&self, device: HostDeviceId, pasid: Option<Pasid>) -> Option<HwptId> {
        let device = self.devices.get(&device)?;
        let bits = u32::from(device.features.pasid_bits);
        if pasid.is_some_and(|pasid| pasid.get() >> bits != 0) {
            return None;
        }
        self.groups.get(&device.group)?.0.get(&pasid)?.actual
    }

    /// What the kernel finds out about PASIDs before it touches anything; `Ok(false)` if it then
    /// does nothing, and says nothing.
    fn check_pasid(
        &mut self,
        device: HostDeviceId,
        pasid: Option<Pasid>,
        table: HwptId,
    ) -> Result<bool, i32> {
        let features = self.devices.get(&device).ok_or(ENOENT)?.features;
        let (bits, tracks) = (features.pasid_bits, features.tracks_pasids);
        let of_group = &self.group_of(device)?.0;
        let has_pasids = of_group.keys().any(Option::is_some);
        let without = of_group.get(&None).map(|attached| attached.believed);
        let is_for_pasids = |table: HwptId| {
            let table = self.tables.get(&table);
            table.is_some_and(|table| table.options.pasid)
        };
        let Some(pasid) = pasid else {
            let refused = has_pasids && !is_for_pasids(table);
            return if refused { Err(EINVAL) } else { Ok(true) };
        };
        if bits == 0 {
            return Ok(false);
        }
        let of_table = self.tables.get(&table).ok_or(ENOENT)?;
        if pasid == Pasid::ZERO
            || pasid.get() >> bits != 0
            || !is_for_pasids(table)
            || of_table.options.dirty_tracking && !tracks
            || without.is_some_and(|without| !is_for_pasids(without))
        {
            return Err(EINVAL);
        }
        Ok(true)
    }

    pub(super) fn attach(
        &mut self,
        device: HostDeviceId,
        pasid: Option<Pasid>,
        table: HwptId,
        fails: bool,
    ) -> Result<(), i32> {
        if !self.check_pasid(device, pasid, table)? {
            return Ok(());
        }
        self.check_busy(device)?;
        if let Some(attached) = self.group_of(device)?.0.get(&pasid) {
            match (
                attached.devices.contains(&device),
                attached.believed == table,
            ) {
                (true, true) => return Ok(()),
                (true, false) => {}
                (false, true) => return self.join(device, pasid, table, fails),
                (false, false) => return Err(EINVAL),
            }
        }
        self.check_reserved(device, pasid, table)?;
        let attached = self.group_of(device)?.0.get_mut(&pasid);
        let former = attached.and_then(|attached| attached.actual.take());
        self.leave(former);
        self.look();
        self.tables.get(&table).ok_or(ENOENT)?;
        if fails {
            return Ok(());
        }
        let group = self.devices.get(&device).ok_or(ENOENT)?.group;
        self.check_table(group, table)?;
        self.reserve(pasid, table)?;
        let attached = Attached {
            devices: BTreeSet::from([device]),
            believed: table,
            actual: Some(table),
        };
        let of_group = &mut self.group_of(device)?.0;
        let attached = match of_group.remove(&pasid) {
            Some(former) => Attached {
                devices: former.devices,
                ..attached
            },
            None => attached,
        };
        of_group.insert(pasid, attached);
        Ok(())
    }

    fn check_busy(&self, device: HostDeviceId) -> Result<(), i32> {
        let group = self.devices.get(&device).map(|device| device.group);
        let mut busy = self.busy.iter().filter_map(|busy| self.devices.get(busy));
        if busy.any(|busy| Some(busy.group) == group) {
            return Err(EBUSY);
        }
        Ok(())
    }

    /// Attaches one more device of a group to what the others are behind: the hardware is there
    /// already.
    fn join(
        &mut self,
        device: HostDeviceId,
        pasid: Option<Pasid>,
        table: HwptId,
        fails: bool,
    ) -> Result<(), i32> {
        if fails {
            return Ok(());
        }
        self.check_reserved(device, pasid, table)?;
        self.reserve(pasid, table)?;
        if let Some(attached) = self.group_of(device)?.0.get_mut(&pasid) {
            attached.devices.insert(device);
        }
        Ok(())
    }

    /// Whether `table` is for every device of `group`.
    fn check_table(&self, group: HostGroupId, table: HwptId) -> Result<(), i32> {
        let used = self.tables.get(&table).ok_or(ENOENT)?;
        let nested = used.nested.as_ref();
        let needs_whole = nested.is_some_and(|nested| {
            nested.levels() != 4
                || nested.table.supervisor_requests
                || nested.table.extended_accessed
        });
        let needs_requests = nested.is_some_and(|nested| nested.page_requests.is_some());
        let devices = self.devices.values();
        for device in devices.filter(|device| device.group == group) {
            let FakeFeatures {
                coherent,
                whole_first_stage,
                page_requests,
                ..
            } = device.features;
            if needs_requests && !page_requests {
                return Err(ENODEV);
            }
            if used.coherent && !coherent || needs_whole && !whole_first_stage {
                return Err(EINVAL);
            }
        }
        Ok(())
    }

    /// What a device has reserved, and what others have that go along, is looked at before anything
    /// is touched. That is done for a device, not for each of its PASIDs.
    fn check_reserved(
        &mut self,
        device: HostDeviceId,
        pasid: Option<Pasid>,
        table: HwptId,
    ) -> Result<(), i32> {
        if pasid.is_some() {
            return Ok(());
        }
        let on = self.tables.get(&table).ok_or(ENOENT)?.on;
        let mut devices: BTreeSet<_> = self.group_of(device)?.behind(|_| true).collect();
        devices.insert(device);
        let devices = devices.iter().filter_map(|device| self.devices.get(device));
        let reserved: Vec<_> = devices
            .filter_map(|device| device.features.reserved)
            .collect();
        let ioas = self.ioas(on)?;
        let is_mapped = |&(first, last): &(u64, u64)| ioas.overlaps(first, last - first + 1);
        if reserved.iter().any(is_mapped) {
            return Err(EADDRINUSE);
        }
        Ok(())
    }

    /// That is done for a device, not for each of its PASIDs.
    fn reserve(&mut self, pasid: Option<Pasid>, table: HwptId) -> Result<(), i32> {
        let on = self.tables.get(&table).ok_or(ENOENT)?.on;
        if pasid.is_none() && !self.ioas(on)?.reserve_interrupts() {
            return Err(EADDRINUSE);
        }
        Ok(())
    }

    pub(super) fn detach(&mut self, device: HostDeviceId, pasid: Option<Pasid>) -> Result<(), i32> {
        let of_group = &mut self.group_of(device)?.0;
        let Some(attached) = of_group.get_mut(&pasid) else {
            return Ok(());
        };
        attached.devices.remove(&device);
        if attached.devices.is_empty() {
            let former = attached.actual;
            of_group.remove(&pasid);
            self.leave(former);
        }
        Ok(())
    }

    /// What is kept of a nested page table goes with the last who uses it.
    fn leave(&mut self, table: Option<HwptId>) {
        let groups = self.groups.values();
        let mut attached = groups.flat_map(|group| group.0.values());
        let used = attached.any(|attached| attached.actual == table);
        let nested = table
            .and_then(|table| self.tables.get(&table))
            .and_then(|table| table.nested.as_ref());
        if let (false, Some(nested)) = (used, nested) {
            nested.forget_all();
        }
    }
}
