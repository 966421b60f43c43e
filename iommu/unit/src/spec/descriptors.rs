//! Invalidation descriptors (section 6.5.2), as [`decode`](super::decoder::decode) gives them.

use std::ops::RangeInclusive;

use super::device_tlb::DeviceTlbInvalidation;
use super::ids::SourceId;
use super::page_request::PageResponse;
use super::registers::Caps;

/// Scope of a context cache invalidation, type 1 (section 6.5.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextScope {
    /// All entries.
    Global,
    /// Entries of a domain (legacy mode; scalable mode takes it for global).
    Domain(u16),
    /// Entries of a source id, of which `function_mask` (FM) tells the bits to ignore.
    Device {
        /// SID.
        source: u16,
        /// FM: 1 ignores bit 2, 2 ignores bits 2:1, 3 ignores bits 2:0.
        function_mask: u8,
    },
}

impl ContextScope {
    /// Whether it names the context entry of `source`. In scalable mode entries have no domain.
    pub const fn concerns(self, source: SourceId) -> bool {
        match self {
            Self::Global | Self::Domain(_) => true,
            Self::Device {
                source: named,
                function_mask,
            } => (source.0 ^ named) & !ignored_bits(function_mask) == 0,
        }
    }
}

/// The bits of a source id that FM, of a context cache invalidation, has ignored.
pub const fn ignored_bits(function_mask: u8) -> u16 {
    match function_mask {
        0 => 0,
        1 => 0b100,
        2 => 0b110,
        _ => 0b111,
    }
}

/// Pages that an invalidation names: `2^mask` of them, naturally aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageBlock {
    /// Address of the first page.
    pub address: u64,
    /// AM: log2 of the number of pages.
    pub mask: u8,
    /// IH: no table was changed, only leaves.
    pub leaf_only: bool,
}

impl PageBlock {
    /// The first and the last byte.
    pub(crate) fn span(&self) -> RangeInclusive<u64> {
        let size = 1_u64.checked_shl(12 + u32::from(self.mask));
        let within = size.map_or(u64::MAX, |size| size - 1);
        self.address & !within..=self.address | within
    }

    /// From the second word of a descriptor of type 6. Low bits of the address that the mask covers are dropped.
    pub(crate) fn from_word(word: u64) -> Self {
        let [low, ..] = word.to_le_bytes();
        let mask = low & 0x3F;
        let kept = u64::MAX.checked_shl(12 + u32::from(mask)).unwrap_or(0);
        Self {
            address: word & kept,
            mask,
            leaf_only: word & 1 << 6 != 0,
        }
    }

    /// From the second word of a descriptor of type 2, or from IVA: the bits of the address from MGAW on are
    /// ignored (section 11.4.8).
    pub(crate) fn of_second_stage(word: u64, caps: &Caps) -> Self {
        let block = Self::from_word(word);
        let width = u32::from(caps.guest_address_width());
        Self {
            address: block.address & !u64::MAX.checked_shl(width).unwrap_or(0),
            ..block
        }
    }
}

/// Scope of an IOTLB invalidation, type 2 (section 6.5.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IotlbScope {
    /// All entries.
    Global,
    /// Entries of a domain.
    Domain(u16),
    /// Second-stage entries of a domain in a block, and all its first-stage and nested ones.
    Pages(u16, PageBlock),
}

/// Scope of an interrupt entry cache invalidation, type 4 (section 6.5.2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptScope {
    /// All entries.
    Global,
    /// An aligned power of two of entries.
    Entries {
        /// Index of the first one.
        first: u16,
        /// How many.
        count: u32,
    },
}

/// Scope of a PASID-based IOTLB invalidation, type 6 (section 6.5.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasidIotlbScope {
    /// All entries of the domain and PASID.
    Pasid,
    /// First-stage and nested entries in a block.
    Pages(PageBlock),
}

/// Scope of a PASID cache invalidation, type 7 (section 6.5.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasidCacheScope {
    /// Entries of a domain.
    Domain(u16),
    /// Entries of a domain and PASID.
    Pasid(u16, u32),
    /// All entries.
    Global,
}

/// Invalidation wait, type 5 (section 6.5.2.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// IF: set ICS.IWC, which may send the completion event.
    pub interrupt: bool,
    /// SW: the dword to write and where; bits of the address beyond the host address width are for the unit to ignore.
    pub status: Option<(u64, u32)>,
    /// FN: later descriptors do not start before this one has completed.
    pub fence: bool,
    /// PD: page requests that a device made before its device-TLB was invalidated come first.
    pub page_drain: bool,
}

/// An invalidation descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// Type 1.
    Context(ContextScope),
    /// Type 2.
    Iotlb(IotlbScope),
    /// Type 3 and, with PASID, type 8.
    DeviceTlb {
        /// SID: whose device-TLB.
        source: SourceId,
        /// What the device is to forget.
        invalidation: DeviceTlbInvalidation,
    },
    /// Type 4.
    Interrupt(InterruptScope),
    /// Type 5.
    Wait(Wait),
    /// Type 6.
    PasidIotlb {
        /// DID.
        domain: u16,
        /// PASID.
        pasid: u32,
        /// G and, for pages, the block.
        scope: PasidIotlbScope,
    },
    /// Type 7.
    PasidCache(PasidCacheScope),
    /// Type 9.
    PageResponse {
        /// RID: who is answered.
        source: SourceId,
        /// The answer.
        response: PageResponse,
    },
}
