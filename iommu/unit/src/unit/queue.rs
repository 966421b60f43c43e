//! The invalidation queue (section 6.5.2), carried out within the register write that gives it work.
//!
//! Nothing runs in the background, so a guest that spins on a status finds it written when its tail write returns. The work
//! is bounded before it starts: head and tail are checked against the geometry of the queue, and the head then meets the
//! tail after at most as many descriptors as the queue has.
//!
//! Invalidations take effect together, at the latest before the next wait completes: the translation caches of the device
//! threads are told once, transactions in flight are waited for once, observers of translations hear of all invalidations in
//! one call, and observers of interrupt entries hear what changed and nothing else, up to 16 ranges.

mod pending;

use std::ops::Deref;

use vm_memory::GuestMemoryBackend;

use super::Unit;
use super::command::Command;
use crate::dma::DrainScope;
use crate::memory::TableMemory;
use crate::spec::decoder::{check_mode, decode};
use crate::spec::descriptors::{Descriptor, Wait};
use crate::spec::device_tlb::DeviceTlbInvalidation;
use crate::spec::ids::SourceId;
use crate::spec::invalidation::Invalidation;
use crate::spec::registers::{QueueAddress, QueueError, QueueErrorRecord, offset};
use pending::Pending;

/// How many waits are completed together. Each time, the transactions in flight are waited for, which takes as long as they
/// do: a queue full of waits would otherwise hold its vCPU up for seconds while a device copies.
const WAITS_AT_ONCE: usize = 64;

/// Whether the next descriptor may be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Continue,
    /// A fence waits for a device that does not answer.
    Held,
}

impl<M: Deref<Target: GuestMemoryBackend>> Unit<M> {
    /// Processes the queue until it is empty or an error stops it. A queue that is off, or that an error has stopped, stays.
    pub(super) fn run_queue(&self, command: &mut Command) {
        if !command.status().qie() {
            return;
        }
        let status = self.faults.status();
        if status.queue_error() || status.timeout_error() {
            return;
        }
        command.observers.run_begins();
        let mut pending = Pending::new(command.observers.list());
        let outcome = self.process(command, &mut pending);
        self.finish_waits(command, &mut pending);
        self.settle(command, &mut pending);
        if let Some(source) = pending.timed_out {
            self.time_out(command, source);
        }
        if let Err(error) = outcome {
            self.stop_queue(command, error);
        }
    }

    /// Carries descriptors out, and moves the head past each that was accepted.
    fn process(&self, command: &mut Command, pending: &mut Pending) -> Result<(), QueueError> {
        let address = QueueAddress::from_bits(command.file.get_quad(offset::IQA));
        let tail = command.file.get(offset::IQT);
        let mut head = command.file.get(offset::IQH);
        if head == tail {
            return Ok(());
        }
        let mode = command.root.mode;
        check_mode(&self.caps, mode, address.wide())?;
        let width = if address.wide() { 32 } else { 16 };
        let bytes = address.bytes();
        // The head is ours, but the queue may have shrunk or widened under it.
        if tail >= bytes || head >= bytes {
            return Err(QueueError::Tail);
        }
        if !tail.is_multiple_of(width) || !head.is_multiple_of(width) {
            return Err(QueueError::Alignment);
        }
        while head != tail {
            let words = self.fetch(address, head)?;
            let descriptor = decode(words, &self.caps, mode)?;
            let flow = self.execute(command, descriptor, pending);
            head = (head + width) % bytes;
            command.file.set(offset::IQH, head);
            if flow == Flow::Held {
                break;
            }
        }
        Ok(())
    }

    fn fetch(&self, queue: QueueAddress, head: u32) -> Result<[u64; 4], QueueError> {
        let address = queue
            .base()
            .checked_add(u64::from(head))
            .filter(|address| address >> self.dma.gates().host_address_width == 0)
            .ok_or(QueueError::Fetch)?;
        if queue.wide() {
            return self
                .memory()
                .read_words::<4>(address)
                .map_err(|_| QueueError::Fetch);
        }
        let [low, high] = self
            .memory()
            .read_words::<2>(address)
            .map_err(|_| QueueError::Fetch)?;
        Ok([low, high, 0, 0])
    }

    fn execute(
        &self,
        command: &mut Command,
        descriptor: Descriptor,
        pending: &mut Pending,
    ) -> Flow {
        self.count(&descriptor);
        if let Some(invalidation) = Invalidation::of(&descriptor) {
            // What is kept goes at once, and the rest together with what else is pending.
            self.dma.forget(&invalidation);
            pending.add(invalidation);
        }
        match descriptor {
            Descriptor::Context(_)
            | Descriptor::Iotlb(_)
            | Descriptor::PasidIotlb { .. }
            | Descriptor::PasidCache(_) => {}
            Descriptor::DeviceTlb {
                source,
                invalidation,
            } => self.invalidate_at_device(command, pending, source, invalidation),
            Descriptor::PageResponse { source, response } => self.respond(source, response),
            Descriptor::Interrupt(scope) => pending.add_interrupts(scope),
            Descriptor::Wait(wait) => return self.wait(command, pending, wait),
        }
        Flow::Continue
    }

    fn count(&self, descriptor: &Descriptor) {
        let counters = &self.shared.counters;
        match descriptor {
            Descriptor::Context(_) => counters.context_invalidations.add(),
            Descriptor::Iotlb(_) => counters.iotlb_invalidations.add(),
            Descriptor::PasidIotlb { .. } => counters.pasid_iotlb_invalidations.add(),
            Descriptor::PasidCache(_) => counters.pasid_cache_invalidations.add(),
            Descriptor::Interrupt(_) => counters.interrupt_invalidations.add(),
            Descriptor::Wait(_) => counters.waits.add(),
            // These are counted where they succeed.
            Descriptor::DeviceTlb { .. } | Descriptor::PageResponse { .. } => {}
        }
    }

    /// Has a device forget translations, or notes that there is none to do so.
    fn invalidate_at_device(
        &self,
        command: &mut Command,
        pending: &mut Pending,
        source: SourceId,
        invalidation: DeviceTlbInvalidation,
    ) {
        let forget = Invalidation::DeviceTlb {
            source,
            invalidation,
        };
        // What the device asks for after it forgot is to come from the new tables; and the wait that follows is
        // to see the end of what the device began before it forgot.
        if pending.drained.add(&forget) {
            pending.concerned.add(&forget);
            if pending.drained == DrainScope::ALL {
                // More than it tells apart.
                pending.concerned = DrainScope::ALL;
            }
            self.settle(command, pending);
        }
        pending.concerned.add(&forget);
        if self.invalidate_device_tlb(source, invalidation) {
            pending.invalidations.add(forget);
        } else {
            self.finish_waits(command, pending);
            pending.timed_out.get_or_insert(source);
        }
    }

    fn wait(&self, command: &mut Command, pending: &mut Pending, wait: Wait) -> Flow {
        if pending.timed_out.is_some() {
            // Aborted: software sees neither its status nor its interrupt.
            return if wait.fence {
                Flow::Held
            } else {
                Flow::Continue
            };
        }
        let now = wait.fence || wait.page_drain;
        pending.waits.push(wait);
        if now || pending.waits.len() == WAITS_AT_ONCE {
            self.finish_waits(command, pending);
        }
        Flow::Continue
    }

    /// Completes the waits so far.
    fn finish_waits(&self, command: &mut Command, pending: &mut Pending) {
        if pending.waits.is_empty() {
            return;
        }
        self.settle(command, pending);
        for wait in std::mem::take(&mut pending.waits) {
            if wait.page_drain {
                self.drain_page_requests();
            }
            self.complete(command, wait);
        }
    }

    /// Makes what was invalidated so far true: afterwards no translation and no interrupt entry from before is in use.
    fn settle(&self, command: &Command, pending: &mut Pending) {
        let concerned = std::mem::take(&mut pending.concerned);
        if !concerned.is_empty() {
            self.invalidate_translations(&concerned);
        }
        pending.invalidations.tell(&command.observers);
        let interrupts = std::mem::take(&mut pending.interrupts);
        if !interrupts.is_empty() {
            self.drain_interrupts();
        }
        for range in interrupts {
            self.notify_observers(range);
        }
    }

    /// Completes a wait: the status first, then the event (section 6.5.2.8).
    fn complete(&self, command: &mut Command, wait: Wait) {
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
            let message = command.wait_completed();
            self.faults.deliver(message);
        }
    }

    /// The guest cleared the error that had stopped the queue: it goes on where it stands.
    pub(super) fn restart_queue(&self, command: &mut Command) {
        command.file.set_quad(offset::IQERCD, 0);
        self.run_queue(command);
    }

    /// FSTS.ITE stops the queue, too. What was started up to here is not started again when software clears it.
    fn time_out(&self, command: &mut Command, source: SourceId) {
        self.shared.counters.device_tlb_timeouts.add();
        let record = error_record(command).with_timeout_source(source.0);
        command.file.set_quad(offset::IQERCD, record.into_bits());
        self.faults.device_timed_out();
        self.shared
            .warn(|| format!("there is no device-TLB to invalidate at {source}"));
    }

    fn stop_queue(&self, command: &mut Command, error: QueueError) {
        self.shared.counters.queue_errors.add();
        let record = error_record(command).with_error(error as u8);
        command.file.set_quad(offset::IQERCD, record.into_bits());
        self.faults.queue_failed();
        let head = command.file.get(offset::IQH);
        self.shared
            .warn(|| format!("the invalidation queue stopped at {head:#x}: {error:?}"));
    }
}

fn error_record(command: &Command) -> QueueErrorRecord {
    QueueErrorRecord::from_bits(command.file.get_quad(offset::IQERCD))
}

#[cfg(test)]
mod queue_test;
