//! What was taken from the queue takes effect, and its waits complete (section 6.5.2.8).
//!
//! The translation caches of the device threads are told once, the transactions in flight are waited for once, observers of
//! translations hear of all invalidations in one call, and observers of interrupt entries hear what changed and nothing
//! else, up to 16 ranges. A wait completes after that, in the order of the queue.
//!
//! Whoever runs out of its budget in between returns [`Later`]. What is done is taken out of [`Pending`], and the rest is done
//! by whoever executes next, before anything else.

use std::ops::Deref;

use vm_memory::GuestMemoryBackend;

use crate::dma::DrainScope;
use crate::spec::descriptors::Wait;
use crate::spec::ids::SourceId;
use crate::spec::registers::{QueueError, QueueErrorRecord, offset};
use crate::unit::Unit;
use crate::unit::budget::{Budget, Later};
use crate::unit::execution::Execution;
use crate::unit::register_file::RegisterFile;

impl<M: Deref<Target: GuestMemoryBackend>> Unit<M> {
    /// Makes true what was taken from the queue, completes its waits, and reports what has stopped it.
    pub(in crate::unit) fn finish(
        &self,
        execution: &mut Execution,
        budget: &mut Budget<'_>,
    ) -> Result<(), Later> {
        if execution.pending.is_empty() {
            return Ok(());
        }
        self.settle(execution, budget)?;
        let pending = &mut execution.pending;
        for wait in pending.waits.drain(..) {
            self.complete(wait);
        }
        if let Some(source) = pending.timed_out.take() {
            self.time_out(source);
        }
        if let Some(error) = pending.error.take() {
            self.stop_queue(error);
        }
        Ok(())
    }

    /// Makes what was invalidated so far true: afterwards no translation and no interrupt entry from before is in use.
    pub(super) fn settle(
        &self,
        execution: &mut Execution,
        budget: &mut Budget<'_>,
    ) -> Result<(), Later> {
        let Execution {
            observers, pending, ..
        } = execution;
        if !pending.concerned.is_empty() {
            self.invalidate_translations(&pending.concerned, budget)?;
            pending.concerned = DrainScope::default();
        }
        if pending.page_drain {
            self.drain_page_requests(budget)?;
            pending.page_drain = false;
        }
        if !pending.invalidations.is_empty() {
            budget.clock.start();
            pending
                .invalidations
                .tell(observers, &budget.of_observers())?;
        }
        if !pending.interrupts.is_empty() {
            self.drain_interrupts(budget)?;
            // A range stays until all observers have finished with it.
            while let Some(range) = pending.interrupts.front() {
                self.notify_observers(range.clone(), budget)?;
                pending.interrupts.pop_front();
            }
        }
        budget.settled();
        Ok(())
    }

    /// Completes a wait: the status first, then the event.
    fn complete(&self, wait: Wait) {
        if let Some((address, data)) = wait.status {
            let address = address & ((1 << self.dma.gates().host_address_width) - 1);
            if self.memory().write_u32(address, data).is_err() {
                // A write to nowhere is lost, as on a bus; the queue goes on.
                self.shared.counters.lost_statuses.add();
                self.shared.warn(|| {
                    format!("no memory at {address:#x} for the status of an invalidation wait")
                });
            }
        }
        if wait.interrupt {
            let message = self.registers().wait_completed();
            self.faults.deliver(message);
        }
    }

    /// FSTS.ITE stops the queue, too. What was started up to here is not started again when software clears it.
    fn time_out(&self, source: SourceId) {
        self.shared.counters.device_tlb_timeouts.add();
        self.change_error_record(|record| record.with_timeout_source(source.0));
        self.faults.device_timed_out();
        self.shared
            .warn(|| format!("there is no device-TLB to invalidate at {source}"));
    }

    fn stop_queue(&self, error: QueueError) {
        self.shared.counters.queue_errors.add();
        let head = self.change_error_record(|record| record.with_error(error as u8));
        self.faults.queue_failed();
        self.shared
            .warn(|| format!("the invalidation queue stopped at {head:#x}: {error:?}"));
    }

    /// Returns where the queue stands.
    fn change_error_record(
        &self,
        change: impl FnOnce(QueueErrorRecord) -> QueueErrorRecord,
    ) -> u32 {
        let mut registers = self.registers();
        let file: &mut RegisterFile = &mut registers.file;
        let record = QueueErrorRecord::from_bits(file.get_quad(offset::IQERCD));
        file.set_quad(offset::IQERCD, change(record).into_bits());
        file.get(offset::IQH)
    }
}
