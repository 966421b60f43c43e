//! The page-request queue and its registers (sections 7.4 to 7.6).
//!
//! It has a lock of its own, because requests come from device threads while commands are executed. That lock is a
//! leaf: what is done under it is a write to guest memory and no call of anyone, and messages are handed out to be
//! delivered once it is released.

use vm_memory::GuestMemoryBackend;

use super::event_registers::EventRegisters;
use super::events::{Event, InterruptMessage};
use super::layout::page_registers;
use super::register_file::RegisterFile;
use crate::memory::Nearby;
use crate::spec::page_request::PageRequestDescriptor;
use crate::spec::registers::{Caps, PageQueueAddress, PageRequestStatus, offset};

/// What became of a request. If there is a message, it is to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queued {
    /// It is in the queue.
    Written(Option<InterruptMessage>),
    /// There is no memory where the queue should be: it is lost, as any write to nowhere.
    Nowhere(Option<InterruptMessage>),
    /// The queue is full; software is told so.
    Full(Option<InterruptMessage>),
    /// The queue was full before, and software did not clear that yet.
    Stopped,
}

/// The registers from PQH to PEUADDR.
#[derive(Debug)]
pub(crate) struct PageQueue {
    registers: EventRegisters,
}

impl PageQueue {
    pub(crate) fn new(caps: &Caps) -> Self {
        let event = Event::new(offset::PECTL);
        // Both bits of the status are conditions, and the others are 0.
        let registers = EventRegisters::new(&page_registers(caps), event, offset::PRS, u32::MAX);
        Self { registers }
    }

    pub(crate) fn reset(&mut self) {
        self.registers.file_mut().reset();
    }

    /// The registers.
    pub(crate) fn file(&self) -> &RegisterFile {
        self.registers.file()
    }

    /// The registers, to be restored.
    pub(crate) fn file_mut(&mut self) -> &mut RegisterFile {
        self.registers.file_mut()
    }

    /// What software reads.
    pub(crate) fn load(&self, at: u16) -> u32 {
        self.registers.file().load(at)
    }

    /// What software writes. A message is to be delivered after the lock is released.
    #[must_use]
    pub(crate) fn store(&mut self, at: u16, value: u32) -> Option<InterruptMessage> {
        self.registers.store(at, value)
    }

    /// Puts a request behind the others, if there is room. `admitted` is called before it becomes visible.
    ///
    /// Head and tail are the guest's: what lies beyond the queue is taken modulo its size.
    pub(crate) fn push<M: GuestMemoryBackend + ?Sized>(
        &mut self,
        memory: &Nearby<'_, M>,
        host_address_width: u8,
        descriptor: PageRequestDescriptor,
        admitted: impl FnOnce(),
    ) -> Queued {
        let status = self.status();
        if status.overflow() {
            return Queued::Stopped;
        }
        let file = self.registers.file_mut();
        let address = PageQueueAddress::from_bits(file.get_quad(offset::PQA));
        let within = address.bytes() - 1;
        let tail = file.get(offset::PQT) & within;
        let next = (tail + PageRequestDescriptor::SIZE) & within;
        if next == file.get(offset::PQH) & within {
            let full = status.with_overflow(true);
            return Queued::Full(self.registers.raise(full.into_bits()));
        }
        admitted();
        let written = address
            .base()
            .checked_add(u64::from(tail))
            .filter(|at| at >> host_address_width == 0)
            .is_some_and(|at| memory.write_words(at, &descriptor.words()).is_ok());
        file.set_quad(offset::PQT, u64::from(next));
        let message = self.registers.raise(status.with_pending(true).into_bits());
        if written {
            Queued::Written(message)
        } else {
            Queued::Nowhere(message)
        }
    }

    fn status(&self) -> PageRequestStatus {
        PageRequestStatus::from_bits(self.registers.status())
    }
}
