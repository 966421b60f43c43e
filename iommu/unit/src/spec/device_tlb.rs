//! What device-TLB invalidations say (descriptors of type 3 and 8, section 6.5.2; the encoding of ranges is that of PCIe ATS).

use super::ids::Pasid;

/// Of which requests a device is to forget translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceTlbTarget {
    /// Requests without PASID.
    WithoutPasid,
    /// Requests with this PASID.
    Pasid(Pasid),
    /// Requests with any PASID (GI).
    AllPasids,
}

/// What a device is to forget: whatever it was told for a naturally aligned power of two of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceTlbInvalidation {
    /// Of which requests.
    pub target: DeviceTlbTarget,
    /// The first input address of the range.
    pub address: u64,
    /// Log2 of the size of the range in bytes, from 12 to 64: everything.
    pub shift: u8,
}

impl DeviceTlbInvalidation {
    /// From ADDR in 63:12 and S. With S, the lowest 0 bit from 12 on tells the size: twice what it stands for.
    pub(super) fn new(target: DeviceTlbTarget, address: u64, sized: bool) -> Self {
        let pages = address | 0xFFF;
        let shift = if sized {
            // All ones name no size; the whole space includes whatever was meant.
            (pages.trailing_ones() + 1).min(64)
        } else {
            12
        };
        Self {
            target,
            address: address & u64::MAX.checked_shl(shift).unwrap_or(0),
            shift: shift.to_le_bytes()[0],
        }
    }

    /// Whether the range has an address in common with the naturally aligned block of 2^`page_shift` bytes around
    /// `address`, such as an entry of a device-TLB.
    pub fn overlaps(&self, address: u64, page_shift: u8) -> bool {
        let shift = u32::from(self.shift.max(page_shift));
        // Of two aligned blocks, one contains the other, or they have nothing in common.
        (self.address ^ address).checked_shr(shift).unwrap_or(0) == 0
    }

    /// Whether translations of requests with `pasid`, or without one, are meant.
    pub fn concerns(&self, pasid: Option<Pasid>) -> bool {
        match self.target {
            DeviceTlbTarget::WithoutPasid => pasid.is_none(),
            DeviceTlbTarget::Pasid(named) => pasid == Some(named),
            DeviceTlbTarget::AllPasids => pasid.is_some(),
        }
    }
}

#[cfg(test)]
mod device_tlb_test;
