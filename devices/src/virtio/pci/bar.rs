//! The layout of the transport's one BAR.
//!
//! What a driver maps for itself (notifications), what it must not (MSI-X) and the registers are on
//! pages of their own.

use super::common::COMMON_SIZE;

/// The BAR's register.
pub(super) const BAR: u8 = 0;
/// Its size.
pub(super) const BAR_SIZE: u64 = 0x4000;

/// Where the structures start.
pub(super) const COMMON: u32 = 0;
pub(super) const ISR: u32 = 0x100;
pub(super) const DEVICE: u32 = 0x200;
pub(super) const NOTIFY: u32 = 0x1000;
pub(super) const MSIX_TABLE: u32 = 0x2000;
pub(super) const MSIX_PBA: u32 = 0x3000;

/// Length of the device configuration structure in the BAR.
pub(super) const DEVICE_SIZE: u32 = 0x100;
/// Distance between the notification addresses of two queues (section 4.1.4.4).
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;

/// A place in the BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Region {
    /// Common configuration.
    Common,
    /// ISR status.
    Isr,
    /// Device configuration.
    Device,
    /// Notification of the queue with this index.
    Notify(u64),
    /// MSI-X table.
    MsixTable,
    /// MSI-X pending bits.
    MsixPba,
    /// Nothing.
    Hole,
}

/// What is at `offset`, and how far into it that is. An access never reaches from one structure
/// into the next: what is beyond a structure's end is a hole to that structure.
pub(super) fn region(offset: u64) -> (Region, u64) {
    let at = |start: u32| offset - u64::from(start);
    match offset {
        0..0x100 if offset < u64::from(COMMON_SIZE) => (Region::Common, at(COMMON)),
        0x100 => (Region::Isr, 0),
        0x200..0x300 => (Region::Device, at(DEVICE)),
        0x1000..0x2000 => (Region::Notify(at(NOTIFY) / u64::from(NOTIFY_MULTIPLIER)), 0),
        0x2000..0x3000 => (Region::MsixTable, at(MSIX_TABLE)),
        0x3000..0x4000 => (Region::MsixPba, at(MSIX_PBA)),
        _ => (Region::Hole, 0),
    }
}

/// Offset of a queue's notification address in the BAR.
pub(super) fn notify_offset(queue: usize) -> u64 {
    u64::from(NOTIFY) + queue as u64 * u64::from(NOTIFY_MULTIPLIER)
}
