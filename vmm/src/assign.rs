//! Assigned devices of the host: opened and bound before the machine is made, so that its remapping
//! unit promises nothing that the host does not keep, and then kept where the guest's tables put
//! them.

mod bound;
mod claim;
mod error;
mod files;
mod host;
mod page_requests;
mod remedy;
mod report;
mod services;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::{Arc, Once};

use intel_vtd::{SourceId, UnitConfig};
use intel_vtd_host::PageRequestPath;
use intel_vtd_host::{AssignedDevice, AssignedDevices, Limits, PlugError, RamPiece};
use parking_lot::Mutex;

use crate::config::{HostDevice, IommuConfig, VfioConfig};
use crate::event_loop;
use crate::irq::Unit;
use crate::memory::{self, Memory};
pub(crate) use bound::{BoundDevice, choose_first_stage, limit};
pub(crate) use error::AssignError;
pub(crate) use host::Host;
use page_requests::PageRequests;

/// How much of the host a guest can have with so many bytes of memory.
fn limits(iommu: Option<&IommuConfig>, ram_size: u64) -> Limits {
    let mut limits = Limits::for_memory(ram_size);
    if let Some(bytes) = iommu.and_then(|iommu| iommu.shadow_memory) {
        limits = Limits::with_shadow_memory(bytes);
    }
    if let Some(pasids) = iommu.and_then(|iommu| iommu.bound_pasids) {
        limits.pasids = pasids;
        // Room to attach all of those of some devices at once.
        let steps = u64::try_from(pasids).unwrap_or(u64::MAX).saturating_mul(64);
        limits.pasid_steps_per_exit = limits.pasid_steps_per_exit.max(steps);
    }
    limits
}

/// Assigns devices to a machine, while it is made and while it runs.
pub(crate) struct Assigner {
    host: Host,
    assigned: Arc<AssignedDevices<Memory>>,
    unit: Option<(Arc<Unit>, UnitConfig)>,
    /// By the names of iommufds that have devices with page requests. No lock is taken under it but
    /// those of the host.
    page_requests: Mutex<BTreeMap<String, PageRequests>>,
    event_loop: event_loop::Handle,
    memory: Memory,
    ram_end: u64,
    ram_size: u64,
    /// Of memory, those that are there from the start.
    regions: usize,
    /// Guest memory is in huge pages, as far as it can be.
    collapsed: Once,
    /// Bound before the machine was made, and not part of it yet. Leaf lock.
    waiting: Mutex<Vec<BoundDevice>>,
    /// Part of the machine, by source id. Leaf lock.
    devices: Mutex<BTreeMap<u16, BoundDevice>>,
}

impl Assigner {
    /// For a machine with this memory, of which so many regions are there from the start, and this unit, which was asked to be what is beside it, by
    /// `iommu`. `devices` are the first to be assigned.
    ///
    /// # Errors
    /// When one of the devices does not go with the unit or the memory.
    pub(crate) fn new(
        host: Host,
        mut devices: Vec<BoundDevice>,
        (memory, ram): (&Memory, usize),
        unit: Option<(&Arc<Unit>, UnitConfig)>,
        iommu: Option<&IommuConfig>,
        event_loop: &event_loop::Handle,
    ) -> Result<Arc<Self>, AssignError> {
        let regions = ram;
        let ram = memory::pieces(memory, regions);
        let all = memory::pieces(memory, usize::MAX);
        let ram_end = all
            .iter()
            .map(|piece| piece.guest_address.saturating_add(piece.length));
        let ram_end = ram_end.max().unwrap_or(0);
        let ram_size = all.iter().map(|piece| piece.length).sum();
        let config = unit.as_ref().map(|(_, config)| config);
        for device in &mut devices {
            device.check(config, ram_end)?;
        }
        let device_unit = unit.as_ref().map(|(unit, _)| *unit);
        Ok(Arc::new(Self {
            host,
            assigned: AssignedDevices::new(ram, device_unit, limits(iommu, ram_size)),
            unit: unit.map(|(unit, config)| (Arc::clone(unit), config)),
            page_requests: Mutex::default(),
            event_loop: event_loop.clone(),
            memory: Arc::clone(memory),
            ram_end,
            ram_size,
            regions,
            collapsed: Once::new(),
            waiting: Mutex::new(devices),
            devices: Mutex::default(),
        }))
    }

    /// The devices, where the guest's tables put them.
    pub(crate) fn devices(&self) -> &Arc<AssignedDevices<Memory>> {
        &self.assigned
    }

    /// A device that is bound, and that goes with this machine.
    pub(crate) fn bind(&self, config: &VfioConfig) -> Result<BoundDevice, AssignError> {
        let mut waiting = self.waiting.lock();
        if let Some(place) = waiting.iter().position(|device| device.config == *config) {
            return Ok(waiting.remove(place));
        }
        drop(waiting);
        let mut device = self.host.bind(config)?;
        let unit = self.unit.as_ref().map(|(_, config)| config);
        device.check(unit, self.ram_end)?;
        Ok(device)
    }

    /// Puts a device where the guest's tables say. It is the guest's function with this source id
    /// from now on.
    pub(crate) fn add(&self, source: SourceId, device: BoundDevice) -> Result<(), AssignError> {
        let page_requests = self.page_requests(source, &device)?;
        // The first device has all of it pinned, and so allocated.
        self.collapsed
            .call_once(|| memory::collapse(&self.memory, self.regions));
        let outcome = self.assigned.add(AssignedDevice {
            source,
            name: device.config.to_string(),
            host: Arc::clone(&device.iommufd) as _,
            id: device.id,
            group: device.group,
            attachment: Arc::clone(&device.cdev) as _,
            pasids: device.shown.pasids.is_some(),
            ats: device.shown.ats,
            page_requests,
        });
        if let Err(error) = outcome {
            self.forget_page_requests(&device);
            return Err(AssignError::add(error, self.ram_size));
        }
        if let HostDevice::Descriptor(fd) = device.config.device {
            files::close(fd);
        }
        self.devices.lock().insert(source.0, device);
        Ok(())
    }

    /// Has devices reach these pieces of memory as well.
    pub(crate) fn plug(&self, pieces: &[RamPiece]) -> Result<(), PlugError> {
        self.assigned.plug(pieces)
    }

    /// Has no device reach what was plugged in this range.
    pub(crate) fn unplug(&self, range: &Range<u64>) -> Result<(), PlugError> {
        self.assigned.unplug(range)
    }

    /// Where page requests of a device go to the guest, if it is shown with them.
    fn page_requests(
        &self,
        source: SourceId,
        device: &BoundDevice,
    ) -> Result<Option<PageRequestPath>, AssignError> {
        let Some((unit, _)) = self.unit.as_ref().filter(|_| device.shown.pri) else {
            return Ok(None);
        };
        let mut all = self.page_requests.lock();
        let of_iommufd = match all.entry(device.config.iommufd.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let started = PageRequests::start(&device.iommufd, unit, &self.event_loop);
                let failed = |cause| AssignError::device(&device.config, error::Why::Pages(cause));
                place.insert(started.map_err(failed)?)
            }
        };
        of_iommufd.relay().add(device.id, source);
        Ok(Some(of_iommufd.path()))
    }

    fn forget_page_requests(&self, device: &BoundDevice) {
        if let Some(requests) = self.page_requests.lock().get(&device.config.iommufd) {
            requests.relay().remove(device.id);
        }
    }

    /// Gives a device back to the host, once its model lets go of it, too. Other functions' sources
    /// are none of its business.
    pub(crate) fn remove(&self, source: SourceId) {
        if self.assigned.remove(source) {
            let device = self.devices.lock().remove(&source.0);
            if let Some(device) = device {
                self.forget_page_requests(&device);
            }
        }
    }
}

#[cfg(test)]
mod assign_test;
