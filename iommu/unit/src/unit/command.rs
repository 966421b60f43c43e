//! Global commands, and invalidation through registers (sections 11.4.4 to 11.4.8 and 6.5.1).

use std::ops::Deref;

use vm_memory::GuestMemoryBackend;

use super::Unit;
use super::events::{Event, InterruptMessage};
use super::layout::command_registers;
use super::observers::TranslationObservers;
use super::register_file::RegisterFile;
use crate::spec::descriptors::{ContextScope, IotlbScope, PageBlock};
use crate::spec::invalidation::Invalidation;
use crate::spec::registers::{
    Caps, ContextCommand, GlobalCommand, InterruptTableAddress, InvalidateAddress, IotlbInvalidate,
    RootTableAddress, TableMode, offset,
};
use crate::translate::{Latched, RootPointer};

const COMPLETION_EVENT: Event = Event::new(offset::IECTL);

/// What the command mutex protects: every register but those of the fault log and of the page-request queue, what
/// commands have latched, and who is told of commands while they are carried out.
pub(crate) struct Command {
    pub(crate) file: RegisterFile,
    /// RTADDR, as SRTP latched it.
    pub(crate) root: RootPointer,
    pub(super) observers: TranslationObservers,
}

impl Command {
    pub(crate) fn new(caps: &Caps) -> Self {
        Self {
            file: RegisterFile::new(&command_registers(caps)),
            root: RootPointer::default(),
            observers: TranslationObservers::default(),
        }
    }

    pub(crate) fn reset(&mut self) {
        self.file.reset();
        self.root = RootPointer::default();
    }

    /// GSTS, whose bits lie where GCMD has them.
    pub(crate) fn status(&self) -> GlobalCommand {
        GlobalCommand::from_bits(self.file.get(offset::GSTS))
    }

    /// Sets ICS.IWC. It is an event only if it was clear.
    #[must_use]
    pub(crate) fn wait_completed(&mut self) -> Option<InterruptMessage> {
        if self.file.get(offset::ICS) & 1 != 0 {
            return None;
        }
        self.file.set(offset::ICS, 1);
        COMPLETION_EVENT.raise(&mut self.file)
    }

    /// What translations depend on.
    pub(crate) fn latched(&self) -> Latched {
        Latched {
            enabled: self.status().te(),
            root: self.root,
        }
    }
}

impl<M: Deref<Target: GuestMemoryBackend>> Unit<M> {
    /// Writes one word of the command registers, and does what it asks for.
    pub(super) fn write_command_word(&self, command: &mut Command, at: u16, value: u32) {
        command.file.store(at, value);
        match at {
            offset::GCMD => self.global_command(command, GlobalCommand::from_bits(value)),
            at if at == offset::CCMD + 4 => self.context_command(command),
            at if at == offset::IOTLB + 4 => self.iotlb_command(command),
            offset::IQT => self.run_queue(command),
            offset::ICS if command.file.get(offset::ICS) & 1 == 0 => {
                COMPLETION_EVENT.withdraw(&mut command.file);
            }
            offset::IECTL => {
                let message = COMPLETION_EVENT.control_written(&mut command.file);
                self.faults.deliver(message);
            }
            _ => {}
        }
    }

    /// Every bit that asks for something is taken in turn; GSTS shows each only once it is done.
    fn global_command(&self, command: &mut Command, asked: GlobalCommand) {
        if asked.srtp() {
            self.set_root_pointer(command);
        }
        if self.caps.ecap.ir() {
            if asked.sirtp() {
                self.set_interrupt_pointer(command);
            }
            self.switch_interrupts(command, asked);
        }
        if asked.qie() != command.status().qie() {
            self.switch_queue(command, asked.qie());
        }
        if asked.te() != command.status().te() {
            self.switch_translation(command, asked.te());
        }
        let status = command.status();
        if !status.te() && !status.ire() {
            self.faults.rewind();
        }
    }

    fn set_status(&self, command: &mut Command, status: GlobalCommand) {
        command.file.set(offset::GSTS, status.into_bits());
        self.publish_status(status.into_bits());
    }

    fn set_root_pointer(&self, command: &mut Command) {
        let address = RootTableAddress::from_bits(command.file.get_quad(offset::RTADDR));
        command.root = RootPointer {
            address: address.table(),
            mode: address.mode(),
        };
        // With CAP.ESRTPS this also invalidates.
        self.latch_translation(command, command.latched());
        let status = command.status().with_srtp(true);
        self.set_status(command, status);
    }

    fn switch_translation(&self, command: &mut Command, on: bool) {
        let status = command.status().with_te(on);
        // Requests in flight finish under the old state before the status shows the new one.
        let latched = Latched {
            enabled: on,
            ..command.latched()
        };
        self.latch_translation(command, latched);
        self.set_status(command, status);
    }

    fn set_interrupt_pointer(&self, command: &mut Command) {
        let table = InterruptTableAddress::from_bits(command.file.get_quad(offset::IRTA));
        self.change_remapping(|remapping| remapping.table = table);
        let status = command.status().with_sirtp(true);
        self.set_status(command, status);
    }

    fn switch_interrupts(&self, command: &mut Command, asked: GlobalCommand) {
        let status = command.status();
        if asked.ire() == status.ire() && asked.cfi() == status.cfi() {
            return;
        }
        self.change_remapping(|remapping| {
            remapping.enabled = asked.ire();
            remapping.compatibility = asked.cfi();
        });
        self.set_status(command, status.with_ire(asked.ire()).with_cfi(asked.cfi()));
    }

    fn switch_queue(&self, command: &mut Command, on: bool) {
        let status = command.status().with_qie(on);
        self.set_status(command, status);
        if on {
            self.run_queue(command);
        } else {
            command.file.set_quad(offset::IQH, 0);
        }
    }

    /// CCMD was written: invalidates the context cache, if it is asked to and may (section 11.4.7).
    fn context_command(&self, command: &mut Command) {
        let asked = ContextCommand::from_bits(command.file.get_quad(offset::CCMD));
        if !asked.invalidate() {
            return;
        }
        let scope = match asked.requested() {
            1 => Some(ContextScope::Global),
            2 => Some(ContextScope::Domain(asked.domain())),
            3 => Some(ContextScope::Device {
                source: asked.source(),
                function_mask: asked.function_mask(),
            }),
            _ => None,
        };
        let carried_out = self.register_invalidation(command, scope.map(Invalidation::Context));
        let actual = if carried_out { asked.requested() } else { 0 };
        let done = asked.with_invalidate(false).with_actual(actual);
        command.file.set_quad(offset::CCMD, done.into_bits());
    }

    /// IOTLB_REG was written: invalidates the IOTLB, if it is asked to and may (section 11.4.8).
    fn iotlb_command(&self, command: &mut Command) {
        let asked = IotlbInvalidate::from_bits(command.file.get_quad(offset::IOTLB));
        if !asked.invalidate() {
            return;
        }
        let address = InvalidateAddress::from_bits(command.file.get_quad(offset::IVA));
        let scope = match asked.requested() {
            1 => Some(IotlbScope::Global),
            2 => Some(IotlbScope::Domain(asked.domain())),
            3 if self.caps.cap.psi() && address.address_mask() <= self.caps.cap.mamv() => {
                // The register has these fields where the second word of a descriptor has them.
                let block = PageBlock::of_second_stage(address.into_bits(), &self.caps);
                Some(IotlbScope::Pages(asked.domain(), block))
            }
            _ => None,
        };
        let carried_out = self.register_invalidation(command, scope.map(Invalidation::Iotlb));
        let actual = if carried_out { asked.requested() } else { 0 };
        let done = asked.with_invalidate(false).with_actual(actual);
        command.file.set_quad(offset::IOTLB, done.into_bits());
    }

    /// Invalidates what a register names. Returns whether that was carried out.
    fn register_invalidation(&self, command: &Command, asked: Option<Invalidation>) -> bool {
        let Some(invalidation) = asked.filter(|_| register_invalidation_works(command)) else {
            return false;
        };
        self.shared.counters.register_invalidations.add();
        command.observers.run_begins();
        self.dma.forget(&invalidation);
        self.invalidate_translations(&[invalidation].iter().collect());
        command.observers.invalidated(&[invalidation]);
        true
    }
}

/// Registers invalidate only in legacy mode, and not beside a queue.
fn register_invalidation_works(command: &Command) -> bool {
    command.root.mode == TableMode::Legacy && !command.status().qie()
}

#[cfg(test)]
mod command_test;
