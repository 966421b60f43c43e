//! A guest with assigned devices, whose tables the cases fill.

use std::fs::File;
use std::sync::Arc;

use intel_vtd::spec::descriptors::{
    ContextScope, IotlbScope, PageBlock, PasidCacheScope, PasidIotlbScope,
};
use intel_vtd::testing::tables::{Paging, RAM, World};
use intel_vtd::{
    EventSink, InterruptMessage, Invalidation, Patience, Scalable, SourceId, Stages,
    TranslationObserver as _, Unit, UnitConfig,
};
use intel_vtd_host::{
    AssignedDevice, AssignedDevices, HostGroupId, HostIommu, Limits, Placement, PlacementReport,
    RamPiece,
};
use vm_memory::GuestMemoryMmap;

use super::nothing::{NoAttachment, Nothing};

pub(crate) type Memory = Arc<GuestMemoryMmap<()>>;

/// Guest memory that everything is mapped to: 2 MiB from here on.
pub(crate) const PAGE: u64 = 0x200_0000;

struct NoEvents;

impl EventSink for NoEvents {
    fn deliver(&self, _: InterruptMessage) {}
}

/// Scalable mode, translation on.
pub(crate) struct Guest {
    pub(crate) world: World,
    pub(crate) devices: Arc<AssignedDevices<Memory>>,
    unit: Arc<Unit<Memory>>,
    host: Arc<Nothing>,
}

impl Guest {
    pub(crate) fn new() -> Self {
        let config = UnitConfig::legacy(46)
            .with_scalable(Scalable::new(Stages::Nested).with_pasid_bits(20))
            .with_caching_mode(true)
            .with_snoop_control(true);
        let world = World::scalable();
        let unit = Unit::new(Arc::clone(&world.memory), &config, Arc::new(NoEvents)).unwrap();
        let devices = AssignedDevices::new(ram(), Some(&unit), Limits::default());
        unit.dma_state().set_latched(world.latched);
        world.set(world.scalable_context(), 0);
        Self {
            world,
            devices,
            unit,
            host: Nothing::new(),
        }
    }

    /// Adds devices from 00:00.0 on, each with a PASID directory.
    pub(crate) fn add(&self, devices: u16) {
        for source in (0..devices).map(SourceId) {
            let context = self.world.context + u64::from(source.0) * 32;
            self.world.set(context, self.world.page() | 1 << 3 | 1);
            let id = self.host.bind();
            let device = AssignedDevice {
                source,
                name: format!("device {id:?}"),
                host: Arc::clone(&self.host) as Arc<dyn HostIommu>,
                id,
                group: HostGroupId(id.0),
                attachment: Arc::new(NoAttachment),
                pasids: true,
                ats: false,
                page_requests: None,
            };
            self.devices.add(device).unwrap();
        }
    }

    /// Writes the entry of `source` for `pasid`; 0 is that of requests without.
    pub(crate) fn enter(&self, source: u16, pasid: u32, words: [u64; 3]) {
        let context = self.world.context + u64::from(source) * 32;
        let directory = self.world.get(context) & !0xfff;
        let slot = directory + u64::from(pasid / 64) * 8;
        if self.world.get(slot) == 0 {
            self.world.set(slot, self.world.page() | 1);
        }
        let entry = (self.world.get(slot) & !0xfff) + u64::from(pasid % 64) * 64;
        for (place, word) in (entry..).step_by(8).zip(words) {
            self.world.set(place, word);
        }
    }

    /// Has requests of `source` without PASID translated by `paging`.
    pub(crate) fn enter_second_stage(&self, source: u16, paging: &Paging, domain: u16) {
        let words = [paging.top | 2 << 6 | 2 << 2 | 1, domain.into(), 0];
        self.enter(source, 0, words);
    }

    /// One exit.
    pub(crate) fn invalidate(&self, invalidations: &[Invalidation]) {
        self.devices.run_begins();
        let patience = Patience::endless();
        let _ = self.devices.invalidated(invalidations, &patience);
    }

    /// All entries are announced.
    pub(crate) fn announce(&self) {
        self.invalidate(&[
            Invalidation::Context(ContextScope::Global),
            Invalidation::PasidCache(PasidCacheScope::Global),
            Invalidation::Iotlb(IotlbScope::Global),
        ]);
    }

    /// Turns translation on or off.
    pub(crate) fn translate(&self, enabled: bool) {
        let mut latched = self.world.latched;
        latched.enabled = enabled;
        self.unit.dma_state().set_latched(latched);
        let _ = self.devices.translation_changed(&Patience::endless());
    }

    /// Requests of devices, with and without PASID, that are where the guest's tables put them.
    pub(crate) fn placed(&self) -> usize {
        let reports = self.devices.describe();
        let placements = reports.iter().flat_map(|report| {
            let with = report.pasids.iter().map(|(_, report)| report);
            std::iter::once(&report.without_pasid).chain(with)
        });
        let is_placed =
            |report: &&PlacementReport| !matches!(report.placement, Placement::Blocked(_));
        placements.filter(is_placed).count()
    }
}

/// A page of the second stage.
pub(crate) fn page(domain: u16, address: u64) -> Invalidation {
    let block = PageBlock {
        address,
        mask: 0,
        leaf_only: true,
    };
    Invalidation::Iotlb(IotlbScope::Pages(domain, block))
}

/// A page of the first stage.
pub(crate) fn pasid_page(domain: u16, pasid: u32, address: u64) -> Invalidation {
    Invalidation::PasidIotlb {
        domain,
        pasid,
        scope: PasidIotlbScope::Pages(PageBlock {
            address,
            mask: 0,
            leaf_only: true,
        }),
    }
}

fn ram() -> Vec<RamPiece> {
    vec![RamPiece {
        guest_address: 0,
        file: Arc::new(File::open("/dev/null").unwrap()),
        offset: 0,
        host_address: 0x7000_0000_0000,
        length: u64::try_from(RAM).unwrap(),
    }]
}
