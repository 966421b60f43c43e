//! Registers of invalidation: by registers (sections 11.4.7 and 11.4.8), and by the queue (11.4.16 to 11.4.18).

use bitfield_struct::bitfield;

/// Context command, CCMD (section 11.4.7).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ContextCommand {
    /// DID: domain id.
    pub domain: u16,
    /// SID: source id.
    pub source: u16,
    /// FM: function mask.
    #[bits(2)]
    pub function_mask: u8,
    #[bits(25)]
    __: u32,
    /// CAIG: granularity that was carried out; 0 is an error.
    #[bits(2)]
    pub actual: u8,
    /// CIRG: granularity asked for: 1 global, 2 domain, 3 device.
    #[bits(2)]
    pub requested: u8,
    /// ICC: invalidate.
    pub invalidate: bool,
}

/// Invalidate address, IVA (section 11.4.8).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InvalidateAddress {
    /// AM: address mask.
    #[bits(6)]
    pub address_mask: u8,
    /// IH: invalidation hint.
    pub hint: bool,
    #[bits(5)]
    __: u8,
    /// ADDR: page number.
    #[bits(52)]
    pub page: u64,
}

/// IOTLB invalidate, IOTLB_REG (section 11.4.8).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IotlbInvalidate {
    __: u32,
    /// DID: domain id.
    pub domain: u16,
    /// DW: drain writes.
    pub drain_writes: bool,
    /// DR: drain reads.
    pub drain_reads: bool,
    #[bits(7)]
    __: u8,
    /// IAIG: granularity that was carried out; 0 is an error.
    #[bits(2)]
    pub actual: u8,
    #[bits(1)]
    __: u8,
    /// IIRG: granularity asked for: 1 global, 2 domain, 3 page.
    #[bits(2)]
    pub requested: u8,
    #[bits(1)]
    __: u8,
    /// IVT: invalidate.
    pub invalidate: bool,
}

/// Invalidation queue address, IQA (section 11.4.16).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct QueueAddress {
    /// QS: the queue has `2^QS` pages.
    #[bits(3)]
    pub size: u8,
    __: u8,
    /// DW: descriptors have 256 bits.
    pub wide: bool,
    /// IQA: page number of the queue.
    #[bits(52)]
    pub page: u64,
}

impl QueueAddress {
    /// Guest-physical address of the queue.
    pub fn base(&self) -> u64 {
        self.page() << 12
    }

    /// Size of the queue in bytes.
    pub fn bytes(&self) -> u32 {
        0x1000 << self.size()
    }
}

/// Why the invalidation queue stopped, IQERCD.IQEI (section 11.4.18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// 1: the tail lies outside of the queue.
    Tail = 1,
    /// 2: the descriptor could not be fetched.
    Fetch = 2,
    /// 3: no such type in this mode, width or unit.
    Type = 3,
    /// 4: a reserved field is not zero.
    Reserved = 4,
    /// 5: this mode has no descriptors of this width.
    Width = 5,
    /// 6: the tail is not a multiple of the width.
    Alignment = 6,
    /// 7: RTADDR.TTM is reserved.
    Mode = 7,
}

/// Invalidation queue error record, IQERCD (section 11.4.18).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct QueueErrorRecord {
    /// IQEI: a [`QueueError`], while FSTS.IQE is set.
    #[bits(4)]
    pub error: u8,
    #[bits(28)]
    __: u32,
    /// ITESID: who did not complete an invalidation, while FSTS.ITE is set.
    pub timeout_source: u16,
    /// ICESID: who completed what was not asked for, while FSTS.ICE is set.
    pub completion_source: u16,
}
