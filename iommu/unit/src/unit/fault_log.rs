//! The fault log: records, status and the fault event (sections 7.2.1 and 7.3).
//!
//! It has a lock of its own, because faults come from device threads while the command mutex may be held. That lock is a
//! leaf: nothing else is taken under it, and messages are handed out to be delivered once it is released.

use super::events::{Event, InterruptMessage};
use super::layout::fault_registers;
use super::register_file::RegisterFile;
use crate::spec::registers::{
    Caps, FAULT_RECORD_COUNT, FAULT_RECORDS, FaultRecord, FaultStatus, offset,
};

const EVENT: Event = Event::new(offset::FECTL);

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
    file: RegisterFile,
    /// The record that the next fault goes to.
    next: u8,
}

impl FaultLog {
    pub(crate) fn new(caps: &Caps) -> Self {
        Self {
            file: RegisterFile::new(&fault_registers(caps)),
            next: 0,
        }
    }

    pub(crate) fn reset(&mut self) {
        self.file.reset();
        self.next = 0;
    }

    /// Both kinds of remapping went off: the log begins with the first record again.
    pub(crate) fn rewind(&mut self) {
        self.next = 0;
    }

    /// What a snapshot keeps.
    pub(crate) fn parts<R>(&mut self, change: impl FnOnce(&mut RegisterFile, &mut u8) -> R) -> R {
        change(&mut self.file, &mut self.next)
    }

    pub(crate) fn status(&self) -> FaultStatus {
        FaultStatus::from_bits(self.file.get(offset::FSTS))
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
            self.set_status(status.with_overflow(true));
            return Recorded::Lost;
        }
        let [low, high] = split(record.with_fault(true));
        self.file.set_quad(at, low);
        self.file.set_quad(at + 8, high);
        let mut after = status.with_pending(true);
        if !status.pending() {
            after.set_record(self.next);
        }
        self.next = (self.next + 1) % FAULT_RECORD_COUNT;
        Recorded::Logged(self.change_status(status, after))
    }

    /// Sets FSTS.IQE, and with it the fault event.
    #[must_use]
    pub(crate) fn queue_failed(&mut self) -> Option<InterruptMessage> {
        let status = self.status();
        self.change_status(status, status.with_queue_error(true))
    }

    /// Sets FSTS.ITE, and with it the fault event.
    #[must_use]
    pub(crate) fn device_timed_out(&mut self) -> Option<InterruptMessage> {
        let status = self.status();
        self.change_status(status, status.with_timeout_error(true))
    }

    /// What software reads.
    pub(crate) fn load(&self, at: u16) -> u32 {
        self.file.load(at)
    }

    /// What software writes. A message is to be delivered after the lock is released.
    #[must_use]
    pub(crate) fn store(&mut self, at: u16, value: u32) -> Option<InterruptMessage> {
        self.file.store(at, value);
        if at == EVENT.control() {
            return EVENT.control_written(&mut self.file);
        }
        let mut status = self.status();
        if at >= FAULT_RECORDS {
            let pending = (0..FAULT_RECORD_COUNT).any(|index| self.load_record(index).fault());
            status.set_pending(pending);
            self.set_status(status);
        }
        if !is_event(status) {
            EVENT.withdraw(&mut self.file);
        }
        None
    }

    /// Stores a status in which something new is set, and raises the event unless something was set before.
    fn change_status(
        &mut self,
        before: FaultStatus,
        after: FaultStatus,
    ) -> Option<InterruptMessage> {
        self.set_status(after);
        if is_event(before) {
            None
        } else {
            EVENT.raise(&mut self.file)
        }
    }

    fn set_status(&mut self, status: FaultStatus) {
        self.file.set(offset::FSTS, status.into_bits());
    }

    fn load_record(&self, index: u8) -> FaultRecord {
        let at = record_offset(index);
        let low = u128::from(self.file.get_quad(at));
        FaultRecord::from_bits(low | u128::from(self.file.get_quad(at + 8)) << 64)
    }
}

/// Whether any of the conditions holds that make a further one no new event.
fn is_event(status: FaultStatus) -> bool {
    status.pending()
        || status.overflow()
        || status.queue_error()
        || status.completion_error()
        || status.timeout_error()
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
#[path = "faults_test.rs"]
mod faults_test;
