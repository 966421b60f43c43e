//! The extended capabilities that concern the IOMMU: ATS, PRI, PASID and ACS (sections 10.5 and
//! 7.8.9).

use crate::builder::ConfigBuilder;
use crate::capability::pri;

/// Address Translation Services (section 10.5.1).
pub const ATS_EXTENDED_ID: u16 = 0x0f;
/// Access Control Services (section 7.7.11).
pub const ACS_EXTENDED_ID: u16 = 0x0d;
/// Page Request Interface (section 10.5.2).
pub const PRI_EXTENDED_ID: u16 = 0x13;
/// Process Address Space ID (section 7.8.9).
pub const PASID_EXTENDED_ID: u16 = 0x1b;

/// The body of the ACS capability of a port that keeps what is behind it apart: source validation
/// (bit 0), peer-to-peer request and completion redirect (bits 2 and 3), upstream forwarding (bit
/// 4). Nothing is redirected in fact: requests of a function never reach another one.
pub(crate) const ACS_ISOLATION: [u8; 4] = [0x1d, 0, 0, 0];

/// ATS: requests are page-aligned (bit 5), and the invalidation queue is 32 deep (0 in bits 4:0).
const ATS_CAPABILITY: u8 = 0x20;

/// The registers of a capability after its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedRegisters<const N: usize> {
    /// The values after reset.
    pub values: [u8; N],
    /// The bits that software can change.
    pub writable: [u8; N],
}

impl ExtendedRegisters<4> {
    /// ATS (section 10.5.1). `capability` is the low byte of its capability register: depth of the
    /// invalidation queue (bits 4:0), page-aligned requests (5), global invalidations (6),
    /// relaxed ordering (7).
    #[must_use]
    pub const fn ats(capability: u8) -> Self {
        Self {
            values: [capability, 0, 0, 0],
            writable: [0, 0, 0x1f, 0x80],
        }
    }

    /// PASID (section 7.8.9) with `width` bits and, if asked for, execute and privileged-mode
    /// requests. More than 20 bits count as 20.
    #[must_use]
    pub fn pasid(width: u8, execute: bool, privileged: bool) -> Self {
        let features = u8::from(execute) << 1 | u8::from(privileged) << 2;
        Self {
            values: [features, width.min(20), 0, 0],
            writable: [0, 0, features | 1, 0],
        }
    }
}

impl ExtendedRegisters<12> {
    /// PRI (section 10.5.2) with room for `capacity` outstanding page requests: stopped, and
    /// page-group responses need a PASID if `pasid_in_response` says so.
    #[must_use]
    pub fn pri(capacity: u32, pasid_in_response: bool) -> Self {
        let [a, b, c, d] = capacity.to_le_bytes();
        let status = 1 | u8::from(pasid_in_response) << 7;
        Self {
            values: [0, 0, 0x00, status, a, b, c, d, 0, 0, 0, 0],
            writable: [0x03, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        }
    }
}

impl ConfigBuilder {
    /// Adds ATS with page-aligned requests and an invalidation queue depth of 32. Returns its
    /// offset; see [`ats`](crate::capability::ats).
    pub fn add_ats(&mut self) -> u16 {
        self.add_registers(ATS_EXTENDED_ID, ExtendedRegisters::ats(ATS_CAPABILITY))
    }

    fn add_registers<const N: usize>(&mut self, id: u16, registers: ExtendedRegisters<N>) -> u16 {
        self.add_ext_capability(id, 1, &registers.values, &registers.writable)
    }

    /// Adds PASID with `width` bits (at most 20) and, if asked for, execute and privileged-mode
    /// requests. Returns its offset; see [`pasid`](crate::capability::pasid).
    pub fn add_pasid(&mut self, width: u8, execute: bool, privileged: bool) -> u16 {
        assert!(width <= 20, "PASIDs have at most 20 bits");
        let registers = ExtendedRegisters::pasid(width, execute, privileged);
        self.add_registers(PASID_EXTENDED_ID, registers)
    }

    /// Adds PRI with room for `capacity` outstanding page requests; stopped, and page-group
    /// responses need a PASID. Returns its offset; see [`pri`].
    pub fn add_pri(&mut self, capacity: u32) -> u16 {
        let offset = self.add_registers(PRI_EXTENDED_ID, ExtendedRegisters::pri(capacity, true));
        let failures = pri::RESPONSE_FAILURE | pri::UNEXPECTED_GROUP_INDEX;
        self.set_write_one_to_clear(offset + pri::STATUS, &failures.to_le_bytes());
        self.set_own(offset + pri::STATUS, &pri::STOPPED.to_le_bytes());
        offset
    }

    /// Adds ACS without any control: an endpoint that sends nothing to its peers. Returns its
    /// offset.
    pub fn add_acs(&mut self) -> u16 {
        self.add_ext_capability(ACS_EXTENDED_ID, 1, &[0, 0, 0, 0], &[])
    }
}
