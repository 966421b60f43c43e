//! ATS, PASID and Page Request capabilities of the edu device (PCIe 10.5, 7.8.9): what the guest
//! enabled, and the status that it reads.

use pci::{ConfigBuilder, ConfigSpace};

use super::extension::EduFeatures;

const PASID_BITS: u8 = 20;
/// One command makes one page request at a time.
const PAGE_CAPACITY: u32 = 1;

/// Offsets within the capabilities.
const ATS_CONTROL: u16 = 6;
const PASID_CONTROL: u16 = 6;
const PRI_CONTROL: u16 = 4;
const PRI_STATUS: u16 = 6;

const ATS_ENABLE: u16 = 1 << 15;
const PASID_ENABLE: u16 = 1;
const PRI_ENABLE: u16 = 1;
/// Reads as 0: there is nothing to reset, as requests in flight belong to a command.
const PRI_RESET: u16 = 2;
const STATUS_RESPONSE_FAILURE: u16 = 1;
const STATUS_UNEXPECTED_GROUP: u16 = 2;
const STATUS_STOPPED: u16 = 1 << 8;

/// Where the capabilities are; `None` for those that the device does not have.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Capabilities {
    ats: Option<u16>,
    pasid: Option<u16>,
    pri: Option<u16>,
}

impl Capabilities {
    /// Adds what `features` asks for.
    pub(super) fn add(builder: &mut ConfigBuilder, features: EduFeatures) -> Self {
        Self {
            ats: features.ats.then(|| builder.add_ats()),
            pasid: features
                .pasid
                .then(|| builder.add_pasid(PASID_BITS, false, false)),
            pri: features.pri.then(|| builder.add_pri(PAGE_CAPACITY)),
        }
    }

    /// What the guest enabled. After a Response Failure no page requests are made until the guest
    /// has cleared that.
    pub(super) fn enabled(&self, config: &ConfigSpace) -> EduFeatures {
        let bit = |base: Option<u16>, register: u16, bit: u16| {
            base.is_some_and(|base| config.read_u16(base + register) & bit != 0)
        };
        EduFeatures {
            ats: bit(self.ats, ATS_CONTROL, ATS_ENABLE),
            pasid: bit(self.pasid, PASID_CONTROL, PASID_ENABLE),
            pri: bit(self.pri, PRI_CONTROL, PRI_ENABLE)
                && !bit(self.pri, PRI_STATUS, STATUS_RESPONSE_FAILURE),
        }
    }

    /// Software answered that no page request will succeed.
    pub(super) fn set_response_failure(&self, config: &mut ConfigSpace) {
        if let Some(pri) = self.pri {
            let status = config.read_u16(pri + PRI_STATUS) | STATUS_RESPONSE_FAILURE;
            config.set_bytes(pri + PRI_STATUS, &status.to_le_bytes());
        }
    }

    /// Shows whether requests may still be in flight (`waiting`) and whether an answer came to none
    /// (`unexpected`).
    pub(super) fn update(&self, config: &mut ConfigSpace, waiting: bool, unexpected: bool) {
        let Some(pri) = self.pri else {
            return;
        };
        let control = config.read_u16(pri + PRI_CONTROL) & !PRI_RESET;
        config.set_bytes(pri + PRI_CONTROL, &control.to_le_bytes());
        let mut status = config.read_u16(pri + PRI_STATUS) & !STATUS_STOPPED;
        if control & PRI_ENABLE == 0 && !waiting {
            status |= STATUS_STOPPED;
        }
        if unexpected {
            status |= STATUS_UNEXPECTED_GROUP;
        }
        config.set_bytes(pri + PRI_STATUS, &status.to_le_bytes());
    }
}
