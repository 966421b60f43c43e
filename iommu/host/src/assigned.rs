//! The assigned devices of a machine, each kept where the guest's tables put it.
//!
//! | what the guest's tables say | where the device is |
//! |---|---|
//! | there is no unit, or translation is off | behind all guest memory |
//! | pass-through | behind all guest memory |
//! | second stage, or legacy tables | behind a shadow of the tables |
//! | nothing is present, or malformed | detached: it reaches nothing |
//! | first stage | behind a nested page table: the host walks the guest's tables on top of guest memory |
//! | nested | behind a nested page table on top of a shadow of the second-stage tables |
//! | first stage, nested, where the host does not nest | detached: first-stage tables cannot be shadowed |
//!
//! A device that is blocked has no fault recorded for it: what the host's IOMMU drops, it does not
//! tell.
//!
//! # PASIDs
//! All of this holds for the requests of a device with each PASID apart, if the guest is shown that
//! it has PASIDs. A PASID is attached once the guest announces an entry for it, or names all of the
//! device's; and detached with its entry, with translation, and in legacy mode. It stays while
//! requests without PASID are blocked.
//!
//! What the context entry names as RID_PASID is what requests without PASID have, and no requests
//! may have it besides. In the host it is PASID 0, with which nothing else can be done: when the
//! guest's is another one, its PASID 0 is blocked.
//!
//! # IOMMU groups
//! Devices that the host's IOMMU cannot keep apart have one page table for each PASID. They are
//! placed together while the guest wants them behind the same, be it under several domain ids.
//! While it does not, all of them are blocked, also if it wants one of them to reach nothing: as
//! long as any is attached, the hardware has all of them there. A device that is taken away is
//! detached, and reaches what the others of its group do until it is reset or closed.
//!
//! # Device-TLBs
//! Whatever the host's IOMMU forgets, it has devices forget. A device that alone is to forget
//! something is reached by an invalidation of the nested page table, unless that was among others
//! of the same exit. For other bindings there is no call that does it, and no need: what a shadow
//! maps no more, devices were made to forget when it was unmapped, and guest memory does not
//! change.
//!
//! # Resets
//! While the kernel resets a device, it attaches it to nothing (`EBUSY`). The device is blocked then,
//! and a thread tries again every few milliseconds, so nothing waits under a lock.
//!
//! # When the host refuses
//! A device that cannot be put where it belongs is detached, with a line in the log: so the guest's
//! invalidation is true. It is tried again when the guest next invalidates a context or PASID
//! entry, or turns translation on or off; one of its PASIDs, when that PASID is among what is
//! named. What was blocked for a limit is tried again only when its own entry is named: it costs
//! much, and what others do seldom helps.

mod backing;
mod device;
mod error;
mod groups;
mod host;
mod hosts;
mod memory;
mod moves;
mod pasids;
mod placement;
mod plugging;
mod report;
mod retry;
mod slot;
mod users;

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};
use vm_memory::GuestMemoryBackend;

pub use crate::blocked::Blocked;
pub use crate::dirty::tracking::DirtyTrackingError;
pub use crate::ram::RamPiece;
pub use crate::resources::Limits;
pub use crate::statistics::AssignedStatistics;
pub use device::AssignedDevice;
use device::Device;
pub use error::AddError;
pub use placement::Placement;
pub use plugging::PlugError;
pub use report::{DeviceReport, PlacementReport};

use crate::dirty::{DirtyPages, tracking};
use crate::host_iommu::HostIommu;
use crate::ioas::Ioas;
use crate::page_requests::PageRequestPath;
use crate::ram::Ram;
use crate::resources::Resources;
use hosts::Hosts;
use intel_vtd::{
    DeviceTlb, DeviceTlbInvalidation, DmaState, GuestTables, Invalidation, Nearby, PageResponse,
    Patience, SourceId, TranslationObserver, Unfinished, Unit,
};

/// The assigned devices of a machine.
///
/// # Locks
/// The unit's execution lock comes before the mutex in here, and that before whatever the host's
/// calls take. Adding and removing a device takes the latter only, so it may be done at any time,
/// but not within calls of [`HostIommu`](crate::HostIommu). Guest memory is pinned and unpinned
/// under neither: meanwhile only others that are added or removed wait. Who adds or removes a device
/// [interrupts](Unit::interrupt) what is done for the guest's tables, which goes on after that.
///
/// Adding a device while the guest runs misses nothing: what the guest has latched is read under
/// the mutex, and the unit latches before it calls. So either the new state is read, or the call
/// comes after the device was added, and finds it. The same holds for tables, which the guest
/// writes before it invalidates.
pub struct AssignedDevices<M> {
    unit: Option<Arc<DmaState<M>>>,
    /// For device-TLBs. It has us, so not the other way round.
    device_tlbs: Weak<Unit<M>>,
    /// For the thread that tries again.
    this: Weak<Self>,
    /// Held while a device is added or removed, or memory, with all that is mapped and unmapped for it. Before
    /// the other in the order of locks, and after no lock that a register access takes.
    changes: Mutex<()>,
    hosts: Mutex<Hosts>,
}

impl<M> AssignedDevices<M>
where
    M: Deref<Target: GuestMemoryBackend> + Send + Sync + 'static,
{
    /// No devices yet, of a machine with this memory. With a unit, it follows the guest's tables;
    /// without, devices reach all guest memory.
    pub fn new(ram: Vec<RamPiece>, unit: Option<&Arc<Unit<M>>>, limits: Limits) -> Arc<Self> {
        let ram = Arc::new(Ram::new(ram));
        let devices = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            unit: unit.map(|unit| Arc::clone(unit.dma_state())),
            device_tlbs: unit.map_or_else(Weak::new, Arc::downgrade),
            changes: Mutex::new(()),
            hosts: Mutex::new(Hosts::new(Resources::new(Arc::clone(&ram), limits))),
        });
        if let Some(unit) = unit {
            unit.observe_translations(Arc::clone(&devices) as _);
        }
        devices
    }

    /// Adds a device, and puts it where the guest's tables say.
    ///
    /// The first device of an iommufd has all guest memory mapped there, and so pinned, which takes
    /// its time. If what the guest wants for the device at the moment cannot be had, it is blocked,
    /// and that is logged.
    ///
    /// # Errors
    /// The host does not take it; nothing has changed.
    pub fn add(&self, device: AssignedDevice) -> Result<(), AddError> {
        let _alone = self.changes.lock();
        let (source, has_ats) = (device.source, device.ats);
        let device_tlb = HostDeviceTlb {
            source,
            page_requests: device.page_requests.clone(),
        };
        let iommu = Arc::clone(&device.host);
        let is_known = self
            .hosts_at_once()
            .check_new(&device.name, source, &iommu)?;
        let info = iommu
            .hardware_info(device.id)
            .map_err(|cause| AddError::Hardware {
                name: device.name.clone(),
                cause,
            })?;
        let device = Device::new(device, info);
        let memory = if is_known {
            None
        } else {
            Some(self.map_all(&iommu, &device)?)
        };
        let mut hosts = self.hosts_at_once();
        let outcome = self.with_tables(|tables| hosts.add(tables, device, &iommu, memory));
        self.retry_later(&mut hosts);
        if outcome.is_err() {
            let unused = hosts.take_unused();
            drop(hosts);
            self.give_back(unused);
            return outcome;
        }
        if has_ats && let Some(unit) = self.device_tlbs.upgrade() {
            unit.attach_device_tlb(source, Arc::new(device_tlb));
        }
        Ok(())
    }

    /// Takes a device away: it reaches nothing when this returns, unless others of its IOMMU group
    /// are attached. Returns whether there was one.
    pub fn remove(&self, source: SourceId) -> bool {
        let _alone = self.changes.lock();
        let mut hosts = self.hosts_at_once();
        let has_ats = hosts.device(source).is_some_and(|device| device.has_ats);
        if has_ats && let Some(unit) = self.device_tlbs.upgrade() {
            unit.detach_device_tlb(source);
        }
        let is_removed = self.with_tables(|tables| hosts.remove(tables, source));
        self.retry_later(&mut hosts);
        let unused = hosts.take_unused();
        drop(hosts);
        self.give_back(unused);
        is_removed
    }

    /// Maps all guest memory on an iommufd that has no devices yet.
    fn map_all(&self, iommu: &Arc<dyn HostIommu>, device: &Device) -> Result<Ioas, AddError> {
        let mut left = Vec::new();
        // It changes under `changes` only, which the caller has.
        let ram = Arc::clone(&self.hosts_at_once().resources.ram);
        let outcome = memory::map_all(iommu, device, &ram, &mut left);
        self.give_back(left);
        outcome
    }

    fn give_back(&self, unused: Vec<Ioas>) {
        for ioas in unused {
            let (remains, trouble) = ioas.give_back();
            let resources = &mut self.hosts_at_once().resources;
            resources.remains.extend(remains);
            if let Some(trouble) = trouble {
                resources.report(|| trouble);
            }
        }
    }

    /// Where each device is, in the order of their source ids.
    pub fn describe(&self) -> Vec<DeviceReport> {
        self.hosts.lock().reports()
    }

    /// What was done so far.
    pub fn statistics(&self) -> AssignedStatistics {
        self.hosts.lock().resources.statistics
    }

    /// Areas that all shadows have, and bytes that they map.
    pub fn mapped(&self) -> (usize, u64) {
        let hosts = self.hosts.lock();
        let shadows = hosts.ioases().filter_map(|(_, shadow)| shadow);
        shadows.fold((0, 0), |(areas, bytes), shadow| {
            let shadow = shadow.areas();
            (areas + shadow.len(), bytes + shadow.bytes())
        })
    }

    /// How many nested page tables there are at the moment.
    pub fn nested(&self) -> usize {
        self.hosts.lock().nested()
    }

    /// From now on, finds out which pages devices write. It begins with none, also if it was on
    /// before.
    ///
    /// # Errors
    /// The first device for which the host cannot; nothing is tracked then.
    pub fn start_dirty_tracking(&self) -> Result<(), DirtyTrackingError> {
        let mut hosts = self.hosts.lock();
        hosts.resources.dirty = None;
        let outcome = hosts
            .ioases()
            .try_for_each(|(ioas, _)| tracking::start(ioas));
        match outcome {
            Ok(()) => hosts.resources.dirty = Some(DirtyPages::new(&hosts.resources.ram)),
            Err(_) => stop(&mut hosts),
        }
        outcome
    }

    /// No longer finds out which pages devices write.
    pub fn stop_dirty_tracking(&self) {
        let mut hosts = self.hosts.lock();
        hosts.resources.dirty = None;
        stop(&mut hosts);
    }

    /// Calls `found` with the guest-physical address and the number of pages of 4 KiB for each run
    /// of pages that devices have written since tracking was started, or since this was called
    /// last. Where the host did not say, all that a device could write counts as written, and so does all of
    /// a huge page of the host's page tables of which something was.
    ///
    /// # Errors
    /// Tracking is off.
    pub fn dirty_pages(&self, found: &mut dyn FnMut(u64, u64)) -> Result<(), DirtyTrackingError> {
        let mut hosts = self.hosts.lock();
        let pages = hosts.resources.dirty.take();
        let mut pages = pages.ok_or(DirtyTrackingError::Off)?;
        for (ioas, shadow) in hosts.ioases() {
            match shadow {
                None => tracking::collect_guest_physical(ioas, &hosts.resources.ram, &mut pages),
                Some(shadow) => shadow
                    .areas()
                    .iter()
                    .for_each(|area| tracking::collect(ioas, area, &mut pages)),
            }
        }
        pages.take(found);
        hosts.resources.dirty = Some(pages);
        Ok(())
    }

    /// The devices, for someone who is not to wait for what the guest has done to its tables.
    fn hosts_at_once(&self) -> MutexGuard<'_, Hosts> {
        let unit = self.device_tlbs.upgrade();
        let _interruption = unit.as_ref().map(|unit| unit.interrupt());
        self.hosts.lock()
    }

    fn with_tables<R>(
        &self,
        use_them: impl FnOnce(Option<&GuestTables<'_, Nearby<'_, M::Target>>>) -> R,
    ) -> R {
        let Some(unit) = &self.unit else {
            return use_them(None);
        };
        use_them(Some(&unit.tables()))
    }
}

impl<M> TranslationObserver for AssignedDevices<M>
where
    M: Deref<Target: GuestMemoryBackend> + Send + Sync + 'static,
{
    fn translation_changed(&self, patience: &Patience) -> Result<(), Unfinished> {
        self.run_begins();
        self.invalidated(&[Invalidation::All], patience)
    }

    fn run_begins(&self) {
        self.hosts.lock().begin_exit();
    }

    fn invalidated(
        &self,
        invalidations: &[Invalidation],
        patience: &Patience,
    ) -> Result<(), Unfinished> {
        let mut hosts = self.hosts.lock();
        let outcome = self.with_tables(|tables| match tables {
            Some(tables) => hosts.update(tables, invalidations, patience),
            None => Ok(()),
        });
        self.retry_later(&mut hosts);
        if outcome.is_err() {
            // Whoever waits for it is next.
            MutexGuard::unlock_fair(hosts);
        }
        outcome
    }
}

impl<M> fmt::Display for AssignedDevices<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reports = self.hosts.lock().reports();
        reports
            .iter()
            .try_for_each(|report| writeln!(f, "{report}"))
    }
}

/// The device-TLB of an assigned device. What the guest has it forget is passed on by the
/// [`TranslationObserver`], together with what the host's IOMMU is to forget, which includes most
/// of it.
struct HostDeviceTlb {
    source: SourceId,
    page_requests: Option<PageRequestPath>,
}

impl DeviceTlb for HostDeviceTlb {
    fn invalidate(&self, _: DeviceTlbInvalidation) {}

    fn page_response(&self, response: PageResponse) {
        // Without a path there, the host answers page requests itself.
        if let Some(path) = &self.page_requests {
            path.responses.respond(self.source, response);
        }
    }
}

fn stop(hosts: &mut Hosts) {
    let ioases = hosts.ioases();
    let failed: Vec<_> = ioases.flat_map(|(ioas, _)| tracking::stop(ioas)).collect();
    for error in failed {
        // It costs time, and nothing else.
        hosts.resources.report(|| error.to_string());
    }
}

#[cfg(test)]
mod testing;

#[cfg(test)]
mod assigned_test;
#[cfg(test)]
mod busy_test;
#[cfg(test)]
mod cost_test;
#[cfg(test)]
mod dirty_test;
#[cfg(test)]
mod first_stage_property_test;
#[cfg(test)]
mod first_stage_test;
#[cfg(test)]
mod groups_test;
#[cfg(test)]
mod ignored_bits_test;
#[cfg(test)]
mod interruption_test;
#[cfg(test)]
mod memory_test;
#[cfg(test)]
mod page_requests_test;
#[cfg(test)]
mod pasid_test;
#[cfg(test)]
mod plugging_test;
#[cfg(test)]
mod property_test;
#[cfg(test)]
mod reserved_test;
