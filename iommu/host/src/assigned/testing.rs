//! A guest with assigned devices, for tests: tables in its memory, and a fake host behind it.

use std::cell::Cell;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::{AssignedDevice, AssignedDevices, Limits, Placement, RamPiece};
use crate::fake::{FakeFeatures, FakeHost, Reached};
use crate::host_iommu::{HostDeviceId, HostGroupId, NestedInvalidation, Rights};
use intel_vtd::spec::descriptors::{
    ContextScope, IotlbScope, PageBlock, PasidCacheScope, PasidIotlbScope,
};
use intel_vtd::testing::tables::{Paging, RAM, World};
use intel_vtd::{
    EventSink, InterruptMessage, Invalidation, Pasid, Patience, Scalable, SourceId, Stages,
    TranslationObserver as _, Unfinished, Unit, UnitConfig,
};

pub(super) type Memory = Arc<GuestMemoryMmap<()>>;

/// The devices: 00:03.0 to 00:06.0.
pub(super) const SOURCES: [SourceId; 4] = [
    SourceId(0x18),
    SourceId(0x20),
    SourceId(0x28),
    SourceId(0x30),
];

/// Where one piece of RAM ends and the next begins.
pub(super) const MIDDLE: u64 = 0x200_0000;

/// Any entry may have changed.
pub(super) const CONTEXT: Invalidation = Invalidation::Context(ContextScope::Global);

struct NoEvents;

impl EventSink for NoEvents {
    fn deliver(&self, _: InterruptMessage) {}
}

pub(super) struct Guest {
    pub(super) world: World,
    pub(super) unit: Arc<Unit<Memory>>,
    pub(super) devices: Arc<AssignedDevices<Memory>>,
    pub(super) host: Arc<FakeHost>,
    /// Steps of work for the first try of what the guest says; with 0, there is one try.
    pub(super) impatience: Cell<u64>,
    /// How many tries were interrupted.
    pub(super) interruptions: Cell<u64>,
}

/// RAM as `World` has it, in two pieces; offsets in the file are guest-physical addresses.
pub(super) fn ram() -> Vec<RamPiece> {
    let file = Arc::new(File::open("/dev/null").unwrap());
    let end = u64::try_from(RAM).unwrap();
    [0..MIDDLE, MIDDLE..end]
        .into_iter()
        .map(|range| RamPiece {
            guest_address: range.start,
            file: Arc::clone(&file),
            offset: range.start,
            host_address: 0x7000_0000_0000 + range.start,
            length: range.end - range.start,
        })
        .collect()
}

/// A device of `host` with these features, ready to be assigned as `source`.
pub(super) fn assigned_device(
    host: &Arc<FakeHost>,
    source: SourceId,
    features: FakeFeatures,
) -> AssignedDevice {
    let (id, attachment) = host.bind(features);
    let group = HostGroupId(id.0);
    AssignedDevice {
        source,
        name: format!("fake{}", id.0),
        host: Arc::clone(host) as _,
        id,
        group,
        attachment,
        pasids: features.pasid_bits != 0,
        ats: false,
        page_requests: None,
    }
}

/// The group of those that [`grouped_device`] makes.
pub(super) const GROUP: HostGroupId = HostGroupId(u32::MAX);

/// As [`assigned_device`], of one IOMMU group with all others that this makes.
pub(super) fn grouped_device(
    host: &Arc<FakeHost>,
    source: SourceId,
    features: FakeFeatures,
) -> AssignedDevice {
    let (id, attachment) = host.bind_in(GROUP, features);
    AssignedDevice {
        id,
        group: GROUP,
        attachment,
        ..assigned_device(host, source, features)
    }
}

/// What the fake reads first-stage tables by.
pub(super) fn reader(world: &World) -> impl Fn(u64) -> Option<u64> + Send + 'static {
    let memory = Arc::clone(&world.memory);
    move |offset| {
        let word: Result<u64, _> = memory.load(GuestAddress(offset), Ordering::SeqCst);
        word.ok().map(u64::from_le)
    }
}

impl Guest {
    /// Scalable mode, its tables are empty, and translation is on.
    pub(super) fn new(limits: Limits) -> Self {
        let config = UnitConfig::legacy(46)
            .with_scalable(Scalable::new(Stages::Nested).with_pasid_bits(20))
            .with_caching_mode(true)
            .with_snoop_control(true);
        Self::of(&config, limits)
    }

    /// As [`new`](Self::new), with another unit.
    pub(super) fn of(config: &UnitConfig, limits: Limits) -> Self {
        let world = World::scalable();
        let unit = Unit::new(Arc::clone(&world.memory), config, Arc::new(NoEvents)).unwrap();
        let devices = AssignedDevices::new(ram(), Some(&unit), limits);
        unit.dma_state().set_latched(world.latched);
        // As if there were a thread already: tests try again when they want to.
        devices.hosts.lock().is_retrying = true;
        let host = FakeHost::new();
        host.set_memory(reader(&world));
        let guest = Self {
            world,
            unit,
            devices,
            host,
            impatience: Cell::new(0),
            interruptions: Cell::new(0),
        };
        guest.forget_context();
        guest
    }

    /// Adds the devices with these features, as the first of [`SOURCES`].
    pub(super) fn with(features: &[FakeFeatures]) -> (Self, Vec<HostDeviceId>) {
        let guest = Self::new(Limits::default());
        let ids = features
            .iter()
            .zip(SOURCES)
            .map(|(features, source)| guest.add(source, *features))
            .collect();
        guest.host.take_calls();
        (guest, ids)
    }

    pub(super) fn add(&self, source: SourceId, features: FakeFeatures) -> HostDeviceId {
        let device = assigned_device(&self.host, source, features);
        let id = device.id;
        self.devices.add(device).unwrap();
        id
    }

    /// Another iommufd's device.
    pub(super) fn add_of(&self, host: &Arc<FakeHost>, source: SourceId) -> HostDeviceId {
        let device: AssignedDevice = assigned_device(host, source, FakeFeatures::default());
        let id = device.id;
        self.devices.add(device).unwrap();
        id
    }

    /// No device has a context entry.
    fn forget_context(&self) {
        self.world.set(self.world.scalable_context(), 0);
    }

    /// Where the context entry of `source` is.
    pub(super) fn context(&self, source: SourceId) -> u64 {
        self.world.context + u64::from(source.0) * 32
    }

    /// Gives `source` an entry for requests without PASID, with these words.
    pub(super) fn enter(&self, source: SourceId, words: [u64; 3]) {
        self.enter_with(source, 0, words);
    }

    /// Gives `source` an entry for requests with `pasid`, of which it can have 8192 then. PASID 0
    /// is what requests have without.
    pub(super) fn enter_with(&self, source: SourceId, pasid: u32, words: [u64; 3]) {
        let slot = self.pasid_slot(source, pasid);
        for (index, word) in (0..).zip(words) {
            self.world.set(slot + index * 8, word);
        }
    }

    /// Where the entry of `source` for `pasid` is; the tables on the way are made.
    pub(super) fn pasid_slot(&self, source: SourceId, pasid: u32) -> u64 {
        let context = self.context(source);
        if self.world.get(context) == 0 {
            self.world.set(context, self.world.page() | 1);
        }
        if pasid != 0 {
            self.world.or(context, 1 << 3);
        }
        let directory = self.world.get(context) & !0xfff;
        let directory_entry = directory + u64::from(pasid / 64) * 8;
        if self.world.get(directory_entry) == 0 {
            self.world.set(directory_entry, self.world.page() | 1);
        }
        (self.world.get(directory_entry) & !0xfff) + u64::from(pasid % 64) * 64
    }

    pub(super) fn enter_nothing(&self, source: SourceId) {
        self.enter(source, entry::NOTHING);
    }

    pub(super) fn enter_pass_through(&self, source: SourceId) {
        self.enter(source, entry::PASS_THROUGH);
    }

    pub(super) fn enter_first_stage(&self, source: SourceId, top: u64) {
        self.enter_first_stage_as(source, top, 1);
    }

    pub(super) fn enter_first_stage_as(&self, source: SourceId, top: u64, domain: u64) {
        self.enter(source, entry::first_stage(top, domain));
    }

    /// First-stage tables at `top`, an address of the second stage.
    pub(super) fn enter_nested(&self, source: SourceId, top: u64, below: &Paging, domain: u64) {
        self.enter(source, entry::nested(top, below, domain));
    }

    pub(super) fn enter_second_stage(&self, source: SourceId, paging: &Paging, domain: u64) {
        self.enter(source, entry::second_stage(paging, domain));
    }

    /// One exit of the guest.
    pub(super) fn invalidate(&self, invalidations: &[Invalidation]) {
        self.devices.run_begins();
        self.tell(invalidations);
    }

    /// As [`invalidate`](Self::invalidate), in a run that has begun.
    pub(super) fn tell(&self, invalidations: &[Invalidation]) {
        self.try_until_done(|patience| self.devices.invalidated(invalidations, patience));
    }

    /// What is latched is another one.
    pub(super) fn change_translation(&self) {
        self.try_until_done(|patience| self.devices.translation_changed(patience));
    }

    /// As the unit does: what is not finished is done again by someone who has more patience.
    fn try_until_done(&self, work: impl Fn(&Patience) -> Result<(), Unfinished>) {
        let steps = self.impatience.get();
        let tries = if steps == 0 { 0..0 } else { 0..3 };
        for more in tries {
            if work(&Patience::endless().with_steps(steps << more)).is_ok() {
                return;
            }
            self.interruptions.set(self.interruptions.get() + 1);
        }
        work(&Patience::endless()).unwrap();
    }

    /// As Linux does it for an entry that becomes present.
    pub(super) fn announce_entry(&self, domain: u16) {
        self.announce_pasid(domain, 0);
    }

    /// As [`announce_entry`](Self::announce_entry), for a PASID.
    pub(super) fn announce_pasid(&self, domain: u16, pasid: u32) {
        self.devices.run_begins();
        let entry = PasidCacheScope::Pasid(domain, pasid);
        self.tell(&[Invalidation::PasidCache(entry)]);
        self.tell(&[Invalidation::PasidIotlb {
            domain,
            pasid,
            scope: PasidIotlbScope::Pasid,
        }]);
    }

    /// Puts `source` behind `paging`.
    pub(super) fn shadow(&self, source: SourceId, paging: &Paging, domain: u16) {
        self.enter_second_stage(source, paging, domain.into());
        self.announce_entry(domain);
    }

    /// Writes leaves for `pages` pages.
    pub(super) fn map(&self, paging: &Paging, input: u64, output: u64, pages: u64, flags: u64) {
        for page in 0..pages {
            let offset = page * 0x1000;
            self.world
                .map(paging, input + offset, 1, (output + offset) | flags);
        }
    }

    pub(super) fn unmap(&self, paging: &Paging, input: u64, pages: u64) {
        for page in 0..pages {
            self.world.map(paging, input + page * 0x1000, 1, 0);
        }
    }

    pub(super) fn binding(&self, source: SourceId) -> Placement {
        let reports = self.devices.describe();
        reports
            .iter()
            .find(|report| report.source == source)
            .unwrap()
            .without_pasid
            .placement
    }

    /// Where requests with `pasid` are; `None` for nowhere.
    pub(super) fn binding_of(&self, source: SourceId, pasid: u32) -> Option<Placement> {
        let reports = self.devices.describe();
        let report = reports.iter().find(|report| report.source == source);
        let mut pasids = report.unwrap().pasids.iter();
        let found = pasids.find(|(is, _)| is.get() == pasid);
        found.map(|(_, report)| report.placement)
    }

    /// Where a DMA with `pasid` goes.
    pub(super) fn dma_with(
        &self,
        device: HostDeviceId,
        pasid: u32,
        address: u64,
    ) -> Option<(u64, &'static str)> {
        Self::reached(self.host.dma_with(device, Pasid::new(pasid), address))
    }

    /// Where a DMA goes: guest-physical address and rights.
    pub(super) fn dma(&self, device: HostDeviceId, address: u64) -> Option<(u64, &'static str)> {
        Self::reached(self.host.dma(device, address))
    }

    fn reached(reached: Option<Reached>) -> Option<(u64, &'static str)> {
        reached.map(|to| {
            let rights = match (to.rights.read, to.rights.write) {
                (true, true) => "rw",
                (true, false) => "r",
                _ => "w",
            };
            (to.offset, rights)
        })
    }
}

thread_local! {
    static LOOKS: Cell<usize> = const { Cell::new(0) };
}

/// Bindings are about to be looked through.
pub(super) fn count_looks(bindings: usize) {
    LOOKS.set(LOOKS.get() + bindings);
}

/// How many bindings this thread has looked through since this was asked before.
pub(super) fn take_looks() -> usize {
    LOOKS.take()
}

/// PASID entries.
pub(super) mod entry {
    use super::Paging;

    pub(in super::super) const NOTHING: [u64; 3] = [0; 3];
    pub(in super::super) const PASS_THROUGH: [u64; 3] = [4 << 6 | 2 << 2 | 1, 1, 0];

    fn width(paging: &Paging) -> u64 {
        u64::try_from(paging.levels).unwrap() - 2
    }

    pub(in super::super) fn first_stage(top: u64, domain: u64) -> [u64; 3] {
        [1 << 6 | 1, domain, top]
    }

    pub(in super::super) fn second_stage(paging: &Paging, domain: u64) -> [u64; 3] {
        [paging.top | 2 << 6 | width(paging) << 2 | 1, domain, 0]
    }

    pub(in super::super) fn nested(top: u64, below: &Paging, domain: u64) -> [u64; 3] {
        [below.top | 3 << 6 | width(below) << 2 | 1, domain, top]
    }
}

/// Where an access goes, and with which rights.
pub(super) type Leaf = Option<(u64, Rights)>;

/// Checks that an access at `address` goes to one of what is `permitted`; and if that is one, and
/// everything was done as it was to be (`exact`), to that. A host may have no pages that can only be
/// written, so they may be readable.
pub(super) fn check_reach(who: &str, address: u64, is: Leaf, permitted: &[Leaf], exact: bool) {
    if let Some((output, rights)) = is {
        let allowed = permitted.iter().flatten().any(|(to, may)| {
            *to == output && (may.read || may.write || !rights.read) && (may.write || !rights.write)
        });
        assert!(
            allowed,
            "{who} reaches {is:x?} at {address:#x}, not {permitted:x?}"
        );
    }
    if exact
        && let [only] = *permitted
        && is != only
    {
        let readable = only.map(|(output, may)| {
            let read = may.read || may.write;
            (output, Rights { read, ..may })
        });
        assert!(
            is == readable,
            "{who} reaches {is:x?} at {address:#x} instead of {only:x?}"
        );
    }
}

/// Who makes requests in property tests: a device, without PASID or with one of two.
#[derive(Clone, Copy, Debug)]
pub(super) struct Requester {
    pub(super) device: usize,
    pub(super) pasid: Option<u32>,
}

impl Requester {
    /// For each device.
    pub(super) const PER_DEVICE: usize = 3;

    /// The one at `index` of them all. The two PASIDs are in different tables.
    pub(super) fn at(index: usize) -> Self {
        Self {
            device: index / Self::PER_DEVICE,
            pasid: [None, Some(7), Some(70)][index % Self::PER_DEVICE],
        }
    }

    pub(super) fn host_pasid(self) -> Option<Pasid> {
        self.pasid.and_then(Pasid::new)
    }

    /// Whether an entry that the guest names by `pasid` is its.
    pub(super) fn has(self, pasid: u32) -> bool {
        self.pasid.unwrap_or(0) == pasid
    }
}

/// What becomes of requests in property tests because of others of the device's IOMMU group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum InGroup {
    /// They are where they belong.
    Placed,
    /// They are blocked.
    Blocked,
    /// Either, as it is not certain where each belongs.
    Unknown,
}

impl InGroup {
    /// By where each of them may belong, with those of the others, if all are in one group.
    pub(super) fn of<B>(bindings: &[&[B]], has_table_of: impl Fn(&B, &B) -> bool) -> Self {
        let certain: Option<Vec<_>> = bindings
            .iter()
            .map(|may| match may {
                [only] => Some(only),
                _ => None,
            })
            .collect();
        match certain.as_deref() {
            _ if bindings.len() < 2 => Self::Placed,
            None => Self::Unknown,
            Some([first, rest @ ..]) if rest.iter().all(|other| has_table_of(first, other)) => {
                Self::Placed
            }
            Some(_) => Self::Blocked,
        }
    }
}

/// How often a property is tried: as PROPTEST_CASES says.
pub(super) fn cases() -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok();
    asked.and_then(|cases| cases.parse().ok()).unwrap_or(150)
}

/// `2^mask` pages at `address`.
pub(super) fn pages(domain: u16, address: u64, mask: u8) -> Invalidation {
    let block = PageBlock {
        address,
        mask,
        leaf_only: false,
    };
    Invalidation::Iotlb(IotlbScope::Pages(domain, block))
}

/// `2^mask` pages of the first stage at `address`.
pub(super) fn first_stage_pages(domain: u16, address: u64, mask: u8) -> Invalidation {
    pasid_pages(domain, 0, address, mask)
}

/// As [`first_stage_pages`], for a PASID.
pub(super) fn pasid_pages(domain: u16, pasid: u32, address: u64, mask: u8) -> Invalidation {
    Invalidation::PasidIotlb {
        domain,
        pasid,
        scope: PasidIotlbScope::Pages(PageBlock {
            address,
            mask,
            leaf_only: true,
        }),
    }
}

/// A device without.
pub(super) const SHADOWED: FakeFeatures = FakeFeatures {
    first_stage: false,
    nesting: false,
    dirty_tracking: false,
    ..NESTING
};

/// A device with nested translation.
pub(super) const NESTING: FakeFeatures = FakeFeatures {
    address_bits: 48,
    coherent: true,
    first_stage: true,
    nesting: true,
    whole_first_stage: false,
    dirty_tracking: true,
    pasid_bits: 0,
    page_requests: false,
    tracks_pasids: false,
    read_only_parents: false,
    reserved: None,
};

/// Invalidation of everything that the host keeps of a nested page table.
pub(super) const ALL: NestedInvalidation = NestedInvalidation {
    address: 0,
    pages: u64::MAX,
    leaf_only: false,
};

/// Everything of a domain without PASID.
pub(super) fn first_stage_all(domain: u16) -> Invalidation {
    pasid_all(domain, 0)
}

/// As [`first_stage_all`], for a PASID.
pub(super) fn pasid_all(domain: u16, pasid: u32) -> Invalidation {
    Invalidation::PasidIotlb {
        domain,
        pasid,
        scope: PasidIotlbScope::Pasid,
    }
}

/// What the host still has.
pub(super) fn objects(hosts: &[&Arc<FakeHost>]) -> usize {
    hosts.iter().map(|host| host.objects()).sum()
}
