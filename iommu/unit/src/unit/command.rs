//! Global commands, and invalidation through registers (sections 11.4.4 to 11.4.8 and 6.5.1).

use std::ops::Deref;

use vm_memory::GuestMemoryBackend;

use super::Unit;
use super::budget::{Budget, Later};
use super::execution::Execution;
use super::registers::{GlobalWork, Work};
use crate::spec::descriptors::{ContextScope, IotlbScope, PageBlock};
use crate::spec::invalidation::Invalidation;
use crate::spec::registers::{
    ContextCommand, GlobalCommand, InterruptTableAddress, InvalidateAddress, IotlbInvalidate,
    TableMode, offset,
};
use crate::translate::{Latched, RootPointer};

impl<M: Deref<Target: GuestMemoryBackend>> Unit<M> {
    /// Every bit that asks for something is taken in turn; GSTS shows each only once it is done.
    pub(super) fn global_command(
        &self,
        execution: &mut Execution,
        mut asked: GlobalWork,
        budget: &mut Budget<'_>,
    ) -> Result<(), Later> {
        let outcome = self.global_steps(execution, &mut asked, budget);
        if outcome.is_err() {
            // What is done is not asked for any more; the rest may be done again from its start.
            self.registers().put_back(Work::Global(asked));
        }
        outcome
    }

    fn global_steps(
        &self,
        execution: &mut Execution,
        asked: &mut GlobalWork,
        budget: &mut Budget<'_>,
    ) -> Result<(), Later> {
        let levels = asked.levels;
        if let Some(root) = asked.root {
            self.set_root_pointer(execution, root, budget)?;
            asked.root = None;
        }
        if self.caps.ecap.ir() {
            if let Some(table) = asked.table {
                self.set_interrupt_pointer(execution, table, budget)?;
                asked.table = None;
            }
            self.switch_interrupts(execution, levels, budget)?;
        }
        if levels.qie() != self.status().qie() {
            self.switch_queue(levels.qie());
        }
        if levels.te() != self.status().te() || execution.halfway.translation {
            self.switch_translation(execution, levels.te(), budget)?;
        }
        let status = self.status();
        if !status.te() && !status.ire() {
            self.faults.rewind();
        }
        Ok(())
    }

    /// GSTS, whose bits lie where GCMD has them. Only the executor changes it.
    pub(super) fn status(&self) -> GlobalCommand {
        GlobalCommand::from_bits(self.shown_status())
    }

    /// Shows that something is done.
    fn change_status(&self, change: impl FnOnce(GlobalCommand) -> GlobalCommand) {
        let mut registers = self.registers();
        let status = change(registers.status());
        self.publish_status(registers.set_status(status));
    }

    fn set_root_pointer(
        &self,
        execution: &mut Execution,
        root: RootPointer,
        budget: &mut Budget<'_>,
    ) -> Result<(), Later> {
        let latched = Latched {
            enabled: self.status().te(),
            root,
        };
        // With CAP.ESRTPS this also invalidates.
        self.latch_translation(execution, latched, budget)?;
        self.change_status(|status| status.with_srtp(true));
        Ok(())
    }

    fn switch_translation(
        &self,
        execution: &mut Execution,
        on: bool,
        budget: &mut Budget<'_>,
    ) -> Result<(), Later> {
        // Requests in flight finish under the old state before the status shows the new one.
        let latched = Latched {
            enabled: on,
            root: execution.root,
        };
        self.latch_translation(execution, latched, budget)?;
        self.change_status(|status| status.with_te(on));
        Ok(())
    }

    fn set_interrupt_pointer(
        &self,
        execution: &mut Execution,
        table: InterruptTableAddress,
        budget: &mut Budget<'_>,
    ) -> Result<(), Later> {
        self.change_remapping(execution, budget, |remapping| remapping.table = table)?;
        self.change_status(|status| status.with_sirtp(true));
        Ok(())
    }

    fn switch_interrupts(
        &self,
        execution: &mut Execution,
        asked: GlobalCommand,
        budget: &mut Budget<'_>,
    ) -> Result<(), Later> {
        let status = self.status();
        let is_shown = asked.ire() == status.ire() && asked.cfi() == status.cfi();
        if is_shown && !execution.halfway.interrupts {
            return Ok(());
        }
        self.change_remapping(execution, budget, |remapping| {
            remapping.enabled = asked.ire();
            remapping.compatibility = asked.cfi();
        })?;
        self.change_status(|status| status.with_ire(asked.ire()).with_cfi(asked.cfi()));
        Ok(())
    }

    /// What the queue has begun is finished by now. Software that sees it off finds the head at 0.
    fn switch_queue(&self, on: bool) {
        {
            let mut registers = self.registers();
            if on {
                registers.ask_queue();
            } else {
                registers.file.set_quad(offset::IQH, 0);
            }
        }
        self.change_status(|status| status.with_qie(on));
    }

    /// CCMD was written: invalidates the context cache, if it may (section 11.4.7).
    pub(super) fn context_command(
        &self,
        execution: &mut Execution,
        budget: &mut Budget<'_>,
    ) -> Result<(), Later> {
        let asked = ContextCommand::from_bits(self.registers().file.get_quad(offset::CCMD));
        let scope = match asked.requested() {
            1 => Some(ContextScope::Global),
            2 => Some(ContextScope::Domain(asked.domain())),
            3 => Some(ContextScope::Device {
                source: asked.source(),
                function_mask: asked.function_mask(),
            }),
            _ => None,
        };
        let invalidation = scope.map(Invalidation::Context);
        let carried_out = self
            .register_invalidation(execution, invalidation, budget)
            .inspect_err(|_| self.registers().put_back(Work::Context))?;
        let actual = if carried_out { asked.requested() } else { 0 };
        let done = asked.with_invalidate(false).with_actual(actual);
        let mut registers = self.registers();
        registers.file.set_quad(offset::CCMD, done.into_bits());
        Ok(())
    }

    /// IOTLB_REG was written: invalidates the IOTLB, if it may (section 11.4.8).
    pub(super) fn iotlb_command(
        &self,
        execution: &mut Execution,
        budget: &mut Budget<'_>,
    ) -> Result<(), Later> {
        let (asked, address) = {
            let registers = self.registers();
            (
                IotlbInvalidate::from_bits(registers.file.get_quad(offset::IOTLB)),
                InvalidateAddress::from_bits(registers.file.get_quad(offset::IVA)),
            )
        };
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
        let invalidation = scope.map(Invalidation::Iotlb);
        let carried_out = self
            .register_invalidation(execution, invalidation, budget)
            .inspect_err(|_| self.registers().put_back(Work::Iotlb))?;
        let actual = if carried_out { asked.requested() } else { 0 };
        let done = asked.with_invalidate(false).with_actual(actual);
        let mut registers = self.registers();
        registers.file.set_quad(offset::IOTLB, done.into_bits());
        Ok(())
    }

    /// Invalidates what a register names. Returns whether that was carried out.
    fn register_invalidation(
        &self,
        execution: &mut Execution,
        asked: Option<Invalidation>,
        budget: &mut Budget<'_>,
    ) -> Result<bool, Later> {
        let works = execution.root.mode == TableMode::Legacy && !self.status().qie();
        // Registers invalidate only in legacy mode, and not beside a queue.
        let Some(invalidation) = asked.filter(|_| works) else {
            return Ok(false);
        };
        self.dma.forget(&invalidation);
        self.invalidate_translations(&[invalidation].iter().collect(), budget)?;
        execution.observers.run_begins();
        execution
            .observers
            .invalidated(&[invalidation], &budget.of_observers())?;
        self.shared.counters.register_invalidations.add();
        Ok(true)
    }
}

#[cfg(test)]
mod command_test;
