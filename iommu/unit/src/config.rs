//! What a unit is asked to be, and the capability words that follow from it (sections 11.4.2 and 11.4.3).
//!
//! Only what works is ever advertised, and of that only what is asked for. Memory types, execute requests, host permission
//! tables, PASIDs in translated requests, posted interrupts, performance monitoring, enhanced and virtual commands and the
//! throttle of device-TLB invalidations (DIT) do not work, so their bits stay 0 whatever the configuration says.

use thiserror::Error;

use crate::spec::registers::{
    Capability, Caps, ExtendedCapability, FAULT_RECORD_COUNT, FAULT_RECORDS, IOTLB_REGISTERS,
};

/// What a [`Unit`](crate::Unit) is asked to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitConfig {
    /// HAW: width in bits of a guest-physical address. Tables hold no address beyond it.
    pub host_address_width: u8,
    /// Greatest width in bits of an input address: 39, 48 or 57.
    pub aw_bits: u8,
    /// Scalable mode (SMTS), with 256-bit descriptors.
    pub scalable: bool,
    /// First-stage translation (FSTS).
    pub first_stage: bool,
    /// Second-stage translation (SSTS in scalable mode).
    pub second_stage: bool,
    /// Nested translation (NEST).
    pub nested: bool,
    /// Interrupt remapping (IR).
    pub interrupt_remapping: bool,
    /// Extended interrupt mode (EIM): 32-bit x2APIC destinations.
    pub x2apic: bool,
    /// Caching mode (CM): software announces entries that become present, too.
    pub caching_mode: bool,
    /// Snoop control (SC).
    pub snoop_control: bool,
    /// Width in bits of a PASID (PASID, PSS), 1 to 20; 0 for requests without PASID only.
    ///
    /// With PASIDs come RID_PASID (RPS) and supervisor requests (SRS), and with a first stage the extended accessed
    /// flag (EAFS).
    pub pasid_bits: u8,
    /// Device-TLBs (DT, NWFS): devices may ask for translations, keep them, and use what they were told.
    pub device_tlb: bool,
    /// Page requests (PRS), and waiting for them (PDS).
    pub page_requests: bool,
    /// What walks of first-stage tables can.
    pub walks: WalkFeatures,
    /// Translations and table entries are kept until an invalidation names them, as the most retentive hardware keeps them, so
    /// that software sees what it forgot to invalidate. For its developers; it is slow, and the guest cannot tell it from
    /// the capabilities.
    pub keep_translations: bool,
}

/// What walks of first-stage tables can. The unit can all of this; for assigned devices it is the host's IOMMU that walks. Each
/// is offered where the rest of the configuration has a use for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkFeatures {
    /// Pages of 1 GiB (FS1GP).
    pub pages_of_1g: bool,
    /// Requests of supervisors (SRS).
    pub supervisor_requests: bool,
    /// The extended accessed flag (EAFS).
    pub extended_accessed: bool,
    /// Walks snoop caches (SMPWCS).
    pub snooped: bool,
}

impl WalkFeatures {
    /// Everything.
    pub const ALL: Self = Self {
        pages_of_1g: true,
        supervisor_requests: true,
        extended_accessed: true,
        snooped: true,
    };
}

impl Default for UnitConfig {
    /// The least that translates: legacy mode with second-stage tables, 48 bits of input and 46 of guest-physical address.
    fn default() -> Self {
        Self {
            host_address_width: 46,
            aw_bits: 48,
            scalable: false,
            first_stage: false,
            second_stage: true,
            nested: false,
            interrupt_remapping: false,
            x2apic: false,
            caching_mode: false,
            snoop_control: false,
            pasid_bits: 0,
            device_tlb: false,
            page_requests: false,
            walks: WalkFeatures::ALL,
            keep_translations: false,
        }
    }
}

/// Why a configuration makes no unit.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A width that no walker has.
    #[error("aw_bits is {0}: a VT-d input address has 39, 48 or 57 bits; choose one of these")]
    AddressWidth(u8),
    /// A physical width outside of what table entries can hold.
    #[error(
        "host_address_width is {0}: guest-physical addresses have 32 to 52 bits; \
         use the width that the guest's CPUID leaf 0x80000008 reports"
    )]
    HostAddressWidth(u8),
    /// A PASID that fits in no request.
    #[error(
        "pasid_bits is {0}: a PASID has at most 20 bits; choose 1 to 20, or 0 to do without PASIDs"
    )]
    PasidBits(u8),
    /// A feature without the one it needs.
    #[error("{field} is on, but it needs {needs}: switch {needs} on, or {field} off")]
    Needs {
        /// The field that is on.
        field: &'static str,
        /// The field that is off.
        needs: &'static str,
    },
    /// Neither stage is there.
    #[error(
        "first_stage and second_stage are both off: such a unit translates nothing; \
         switch second_stage on (or first_stage, which needs scalable)"
    )]
    NoStage,
    /// First-stage tables have at least four levels.
    #[error(
        "first_stage is on, but aw_bits is 39: first-stage tables have four or five levels; \
         set aw_bits to 48 or 57, or switch first_stage off"
    )]
    FirstStageWidth,
}

impl UnitConfig {
    /// Checks the configuration and computes the capability words.
    ///
    /// # Errors
    /// The first field that cannot be had, with the remedy.
    pub fn capabilities(&self) -> Result<Caps, ConfigError> {
        self.validate()?;
        // Every depth up to the widest works, so that legacy guests find theirs.
        let sagaw = match self.aw_bits {
            39 => 0b0010,
            48 => 0b0110,
            _ => 0b1110,
        };
        let cap = Capability::new()
            .with_nd(6)
            .with_cm(self.caching_mode)
            .with_sagaw(sagaw)
            .with_mgaw(self.aw_bits - 1)
            .with_zlr(true)
            .with_fro(FAULT_RECORDS / 16)
            .with_sslps(0b0011)
            .with_psi(true)
            .with_nfr(FAULT_RECORD_COUNT - 1)
            .with_mamv(18)
            .with_dwd(true)
            .with_drd(true)
            .with_fs1gp(self.first_stage && self.walks.pages_of_1g)
            .with_fs5lp(self.first_stage && self.aw_bits == 57)
            .with_esirtps(self.interrupt_remapping)
            .with_esrtps(true);
        let pasids = self.pasid_bits != 0;
        let ecap = ExtendedCapability::new()
            .with_c(true)
            .with_qi(true)
            .with_dt(self.device_tlb)
            .with_ir(self.interrupt_remapping)
            .with_eim(self.x2apic)
            .with_pt(true)
            .with_sc(self.snoop_control)
            .with_iro(IOTLB_REGISTERS / 16)
            .with_mhmv(if self.interrupt_remapping { 15 } else { 0 })
            .with_nest(self.nested)
            .with_prs(self.page_requests)
            .with_srs(pasids && self.walks.supervisor_requests)
            .with_nwfs(self.device_tlb)
            .with_eafs(
                // The flag is set by walks, which have to be coherent for that (section 11.4.3).
                pasids && self.first_stage && self.walks.extended_accessed && self.walks.snooped,
            )
            .with_pss(self.pasid_bits.saturating_sub(1))
            .with_pasid(pasids)
            .with_pds(self.page_requests)
            .with_smts(self.scalable)
            .with_ssads(self.scalable && self.second_stage)
            .with_ssts(self.scalable && self.second_stage)
            .with_fsts(self.first_stage)
            .with_smpwcs(self.scalable && self.walks.snooped)
            .with_rps(pasids);
        Ok(Caps { cap, ecap })
    }

    fn validate(&self) -> Result<(), ConfigError> {
        if !matches!(self.aw_bits, 39 | 48 | 57) {
            return Err(ConfigError::AddressWidth(self.aw_bits));
        }
        if !(32..=52).contains(&self.host_address_width) {
            return Err(ConfigError::HostAddressWidth(self.host_address_width));
        }
        if self.pasid_bits > 20 {
            return Err(ConfigError::PasidBits(self.pasid_bits));
        }
        let pasids = self.pasid_bits != 0;
        let needs = [
            ("first_stage", self.first_stage, "scalable", self.scalable),
            ("nested", self.nested, "scalable", self.scalable),
            ("nested", self.nested, "first_stage", self.first_stage),
            ("nested", self.nested, "second_stage", self.second_stage),
            (
                "x2apic",
                self.x2apic,
                "interrupt_remapping",
                self.interrupt_remapping,
            ),
            ("pasid_bits", pasids, "scalable", self.scalable),
            (
                "page_requests",
                self.page_requests,
                "scalable",
                self.scalable,
            ),
            (
                "page_requests",
                self.page_requests,
                "device_tlb",
                self.device_tlb,
            ),
        ];
        for (field, asked, needs, present) in needs {
            if asked && !present {
                return Err(ConfigError::Needs { field, needs });
            }
        }
        if !self.first_stage && !self.second_stage {
            return Err(ConfigError::NoStage);
        }
        if self.first_stage && self.aw_bits == 39 {
            return Err(ConfigError::FirstStageWidth);
        }
        Ok(())
    }
}

#[cfg(test)]
mod config_test;
