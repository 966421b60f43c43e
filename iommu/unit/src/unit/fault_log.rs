//! The fault log: records, status and the fault event (sections 7.2.1 and 7.3).
//!
//! It has a lock of its own, because faults come from device threads while commands are executed. That lock is a
//! leaf: nothing else is taken under it, and messages are handed out to be delivered once it is released.

use super::event_registers::EventRegisters;
use super::events::{Event, InterruptMessage};
use super::layout::fault_registers;
use super::register_file::RegisterFile;
use crate::spec::registers::{
    Caps, FAULT_RECORD_COUNT, FAULT_RECORDS, FaultRecord, FaultStatus, offset,
};

/// Any of these makes a further one no new event.
const CONDITIONS: FaultStatus = FaultStatus::new()
    .with_pending(true)
    .with_overflow(true)
    .with_queue_error(true)
    .with_completion_error(true)
    .with_timeout_error(true);

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// It is in a record; if there is a message, it is to be delivered.
    Logged(Option<InterruptMessage>),
    /// There was no room: it is lost.
    Lost,
}

/// Fault status, fault event and fault records.
#[derive(Debug)]
pub(crate) struct FaultLog {
    registers: EventRegisters,
    /// The record that the next fault goes to.
    next: u8,
}

impl FaultLog {
    pub(crate) fn new(caps: &Caps) -> Self {
        let event = Event::new(offset::FECTL);
        let conditions = CONDITIONS.into_bits();
        let registers = fault_registers(caps);
        Self {
            registers: EventRegisters::new(&registers, event, offset::FSTS, conditions),
            next: 0,
        }
    }

    pub(crate) fn reset(&mut self) {
        self.registers.file_mut().reset();
        self.next = 0;
    }

    /// Both kinds of remapping went off: the log begins with the first record again.
    pub(crate) fn rewind(&mut self) {
        self.next = 0;
    }

    /// What a snapshot keeps.
    pub(crate) fn parts<R>(&mut self, change: impl FnOnce(&mut RegisterFile, &mut u8) -> R) -> R {
        change(self.registers.file_mut(), &mut self.next)
    }

    pub(crate) fn status(&self) -> FaultStatus {
        FaultStatus::from_bits(self.registers.status())
    }

    /// Records a fault, which the caller has checked against FPD (section 7.2.1).
    pub(crate) fn record(&mut self, record: FaultRecord) -> Recorded {
        let status = self.status();
        if status.overflow() {
            return Recorded::Lost;
        }
        let at = record_offset(self.next);
        if self.load_record(self.next).fault() {
            // An overflow is no event of its own: some fault is pending, which was.
            self.registers.lower(status.with_overflow(true).into_bits());
            return Recorded::Lost;
        }
        let [low, high] = split(record.with_fault(true));
        let file = self.registers.file_mut();
        file.set_quad(at, low);
        file.set_quad(at + 8, high);
        let mut after = status.with_pending(true);
        if !status.pending() {
            after.set_record(self.next);
        }
        self.next = (self.next + 1) % FAULT_RECORD_COUNT;
        Recorded::Logged(self.registers.raise(after.into_bits()))
    }

    /// Sets FSTS.IQE, and with it the fault event.
    #[must_use]
    pub(crate) fn queue_failed(&mut self) -> Option<InterruptMessage> {
        let status = self.status().with_queue_error(true);
        self.registers.raise(status.into_bits())
    }

    /// Sets FSTS.ITE, and with it the fault event.
    #[must_use]
    pub(crate) fn device_timed_out(&mut self) -> Option<InterruptMessage> {
        let status = self.status().with_timeout_error(true);
        self.registers.raise(status.into_bits())
    }

    /// What software reads.
    pub(crate) fn load(&self, at: u16) -> u32 {
        self.registers.file().load(at)
    }

    /// What software writes. A message is to be delivered after the lock is released.
    #[must_use]
    pub(crate) fn store(&mut self, at: u16, value: u32) -> Option<InterruptMessage> {
        let message = self.registers.store(at, value);
        if at >= FAULT_RECORDS {
            let pending = (0..FAULT_RECORD_COUNT).any(|index| self.load_record(index).fault());
            let status = self.status().with_pending(pending);
            self.registers.lower(status.into_bits());
        }
        message
    }

    fn load_record(&self, index: u8) -> FaultRecord {
        let (at, file) = (record_offset(index), self.registers.file());
        let low = u128::from(file.get_quad(at));
        FaultRecord::from_bits(low | u128::from(file.get_quad(at + 8)) << 64)
    }
}

fn record_offset(index: u8) -> u16 {
    FAULT_RECORDS + 16 * u16::from(index)
}

fn split(record: FaultRecord) -> [u64; 2] {
    let bits = record.into_bits();
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bits.to_le_bytes();
    [
        u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        u64::from_le_bytes([i, j, k, l, m, n, o, p]),
    ]
}

#[cfg(test)]
mod fault_log_test;
