//! Context entries (sec. 9.3 and 9.4): one per function.

use super::entry::{EntryError, bit, check_reserved, extract, field, reserved_without};
use super::gates::Gates;
use super::ids::Pasid;

const PRESENT: u64 = bit(0);
const FAULT_DISABLE: u64 = bit(1);
const POINTER: u64 = field(51, 12);

/// Context entry of legacy mode (sec. 9.3), 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextEntry(pub [u64; 2]);

/// TT: which requests of a function are translated, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextType {
    /// 00: second stage; only untranslated requests.
    Untranslated,
    /// 01: second stage; translation requests and translated requests, too.
    DeviceTlb,
    /// 10: pass-through; only untranslated requests.
    PassThrough,
}

impl ContextEntry {
    /// Size in bytes.
    pub const SIZE: u64 = 16;

    /// FPD, which holds even when the entry is not present.
    pub const fn fault_disable(&self) -> bool {
        self.0[0] & FAULT_DISABLE != 0
    }

    /// TT; `None` for what is not defined or not offered.
    pub const fn translation_type(&self, gates: &Gates) -> Option<ContextType> {
        match extract(self.0[0], 3, 2) {
            0 => Some(ContextType::Untranslated),
            1 if gates.caps.ecap.dt() => Some(ContextType::DeviceTlb),
            2 if gates.caps.ecap.pt() => Some(ContextType::PassThrough),
            _ => None,
        }
    }

    /// SSPTPTR: the top second-stage table.
    pub const fn table(&self) -> u64 {
        self.0[0] & POINTER
    }

    /// The depth for which AW stands; `None` for what is not defined or not offered.
    pub fn levels(&self, gates: &Gates) -> Option<u8> {
        gates.second_stage_levels(extract(self.0[1], 2, 0))
    }

    /// DID.
    pub const fn domain(&self) -> u16 {
        let [_, low, high, ..] = self.0[1].to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// Checks the entry.
    ///
    /// # Errors
    /// Not present; reserved bits; or a translation type or width that is not offered. Pass-through goes with the
    /// greatest width only.
    pub fn validate(&self, gates: &Gates) -> Result<(), EntryError> {
        if self.0[0] & PRESENT == 0 {
            return Err(EntryError::NotPresent);
        }
        let domain = u64::from(!gates.caps.domain_mask()) << 8;
        check_reserved(
            &self.0,
            &[
                field(11, 4) | gates.beyond_host(),
                bit(7) | domain | field(63, 24),
            ],
        )?;
        let levels = self.levels(gates).ok_or(EntryError::Unsupported)?;
        match self.translation_type(gates) {
            None => Err(EntryError::Unsupported),
            Some(ContextType::PassThrough) if !gates.is_deepest(levels) => {
                Err(EntryError::Unsupported)
            }
            Some(_) => Ok(()),
        }
    }
}

/// Context entry of scalable mode (sec. 9.4), 256 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScalableContextEntry(pub [u64; 4]);

impl ScalableContextEntry {
    /// Size in bytes.
    pub const SIZE: u64 = 32;

    const DEVICE_TLB: u64 = bit(2);
    const PASID: u64 = bit(3);
    const PAGE_REQUESTS: u64 = bit(4);
    const HOST_PERMISSION_TABLE: u64 = bit(5);
    const PASID_IN_TRANSLATED: u64 = bit(6);
    const RID_PASID: u64 = field(19, 0);
    const RID_PRIV: u64 = bit(20);

    /// FPD, which holds even when the entry is not present.
    pub const fn fault_disable(&self) -> bool {
        self.0[0] & FAULT_DISABLE != 0
    }

    /// DTE: translation requests and translated requests are allowed.
    pub const fn device_tlb(&self) -> bool {
        self.0[0] & Self::DEVICE_TLB != 0
    }

    /// PASIDE: requests with PASID are allowed.
    pub const fn pasid(&self) -> bool {
        self.0[0] & Self::PASID != 0
    }

    /// PRE: page requests are allowed.
    pub const fn page_requests(&self) -> bool {
        self.0[0] & Self::PAGE_REQUESTS != 0
    }

    /// EPTR: translated requests may have a PASID.
    pub const fn pasid_in_translated(&self) -> bool {
        self.0[0] & Self::PASID_IN_TRANSLATED != 0
    }

    /// PDTS, resolved: the number of PASIDs that the directory covers, from 2^13 to 2^20.
    pub const fn pasid_count(&self) -> u32 {
        64 << (extract(self.0[0], 11, 9) + 7)
    }

    /// PASIDDIRPTR: the PASID directory.
    pub const fn directory(&self) -> u64 {
        self.0[0] & POINTER
    }

    /// RID_PASID: where requests without PASID are looked up. 0 unless ECAP.RPS.
    pub const fn rid_pasid(&self, gates: &Gates) -> Pasid {
        if gates.caps.ecap.rps() {
            Pasid::from_field(self.0[1])
        } else {
            Pasid::ZERO
        }
    }

    /// RID_PRIV: requests without PASID are supervisor requests. Never unless ECAP.RPRIVS.
    pub const fn rid_privileged(&self, gates: &Gates) -> bool {
        gates.caps.ecap.rprivs() && self.0[1] & Self::RID_PRIV != 0
    }

    /// Checks the entry.
    ///
    /// # Errors
    /// Not present; reserved bits; or fields that contradict each other.
    pub fn validate(&self, gates: &Gates) -> Result<(), EntryError> {
        if self.0[0] & PRESENT == 0 {
            return Err(EntryError::NotPresent);
        }
        let ecap = gates.caps.ecap;
        let first = field(8, 7)
            | gates.beyond_host()
            | reserved_without(ecap.dt(), Self::DEVICE_TLB)
            | reserved_without(ecap.pasid(), Self::PASID)
            | reserved_without(ecap.prs(), Self::PAGE_REQUESTS)
            | reserved_without(ecap.hpts(), Self::HOST_PERMISSION_TABLE)
            | reserved_without(ecap.ptrs(), Self::PASID_IN_TRANSLATED);
        let second = field(63, 21)
            | reserved_without(ecap.rps(), Self::RID_PASID)
            | reserved_without(ecap.rprivs(), Self::RID_PRIV);
        check_reserved(&self.0, &[first, second, u64::MAX, u64::MAX])?;
        let contradiction = self.page_requests() && !self.device_tlb()
            || self.rid_pasid(gates).get() >= self.pasid_count()
            || self.pasid_in_translated() && !self.pasid();
        if contradiction {
            Err(EntryError::Unsupported)
        } else {
            Ok(())
        }
    }
}
