//! PASID directory entries (sec. 9.5) and PASID-table entries (sec. 9.6).

use super::entry::{EntryError, bit, check_reserved, extract, field, reserved_without};
use super::gates::Gates;

const PRESENT: u64 = bit(0);
const FAULT_DISABLE: u64 = bit(1);
const POINTER: u64 = field(51, 12);

/// PASID directory entry, 64 bits. It covers 64 PASIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryEntry(pub u64);

impl DirectoryEntry {
    /// Size in bytes.
    pub const SIZE: u64 = 8;

    /// FPD, which holds even when the entry is not present.
    pub const fn fault_disable(&self) -> bool {
        self.0 & FAULT_DISABLE != 0
    }

    /// SMPTBLPTR: the PASID table.
    pub const fn table(&self) -> u64 {
        self.0 & POINTER
    }

    /// Checks the entry.
    ///
    /// # Errors
    /// Not present, or reserved bits.
    pub fn validate(&self, gates: &Gates) -> Result<(), EntryError> {
        if self.0 & PRESENT == 0 {
            return Err(EntryError::NotPresent);
        }
        check_reserved(&[self.0], &[field(11, 2) | gates.beyond_host()])
    }
}

/// PGTT: what translates the requests of a PASID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestTranslationType {
    /// 001.
    FirstStage,
    /// 010.
    SecondStage,
    /// 011.
    Nested,
    /// 100.
    PassThrough,
}

impl GuestTranslationType {
    const fn has_first_stage(self) -> bool {
        matches!(self, Self::FirstStage | Self::Nested)
    }

    const fn has_second_stage(self) -> bool {
        matches!(self, Self::SecondStage | Self::Nested)
    }
}

/// PASID-table entry, 512 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasidEntry(pub [u64; 8]);

impl PasidEntry {
    /// Size in bytes.
    pub const SIZE: u64 = 64;

    const ADDRESS_WIDTH: u64 = field(4, 2);
    const SECOND_STAGE_ACCESSED_DIRTY: u64 = bit(9);
    // Word 1; absolute positions are 64 more.
    const WALK_SNOOP: u64 = bit(87 - 64);
    const PAGE_SNOOP: u64 = bit(88 - 64);
    const CACHE_DISABLE: u64 = bit(89 - 64);
    const EXTENDED_MEMORY_TYPE_ENABLE: u64 = bit(90 - 64);
    const PAGE_ATTRIBUTES: u64 = field(127 - 64, 96 - 64);
    // Word 2; absolute positions are 128 more.
    const SUPERVISOR_REQUESTS: u64 = bit(0);
    const FIRST_STAGE_MODE: u64 = field(131 - 128, 130 - 128);
    const WRITE_PROTECT: u64 = bit(132 - 128);
    const EXTENDED_ACCESSED: u64 = bit(135 - 128);

    /// FPD, which holds even when the entry is not present.
    pub const fn fault_disable(&self) -> bool {
        self.0[0] & FAULT_DISABLE != 0
    }

    /// PGTT; `None` for what is not defined or not offered.
    pub const fn translation_type(&self, gates: &Gates) -> Option<GuestTranslationType> {
        let ecap = gates.caps.ecap;
        match extract(self.0[0], 8, 6) {
            1 if ecap.fsts() => Some(GuestTranslationType::FirstStage),
            2 if ecap.ssts() => Some(GuestTranslationType::SecondStage),
            3 if ecap.nest() => Some(GuestTranslationType::Nested),
            4 if ecap.pt() => Some(GuestTranslationType::PassThrough),
            _ => None,
        }
    }

    /// The depth of the second stage for which AW stands; `None` for what is not defined or not offered.
    pub fn second_stage_levels(&self, gates: &Gates) -> Option<u8> {
        gates.second_stage_levels(extract(self.0[0], 4, 2))
    }

    /// SSADE: second-stage accessed and dirty bits are maintained.
    pub const fn second_stage_accessed_dirty(&self) -> bool {
        self.0[0] & Self::SECOND_STAGE_ACCESSED_DIRTY != 0
    }

    /// SSPTPTR: the top second-stage table.
    pub const fn second_stage_table(&self) -> u64 {
        self.0[0] & POINTER
    }

    /// DID.
    pub const fn domain(&self) -> u16 {
        let [low, high, ..] = self.0[1].to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// PWSNP: walks are snooped, so that accessed and dirty bits can be updated.
    pub const fn walk_snoop(&self) -> bool {
        self.0[1] & Self::WALK_SNOOP != 0
    }

    /// PGSNP: accesses to pages are snooped.
    pub const fn page_snoop(&self) -> bool {
        self.0[1] & Self::PAGE_SNOOP != 0
    }

    /// SRE: supervisor requests are allowed.
    pub const fn supervisor_requests(&self) -> bool {
        self.0[2] & Self::SUPERVISOR_REQUESTS != 0
    }

    /// The depth of the first stage for which FSPM stands; `None` for what is not defined or not offered.
    pub const fn first_stage_levels(&self, gates: &Gates) -> Option<u8> {
        match (self.0[2] & Self::FIRST_STAGE_MODE) >> 2 {
            0 => Some(4),
            1 if gates.caps.cap.fs5lp() => Some(5),
            _ => None,
        }
    }

    /// WPE: supervisor writes need write permission, too.
    pub const fn write_protect(&self) -> bool {
        self.0[2] & Self::WRITE_PROTECT != 0
    }

    /// EAFE: the extended accessed bit is maintained.
    pub const fn extended_accessed(&self) -> bool {
        self.0[2] & Self::EXTENDED_ACCESSED != 0
    }

    /// FSPTPTR: the top first-stage table.
    pub const fn first_stage_table(&self) -> u64 {
        self.0[2] & POINTER
    }

    /// Checks the entry.
    ///
    /// Fields of a stage that the translation type does not use are ignored. That holds for AW even without a
    /// second stage, where the specification reserves it: Linux writes it into first-stage and pass-through
    /// entries, whatever the unit offers.
    ///
    /// # Errors
    /// Not present; reserved bits; or a type, depth or pointer that is not offered.
    pub fn validate(&self, gates: &Gates) -> Result<(), EntryError> {
        if self.0[0] & PRESENT == 0 {
            return Err(EntryError::NotPresent);
        }
        let kind = self.translation_type(gates);
        self.validate_reserved(gates, kind)?;
        let kind = kind.ok_or(EntryError::Unsupported)?;
        if kind.has_first_stage() && self.first_stage_levels(gates).is_none() {
            return Err(EntryError::Unsupported);
        }
        if kind.has_second_stage() {
            let levels = self
                .second_stage_levels(gates)
                .ok_or(EntryError::Unsupported)?;
            let width = gates.second_stage_width(levels);
            if kind == GuestTranslationType::Nested && self.first_stage_table() >> width != 0 {
                return Err(EntryError::Unsupported);
            }
        }
        Ok(())
    }

    fn validate_reserved(
        &self,
        gates: &Gates,
        kind: Option<GuestTranslationType>,
    ) -> Result<(), EntryError> {
        let ecap = gates.caps.ecap;
        let width_is_ignored = kind.is_some_and(|kind| !kind.has_second_stage());
        let uses_first_stage = kind.is_none_or(GuestTranslationType::has_first_stage);

        let mut words = [
            bit(5) | field(11, 10),
            0,
            0,
            u64::MAX,
            u64::MAX,
            u64::MAX,
            u64::MAX,
            u64::MAX,
        ];
        words[0] |= reserved_without(ecap.ssts() || width_is_ignored, Self::ADDRESS_WIDTH)
            | reserved_without(
                ecap.ssts() && ecap.ssads(),
                Self::SECOND_STAGE_ACCESSED_DIRTY,
            )
            | reserved_without(ecap.ssts(), POINTER)
            | gates.beyond_host();
        words[1] = u64::from(!gates.caps.domain_mask())
            | field(86 - 64, 80 - 64)
            | field(95 - 64, 91 - 64)
            | reserved_without(ecap.smpwcs(), Self::WALK_SNOOP)
            | reserved_without(ecap.sc(), Self::PAGE_SNOOP)
            | reserved_without(
                ecap.mts(),
                Self::CACHE_DISABLE | Self::EXTENDED_MEMORY_TYPE_ENABLE | Self::PAGE_ATTRIBUTES,
            );
        words[2] = bit(1)
            | field(11, 8)
            | reserved_without(ecap.srs(), Self::SUPERVISOR_REQUESTS)
            | reserved_without(
                ecap.fsts(),
                Self::FIRST_STAGE_MODE | Self::WRITE_PROTECT | POINTER | field(63, 52),
            )
            | reserved_without(ecap.eafs(), Self::EXTENDED_ACCESSED);
        if uses_first_stage {
            words[2] |= gates.beyond_host();
        }
        check_reserved(&self.0, &words)
    }
}
