//! Devices of the host that are assigned: opened and bound before the machine is made, so that its remapping unit promises
//! nothing that the host does not keep, and then kept where the guest's tables put them.

mod error;
mod files;
mod page_requests;
mod remedy;
mod report;
mod shown;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::vfio::{HostAddress, HostServices, Shown, VfioCdev};
use intel_vtd::{SourceId, UnitConfig};
use intel_vtd_host::HostDeviceId;
use intel_vtd_host::assigned::{AssignedDevice, AssignedDevices, Limits};
use intel_vtd_host::capabilities::HostCapabilities;
use intel_vtd_host::iommufd::Iommufd;
use intel_vtd_host::page_requests::PageRequestPath;

use crate::config::{
    FunctionConfig, FunctionKind, HostDevice, IommuConfig, IommufdConfig, VfioConfig,
};
use crate::irq::Unit;
use crate::kvm::{AssignedFile, KvmVfio};
use crate::memory::{self, Memory};
pub(crate) use error::AssignError;
use page_requests::PageRequests;
use remedy::Remedied;

/// The iommufds of a machine.
pub(crate) struct Host {
    /// By their names on the command line.
    iommufds: Vec<(String, Arc<Iommufd>)>,
    kvm: Arc<KvmVfio>,
    /// Devices in use. Leaf lock.
    claimed: Arc<Mutex<BTreeSet<HostAddress>>>,
}

/// A device that is bound to an iommufd. It reaches nothing yet. Dropping it gives it back to the host.
pub(crate) struct BoundDevice {
    config: VfioConfig,
    capabilities: HostCapabilities,
    services: HostServices,
    /// What its model shows the guest; nothing of these before [`check`](Self::check).
    shown: Shown,
    iommufd: Arc<Iommufd>,
    id: HostDeviceId,
    cdev: Arc<VfioCdev>,
    /// After the device's own file in the order of dropping, as all that follows.
    _known_to_kvm: AssignedFile,
    _claim: Claim,
}

/// A device of the host, for as long as this machine uses it.
struct Claim {
    address: Option<HostAddress>,
    claimed: Arc<Mutex<BTreeSet<HostAddress>>>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(address) = &self.address {
            lock(&self.claimed).remove(address);
        }
    }
}

impl Host {
    /// Opens the iommufds of a machine whose VFIO files are told to `kvm`.
    pub(crate) fn open(configs: &[IommufdConfig], kvm: Arc<KvmVfio>) -> Result<Self, AssignError> {
        if !configs.is_empty() {
            files::raise_file_limit();
        }
        let iommufds = configs
            .iter()
            .map(|config| Ok((config.id.clone(), Arc::new(files::iommufd(config)?))));
        Ok(Self {
            iommufds: iommufds.collect::<Result<_, AssignError>>()?,
            kvm,
            claimed: Arc::default(),
        })
    }

    /// Binds all devices among `functions`.
    pub(crate) fn bind_all(
        &self,
        functions: &[FunctionConfig],
    ) -> Result<Vec<BoundDevice>, AssignError> {
        let devices = functions
            .iter()
            .filter_map(|function| match &function.kind {
                FunctionKind::Vfio(device) => Some(device),
                _ => None,
            });
        devices.map(|device| self.bind(device)).collect()
    }

    fn bind(&self, config: &VfioConfig) -> Result<BoundDevice, AssignError> {
        let failed = |why| AssignError::device(config, why);
        let (_, iommufd) = self
            .iommufds
            .iter()
            .find(|(name, _)| *name == config.iommufd)
            .ok_or_else(|| failed(error::Why::NoIommufd))?;
        let cdev = match config.device {
            HostDevice::Address(address) => VfioCdev::open(address).map_err(error::Why::from),
            HostDevice::Descriptor(fd) => files::duplicate(fd)
                .map_err(|cause| error::Why::Descriptor(fd, cause))
                .and_then(|file| Ok(VfioCdev::from_file(file)?)),
        };
        let cdev = cdev.map_err(failed)?;
        let claim = claim(&self.claimed, cdev.address()).map_err(failed)?;
        // VFIO looks for the virtual machine when the device is bound.
        let known_to_kvm = self
            .kvm
            .add(cdev.as_fd())
            .map_err(|cause| failed(error::Why::Kvm(cause)))?;
        let id = cdev
            .bind(iommufd.as_fd())
            .map_err(|cause| failed(cause.into()))?;
        let can_reset = cdev
            .has_reset()
            .map_err(|cause| failed(error::Why::Asking(cause)))?;
        if config.needs_reset && !can_reset {
            return Err(failed(error::Why::NoReset));
        }
        let capabilities = HostCapabilities::probe(iommufd.as_ref(), id)
            .map_err(|cause| failed(error::Why::Asking(cause)))?;
        log::info!("{config}: {capabilities}");
        let services = cdev
            .services()
            .map_err(|cause| failed(error::Why::Asking(cause)))?;
        Ok(BoundDevice {
            config: config.clone(),
            capabilities,
            services,
            shown: Shown::default(),
            iommufd: Arc::clone(iommufd),
            id,
            cdev: Arc::new(cdev),
            _known_to_kvm: known_to_kvm,
            _claim: claim,
        })
    }
}

fn claim(
    claimed: &Arc<Mutex<BTreeSet<HostAddress>>>,
    address: Option<HostAddress>,
) -> Result<Claim, error::Why> {
    if address.is_some_and(|address| !lock(claimed).insert(address)) {
        return Err(error::Why::Taken);
    }
    Ok(Claim {
        address,
        claimed: Arc::clone(claimed),
    })
}

impl BoundDevice {
    /// The device, for its model.
    pub(crate) fn cdev(&self) -> &Arc<VfioCdev> {
        &self.cdev
    }

    /// What the model is to show.
    pub(crate) const fn shown(&self) -> Shown {
        self.shown
    }

    /// First-stage tables are looked up for each function by itself.
    fn check_requester(&self) -> Result<(), error::Why> {
        let bridge = self.cdev.requester();
        bridge.map_or(Ok(()), |bridge| Err(error::Why::Bridge(bridge)))
    }

    /// What prevents first-stage translation of up to `aw_bits` bits.
    fn check_first_stage(&self, aw_bits: u8) -> Result<(), error::Why> {
        self.check_requester()?;
        let remedied = |why| Remedied {
            why,
            first_stage: true,
        };
        let outcome = self.capabilities.check_first_stage(aw_bits);
        Ok(outcome.map_err(remedied)?)
    }

    /// Refuses to go behind `unit`, or to reach memory up to `ram_end`, where the host cannot do that; and chooses what the
    /// guest is shown.
    fn check(&mut self, unit: Option<&UnitConfig>, ram_end: u64) -> Result<(), AssignError> {
        let remedied = |why| Remedied {
            why,
            first_stage: unit.is_some_and(|unit| unit.first_stage),
        };
        let check = || -> Result<Shown, error::Why> {
            if let Some(unit) = unit {
                if unit.first_stage {
                    self.check_requester()?;
                }
                self.capabilities.check(unit).map_err(remedied)?;
            }
            self.capabilities.check_memory(ram_end).map_err(remedied)?;
            let chosen = shown::choose(&self.config, &self.capabilities, self.services, unit);
            Ok(chosen?)
        };
        self.shown = check().map_err(|why| AssignError::device(&self.config, why))?;
        Ok(())
    }
}

/// `unit`, with the choice that `x-flts=auto` leaves open made, and said. `assigns` tells whether devices may be assigned.
pub(crate) fn choose_first_stage(
    unit: IommuConfig,
    assigns: bool,
    devices: &[BoundDevice],
) -> IommuConfig {
    if unit.first_stage.is_some() {
        return unit;
    }
    let obstacle = || {
        devices.iter().find_map(|device| {
            let outcome = device.check_first_stage(unit.aw_bits);
            outcome.err().map(|why| (&device.config, why))
        })
    };
    let first_stage = if unit.page_requests {
        log::info!("x-flts=auto: on, as svm=on needs it");
        true
    } else if !assigns {
        log::info!("x-flts=auto: on, as no device of the host is assigned");
        true
    } else if devices.is_empty() {
        log::info!(
            "x-flts=auto: off, as devices of the host may be assigned later, and it is not known whether the host nests for \
             them; write x-flts=on if it does"
        );
        false
    } else if let Some((device, why)) = obstacle() {
        log::warn!("x-flts=auto: off, because of {device}: {why}");
        false
    } else {
        log::info!("x-flts=auto: on, as the host nests for every assigned device");
        true
    };
    IommuConfig {
        first_stage: Some(first_stage),
        ..unit
    }
}

/// What a unit in front of `devices` can be, if it is asked to be `config`. A machine without any may get some later, of a host
/// that is not known yet: its unit does not promise what a host may lack.
pub(crate) fn limit(config: UnitConfig, devices: &[BoundDevice]) -> UnitConfig {
    let config = UnitConfig {
        snoop_control: config.snoop_control && !devices.is_empty(),
        ..config
    };
    devices
        .iter()
        .fold(config, |config, device| device.capabilities.limit(config))
}

/// Assigns devices to a machine, while it is made and while it runs.
pub(crate) struct Assigner {
    host: Host,
    assigned: Arc<AssignedDevices<Memory>>,
    unit: Option<(Arc<Unit>, UnitConfig)>,
    /// By the names of iommufds that have devices with page requests. No lock is taken under it but those of the host.
    page_requests: Mutex<BTreeMap<String, PageRequests>>,
    ram_end: u64,
    ram_size: u64,
    /// Bound before the machine was made, and not part of it yet. Leaf lock.
    waiting: Mutex<Vec<BoundDevice>>,
    /// Part of the machine, by source id. Leaf lock.
    devices: Mutex<BTreeMap<u16, BoundDevice>>,
}

impl Assigner {
    /// For a machine with this memory and this unit, which was asked to be what is beside it. `devices` are the first to be
    /// assigned.
    ///
    /// # Errors
    /// When one of the devices does not go with the unit or the memory.
    pub(crate) fn new(
        host: Host,
        mut devices: Vec<BoundDevice>,
        memory: &Memory,
        unit: Option<(&Arc<Unit>, UnitConfig)>,
    ) -> Result<Arc<Self>, AssignError> {
        let ram = memory::pieces(memory);
        let ram_end = ram
            .iter()
            .map(|piece| piece.guest_address.saturating_add(piece.length));
        let ram_end = ram_end.max().unwrap_or(0);
        let ram_size = ram.iter().map(|piece| piece.length).sum();
        let config = unit.as_ref().map(|(_, config)| config);
        for device in &mut devices {
            device.check(config, ram_end)?;
        }
        let device_unit = unit.as_ref().map(|(unit, _)| *unit);
        Ok(Arc::new(Self {
            host,
            assigned: AssignedDevices::new(ram, device_unit, Limits::default()),
            unit: unit.map(|(unit, config)| (Arc::clone(unit), config)),
            page_requests: Mutex::default(),
            ram_end,
            ram_size,
            waiting: Mutex::new(devices),
            devices: Mutex::default(),
        }))
    }

    /// A device that is bound, and that goes with this machine.
    pub(crate) fn bind(&self, config: &VfioConfig) -> Result<BoundDevice, AssignError> {
        let mut waiting = lock(&self.waiting);
        if let Some(place) = waiting.iter().position(|device| device.config == *config) {
            return Ok(waiting.remove(place));
        }
        drop(waiting);
        let mut device = self.host.bind(config)?;
        let unit = self.unit.as_ref().map(|(_, config)| config);
        device.check(unit, self.ram_end)?;
        Ok(device)
    }

    /// Puts a device where the guest's tables say. It is the guest's function with this source id from now on.
    pub(crate) fn add(&self, source: SourceId, device: BoundDevice) -> Result<(), AssignError> {
        let page_requests = self.page_requests(source, &device)?;
        let outcome = self.assigned.add(AssignedDevice {
            source,
            name: device.config.to_string(),
            host: Arc::clone(&device.iommufd) as _,
            id: device.id,
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
        lock(&self.devices).insert(source.0, device);
        Ok(())
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
        let mut all = lock(&self.page_requests);
        let of_iommufd = match all.entry(device.config.iommufd.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let started = PageRequests::start(&device.iommufd, unit);
                let failed = |cause| AssignError::device(&device.config, error::Why::Pages(cause));
                place.insert(started.map_err(failed)?)
            }
        };
        of_iommufd.relay().add(device.id, source);
        Ok(Some(of_iommufd.path()))
    }

    fn forget_page_requests(&self, device: &BoundDevice) {
        if let Some(requests) = lock(&self.page_requests).get(&device.config.iommufd) {
            requests.relay().remove(device.id);
        }
    }

    /// Gives a device back to the host, once its model lets go of it, too. Other functions' sources are none of its business.
    pub(crate) fn remove(&self, source: SourceId) {
        if self.assigned.remove(source) {
            let device = lock(&self.devices).remove(&source.0);
            if let Some(device) = device {
                self.forget_page_requests(&device);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "assign/assign_test.rs"]
mod assign_test;
