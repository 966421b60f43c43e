//! Offsets and fields of the configuration header (section 7.5.1) that more than one file needs.

/// Bytes of one function's configuration space.
pub const CONFIG_SPACE_SIZE: usize = 4096;

/// Bit of an ECAM offset at which the function number starts (section 7.2.2); the bits above are the requester id.
pub const ECAM_FUNCTION_SHIFT: u32 = 12;

pub(crate) const VENDOR_ID: u16 = 0x00;
pub(crate) const DEVICE_ID: u16 = 0x02;
pub(crate) const COMMAND: u16 = 0x04;
pub(crate) const STATUS: u16 = 0x06;
pub(crate) const REVISION: u16 = 0x08;
pub(crate) const CLASS: u16 = 0x09;
pub(crate) const CACHE_LINE_SIZE: u16 = 0x0c;
pub(crate) const HEADER_TYPE: u16 = 0x0e;
pub(crate) const BAR0: u16 = 0x10;
pub(crate) const BAR_END: u16 = 0x28;
pub(crate) const SUBSYSTEM_VENDOR: u16 = 0x2c;
pub(crate) const SUBSYSTEM_DEVICE: u16 = 0x2e;
pub(crate) const CAPABILITIES_POINTER: u16 = 0x34;
pub(crate) const INTERRUPT_LINE: u16 = 0x3c;
pub(crate) const INTERRUPT_PIN: u16 = 0x3d;
/// First byte that a capability may use.
pub(crate) const FIRST_CAPABILITY: u16 = 0x40;
/// First byte of the extended capabilities.
pub(crate) const FIRST_EXTENDED: u16 = 0x100;

/// Number of base address registers of an endpoint.
pub(crate) const BAR_COUNT: usize = 6;

/// Status: INTx is pending.
pub(crate) const STATUS_INTERRUPT: u16 = 1 << 3;
/// Status: the capability list exists.
pub(crate) const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Status: the error bits, which software clears by writing ones.
pub(crate) const STATUS_ERRORS: u16 = 0xf900;

/// The command register's bits that do something here (section 7.5.1.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// Bit 1: memory BARs are decoded.
    pub memory: bool,
    /// Bit 2: the function may issue requests: DMA and message-signalled interrupts.
    pub bus_master: bool,
    /// Bit 10: the function must not assert INTx.
    pub intx_disable: bool,
}

impl Command {
    const MEMORY: u16 = 1 << 1;
    const BUS_MASTER: u16 = 1 << 2;
    const PARITY_RESPONSE: u16 = 1 << 6;
    const SERR: u16 = 1 << 8;
    const INTX_DISABLE: u16 = 1 << 10;

    /// What software may change. I/O space is hardwired to zero, as no function has an I/O BAR.
    pub(crate) const WRITABLE: u16 =
        Self::MEMORY | Self::BUS_MASTER | Self::PARITY_RESPONSE | Self::SERR | Self::INTX_DISABLE;

    pub(crate) const fn from_bits(bits: u16) -> Self {
        Self {
            memory: bits & Self::MEMORY != 0,
            bus_master: bits & Self::BUS_MASTER != 0,
            intx_disable: bits & Self::INTX_DISABLE != 0,
        }
    }
}
