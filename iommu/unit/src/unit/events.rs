//! Event messages: mask, pending bit, and the message that the registers spell (sections 5.1.6, 7.3 and 6.5.2.8).
//!
//! The same four registers serve faults, invalidation completion and page requests. The unit's own messages are never remapped.

use super::register_file::RegisterFile;
use crate::spec::registers::EventControl;

/// A message-signalled interrupt as the platform delivers it.
///
/// `address` holds bits 31:8 of an x2APIC destination in its bits 63:40, and bits 7:0 in bits 19:12: the form that KVM takes
/// with `KVM_CAP_X2APIC_API`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptMessage {
    /// Address, with the destination.
    pub address: u64,
    /// Data, with the vector and the delivery mode.
    pub data: u32,
}

/// Where a unit's own interrupts go.
///
/// `deliver` may be called by whoever executes the guest's commands, or within a DMA transaction, but under no lock of the unit's
/// registers: it must not write the unit's registers, and must not block for long.
pub trait EventSink: Send + Sync {
    /// Delivers `message` as it is.
    fn deliver(&self, message: InterruptMessage);
}

/// One event: the four registers that begin with its control register.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    control: u16,
}

impl Event {
    pub(crate) const fn new(control: u16) -> Self {
        Self { control }
    }

    /// The control register of this event.
    pub(crate) const fn control(self) -> u16 {
        self.control
    }

    /// The condition became true: sends the message, or keeps IP if it is masked.
    #[must_use]
    pub(crate) fn raise(self, file: &mut RegisterFile) -> Option<InterruptMessage> {
        let control = EventControl::from_bits(file.get(self.control));
        file.set(self.control, control.with_pending(true).into_bits());
        self.control_written(file)
    }

    /// The control register was written: sends what was held back, once nothing masks it.
    #[must_use]
    pub(crate) fn control_written(self, file: &mut RegisterFile) -> Option<InterruptMessage> {
        let control = EventControl::from_bits(file.get(self.control));
        if !control.pending() || control.masked() {
            return None;
        }
        self.withdraw(file);
        // Only bits 31:8 of the upper address are a destination.
        let upper = u64::from(file.get(self.control + 12) & 0xFFFF_FF00);
        Some(InterruptMessage {
            address: upper << 32 | u64::from(file.get(self.control + 8)),
            data: file.get(self.control + 4),
        })
    }

    /// Software dealt with the condition: IP goes.
    pub(crate) fn withdraw(self, file: &mut RegisterFile) {
        let control = EventControl::from_bits(file.get(self.control));
        file.set(self.control, control.with_pending(false).into_bits());
    }
}
