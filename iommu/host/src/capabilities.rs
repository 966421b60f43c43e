//! Capabilities of the host's IOMMU for a device, and the limits that they set to a unit.

mod incompatible;
mod reach;

use std::fmt;
use std::io;

use crate::host_iommu::{HostDeviceId, HostIommu, HwptOptions, IntelInfo};
pub use incompatible::{Incompatible, NoNesting};
use intel_vtd::{Scalable, UnitConfig, WalkFeatures};
pub use reach::TableReach;
use reach::{Refused, reach};

/// The page size of the guest's tables.
const PAGE: u64 = 0x1000;

/// What the host's IOMMU can do for one device, found out by asking and by trying: registers show
/// capabilities, but not what the kernel makes of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCapabilities {
    /// Registers of an Intel unit; `None` for any other IOMMU.
    pub intel: Option<IntelInfo>,
    /// What a page table without further options translates.
    pub plain: TableReach,
    /// The same of one that tells which pages were written, if there is such a one.
    pub dirty_tracking: Option<TableReach>,
    /// The same of one on which first-stage tables can be put, if there is such a one.
    pub nesting_parent: Option<TableReach>,
    /// log2 of the number of PASIDs that the device can use; 0 for none.
    pub pasid_bits: u8,
    /// Its requests with PASID can be privileged.
    pub privileged_pasids: bool,
    /// It may keep translations (ATS), as far as the host's IOMMU goes.
    pub ats: bool,
}

impl HostCapabilities {
    /// Asks and tries what `host` can do for `device`, which is bound to it. Leaves nothing behind.
    ///
    /// # Errors
    /// The host's, when there is no page table for the device at all, or questions are not
    /// answered.
    pub fn probe(host: &dyn HostIommu, device: HostDeviceId) -> io::Result<Self> {
        let info = host.hardware_info(device)?;
        let attempt = |options| {
            match reach(host, device, options) {
                Ok(reach) => Ok(Some(reach)),
                // There are several ways to say that.
                Err(Refused::Table(_)) => Ok(None),
                Err(Refused::Other(error)) => Err(error),
            }
        };
        let plain = reach(host, device, HwptOptions::default());
        Ok(Self {
            intel: info.intel,
            plain: plain.map_err(io::Error::from)?,
            dirty_tracking: attempt(HwptOptions {
                dirty_tracking: true,
                ..HwptOptions::default()
            })?,
            nesting_parent: attempt(HwptOptions {
                nesting_parent: true,
                ..HwptOptions::default()
            })?,
            pasid_bits: info.pasid_bits,
            privileged_pasids: info.privileged_pasids,
            ats: info.ats,
        })
    }

    /// What the page tables of shadows translate: with dirty tracking they are second-stage ones,
    /// which go further than the plain ones of a host that uses the first stage for these.
    pub fn shadows(&self) -> TableReach {
        self.dirty_tracking.unwrap_or(self.plain)
    }

    /// What the page table over all guest memory translates.
    pub fn memory(&self) -> TableReach {
        self.nesting_parent.unwrap_or_else(|| self.shadows())
    }

    /// Whether first-stage tables of a guest can be put on top of guest memory.
    pub fn can_nest(&self) -> bool {
        self.nesting_parent.is_some()
    }

    /// What prevents a guest's first-stage tables from being put on top of guest memory.
    pub fn no_nesting(&self) -> Option<NoNesting> {
        match self.intel {
            _ if self.can_nest() => None,
            None => Some(NoNesting::OtherIommu),
            Some(intel) if intel.caps.ecap.nest() => Some(NoNesting::Unused),
            Some(_) => Some(NoNesting::NoCapability),
        }
    }

    /// Whether a device with these capabilities can be behind a unit with first-stage tables of up
    /// to `aw_bits` bits.
    ///
    /// # Errors
    /// The first thing that prevents it.
    pub fn check_first_stage(&self, aw_bits: u8) -> Result<(), Incompatible> {
        if let Some(why) = self.no_nesting() {
            return Err(Incompatible::NoNesting(why));
        }
        if aw_bits == 57 && !self.intel.is_some_and(|intel| intel.caps.cap.fs5lp()) {
            return Err(Incompatible::FiveLevels);
        }
        Ok(())
    }

    /// What the host's walks of first-stage tables can.
    fn walks(&self) -> WalkFeatures {
        let has = |bit: fn(&IntelInfo) -> bool| self.intel.as_ref().is_some_and(bit);
        WalkFeatures::ALL
            .with_pages_of_1g(has(|intel| intel.caps.cap.fs1gp()))
            .with_supervisor_requests(has(|intel| intel.caps.ecap.srs()))
            .with_extended_accessed(has(|intel| intel.caps.ecap.eafs()))
            .with_snooped(has(|intel| intel.caps.ecap.smpwcs()))
    }

    /// Whether the host can make a device's accesses snoop caches. Known of Intel units only.
    pub fn snoop_control(&self) -> bool {
        self.intel.is_some_and(|intel| intel.caps.ecap.sc())
    }

    /// Whether a device with these capabilities can be behind a unit with this configuration, to
    /// which [`limit`](Self::limit) was applied if the unit can still be chosen.
    ///
    /// # Errors
    /// The first thing that prevents it.
    pub fn check(&self, config: &UnitConfig) -> Result<(), Incompatible> {
        if let Some(scalable) = config.scalable
            && scalable.stages.first()
        {
            self.check_first_stage(config.address_width.bits())?;
            self.check_walks(&scalable)?;
        }
        if !config.caching_mode {
            return Err(Incompatible::CachingMode);
        }
        if config.snoop_control && !self.snoop_control() {
            return Err(Incompatible::SnoopControl);
        }
        let asked = config.input_width();
        for reach in self.below(config) {
            let TableReach {
                address_bits: host,
                page_size,
            } = reach;
            if page_size > PAGE {
                return Err(Incompatible::PageSize(page_size));
            }
            if host < asked {
                return Err(Incompatible::AddressWidth { host, asked });
            }
        }
        Ok(())
    }

    /// What page tables translate that stand for second-stage tables of a unit with this
    /// configuration: shadows below first-stage tables are over page tables of another kind.
    fn below(&self, config: &UnitConfig) -> impl Iterator<Item = TableReach> {
        let parents = self.nesting_parent.filter(|_| config.stages().nested());
        [self.shadows()].into_iter().chain(parents)
    }

    /// Whether the unit promises of first-stage tables what the host does not keep.
    fn check_walks(&self, config: &Scalable) -> Result<(), Incompatible> {
        let (asked, host) = (config.walks, self.walks());
        let pasids = config.pasid_bits != 0;
        let promises = [
            (asked.pages_of_1g, host.pages_of_1g, "pages of 1 GiB"),
            (
                asked.supervisor_requests && pasids,
                host.supervisor_requests,
                "requests of supervisors",
            ),
            (
                asked.extended_accessed && pasids,
                host.extended_accessed,
                "the extended accessed flag",
            ),
            (asked.snooped, host.snooped, "snooped walks"),
        ];
        match promises.iter().find(|(asked, host, _)| *asked && !host) {
            Some((.., what)) => Err(Incompatible::Walks(what)),
            None => Ok(()),
        }
    }

    /// Whether the device can reach all of guest memory, which ends before `end`.
    ///
    /// # Errors
    /// It cannot.
    pub fn check_memory(&self, end: u64) -> Result<(), Incompatible> {
        let TableReach {
            address_bits: host,
            page_size,
        } = self.memory();
        if page_size > PAGE {
            return Err(Incompatible::PageSize(page_size));
        }
        match end
            .checked_sub(1)
            .map(|last| last.checked_shr(u32::from(host)).unwrap_or(0))
        {
            Some(1..) => Err(Incompatible::Memory { end, host }),
            _ => Ok(()),
        }
    }

    /// The widest address width of a unit that the device can be behind.
    pub fn widest_address(&self) -> Option<u8> {
        widest(self.shadows().address_bits)
    }

    /// Takes from `config` what the host cannot do and the guest can do without: promises beyond
    /// the host's would be empty.
    #[must_use]
    pub fn limit(&self, mut config: UnitConfig) -> UnitConfig {
        config.snoop_control &= self.snoop_control();
        // A host without dirty tracking has first-stage tables where a guest has second-stage ones, and
        // half of their addresses, as addresses of first-stage tables are canonical (3.6).
        if let Some(host) = self.below(&config).map(|reach| reach.address_bits).min()
            && host < config.input_width()
            && config.address_width.holds(host)
        {
            config.guest_address_width = Some(host);
        }
        // Without a first stage, nobody but the unit walks tables.
        if let Some(scalable) = &mut config.scalable
            && scalable.stages.first()
        {
            scalable.walks = scalable.walks.intersection(self.walks());
        }
        config
    }
}

/// For people: one line.
impl fmt::Display for HostCapabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.intel {
            Some(_) => "Intel VT-d",
            None => "not VT-d",
        };
        write!(f, "{kind}, {}-bit addresses", self.shadows().address_bits)?;
        let optional = [
            ("dirty tracking", self.dirty_tracking.is_some()),
            ("nesting", self.can_nest()),
            ("snoop control", self.snoop_control()),
        ];
        for (name, present) in optional {
            write!(f, ", {}{name}", if present { "" } else { "no " })?;
        }
        if self.can_nest() && self.intel.is_none_or(|intel| intel.no_read_only_parent) {
            f.write_str(", nothing read-only below first-stage tables (erratum 772415)")?;
        }
        if !self.ats {
            f.write_str(", no ATS")?;
        }
        match self.pasid_bits {
            0 => f.write_str(", no PASIDs"),
            bits => write!(f, ", {bits}-bit PASIDs"),
        }
    }
}

/// The widest address that a unit can have and that has at most `host` bits.
fn widest(host: u8) -> Option<u8> {
    [57, 48, 39].into_iter().find(|bits| *bits <= host)
}

#[cfg(test)]
mod capabilities_test;
