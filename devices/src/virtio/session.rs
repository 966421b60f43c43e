//! One activation of a device model, between `DRIVER_OK` and reset: its queues, its view of guest
//! memory, and its interrupts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use intel_vtd::{DmaTransaction, DmaView};

use super::chain::Chain;
use super::error::QueueError;
use super::queue::VirtQueue;
use crate::Memory;

/// Whether a device model has more to do right away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// Everything that was there has been handled; the driver's next notification will come.
    Idle,
    /// The bound on one turn was reached; call again without waiting for a notification.
    More,
}

/// What a running device tells the driver through, whatever the bus.
pub trait Transport: Send + Sync {
    /// Queue `index` has used buffers.
    fn queue_interrupt(&self, index: usize);
    /// The device cannot go on: sets `DEVICE_NEEDS_RESET` and reports a configuration change.
    fn needs_reset(&self);
}

/// One activation of a device.
pub struct Session {
    /// By queue index; `None` where the driver enabled no queue.
    queues: Vec<Option<VirtQueue>>,
    dma: DmaView<Memory>,
    transport: Arc<dyn Transport>,
    features: u64,
    /// A reset waits, or the device cannot go on.
    stop: Arc<AtomicBool>,
}

impl Session {
    pub(super) fn new(
        queues: Vec<Option<VirtQueue>>,
        dma: DmaView<Memory>,
        transport: Arc<dyn Transport>,
        features: u64,
    ) -> Self {
        Self {
            queues,
            dma,
            transport,
            features,
            stop: Arc::default(),
        }
    }

    /// Once this is set, no access to guest memory begins.
    pub(super) fn stop_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// Tells the driver that the device needs a reset. No access to guest memory begins from here
    /// on.
    pub(super) fn fail(&self) {
        self.transport.needs_reset();
        self.stop.store(true, Ordering::Release);
    }

    /// The negotiated features.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Whether a reset is waiting. A device model that is about to do more I/O for a request ends
    /// the request instead.
    #[must_use]
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Whether the driver enabled queue `index`.
    #[must_use]
    pub fn enabled(&self, index: usize) -> bool {
        self.queues.get(index).is_some_and(Option::is_some)
    }

    /// Entries of queue `index`, 0 if it is not enabled.
    #[must_use]
    pub fn queue_size(&self, index: usize) -> u16 {
        self.queues
            .get(index)
            .and_then(Option::as_ref)
            .map_or(0, VirtQueue::size)
    }

    /// Runs `body` on queue `index` in one DMA transaction, then delivers the interrupt that it
    /// earned. The body copies between guest memory and buffers of the device model and nothing
    /// else: invalidations of the IOMMU wait for it.
    pub fn transact<R>(
        &mut self,
        index: usize,
        body: impl FnOnce(&mut VirtQueue, &DmaTransaction<'_, Memory>) -> Result<R, QueueError>,
    ) -> Result<R, QueueError> {
        self.check_running()?;
        let queue = self
            .queues
            .get_mut(index)
            .and_then(Option::as_mut)
            .ok_or(QueueError::Disabled)?;
        let result = {
            let transaction = self.dma.begin();
            body(queue, &transaction)
        };
        if queue.take_interrupt() {
            self.transport.queue_interrupt(index);
        }
        result
    }

    /// One turn on queue `index`: takes `step` until that says that there is nothing left, once for
    /// each entry of the queue at most.
    pub fn turn(
        &mut self,
        index: usize,
        mut step: impl FnMut(&mut Self) -> Result<bool, QueueError>,
    ) -> Result<Progress, QueueError> {
        for _ in 0..self.queue_size(index) {
            if self.stopping() || !step(self)? {
                return Ok(Progress::Idle);
            }
        }
        Ok(Progress::More)
    }

    /// Takes the next chain of queue `index`; `false` if there is none.
    pub fn pop(&mut self, index: usize, chain: &mut Chain) -> Result<bool, QueueError> {
        self.transact(index, |queue, memory| queue.pop(memory, chain))
    }

    /// Fills a chain of queue `index` with `bytes` and returns it.
    pub fn give(&mut self, index: usize, chain: &Chain, bytes: &[u8]) -> Result<(), QueueError> {
        self.transact(index, |queue, memory| {
            chain.write(memory, 0, bytes)?;
            queue.complete(
                memory,
                chain.head(),
                u32::try_from(bytes.len()).unwrap_or(0),
            )
        })
    }

    /// Returns a chain of queue `index`.
    pub fn complete(
        &mut self,
        index: usize,
        chain: &Chain,
        written: u32,
    ) -> Result<(), QueueError> {
        self.transact(index, |queue, memory| {
            queue.complete(memory, chain.head(), written)
        })
    }

    /// Copies from a chain's readable part in a transaction of its own.
    pub fn read(&mut self, chain: &Chain, offset: u64, data: &mut [u8]) -> Result<(), QueueError> {
        self.check_running()?;
        let transaction = self.dma.begin();
        chain.read(&transaction, offset, data)
    }

    /// Copies to a chain's writable part in a transaction of its own.
    pub fn write(&mut self, chain: &Chain, offset: u64, data: &[u8]) -> Result<(), QueueError> {
        self.check_running()?;
        let transaction = self.dma.begin();
        chain.write(&transaction, offset, data)
    }

    /// Once a reset has been asked for, guest memory may already belong to somebody else.
    fn check_running(&self) -> Result<(), QueueError> {
        if self.stopping() {
            Err(QueueError::Stopped)
        } else {
            Ok(())
        }
    }
}
