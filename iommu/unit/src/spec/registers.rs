//! Register offsets and layouts (section 11.4).
//!
//! Only what a register means is here; how it behaves when it is accessed is the unit's matter.

mod capabilities;
mod invalidation;
pub mod offset;

use bitfield_struct::bitfield;

pub use capabilities::{Capability, Caps, ExtendedCapability};
pub use invalidation::{
    ContextCommand, InvalidateAddress, IotlbInvalidate, QueueAddress, QueueError, QueueErrorRecord,
};

/// VER of the revision that is modelled: major 5, minor 0 (section 11.4.1).
///
/// Major 6 and later do without the register-based invalidation that older drivers start with.
pub const VERSION: u32 = 0x50;

/// Offset of the fault records; CAP.FRO in bytes.
pub const FAULT_RECORDS: u16 = 0x220;

/// Number of fault records; CAP.NFR is one less.
pub const FAULT_RECORD_COUNT: u8 = 8;

/// Offset of the IOTLB registers; ECAP.IRO in bytes.
pub const IOTLB_REGISTERS: u16 = 0xF0;

/// Global command, GCMD (section 11.4.4), and global status, GSTS (section 11.4.5): the positions agree.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GlobalCommand {
    #[bits(23)]
    __: u32,
    /// CFI, CFIS: compatibility-format interrupts pass.
    pub cfi: bool,
    /// SIRTP, IRTPS: set the interrupt remapping table pointer.
    pub sirtp: bool,
    /// IRE, IRES: interrupt remapping.
    pub ire: bool,
    /// QIE, QIES: queued invalidation.
    pub qie: bool,
    /// WBF, WBFS: write buffer flush.
    pub wbf: bool,
    #[bits(2)]
    __: u32,
    /// SRTP, RTPS: set the root table pointer.
    pub srtp: bool,
    /// TE, TES: DMA remapping.
    pub te: bool,
}

/// Translation table mode, RTADDR.TTM (section 11.4.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TableMode {
    /// 00: legacy mode.
    #[default]
    Legacy,
    /// 01: scalable mode.
    Scalable,
    /// 10: reserved; the extended mode of old revisions.
    Reserved,
    /// 11: abort-DMA mode.
    AbortDma,
}

impl TableMode {
    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Legacy,
            1 => Self::Scalable,
            2 => Self::Reserved,
            _ => Self::AbortDma,
        }
    }

    const fn into_bits(self) -> u8 {
        match self {
            Self::Legacy => 0,
            Self::Scalable => 1,
            Self::Reserved => 2,
            Self::AbortDma => 3,
        }
    }
}

/// Root table address, RTADDR (section 11.4.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RootTableAddress {
    #[bits(10)]
    __: u16,
    /// TTM: translation table mode.
    #[bits(2)]
    pub mode: TableMode,
    /// RTA: page number of the root table.
    #[bits(52)]
    pub page: u64,
}

impl RootTableAddress {
    /// Guest-physical address of the root table.
    pub fn table(&self) -> u64 {
        self.page() << 12
    }
}

/// Fault status, FSTS (section 11.4.9).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FaultStatus {
    /// PFO: a fault was lost, because its record was occupied.
    pub overflow: bool,
    /// PPF: some fault record is occupied.
    pub pending: bool,
    #[bits(2)]
    __: u8,
    /// IQE: invalidation queue error.
    pub queue_error: bool,
    /// ICE: invalidation completion error.
    pub completion_error: bool,
    /// ITE: invalidation time-out error.
    pub timeout_error: bool,
    #[bits(1)]
    __: u8,
    /// FRI: the record of the first pending fault.
    pub record: u8,
    __: u16,
}

/// Control of an event: FECTL, IECTL, PECTL (section 11.4.10).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct EventControl {
    #[bits(30)]
    __: u32,
    /// IP: a message is held back.
    pub pending: bool,
    /// IM: messages are held back.
    pub masked: bool,
}

/// Interrupt remapping table address, IRTA (section 11.4.21).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InterruptTableAddress {
    /// S: the table has `2^(S + 1)` entries.
    #[bits(4)]
    pub size: u8,
    #[bits(7)]
    __: u8,
    /// EIME: destinations are x2APIC ids.
    pub extended: bool,
    /// IRTA: page number of the table.
    #[bits(52)]
    pub page: u64,
}

impl InterruptTableAddress {
    /// Guest-physical address of the table.
    pub fn table(&self) -> u64 {
        self.page() << 12
    }

    /// Number of entries in the table.
    pub fn entries(&self) -> u32 {
        2 << self.size()
    }
}

/// Page request queue address, PQA (section 11.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PageQueueAddress {
    /// PQS: the queue has `2^PQS` pages.
    #[bits(3)]
    pub size: u8,
    #[bits(9)]
    __: u16,
    /// PQA: page number of the queue.
    #[bits(52)]
    pub page: u64,
}

impl PageQueueAddress {
    /// Guest-physical address of the queue.
    pub fn base(&self) -> u64 {
        self.page() << 12
    }

    /// Size of the queue in bytes.
    pub fn bytes(&self) -> u32 {
        0x1000 << self.size()
    }
}

/// Page request status, PRS (section 11.4).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct PageRequestStatus {
    /// PPR: a request was put into the queue.
    pub pending: bool,
    /// PRO: a request was lost, because the queue was full.
    pub overflow: bool,
    #[bits(30)]
    __: u32,
}

/// Fault record, FRCD (section 11.4.14).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct FaultRecord {
    #[bits(12)]
    __: u16,
    /// FI: page number of the address; for interrupts the index is in its top 16 bits.
    #[bits(52)]
    pub info: u64,
    /// SID: source id.
    pub source: u16,
    #[bits(12)]
    __: u16,
    /// T2: with T1, the type of the request.
    pub type2: bool,
    /// PRIV: privilege was requested.
    pub privileged: bool,
    /// EXE: execute permission was requested.
    pub execute: bool,
    /// PP: the request had a PASID.
    pub pasid_present: bool,
    /// FR: reason.
    pub reason: u8,
    /// PV: PASID.
    #[bits(20)]
    pub pasid: u32,
    /// AT: address type.
    #[bits(2)]
    pub address_type: u8,
    /// T1: with T2, the type of the request: 00 write, 01 page request, 10 read, 11 atomic.
    pub type1: bool,
    /// F: the record is occupied.
    pub fault: bool,
}
