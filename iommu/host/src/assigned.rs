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
//! A device that is blocked has no fault recorded for it: what the host's IOMMU drops, it does not tell.
//!
//! # PASIDs
//! All of this holds for the requests of a device with each PASID apart, if the guest is shown that it has PASIDs. A PASID is
//! attached once the guest announces an entry for it, or names all of the device's; and detached with its entry, with translation,
//! and in legacy mode. It stays while requests without PASID are blocked.
//!
//! What the context entry names as RID_PASID is what requests without PASID have, and no requests may have it besides. In the host
//! it is PASID 0, with which nothing else can be done: when the guest's is another one, its PASID 0 is blocked.
//!
//! # Device-TLBs
//! Whatever the host's IOMMU forgets, it has devices forget. A device that alone is to forget something is reached by an
//! invalidation of the nested page table, unless that was among others of the same exit. For other bindings there is no call
//! that does it, and no need: what a shadow maps no more, devices were made to forget when it was unmapped, and guest memory does
//! not change.
//!
//! # When the host refuses
//! A device that cannot be put where it belongs is detached, with a line in the log: so the guest's invalidation is true. It is
//! tried again when the guest next invalidates a context or PASID entry, or turns translation on or off; one of its PASIDs, when
//! that PASID is among what is named.

pub(crate) mod binding;
pub(crate) mod device;
mod error;
pub(crate) mod pasids;
mod placement;
pub(crate) mod report;
pub(crate) mod target;

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vm_memory::GuestMemoryBackend;

pub use super::ram::RamPiece;
pub use crate::blocked::Blocked;
pub use crate::dirty::tracking::DirtyTrackingError;
pub use crate::resources::Limits;
pub use crate::statistics::AssignedStatistics;
pub use device::AssignedDevice;
pub use error::AddError;
pub use report::{DeviceBinding, DeviceReport};

use super::ioas::Ioas;
use super::page_requests::PageRequestPath;
use super::ram::Ram;
use crate::dirty::{DirtyPages, tracking};
use crate::host_iommu::{HostIommu, Rights};
use crate::resources::{Common, HostKey};
use binding::Binding;
use device::Device;
use intel_vtd::{
    DeviceTlb, DeviceTlbInvalidation, DmaState, GuestTables, Invalidation, Nearby, PageResponse,
    SourceId, TranslationObserver, Unit,
};
use placement::{Host, State};

/// The assigned devices of a machine.
///
/// # Locks
/// The unit's command mutex comes before the mutex in here, and that before whatever the host's calls take. Adding and removing a
/// device takes the latter only, so it may be done at any time, but not within calls of [`HostIommu`].
///
/// Adding a device while the guest runs misses nothing: what the guest has latched is read under the mutex, and the unit latches
/// before it calls. So either the new state is read, or the call comes after the device was added, and finds it. The same
/// holds for tables, which the guest writes before it invalidates.
pub struct AssignedDevices<M> {
    unit: Option<Arc<DmaState<M>>>,
    /// For device-TLBs. It has us, so not the other way round.
    device_tlbs: Weak<Unit<M>>,
    state: Mutex<State>,
}

impl<M> AssignedDevices<M>
where
    M: Deref<Target: GuestMemoryBackend> + Send + Sync + 'static,
{
    /// No devices yet, of a machine with this memory. With a unit, it follows the guest's tables; without, devices reach all
    /// guest memory.
    pub fn new(ram: Vec<RamPiece>, unit: Option<&Arc<Unit<M>>>, limits: Limits) -> Arc<Self> {
        let devices = Arc::new(Self {
            unit: unit.map(|unit| Arc::clone(unit.dma_state())),
            device_tlbs: unit.map_or_else(Weak::new, Arc::downgrade),
            state: Mutex::new(State::new(Common::new(Ram::new(ram), limits))),
        });
        if let Some(unit) = unit {
            unit.observe_translations(Arc::clone(&devices) as _);
        }
        devices
    }

    /// Adds a device, and puts it where the guest's tables say.
    ///
    /// The first device of an iommufd has all guest memory mapped there, and so pinned, which takes its time. If what the guest
    /// wants for the device at the moment cannot be had, it is blocked, and that is logged.
    ///
    /// # Errors
    /// The host does not take it; nothing has changed.
    pub fn add(&self, device: AssignedDevice) -> Result<(), AddError> {
        let mut state = self.lock();
        let state = &mut *state;
        if let Some(other) = state
            .devices
            .iter()
            .find(|other| other.source == device.source)
        {
            return Err(AddError::SourceTaken {
                name: device.name,
                source_id: device.source,
                other: Arc::clone(&other.name),
            });
        }
        let info = device
            .host
            .hardware_info(device.id)
            .map_err(|cause| AddError::Hardware {
                name: device.name.clone(),
                cause,
            })?;
        let key = match state
            .hosts
            .iter()
            .find(|host| std::ptr::addr_eq(Arc::as_ptr(&host.iommu), Arc::as_ptr(&device.host)))
        {
            Some(host) => host.key,
            None => {
                let highest = state.hosts.iter().map(|host| host.key.0).max();
                HostKey(highest.map_or(0, |key| key + 1))
            }
        };
        let iommu = Arc::clone(&device.host);
        let (source, has_ats) = (device.source, device.ats);
        let device_tlb = HostDeviceTlb {
            source,
            page_requests: device.page_requests.clone(),
        };
        let device = Device::new(device, info, key);
        if !state.hosts.iter().any(|host| host.key == key) {
            let memory = map_all_memory(&iommu, &device, &mut state.common)?;
            state.hosts.push(Host { key, iommu, memory });
        }
        state.devices.push(device);
        let index = state.devices.len() - 1;
        self.with_tables(|tables| state.place(tables, index));
        let binding = state.devices.get(index);
        let binding = binding.and_then(|device| device.binding(None).copied());
        // Guest memory is there, and complete: a device that does not get there never will.
        if let Some(Binding::Blocked(why)) = binding
            && !why.is_asked_for()
            && self.wants_memory(state, index)
        {
            let name = state
                .devices
                .get(index)
                .map(|device| device.name.to_string());
            state.remove(index);
            return Err(AddError::Attach {
                name: name.unwrap_or_default(),
                why,
            });
        }
        if has_ats && let Some(unit) = self.device_tlbs.upgrade() {
            unit.attach_device_tlb(source, Arc::new(device_tlb));
        }
        Ok(())
    }

    /// Takes a device away: it reaches nothing when this returns. Returns whether there was one.
    pub fn remove(&self, source: SourceId) -> bool {
        let mut state = self.lock();
        let index = state
            .devices
            .iter()
            .position(|device| device.source == source);
        let has_ats = index
            .and_then(|index| state.devices.get(index))
            .is_some_and(|device| device.has_ats);
        if has_ats && let Some(unit) = self.device_tlbs.upgrade() {
            unit.detach_device_tlb(source);
        }
        if let Some(index) = index {
            state.remove(index);
        }
        index.is_some()
    }

    /// Where each device is, in the order of their source ids.
    pub fn describe(&self) -> Vec<DeviceReport> {
        let mut reports: Vec<_> = self.lock().reports().collect();
        reports.sort_unstable_by_key(|report| report.source);
        reports
    }

    /// What was done so far.
    pub fn statistics(&self) -> AssignedStatistics {
        self.lock().common.statistics
    }

    /// Areas that all shadows have, and bytes that they map.
    pub fn mapped(&self) -> (usize, u64) {
        let state = self.lock();
        let shadows = state.ioases().filter_map(|(_, shadow)| shadow);
        shadows.fold((0, 0), |(areas, bytes), shadow| {
            let shadow = shadow.areas();
            (areas + shadow.len(), bytes + shadow.bytes())
        })
    }

    /// How many nested page tables there are at the moment.
    pub fn nested(&self) -> usize {
        self.lock().nested()
    }

    /// From now on, finds out which pages devices write. It begins with none, also if it was on before.
    ///
    /// # Errors
    /// The first device for which the host cannot; nothing is tracked then.
    pub fn start_dirty_tracking(&self) -> Result<(), DirtyTrackingError> {
        let mut state = self.lock();
        let state = &mut *state;
        state.common.dirty = None;
        let mut outcome = Ok(());
        for (ioas, _) in state.ioases() {
            outcome = tracking::switch(ioas, true);
            if outcome.is_err() {
                break;
            }
        }
        match outcome {
            Ok(()) => state.common.dirty = Some(DirtyPages::new(&state.common.ram)),
            Err(_) => stop(state),
        }
        outcome
    }

    /// No longer finds out which pages devices write.
    pub fn stop_dirty_tracking(&self) {
        let mut state = self.lock();
        state.common.dirty = None;
        stop(&state);
    }

    /// Calls `found` with the guest-physical address and the number of pages of 4 KiB for each run of pages that devices have
    /// written since tracking was started, or since this was called last. Where the host did not say, all that a device could
    /// write counts as written.
    ///
    /// # Errors
    /// Tracking is off.
    pub fn dirty_pages(&self, found: &mut dyn FnMut(u64, u64)) -> Result<(), DirtyTrackingError> {
        let mut state = self.lock();
        let mut pages = state.common.dirty.take().ok_or(DirtyTrackingError::Off)?;
        for (ioas, shadow) in state.ioases() {
            match shadow {
                None => tracking::collect_guest_physical(ioas, &state.common.ram, &mut pages),
                Some(shadow) => shadow
                    .areas()
                    .iter()
                    .for_each(|area| tracking::collect(ioas, area, &mut pages)),
            }
        }
        pages.take(found);
        state.common.dirty = Some(pages);
        Ok(())
    }

    fn wants_memory(&self, state: &State, index: usize) -> bool {
        state.devices.get(index).is_some_and(|device| {
            self.with_tables(|tables| {
                target::Target::of(tables, device.source, None) == target::Target::GuestPhysical
            })
        })
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

impl<M> AssignedDevices<M> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M> TranslationObserver for AssignedDevices<M>
where
    M: Deref<Target: GuestMemoryBackend> + Send + Sync + 'static,
{
    fn translation_changed(&self) {
        let mut state = self.lock();
        state.begin();
        self.with_tables(|tables| {
            if let Some(tables) = tables {
                state.update(tables, &[Invalidation::All]);
            }
        });
    }

    fn run_begins(&self) {
        self.lock().begin();
    }

    fn invalidated(&self, invalidations: &[Invalidation]) {
        let mut state = self.lock();
        self.with_tables(|tables| {
            if let Some(tables) = tables {
                state.update(tables, invalidations);
            }
        });
    }
}

impl<M> fmt::Display for AssignedDevices<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut reports: Vec<_> = self.lock().reports().collect();
        reports.sort_unstable_by_key(|report| report.source);
        reports
            .iter()
            .try_for_each(|report| writeln!(f, "{report}"))
    }
}

/// The device-TLB of an assigned device. What the guest has it forget is passed on by the [`TranslationObserver`], together with
/// what the host's IOMMU is to forget, which includes most of it.
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

fn stop(state: &State) {
    for (ioas, _) in state.ioases() {
        // What has none of it needs none of this.
        let _ = tracking::switch(ioas, false);
    }
}

/// A space on `iommu` that maps all guest memory, with a page table for `device`.
fn map_all_memory(
    iommu: &Arc<dyn HostIommu>,
    device: &Device,
    common: &mut Common,
) -> Result<Ioas, AddError> {
    let name = || device.name.to_string();
    let mut ioas = Ioas::allocate(iommu).map_err(|cause| AddError::Ioas {
        name: name(),
        cause,
    })?;
    // The page table first: it tells how far the host's addresses go.
    let mut outcome =
        placement::add_memory_table(&mut ioas, &device.client(None), common).map_err(|cause| {
            AddError::Hwpt {
                name: name(),
                cause,
            }
        });
    if outcome.is_ok() {
        outcome = map_memory(&ioas, &device.name, common);
    }
    match outcome {
        Ok(()) => Ok(ioas),
        Err(error) => {
            ioas.destroy(common);
            Err(error)
        }
    }
}

fn map_memory(ioas: &Ioas, name: &str, common: &Common) -> Result<(), AddError> {
    for (range, memory) in common.ram.parts() {
        if !ioas.mappable(range.clone()).eq([range.clone()]) {
            return Err(AddError::OutOfReach {
                name: name.to_owned(),
                start: range.start,
                last: range.end - 1,
            });
        }
        ioas.host
            .map(ioas.id, range.start, &memory, Rights::ALL)
            .map_err(|cause| AddError::Map {
                name: name.to_owned(),
                start: range.start,
                length: range.end - range.start,
                cause,
            })?;
    }
    Ok(())
}

#[cfg(test)]
mod testing;

#[cfg(test)]
mod assigned_test;
#[cfg(test)]
mod first_stage_property_test;
#[cfg(test)]
mod first_stage_test;
#[cfg(test)]
mod page_requests_test;
#[cfg(test)]
mod pasid_test;
#[cfg(test)]
mod property_test;
#[cfg(test)]
mod speed_test;
