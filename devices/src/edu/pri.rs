//! ATS, PASID and Page Request capabilities of the edu device (PCIe 10.5, 7.8.9): what the guest
//! enabled, and the status that it reads.

use pci::capability::{ats, pasid, pri};
use pci::{ConfigBuilder, ConfigSpace};

use super::extension::EduFeatures;

const PASID_BITS: u8 = 20;
/// One command makes one page request at a time.
const PAGE_CAPACITY: u32 = 1;

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
            ats: bit(self.ats, ats::CONTROL, ats::ENABLE),
            pasid: bit(self.pasid, pasid::CONTROL, pasid::ENABLE),
            pri: bit(self.pri, pri::CONTROL, pri::ENABLE)
                && !bit(self.pri, pri::STATUS, pri::RESPONSE_FAILURE),
        }
    }

    /// Software answered that no page request will succeed.
    pub(super) fn set_response_failure(&self, config: &mut ConfigSpace) {
        if let Some(offset) = self.pri {
            let status = config.read_u16(offset + pri::STATUS) | pri::RESPONSE_FAILURE;
            config.set_bytes(offset + pri::STATUS, &status.to_le_bytes());
        }
    }

    /// Shows whether requests may still be in flight (`waiting`) and whether an answer came to none
    /// (`unexpected`).
    pub(super) fn update(&self, config: &mut ConfigSpace, waiting: bool, unexpected: bool) {
        let Some(offset) = self.pri else {
            return;
        };
        // There is nothing to reset: requests in flight belong to a command.
        let control = config.read_u16(offset + pri::CONTROL) & !pri::RESET;
        config.set_bytes(offset + pri::CONTROL, &control.to_le_bytes());
        let mut status = config.read_u16(offset + pri::STATUS) & !pri::STOPPED;
        if control & pri::ENABLE == 0 && !waiting {
            status |= pri::STOPPED;
        }
        if unexpected {
            status |= pri::UNEXPECTED_GROUP_INDEX;
        }
        config.set_bytes(offset + pri::STATUS, &status.to_le_bytes());
    }
}
