//! The configuration of a unit, and the capability words that follow from it (sections 11.4.2 and 11.4.3).
//!
//! A unit offers only what works, and of that only what was asked for. Memory types, execute requests, host permission
//! tables, PASIDs in translated requests, posted interrupts, performance monitoring, enhanced and
//! virtual commands and the throttle of device-TLB invalidations (DIT) do not work: their bits are 0
//! in every configuration.

mod parts;

use thiserror::Error;

pub use parts::{AddressWidth, Interrupts, Scalable, Stages, WalkFeatures};

use crate::spec::registers::{
    Capability, Caps, ExtendedCapability, FAULT_RECORD_COUNT, FAULT_RECORDS, IOTLB_REGISTERS,
};

/// What a [`Unit`](crate::Unit) is to be.
///
/// Start from [`legacy`](Self::legacy), [`scalable`](Self::scalable) or [`svm`](Self::svm), and change what
/// should be different, by the `with_` methods or in the fields:
/// ```
/// use intel_vtd::{AddressWidth, Interrupts, Scalable, Stages, UnitConfig};
///
/// let config = UnitConfig::legacy(46)
///     .with_address_width(AddressWidth::Bits57)
///     .with_interrupts(Interrupts::Remapped { x2apic: true })
///     .with_scalable(Scalable::new(Stages::Nested).with_pasid_bits(20));
/// assert!(config.capabilities()?.ecap.pasid());
/// # Ok::<(), intel_vtd::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnitConfig {
    /// HAW: width in bits of a guest-physical address, 32 to 52. Table entries hold no address beyond it.
    pub host_address_width: u8,
    /// The greatest width of an input address (MGAW), and with it the depth of the deepest tables (SAGAW). Where
    /// it is less than `host_address_width`, devices reach no memory beyond it untranslated either.
    pub address_width: AddressWidth,
    /// MGAW, where it is less than `address_width`; still more than tables of one level less translate.
    pub guest_address_width: Option<u8>,
    /// Scalable mode (SMTS), beside legacy mode. `None` for a unit with legacy mode only.
    pub scalable: Option<Scalable>,
    /// Interrupt remapping (IR, EIM).
    pub interrupts: Interrupts,
    /// Device-TLBs (DT, NWFS): devices may ask for translations, and keep and use the answers.
    pub device_tlb: bool,
    /// Caching mode (CM): software announces entries that become present, too.
    pub caching_mode: bool,
    /// Snoop control (SC).
    pub snoop_control: bool,
    /// Page-walk coherency (C): software need not write table entries back to memory. Without it,
    /// walks of scalable mode are not snooped either (SMPWCS).
    pub page_walk_coherency: bool,
    /// Translations and table entries are kept until an invalidation names them, as the most
    /// retentive hardware keeps them, so that software sees what it forgot to invalidate. This is slow, and
    /// meant for developers. The capabilities do not show it to the guest.
    pub keep_translations: bool,
}

/// Why there is no unit of a configuration.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// Table entries hold no such physical address.
    #[error(
        "host_address_width is {0}: guest-physical addresses have 32 to 52 bits; \
         use the width that the guest's CPUID leaf 0x80000008 reports"
    )]
    HostAddressWidth(u8),
    /// No request holds such a PASID.
    #[error(
        "pasid_bits is {0}: a PASID has at most 20 bits; choose 1 to 20, or 0 to do without PASIDs"
    )]
    PasidBits(u8),
    /// First-stage tables have at least four levels.
    #[error(
        "stages include the first stage, but address_width is 39 bits: first-stage tables have four or five levels; \
         choose 48 or 57 bits, or Stages::Second"
    )]
    FirstStageWidth,
    /// Tables of another depth are as wide.
    #[error(
        "guest_address_width is {0}: it is at most address_width, and more than what tables of one level less translate; \
         choose another address_width"
    )]
    GuestAddressWidth(u8),
    /// Only a device with a device-TLB requests pages.
    #[error(
        "page_requests is on, but device_tlb is off: a device requests pages when a translation \
         request found none; switch device_tlb on, or page_requests off"
    )]
    PageRequestsWithoutDeviceTlb,
}

impl UnitConfig {
    /// The least that translates: legacy mode, with second-stage tables for 48 bits of input
    /// address. Guest-physical addresses have `host_address_width` bits.
    pub const fn legacy(host_address_width: u8) -> Self {
        Self {
            host_address_width,
            address_width: AddressWidth::Bits48,
            guest_address_width: None,
            scalable: None,
            interrupts: Interrupts::Off,
            device_tlb: false,
            caching_mode: false,
            snoop_control: false,
            page_walk_coherency: true,
            keep_translations: false,
        }
    }

    /// As [`legacy`](Self::legacy), with scalable mode, first-stage, second-stage and nested
    /// translation, interrupt remapping with x2APIC destinations, and snoop control.
    pub const fn scalable(host_address_width: u8) -> Self {
        Self {
            scalable: Some(Scalable::new(Stages::Nested)),
            interrupts: Interrupts::Remapped { x2apic: true },
            snoop_control: true,
            ..Self::legacy(host_address_width)
        }
    }

    /// As [`scalable`](Self::scalable), with what devices need to share address spaces with
    /// processes (shared virtual memory): PASIDs of 20 bits, device-TLBs, and page requests.
    pub const fn svm(host_address_width: u8) -> Self {
        Self {
            scalable: Some(
                Scalable::new(Stages::Nested)
                    .with_pasid_bits(20)
                    .with_page_requests(true),
            ),
            device_tlb: true,
            ..Self::scalable(host_address_width)
        }
    }

    /// This configuration with another [`address_width`](Self::address_width).
    #[must_use]
    pub const fn with_address_width(mut self, width: AddressWidth) -> Self {
        self.address_width = width;
        self
    }

    /// This configuration with another [`guest_address_width`](Self::guest_address_width).
    #[must_use]
    pub const fn with_guest_address_width(mut self, bits: u8) -> Self {
        self.guest_address_width = Some(bits);
        self
    }

    /// This configuration with [`scalable`](Self#structfield.scalable) mode as `scalable` says;
    /// `None` is legacy mode only.
    #[must_use]
    pub fn with_scalable(mut self, scalable: impl Into<Option<Scalable>>) -> Self {
        self.scalable = scalable.into();
        self
    }

    /// This configuration with other [`interrupts`](Self::interrupts).
    #[must_use]
    pub const fn with_interrupts(mut self, interrupts: Interrupts) -> Self {
        self.interrupts = interrupts;
        self
    }

    /// This configuration with [`device_tlb`](Self::device_tlb) on or off.
    #[must_use]
    pub const fn with_device_tlb(mut self, on: bool) -> Self {
        self.device_tlb = on;
        self
    }

    /// This configuration with [`caching_mode`](Self::caching_mode) on or off.
    #[must_use]
    pub const fn with_caching_mode(mut self, on: bool) -> Self {
        self.caching_mode = on;
        self
    }

    /// This configuration with [`snoop_control`](Self::snoop_control) on or off.
    #[must_use]
    pub const fn with_snoop_control(mut self, on: bool) -> Self {
        self.snoop_control = on;
        self
    }

    /// This configuration with [`page_walk_coherency`](Self::page_walk_coherency) on or off.
    #[must_use]
    pub const fn with_page_walk_coherency(mut self, on: bool) -> Self {
        self.page_walk_coherency = on;
        self
    }

    /// This configuration with [`keep_translations`](Self::keep_translations) on or off.
    #[must_use]
    pub const fn with_keep_translations(mut self, on: bool) -> Self {
        self.keep_translations = on;
        self
    }

    /// The stages of translation. A unit with legacy mode only has the second one.
    pub fn stages(&self) -> Stages {
        self.scalable
            .map_or(Stages::Second, |scalable| scalable.stages)
    }

    /// Width in bits of the greatest input address (MGAW).
    pub fn input_width(&self) -> u8 {
        self.guest_address_width
            .unwrap_or(self.address_width.bits())
    }

    /// Width in bits of a PASID; 0 if there are no requests with PASID.
    pub fn pasid_bits(&self) -> u8 {
        self.scalable.map_or(0, |scalable| scalable.pasid_bits)
    }

    /// Whether devices may request pages.
    pub fn page_requests(&self) -> bool {
        self.scalable.is_some_and(|scalable| scalable.page_requests)
    }

    /// Checks the configuration and computes the capability words.
    ///
    /// # Errors
    /// The first field that cannot be had, with the remedy.
    pub fn capabilities(&self) -> Result<Caps, ConfigError> {
        self.validate()?;
        Ok(Caps {
            cap: self.capability(),
            ecap: self.extended_capability(),
        })
    }

    fn capability(&self) -> Capability {
        // Every depth up to the widest works, so that legacy guests find theirs.
        let sagaw = match self.address_width {
            AddressWidth::Bits39 => 0b0010,
            AddressWidth::Bits48 => 0b0110,
            AddressWidth::Bits57 => 0b1110,
        };
        let first_stage = self.stages().first();
        let pages_of_1g = self
            .scalable
            .is_some_and(|scalable| scalable.walks.pages_of_1g);
        Capability::new()
            .with_nd(6)
            .with_cm(self.caching_mode)
            .with_sagaw(sagaw)
            .with_mgaw(self.input_width().saturating_sub(1))
            .with_zlr(true)
            .with_fro(FAULT_RECORDS / 16)
            .with_sslps(0b0011)
            .with_psi(true)
            .with_nfr(FAULT_RECORD_COUNT - 1)
            .with_mamv(18)
            .with_dwd(true)
            .with_drd(true)
            .with_fs1gp(first_stage && pages_of_1g)
            .with_fs5lp(first_stage && self.address_width == AddressWidth::Bits57)
            .with_esirtps(self.interrupts.remapped())
            .with_esrtps(true)
    }

    fn extended_capability(&self) -> ExtendedCapability {
        let remapped = self.interrupts.remapped();
        let base = ExtendedCapability::new()
            .with_c(self.page_walk_coherency)
            .with_qi(true)
            .with_dt(self.device_tlb)
            .with_ir(remapped)
            .with_eim(self.interrupts.x2apic())
            .with_pt(true)
            .with_sc(self.snoop_control)
            .with_iro(IOTLB_REGISTERS / 16)
            .with_mhmv(if remapped { 15 } else { 0 })
            .with_nwfs(self.device_tlb);
        let Some(Scalable {
            stages,
            pasid_bits,
            page_requests,
            walks,
        }) = self.scalable
        else {
            return base;
        };
        let pasids = pasid_bits != 0;
        let snooped = walks.snooped && self.page_walk_coherency;
        base.with_nest(stages.nested())
            .with_prs(page_requests)
            .with_srs(pasids && walks.supervisor_requests)
            // The flag is set by walks, which have to be coherent for that (section 11.4.3).
            .with_eafs(pasids && stages.first() && walks.extended_accessed && snooped)
            .with_pss(pasid_bits.saturating_sub(1))
            .with_pasid(pasids)
            .with_pds(page_requests)
            .with_smts(true)
            // So are these flags.
            .with_ssads(stages.second() && snooped)
            .with_ssts(stages.second())
            .with_fsts(stages.first())
            .with_smpwcs(snooped)
            .with_rps(pasids)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        if !(32..=52).contains(&self.host_address_width) {
            return Err(ConfigError::HostAddressWidth(self.host_address_width));
        }
        let width = self.input_width();
        if !self.address_width.holds(width) {
            return Err(ConfigError::GuestAddressWidth(width));
        }
        if self.pasid_bits() > 20 {
            return Err(ConfigError::PasidBits(self.pasid_bits()));
        }
        if self.page_requests() && !self.device_tlb {
            return Err(ConfigError::PageRequestsWithoutDeviceTlb);
        }
        if self.stages().first() && self.address_width == AddressWidth::Bits39 {
            return Err(ConfigError::FirstStageWidth);
        }
        Ok(())
    }
}

#[cfg(test)]
mod config_test;
#[cfg(test)]
mod words_test;
