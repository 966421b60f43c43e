//! Interrupt remapping (section 5.1): requests of devices, and who resolves them in advance.
//!
//! Entries are read anew for every request, so there is no cache to invalidate. What an invalidation has to wait for is
//! requests that have read an entry and are not delivered yet: they hold the read side of the lock around [`Remapping`].

mod resolve;

use std::ops::{Deref, Range};
use std::sync::Arc;

use thiserror::Error;
use vm_memory::GuestMemoryBackend;

use super::Unit;
use super::budget::{Budget, Later};
use super::events::InterruptMessage;
use super::execution::Execution;
use super::patience::{Patience, Unfinished};
use crate::spec::fault_reason::FaultReason;
use crate::spec::ids::SourceId;
use crate::spec::registers::FaultRecord;
pub(super) use resolve::Remapping;
use resolve::{Refusal, Resolved};

/// An interrupt request did not get through. The write that carried it is dropped; the requester is told nothing.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the interrupt request is blocked: reason {:#04x}, {reason:?}", reason.code())]
pub struct InterruptBlocked {
    /// Why.
    pub reason: FaultReason,
}

/// Is told when interrupt remapping changes, to resolve again what it has resolved before.
pub trait InterruptEntryObserver: Send + Sync {
    /// `count` entries from `first` on may have changed, or, with all 65536, whether and how interrupts are remapped.
    ///
    /// Called before the guest sees the invalidation complete, by whoever executes the guest's commands and under none of
    /// the unit's leaf locks: interrupts may be resolved here, registers may not be written. As with a
    /// [`TranslationObserver`](crate::TranslationObserver), what takes longer than the [`Patience`] is for is better not begun:
    /// it is called again.
    ///
    /// # Errors
    /// It was not finished; never with [endless](Patience::endless) patience.
    fn interrupt_entries_invalidated(
        &self,
        first: u16,
        count: u32,
        patience: &Patience,
    ) -> Result<(), Unfinished>;
}

impl<M> Unit<M> {
    /// Adds an observer of changes to interrupt remapping, for as long as the unit lives.
    pub fn observe_interrupt_entries(&self, observer: Arc<dyn InterruptEntryObserver>) {
        self.observers.lock().push(observer);
    }

    /// Changes how interrupts are remapped, once no request is in flight, and tells observers to resolve all of theirs.
    pub(super) fn change_remapping(
        &self,
        execution: &mut Execution,
        budget: &mut Budget<'_>,
        change: impl FnOnce(&mut Remapping),
    ) -> Result<(), Later> {
        let mut remapping = budget.wait_for(&self.remapping)?;
        execution.halfway.interrupts = true;
        change(&mut remapping);
        drop(remapping);
        self.notify_observers(0..0x1_0000, budget)?;
        execution.halfway.interrupts = false;
        Ok(())
    }

    /// Waits for the interrupt requests in flight.
    pub(super) fn drain_interrupts(&self, budget: &mut Budget<'_>) -> Result<(), Later> {
        budget.wait_for(&self.remapping).map(drop)
    }

    pub(super) fn notify_observers(
        &self,
        entries: Range<u32>,
        budget: &mut Budget<'_>,
    ) -> Result<(), Later> {
        let observers = self.observers.lock().clone();
        let count = entries.end.saturating_sub(entries.start);
        let Ok(first) = u16::try_from(entries.start) else {
            return Ok(());
        };
        let patience = budget.of_observers();
        for observer in observers {
            budget.clock.start();
            observer.interrupt_entries_invalidated(first, count, &patience)?;
        }
        Ok(())
    }
}

impl<M: Deref<Target: GuestMemoryBackend>> Unit<M> {
    /// Remaps an interrupt request: a write of `data` to `address`, which is in 0xFEEx_xxxx, by `source`.
    ///
    /// # Errors
    /// The request is blocked; the fault has been recorded, unless the guest disabled that.
    pub fn remap(
        &self,
        source: SourceId,
        address: u64,
        data: u32,
    ) -> Result<InterruptMessage, InterruptBlocked> {
        self.remap_with(source, address, data, |message| message)
    }

    /// Like [`remap`](Self::remap), and delivers the message before an invalidation of its entry can complete.
    ///
    /// `deliver` must neither remap another request nor access registers, and must not block for long.
    ///
    /// # Errors
    /// As [`remap`](Self::remap); `deliver` is not called then.
    pub fn remap_with<R>(
        &self,
        source: SourceId,
        address: u64,
        data: u32,
        deliver: impl FnOnce(InterruptMessage) -> R,
    ) -> Result<R, InterruptBlocked> {
        let counters = &self.shared.counters;
        let outcome = self.in_flight(source, address, data, |resolved| {
            match resolved {
                Resolved::Unchanged(_) => counters.interrupts_passed.add(),
                Resolved::Remapped(_) => counters.interrupts_remapped.add(),
            }
            deliver(resolved.message())
        });
        outcome.map_err(|refusal| {
            counters.interrupts_blocked.add();
            self.record_refusal(source, refusal);
            InterruptBlocked {
                reason: refusal.reason,
            }
        })
    }

    /// What [`remap`](Self::remap) would answer, without a request: nothing is recorded or counted.
    ///
    /// # Errors
    /// Such a request would be blocked.
    pub fn resolve_interrupt(
        &self,
        source: SourceId,
        address: u64,
        data: u32,
    ) -> Result<InterruptMessage, InterruptBlocked> {
        self.in_flight(source, address, data, Resolved::message)
            .map_err(|refusal| InterruptBlocked {
                reason: refusal.reason,
            })
    }

    /// Resolves a request, and calls `then` while a drain would still wait for it.
    fn in_flight<R>(
        &self,
        SourceId(source): SourceId,
        address: u64,
        data: u32,
        then: impl FnOnce(Resolved) -> R,
    ) -> Result<R, Refusal> {
        let remapping = self.remapping.read();
        let width = self.dma.gates().host_address_width;
        let request = InterruptMessage { address, data };
        remapping
            .resolve(&self.memory(), width, source, request)
            .map(then)
    }

    fn record_refusal(&self, source: SourceId, refusal: Refusal) {
        if !refusal.record {
            self.shared.counters.faults_suppressed.add();
            return;
        }
        // The index goes to bits 63:48 of a field that begins at bit 12.
        let record = FaultRecord::new()
            .with_info(u64::from(refusal.index) << 36)
            .with_source(source.0)
            .with_reason(refusal.reason.code());
        self.faults.record(record);
        self.shared.debug(|| {
            format!(
                "blocked interrupt {:#x} of {:#06x}: {:?}",
                refusal.index, source.0, refusal.reason
            )
        });
    }
}

#[cfg(test)]
mod interrupt_remapping_test;
