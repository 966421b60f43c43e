//! The configuration header (section 7.5.1): offsets of its registers, and bits of Status.

/// Vendor id, 16 bits.
pub const VENDOR_ID: u16 = 0x00;
/// Device id, 16 bits.
pub const DEVICE_ID: u16 = 0x02;
/// Command, 16 bits: see [`Command`](crate::Command).
pub const COMMAND: u16 = 0x04;
/// Status, 16 bits.
pub const STATUS: u16 = 0x06;
/// Revision id, 8 bits.
pub const REVISION: u16 = 0x08;
/// Class code, 24 bits: programming interface, sub-class, base class.
pub const CLASS: u16 = 0x09;
/// Cache line size, 8 bits: without meaning.
pub const CACHE_LINE_SIZE: u16 = 0x0c;
/// Header type, 8 bits.
pub const HEADER_TYPE: u16 = 0x0e;
/// The first base address register, 32 bits.
pub const BAR0: u16 = 0x10;
/// The first byte after the base address registers of an endpoint.
pub const BAR_END: u16 = 0x28;
/// Subsystem vendor id of an endpoint, 16 bits.
pub const SUBSYSTEM_VENDOR: u16 = 0x2c;
/// Subsystem device id of an endpoint, 16 bits.
pub const SUBSYSTEM_DEVICE: u16 = 0x2e;
/// Offset of the first capability, 8 bits.
pub const CAPABILITIES_POINTER: u16 = 0x34;
/// Interrupt line, 8 bits: scratch space for software.
pub const INTERRUPT_LINE: u16 = 0x3c;
/// Interrupt pin, 8 bits: 1 for INTA to 4 for INTD, 0 for none.
pub const INTERRUPT_PIN: u16 = 0x3d;
/// First byte that a capability may use.
pub const FIRST_CAPABILITY: u16 = 0x40;
/// First byte of the extended capabilities.
pub const FIRST_EXTENDED: u16 = 0x100;

/// Number of base address registers of an endpoint.
pub const BAR_COUNT: usize = 6;

/// Status: INTx is pending.
pub const STATUS_INTERRUPT: u16 = 1 << 3;
/// Status: the capability list exists.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Status: the error bits, which software clears by writing ones.
pub const STATUS_ERRORS: u16 = 0xf900;
