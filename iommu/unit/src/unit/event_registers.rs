//! Registers with a status and the event that it raises: those of faults (section 7.3) and of page
//! requests (section 7.5).

use super::events::{Event, InterruptMessage};
use super::register_file::{Register, RegisterFile};

/// A register file with a status register, whose bits are conditions, and an event, which the first
/// of the conditions raises. While one of them holds, a further one is no new event.
#[derive(Debug)]
pub(super) struct EventRegisters {
    file: RegisterFile,
    event: Event,
    /// Offset of the status register.
    status: u16,
    /// The bits of the status that are conditions.
    conditions: u32,
}

impl EventRegisters {
    pub(super) fn new(registers: &[Register], event: Event, status: u16, conditions: u32) -> Self {
        Self {
            file: RegisterFile::new(registers),
            event,
            status,
            conditions,
        }
    }

    pub(super) fn file(&self) -> &RegisterFile {
        &self.file
    }

    pub(super) fn file_mut(&mut self) -> &mut RegisterFile {
        &mut self.file
    }

    pub(super) fn status(&self) -> u32 {
        self.file.get(self.status)
    }

    /// What software writes. A message is to be delivered after the lock is released.
    #[must_use]
    pub(super) fn store(&mut self, at: u16, value: u32) -> Option<InterruptMessage> {
        self.file.store(at, value);
        if at == self.event.control() {
            return self.event.control_written(&mut self.file);
        }
        self.withdraw_if_over();
        None
    }

    /// Stores a status in which something new is set, and raises the event unless a condition
    /// held before.
    #[must_use]
    pub(super) fn raise(&mut self, status: u32) -> Option<InterruptMessage> {
        let before = self.status();
        self.file.set(self.status, status);
        if before & self.conditions != 0 {
            return None;
        }
        self.event.raise(&mut self.file)
    }

    /// Stores a status in which nothing new is set.
    pub(super) fn lower(&mut self, status: u32) {
        self.file.set(self.status, status);
        self.withdraw_if_over();
    }

    fn withdraw_if_over(&mut self) {
        if self.status() & self.conditions == 0 {
            self.event.withdraw(&mut self.file);
        }
    }
}
