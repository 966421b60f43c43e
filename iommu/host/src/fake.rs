//! A host for tests: iommufd, its IOMMU and VFIO's attachments, as far as mappings go.
//!
//! It does what the kernel does where that matters: areas are unmapped as a whole, and a range that
//! cuts one fails half-way; nothing is mapped twice; what is in use is not destroyed; a replaced
//! page table leaves the device with none for a moment, and for good when the replacement fails,
//! though iommufd takes it to be where it was. Devices of one group are behind one page table for
//! each PASID. Nested page tables are walked in guest memory, and whatever was read of them is kept
//! until it is invalidated.
//!
//! Calls are recorded and can be made to fail, and after each a test can look where every DMA goes.

mod group;
mod ioas;
mod nested;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::host_iommu::{
    Attachment, HardwareInfo, HostDeviceId, HostGroupId, HostIommu, HostMemory, HwptId,
    HwptOptions, IntelInfo, IoasId, NestedInvalidation, NestedOptions, NestedTable, ObjectId,
    Rights, SharedMapping,
};
use group::FakeGroup;
use intel_vtd::Pasid;
use intel_vtd::spec::registers::{Capability, Caps, ExtendedCapability};
use ioas::{Area, FakeIoas};
use nested::{FakeNested, Memory};

/// Error numbers of Linux.
pub mod errno {
    /// No such object, or no such mapping.
    pub const ENOENT: i32 = 2;
    /// Out of memory, or of what may be locked.
    pub const ENOMEM: i32 = 12;
    /// In use.
    pub const EBUSY: i32 = 16;
    /// Something is mapped there.
    pub const EEXIST: i32 = 17;
    /// The device has not what this is for.
    pub const ENODEV: i32 = 19;
    /// Not possible with these arguments.
    pub const EINVAL: i32 = 22;
    /// Not possible with this IOMMU.
    pub const EOPNOTSUPP: i32 = 95;
    /// A device has these addresses reserved.
    pub const EADDRINUSE: i32 = 98;
}

use errno::{EADDRINUSE, EBUSY, EINVAL, ENOENT, EOPNOTSUPP};

/// What the IOMMU of a device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakeFeatures {
    /// Width of the addresses that it maps.
    pub address_bits: u32,
    /// Accesses are snooped: page tables made for it do not suit devices without.
    pub coherent: bool,
    /// First-stage page tables are what it uses where nothing else is asked for.
    pub first_stage: bool,
    /// Nesting parents and nested page tables.
    pub nesting: bool,
    /// Of first-stage tables: five levels, supervisor requests, the extended accessed flag, pages
    /// of 1 GiB.
    pub whole_first_stage: bool,
    /// Dirty tracking.
    pub dirty_tracking: bool,
    /// log2 of the number of PASIDs that the device has; 0 for none.
    pub pasid_bits: u8,
    /// The host has enabled the device's page requests.
    pub page_requests: bool,
    /// The host attaches page tables with dirty tracking to PASIDs (Linux 7.1).
    pub tracks_pasids: bool,
    /// Nesting parents take read-only mappings.
    pub read_only_parents: bool,
    /// First and last address that nothing can be mapped at where the device is (a reserved
    /// region).
    pub reserved: Option<(u64, u64)>,
}

impl Default for FakeFeatures {
    fn default() -> Self {
        Self {
            address_bits: 48,
            coherent: true,
            first_stage: false,
            nesting: false,
            whole_first_stage: false,
            dirty_tracking: false,
            pasid_bits: 0,
            page_requests: false,
            tracks_pasids: false,
            read_only_parents: false,
            reserved: None,
        }
    }
}

/// A call that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are the calls' arguments.
pub enum Call {
    AllocateIoas,
    Destroy(ObjectId),
    AddressRanges(IoasId),
    Map {
        ioas: IoasId,
        address: u64,
        length: u64,
        rights: Rights,
    },
    Share(SharedMapping),
    Unmap {
        ioas: IoasId,
        address: u64,
        length: u64,
    },
    AllocateHwpt {
        device: HostDeviceId,
        ioas: IoasId,
        options: HwptOptions,
    },
    AllocateNested {
        device: HostDeviceId,
        parent: HwptId,
        table: NestedTable,
        options: NestedOptions,
    },
    Invalidate(HwptId),
    HardwareInfo(HostDeviceId),
    SetDirtyTracking {
        table: HwptId,
        on: bool,
    },
    DirtyPages {
        table: HwptId,
        address: u64,
        length: u64,
    },
    Attach {
        device: HostDeviceId,
        pasid: Option<Pasid>,
        table: HwptId,
    },
    Detach {
        device: HostDeviceId,
        pasid: Option<Pasid>,
    },
}

/// Where a DMA goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Offset in the file that backs guest memory.
    pub offset: u64,
    /// What is permitted there.
    pub rights: Rights,
}

type Watch = Box<dyn FnMut(&View<'_>) + Send>;

/// One fake iommufd and its devices.
#[derive(Default)]
pub struct FakeHost {
    state: Mutex<FakeState>,
    /// Called before memory is pinned or unpinned.
    pinning: Mutex<Option<Pinning>>,
}

type Pinning = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct FakeState {
    next_object: u32,
    ioases: BTreeMap<IoasId, FakeIoas>,
    tables: BTreeMap<HwptId, FakeHwpt>,
    devices: BTreeMap<HostDeviceId, FakeDevice>,
    groups: BTreeMap<HostGroupId, FakeGroup>,
    /// Devices that are being reset.
    busy: BTreeSet<HostDeviceId>,
    calls: Vec<(Call, Result<(), i32>)>,
    made: u64,
    failures: BTreeMap<u64, i32>,
    watch: Option<Watch>,
    memory: Option<Memory>,
    invalidations: Vec<(HwptId, Vec<NestedInvalidation>)>,
}

struct FakeHwpt {
    /// The space, and the parent of a nested one.
    on: IoasId,
    parent: Option<HwptId>,
    nested: Option<FakeNested>,
    options: HwptOptions,
    coherent: bool,
    /// It takes no read-only mappings.
    no_read_only: bool,
    /// Pages that can only be written can be read, too.
    write_is_read: bool,
    /// Addresses of pages that were written, while that is tracked.
    dirty: Option<BTreeSet<u64>>,
}

struct FakeDevice {
    features: FakeFeatures,
    group: HostGroupId,
}

/// A look at a [`FakeHost`] between two steps of its calls.
pub struct View<'a>(&'a FakeState);

impl View<'_> {
    /// Where an access of `device` without PASID to `address` goes.
    pub fn dma(&self, device: HostDeviceId, address: u64) -> Option<Reached> {
        self.dma_with(device, None, address)
    }

    /// Where an access of `device` with `pasid`, or without, to `address` goes.
    pub fn dma_with(
        &self,
        device: HostDeviceId,
        pasid: Option<Pasid>,
        address: u64,
    ) -> Option<Reached> {
        self.0.dma(device, pasid, address)
    }
}

impl FakeState {
    fn dma(&self, device: HostDeviceId, pasid: Option<Pasid>, address: u64) -> Option<Reached> {
        let table = self.tables.get(&self.actual(device, pasid)?)?;
        if let Some(nested) = &table.nested {
            let (ioas, memory) = (self.ioases.get(&table.on)?, self.memory.as_ref()?);
            return nested.reach(address, ioas, memory);
        }
        let (offset, mut rights) = self.ioases.get(&table.on)?.find(address)?;
        rights.read |= table.write_is_read;
        Some(Reached { offset, rights })
    }

    fn look(&mut self) {
        if let Some(mut watch) = self.watch.take() {
            watch(&View(self));
            self.watch = Some(watch);
        }
    }

    fn new_object(&mut self) -> u32 {
        self.next_object += 1;
        self.next_object
    }

    fn ioas(&mut self, id: IoasId) -> Result<&mut FakeIoas, i32> {
        self.ioases.get_mut(&id).ok_or(ENOENT)
    }

    /// The regions that the devices behind page tables over `ioas` have reserved.
    fn reserved(&self, ioas: IoasId) -> Vec<RangeInclusive<u64>> {
        let groups = self.groups.values();
        let behind = groups.flat_map(|group| group.behind(|table| self.is_on(table, ioas)));
        behind
            .filter_map(|device| self.devices.get(&device)?.features.reserved)
            .map(|(first, last)| first..=last)
            .collect()
    }

    fn is_on(&self, table: HwptId, ioas: IoasId) -> bool {
        let table = self.tables.get(&table);
        table.is_some_and(|table| table.on == ioas)
    }

    /// Whether page tables over `ioas` take no read-only mappings.
    fn takes_no_read_only(&self, ioas: IoasId) -> bool {
        self.tables
            .values()
            .any(|table| table.on == ioas && table.no_read_only)
    }

    fn check_rights(&self, ioas: IoasId, rights: Rights) -> Result<(), i32> {
        let refused = rights == Rights::NONE || self.takes_no_read_only(ioas) && !rights.write;
        if refused { Err(EINVAL) } else { Ok(()) }
    }

    fn destroy(&mut self, object: ObjectId) -> Result<(), i32> {
        let used = match object {
            ObjectId::Ioas(ioas) => {
                let mut hwpts = self.tables.values();
                hwpts.any(|hwpt| hwpt.parent.is_none() && hwpt.on == ioas)
            }
            ObjectId::Hwpt(hwpt) => {
                self.groups.values().any(|group| group.believes_in(hwpt))
                    || self.tables.values().any(|table| table.parent == Some(hwpt))
            }
        };
        if used {
            return Err(EBUSY);
        }
        let was_there = match object {
            ObjectId::Ioas(ioas) => self.ioases.remove(&ioas).is_some(),
            ObjectId::Hwpt(hwpt) => self.tables.remove(&hwpt).is_some(),
        };
        was_there.then_some(()).ok_or(ENOENT)
    }
}

impl FakeHost {
    /// One without devices.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Binds one more device, which has a group for itself with the same number.
    pub fn bind(self: &Arc<Self>, features: FakeFeatures) -> (HostDeviceId, Arc<dyn Attachment>) {
        let group = HostGroupId(self.state.lock().next_object + 1);
        self.bind_in(group, features)
    }

    /// Binds one more device of `group`.
    pub fn bind_in(
        self: &Arc<Self>,
        group: HostGroupId,
        features: FakeFeatures,
    ) -> (HostDeviceId, Arc<dyn Attachment>) {
        let mut state = self.state.lock();
        let device = HostDeviceId(state.new_object());
        state.devices.insert(device, FakeDevice { features, group });
        state.groups.entry(group).or_default();
        let host = Arc::clone(self);
        (device, Arc::new(FakeAttachment { host, device }))
    }

    /// Has the call fail that comes after `calls` more, with an error number.
    pub fn fail_after(&self, calls: u64, error: i32) {
        let mut state = self.state.lock();
        let at = state.made + calls;
        state.failures.insert(at, error);
    }

    /// Lets all calls do again what they can.
    pub fn fail_no_more(&self) {
        self.state.lock().failures.clear();
    }

    /// Has nested page tables read guest memory by this: a word, by its offset in the file.
    pub fn set_memory(&self, read: impl Fn(u64) -> Option<u64> + Send + 'static) {
        self.state.lock().memory = Some(Box::new(read));
    }

    /// What was invalidated by each call since the last time this was asked, be it carried out or
    /// not.
    pub fn take_invalidations(&self) -> Vec<(HwptId, Vec<NestedInvalidation>)> {
        std::mem::take(&mut self.state.lock().invalidations)
    }

    /// The calls since the last time this was asked, with what came of them.
    pub fn take_calls(&self) -> Vec<(Call, Result<(), i32>)> {
        std::mem::take(&mut self.state.lock().calls)
    }

    /// Calls `watch` after each call, and within those that have steps. It must not make calls.
    pub fn watch(&self, watch: impl FnMut(&View<'_>) + Send + 'static) {
        self.state.lock().watch = Some(Box::new(watch));
    }

    /// The kernel begins to reset `device`, or has done so: it is attached to nothing meanwhile, nor
    /// are others of its group.
    pub fn set_busy(&self, device: HostDeviceId, busy: bool) {
        let mut state = self.state.lock();
        if busy {
            state.busy.insert(device);
        } else {
            state.busy.remove(&device);
        }
    }

    /// Calls `pinning` before each call that pins or unpins memory, under no lock of the fake: what
    /// takes long in a kernel.
    pub fn before_pinning(&self, pinning: impl Fn() + Send + Sync + 'static) {
        *self.pinning.lock() = Some(Arc::new(pinning));
    }

    fn pin(&self) {
        let pinning = self.pinning.lock().clone();
        if let Some(pinning) = pinning {
            pinning();
        }
    }

    /// Where an access of `device` without PASID to `address` goes.
    pub fn dma(&self, device: HostDeviceId, address: u64) -> Option<Reached> {
        self.dma_with(device, None, address)
    }

    /// Where an access of `device` with `pasid`, or without, to `address` goes.
    pub fn dma_with(
        &self,
        device: HostDeviceId,
        pasid: Option<Pasid>,
        address: u64,
    ) -> Option<Reached> {
        self.state.lock().dma(device, pasid, address)
    }

    /// As [`dma`](Self::dma), and leaves the page dirty if it can be written.
    pub fn write(&self, device: HostDeviceId, address: u64) -> Option<Reached> {
        let mut state = self.state.lock();
        let reached = state
            .dma(device, None, address)
            .filter(|to| to.rights.write)?;
        let table = state.actual(device, None)?;
        let of_device = state.tables.get(&table)?;
        // Of a nested page table, its parent tells, by its own addresses.
        let (table, page) = match (&of_device.nested, of_device.parent) {
            (Some(nested), Some(parent)) => {
                let (ioas, memory) = (state.ioases.get(&of_device.on)?, state.memory.as_ref()?);
                (parent, nested.translate(address, ioas, memory)?.0)
            }
            _ => (table, address),
        };
        if let Some(dirty) = &mut state.tables.get_mut(&table)?.dirty {
            dirty.insert(page & !0xfff);
        }
        Some(reached)
    }

    /// What requests of `device` without PASID are behind.
    pub fn attached(&self, device: HostDeviceId) -> Option<HwptId> {
        self.attached_with(device, None)
    }

    /// What requests of `device` with `pasid`, or without, are behind.
    pub fn attached_with(&self, device: HostDeviceId, pasid: Option<Pasid>) -> Option<HwptId> {
        self.state.lock().actual(device, pasid)
    }

    /// The PASIDs of `device` that are attached.
    pub fn pasids(&self, device: HostDeviceId) -> Vec<Pasid> {
        let state = self.state.lock();
        let group = state.devices.get(&device).map(|device| device.group);
        let group = group.and_then(|group| state.groups.get(&group));
        group.map_or_else(Vec::new, |group| group.pasids_of(device))
    }

    /// How many spaces and page tables there are.
    pub fn objects(&self) -> usize {
        let state = self.state.lock();
        state.ioases.len() + state.tables.len()
    }

    /// Makes a call, of which `carry_out` is told whether it is to fail when it is half done.
    fn call_in_steps<R>(
        &self,
        call: Call,
        carry_out: impl FnOnce(&mut FakeState, bool) -> Result<R, i32>,
    ) -> io::Result<R> {
        let mut state = self.state.lock();
        let made = state.made;
        state.made += 1;
        let failure = state.failures.remove(&made);
        let mut outcome = carry_out(&mut state, failure.is_some());
        if let Some(error) = failure {
            outcome = Err(error);
        }
        state
            .calls
            .push((call, outcome.as_ref().map(|_| ()).map_err(|error| *error)));
        state.look();
        outcome.map_err(io::Error::from_raw_os_error)
    }

    fn call<R>(
        &self,
        call: Call,
        carry_out: impl FnOnce(&mut FakeState) -> Result<R, i32>,
    ) -> io::Result<R> {
        self.call_in_steps(
            call,
            |state, fails| {
                if fails { Err(EINVAL) } else { carry_out(state) }
            },
        )
    }
}

impl fmt::Debug for FakeHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeHost").finish_non_exhaustive()
    }
}

impl HostIommu for FakeHost {
    fn allocate_ioas(&self) -> io::Result<IoasId> {
        self.call(Call::AllocateIoas, |state| {
            let id = IoasId(state.new_object());
            state.ioases.insert(id, FakeIoas::default());
            Ok(id)
        })
    }

    fn destroy(&self, object: ObjectId) -> io::Result<()> {
        if matches!(object, ObjectId::Ioas(_)) {
            self.pin();
        }
        self.call(Call::Destroy(object), |state| state.destroy(object))
    }

    fn address_ranges(&self, ioas: IoasId) -> io::Result<(Vec<RangeInclusive<u64>>, u64)> {
        self.call(Call::AddressRanges(ioas), |state| {
            let reserved = state.reserved(ioas);
            Ok((state.ioas(ioas)?.ranges(&reserved), 4096))
        })
    }

    fn map(
        &self,
        ioas: IoasId,
        address: u64,
        memory: &HostMemory<'_>,
        rights: Rights,
    ) -> io::Result<()> {
        self.pin();
        let call = Call::Map {
            ioas,
            address,
            length: memory.length,
            rights,
        };
        self.call(call, |state| {
            state.check_rights(ioas, rights)?;
            let area = Area {
                length: memory.length,
                offset: memory.file.1,
                rights,
            };
            let reserved = state.reserved(ioas);
            state.ioas(ioas)?.map(address, &[area], &reserved)
        })
    }

    fn share(&self, mapping: &SharedMapping) -> io::Result<()> {
        self.call(Call::Share(*mapping), |state| {
            state.check_rights(mapping.target, mapping.rights)?;
            let areas = state.ioas(mapping.source)?.pieces(
                mapping.source_address,
                mapping.length,
                mapping.rights,
            )?;
            let reserved = state.reserved(mapping.target);
            state
                .ioas(mapping.target)?
                .map(mapping.target_address, &areas, &reserved)
        })
    }

    fn unmap(&self, ioas: IoasId, address: u64, length: u64) -> io::Result<u64> {
        let call = Call::Unmap {
            ioas,
            address,
            length,
        };
        self.call(call, |state| {
            let (pages, outcome) = state.ioas(ioas)?.unmap(address, length);
            for table in state.tables.values_mut().filter(|table| table.on == ioas) {
                if let Some(nested) = &table.nested {
                    nested.forget_all();
                }
                if let Some(dirty) = &mut table.dirty {
                    dirty.retain(|page| !pages.iter().any(|range| range.contains(page)));
                }
            }
            outcome
        })
    }

    fn allocate_hwpt(
        &self,
        device: HostDeviceId,
        ioas: IoasId,
        options: HwptOptions,
    ) -> io::Result<HwptId> {
        let call = Call::AllocateHwpt {
            device,
            ioas,
            options,
        };
        self.call(call, |state| {
            let features = state.devices.get(&device).ok_or(ENOENT)?.features;
            let cannot = options.nesting_parent && !features.nesting
                || options.dirty_tracking && !features.dirty_tracking;
            if cannot {
                return Err(EOPNOTSUPP);
            }
            let on = state.ioas(ioas)?;
            let no_read_only = options.nesting_parent && !features.read_only_parents;
            if no_read_only && on.has_read_only() {
                return Err(EINVAL);
            }
            if !on.narrow(features.address_bits) {
                return Err(EADDRINUSE);
            }
            let id = HwptId(state.new_object());
            let second_stage = options.nesting_parent
                || options.dirty_tracking
                || !(features.first_stage || features.nesting);
            let table = FakeHwpt {
                on: ioas,
                parent: None,
                nested: None,
                options,
                coherent: features.coherent,
                no_read_only,
                write_is_read: !second_stage,
                dirty: None,
            };
            state.tables.insert(id, table);
            Ok(id)
        })
    }

    fn allocate_nested(
        &self,
        device: HostDeviceId,
        parent: HwptId,
        table: &NestedTable,
        options: NestedOptions,
    ) -> io::Result<HwptId> {
        let call = Call::AllocateNested {
            device,
            parent,
            table: *table,
            options,
        };
        self.call(call, |state| {
            let features = state.devices.get(&device).ok_or(ENOENT)?.features;
            let below = state.tables.get(&parent).ok_or(ENOENT)?;
            if !features.nesting {
                return Err(EOPNOTSUPP);
            }
            if !below.options.nesting_parent {
                return Err(EINVAL);
            }
            let table = FakeHwpt {
                on: below.on,
                parent: Some(parent),
                nested: Some(FakeNested::new(*table, options.page_requests)),
                options: HwptOptions {
                    pasid: options.pasid,
                    dirty_tracking: below.options.dirty_tracking,
                    nesting_parent: false,
                },
                coherent: below.coherent,
                no_read_only: false,
                write_is_read: false,
                dirty: None,
            };
            let id = HwptId(state.new_object());
            state.tables.insert(id, table);
            Ok(id)
        })
    }

    fn invalidate(
        &self,
        nested: HwptId,
        invalidations: &[NestedInvalidation],
    ) -> (usize, io::Result<()>) {
        let mut done = 0;
        let outcome = self.call_in_steps(Call::Invalidate(nested), |state, fails| {
            state.invalidations.push((nested, invalidations.to_vec()));
            let table = state.tables.get(&nested).ok_or(ENOENT)?;
            let table = table.nested.as_ref().ok_or(EINVAL)?;
            // When it fails, it does so half-way.
            done = invalidations.len() / if fails { 2 } else { 1 };
            for invalidation in &invalidations[..done] {
                if invalidation.address & 0xfff != 0
                    || invalidation.pages == u64::MAX && invalidation.address != 0
                {
                    return Err(EINVAL);
                }
                table.forget(invalidation);
            }
            Ok(())
        });
        (done, outcome)
    }

    fn hardware_info(&self, device: HostDeviceId) -> io::Result<HardwareInfo> {
        self.call(Call::HardwareInfo(device), |state| {
            let features = state.devices.get(&device).ok_or(ENOENT)?.features;
            let ecap = ExtendedCapability::new()
                .with_sc(features.coherent)
                .with_fsts(features.first_stage || features.nesting)
                .with_nest(features.nesting)
                .with_srs(features.whole_first_stage)
                .with_eafs(features.whole_first_stage)
                .with_smpwcs(features.coherent);
            let cap = Capability::new()
                .with_fs1gp(features.whole_first_stage)
                .with_fs5lp(features.whole_first_stage);
            let caps = Caps { cap, ecap };
            Ok(HardwareInfo {
                intel: Some(IntelInfo {
                    caps,
                    no_read_only_parent: !features.read_only_parents,
                }),
                pasid_bits: features.pasid_bits,
                privileged_pasids: false,
                dirty_tracking: features.dirty_tracking,
                ats: true,
            })
        })
    }

    fn set_dirty_tracking(&self, table: HwptId, on: bool) -> io::Result<()> {
        self.call(Call::SetDirtyTracking { table, on }, |state| {
            let table = state.tables.get_mut(&table).ok_or(ENOENT)?;
            if !table.options.dirty_tracking {
                return Err(EOPNOTSUPP);
            }
            table.dirty = on.then(BTreeSet::new);
            Ok(())
        })
    }

    fn dirty_pages(
        &self,
        table: HwptId,
        address: u64,
        length: u64,
        page_size: u64,
        bitmap: &mut [u64],
    ) -> io::Result<()> {
        let call = Call::DirtyPages {
            table,
            address,
            length,
        };
        self.call(call, |state| {
            let on = state.tables.get(&table).ok_or(ENOENT)?.on;
            if page_size != 4096 || !state.ioas(on)?.is_mapped(address, length) {
                // Linux tells what comes before a hole, and no error; nobody is to rely on that.
                return Err(EINVAL);
            }
            let of_table = state.tables.get_mut(&table).ok_or(ENOENT)?;
            if !of_table.options.dirty_tracking {
                return Err(EOPNOTSUPP);
            }
            // Of a table that is not tracked Linux says that nothing was written.
            let Some(dirty) = of_table.dirty.as_mut() else {
                return Ok(());
            };
            let mut asked = dirty.split_off(&address);
            dirty.append(&mut asked.split_off(&(address + length)));
            for page in asked {
                let bit = (page - address) / page_size;
                let word = usize::try_from(bit / 64).map_err(|_| EINVAL)?;
                *bitmap.get_mut(word).ok_or(EINVAL)? |= 1 << (bit % 64);
            }
            Ok(())
        })
    }
}

struct FakeAttachment {
    host: Arc<FakeHost>,
    device: HostDeviceId,
}

impl Attachment for FakeAttachment {
    fn attach(&self, pasid: Option<Pasid>, table: HwptId) -> io::Result<()> {
        let device = self.device;
        let call = Call::Attach {
            device,
            pasid,
            table,
        };
        self.host.call_in_steps(call, |state, fails| {
            state.attach(device, pasid, table, fails)
        })
    }

    fn detach(&self, pasid: Option<Pasid>) -> io::Result<()> {
        let device = self.device;
        self.host.call(Call::Detach { device, pasid }, |state| {
            state.detach(device, pasid)
        })
    }
}

#[cfg(test)]
mod fake_test;
