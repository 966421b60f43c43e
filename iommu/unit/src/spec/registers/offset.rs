//! Offsets of the registers (section 11.4, table of registers).

/// Version.
pub const VER: u16 = 0x00;
/// Capability.
pub const CAP: u16 = 0x08;
/// Extended capability.
pub const ECAP: u16 = 0x10;
/// Global command.
pub const GCMD: u16 = 0x18;
/// Global status.
pub const GSTS: u16 = 0x1C;
/// Root table address.
pub const RTADDR: u16 = 0x20;
/// Context command.
pub const CCMD: u16 = 0x28;
/// Fault status.
pub const FSTS: u16 = 0x34;
/// Fault event control.
pub const FECTL: u16 = 0x38;
/// Fault event data.
pub const FEDATA: u16 = 0x3C;
/// Fault event address.
pub const FEADDR: u16 = 0x40;
/// Fault event upper address.
pub const FEUADDR: u16 = 0x44;
/// Invalidation queue head.
pub const IQH: u16 = 0x80;
/// Invalidation queue tail.
pub const IQT: u16 = 0x88;
/// Invalidation queue address.
pub const IQA: u16 = 0x90;
/// Invalidation completion status.
pub const ICS: u16 = 0x9C;
/// Invalidation event control.
pub const IECTL: u16 = 0xA0;
/// Invalidation event data.
pub const IEDATA: u16 = 0xA4;
/// Invalidation event address.
pub const IEADDR: u16 = 0xA8;
/// Invalidation event upper address.
pub const IEUADDR: u16 = 0xAC;
/// Invalidation queue error record.
pub const IQERCD: u16 = 0xB0;
/// Interrupt remapping table address.
pub const IRTA: u16 = 0xB8;
/// Page request queue head.
pub const PQH: u16 = 0xC0;
/// Page request queue tail.
pub const PQT: u16 = 0xC8;
/// Page request queue address.
pub const PQA: u16 = 0xD0;
/// Page request status.
pub const PRS: u16 = 0xDC;
/// Page request event control.
pub const PECTL: u16 = 0xE0;
/// Page request event data.
pub const PEDATA: u16 = 0xE4;
/// Page request event address.
pub const PEADDR: u16 = 0xE8;
/// Page request event upper address.
pub const PEUADDR: u16 = 0xEC;
/// Invalidate address, in the block at ECAP.IRO.
pub const IVA: u16 = super::IOTLB_REGISTERS;
/// IOTLB invalidate, in the block at ECAP.IRO.
pub const IOTLB: u16 = super::IOTLB_REGISTERS + 8;
