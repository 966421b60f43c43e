//! The Command register of the configuration header (section 7.5.1.1.3).

/// The Command register's bits that do something here.
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
    /// See [`memory`](Self::memory).
    pub const MEMORY: u16 = 1 << 1;
    /// See [`bus_master`](Self::bus_master).
    pub const BUS_MASTER: u16 = 1 << 2;
    /// Parity errors are acted upon: nothing here makes any.
    pub const PARITY_RESPONSE: u16 = 1 << 6;
    /// System errors are reported.
    pub const SERR: u16 = 1 << 8;
    /// See [`intx_disable`](Self::intx_disable).
    pub const INTX_DISABLE: u16 = 1 << 10;

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
