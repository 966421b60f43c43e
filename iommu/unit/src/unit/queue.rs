//! The invalidation queue (section 6.5.2): descriptors are fetched, checked and started.
//!
//! Hardware is asynchronous: software learns from the status of a wait, and from that alone, that what
//! came before has taken effect. The head is past a descriptor once that was checked and accepted; its
//! effect may still be to come, and is then in [`Pending`]. The head itself may lag, too. How much of
//! the queue a register write carries out is said in [`budget`](super::budget); without a background it
//! is all.
//!
//! The work is bounded before it starts: head and tail are checked against the geometry of the
//! queue, and the head then meets the tail after at most as many descriptors as the queue has.
//!
//! Invalidations take effect together, at the latest before the next wait completes: see [`settle`].

mod pending;
mod settle;

use std::ops::Deref;

use vm_memory::GuestMemoryBackend;

use super::Unit;
use super::budget::{Budget, Later};
use super::execution::Execution;
use super::register_file::RegisterFile;
use super::registers::Work;
use crate::dma::DrainScope;
use crate::memory::TableMemory;
use crate::spec::decoder::{check_mode, decode};
use crate::spec::descriptors::Descriptor;
use crate::spec::device_tlb::DeviceTlbInvalidation;
use crate::spec::ids::SourceId;
use crate::spec::invalidation::Invalidation;
use crate::spec::registers::{QueueAddress, QueueError, offset};
pub(super) use pending::Pending;

/// How many descriptors are carried out between two looks at what is left of the budget.
const UNWATCHED: u32 = 128;

/// What is in the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    address: QueueAddress,
    /// Where the next descriptor is. Only the executor moves it.
    head: u32,
    /// Where software had put the tail when the run began.
    tail: u32,
}

/// What comes after a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// The next one.
    Continue,
    /// The next one, after the waits up to here have completed.
    Complete,
    /// Nothing: a fence waits for a device that does not answer.
    Held,
    /// The same one again: the budget does not do for it.
    Again,
}

impl<M: Deref<Target: GuestMemoryBackend>> Unit<M> {
    /// Processes the queue until the tail, or until an error stops it.
    pub(super) fn run_queue(
        &self,
        execution: &mut Execution,
        mut span: Span,
        budget: &mut Budget<'_>,
    ) -> Result<(), Later> {
        execution.observers.run_begins();
        execution.pending.drained = DrainScope::default();
        let outcome = self
            .process(execution, &mut span, budget)
            .unwrap_or_else(|error| {
                execution.pending.error = Some(error);
                Ok(())
            });
        self.publish_head(&span);
        let outcome = outcome.and_then(|()| self.finish(execution, budget));
        if outcome.is_err() {
            // There may be no more of it, but whoever goes on finds that out.
            self.registers().put_back(Work::Queue);
        }
        outcome
    }

    /// What there is to do, if the queue runs at all: one that is off, or that an error has stopped, stays.
    pub(super) fn span(&self, file: &RegisterFile) -> Option<Span> {
        let span = Span {
            address: QueueAddress::from_bits(file.get_quad(offset::IQA)),
            head: file.get(offset::IQH),
            tail: file.get(offset::IQT),
        };
        if !self.status().qie() || span.head == span.tail {
            return None;
        }
        let status = self.faults.status();
        let is_stopped = status.queue_error() || status.timeout_error();
        (!is_stopped).then_some(span)
    }

    /// Shows software how far the queue was read. Tells whether something else is to be done before it is read on.
    fn publish_head(&self, span: &Span) -> bool {
        let mut registers = self.registers();
        registers.file.set(offset::IQH, span.head);
        registers.has_command()
    }

    /// Carries descriptors out, and moves the head past each that was accepted.
    fn process(
        &self,
        execution: &mut Execution,
        span: &mut Span,
        budget: &mut Budget<'_>,
    ) -> Result<Result<(), Later>, QueueError> {
        let mode = execution.root.mode;
        let address = span.address;
        check_mode(&self.caps, mode, address.wide())?;
        let width = if address.wide() { 32 } else { 16 };
        let bytes = address.bytes();
        // The head is ours, but the queue may have shrunk or widened under it.
        if span.tail >= bytes || span.head >= bytes {
            return Err(QueueError::Tail);
        }
        if !span.tail.is_multiple_of(width) || !span.head.is_multiple_of(width) {
            return Err(QueueError::Alignment);
        }
        let mut unwatched = 0;
        while span.head != span.tail {
            let words = self.fetch(address, span.head)?;
            let descriptor = decode(words, &self.caps, mode)?;
            let flow = self.execute(execution, descriptor, budget);
            if flow == Flow::Again {
                return Ok(Err(Later));
            }
            self.count(&descriptor);
            span.head = (span.head + width) % bytes;
            unwatched += weight(&descriptor);
            let outcome = match flow {
                Flow::Held => break,
                Flow::Complete => self.complete_waits(execution, span, budget),
                _ if unwatched < UNWATCHED => continue,
                _ => budget.patience(),
            };
            // At the end of the queue, what is done is done.
            if outcome.is_err() && (span.head != span.tail || !execution.pending.is_empty()) {
                return Ok(outcome);
            }
            unwatched = 0;
        }
        Ok(Ok(()))
    }

    /// Completes the waits up to here. Tells whether the next descriptor may begin.
    fn complete_waits(
        &self,
        execution: &mut Execution,
        span: &Span,
        budget: &mut Budget<'_>,
    ) -> Result<(), Later> {
        // Software that sees a status finds the head behind it.
        let is_interrupted = self.publish_head(span);
        self.finish(execution, budget)?;
        if is_interrupted {
            return Err(Later);
        }
        if span.head == span.tail {
            return Ok(());
        }
        budget.more()
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
        execution: &mut Execution,
        descriptor: Descriptor,
        budget: &mut Budget<'_>,
    ) -> Flow {
        if let Some(invalidation) = Invalidation::of(&descriptor) {
            // What is kept goes at once, and the rest together with what else is pending.
            self.dma.forget(&invalidation);
            let is_told = !execution.observers.is_empty();
            execution.pending.add(invalidation, is_told);
        }
        match descriptor {
            Descriptor::Context(_)
            | Descriptor::Iotlb(_)
            | Descriptor::PasidIotlb { .. }
            | Descriptor::PasidCache(_) => {}
            Descriptor::DeviceTlb {
                source,
                invalidation,
            } => {
                let outcome = self.invalidate_at_device(execution, source, invalidation, budget);
                return outcome.map_or(Flow::Again, |()| Flow::Continue);
            }
            Descriptor::PageResponse { source, response } => self.respond(source, response),
            Descriptor::Interrupt(scope) => execution.pending.add_interrupts(scope),
            Descriptor::Wait(wait) => return execution.pending.wait(wait),
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
        execution: &mut Execution,
        source: SourceId,
        invalidation: DeviceTlbInvalidation,
        budget: &mut Budget<'_>,
    ) -> Result<(), Later> {
        // What the device asks for after it forgot is to come from the new tables; and the wait that follows is
        // to see the end of what the device began before it forgot.
        let forget = Invalidation::DeviceTlb {
            source,
            invalidation,
        };
        let mut drained = execution.pending.drained.clone();
        if drained.add(&forget) {
            if drained == DrainScope::ALL {
                // More than it tells apart.
                execution.pending.concerned = DrainScope::ALL;
            }
            execution.pending.concerned.add(&forget);
            self.settle(execution, budget)?;
            execution.pending.drained = drained;
        }
        if !self.has_tlb(source) && execution.pending.timed_out.is_none() {
            self.finish(execution, budget)?;
        }
        let pending = &mut execution.pending;
        if self.invalidate_device_tlb(source, invalidation) {
            pending.add(forget, !execution.observers.is_empty());
        } else {
            pending.concerned.add(&forget);
            pending.timed_out.get_or_insert(source);
        }
        Ok(())
    }
}

/// What a descriptor costs, in those that only invalidate here: others are for devices, which may ask the host.
const fn weight(descriptor: &Descriptor) -> u32 {
    match descriptor {
        Descriptor::DeviceTlb { .. } | Descriptor::PageResponse { .. } => 16,
        _ => 1,
    }
}

#[cfg(test)]
mod queue_test;
