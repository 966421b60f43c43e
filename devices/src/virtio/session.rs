//! One activation of a device model, or of a part of one, between `DRIVER_OK` and reset: its queues,
//! its view of guest memory, and its interrupts.
//!
//! Invalidations of the guest wait for a DMA transaction, so each is short, whatever the guest has
//! built: it takes one chain, or copies at most [`PIECE`] bytes between one chain and a buffer of
//! the device model, or pins at most [`PINNED`] bytes of one, or returns chains. Device models have
//! no other access to guest memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use intel_vtd::{DmaPin, DmaTransaction, DmaView, Pinned};
use state::SaveError;
use vm_memory::Permissions;

use super::chain::Chain;
use super::error::QueueError;
use super::queue::{Empty, RingState, VirtQueue};
use crate::Memory;
use crate::park::Park;

/// Most bytes copied in one DMA transaction.
const PIECE: usize = 64 << 10;
/// Most bytes pinned at a time. A reset is noticed between two such pieces of a request.
const PINNED: u64 = 1 << 20;

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
    /// Whether the hypervisor interrupts for queue `index` when its [call](super::VirtioDevice::calls)
    /// is signalled.
    fn has_route(&self, _index: usize) -> bool {
        false
    }
    /// The device cannot go on: sets `DEVICE_NEEDS_RESET` and reports a configuration change.
    fn needs_reset(&self);
    /// The device-specific configuration has changed.
    fn config_changed(&self) {}
}

/// One activation of a device, or of a part of one that has a thread of its own.
pub struct Session {
    /// By queue index; `None` where the driver enabled no queue, or another thread serves it.
    queues: Vec<Option<VirtQueue>>,
    dma: Dma,
    transport: Arc<dyn Transport>,
    features: u64,
    /// Whether the thread is to stop for a while.
    park: Arc<Park>,
}

impl Session {
    /// Once `stop` is true, no access to guest memory begins.
    pub(super) fn new(
        queues: Vec<Option<VirtQueue>>,
        dma: DmaView<Memory>,
        transport: Arc<dyn Transport>,
        features: u64,
        stop: Arc<AtomicBool>,
    ) -> Self {
        Self {
            queues,
            dma: Dma {
                view: dma,
                stop,
                #[cfg(test)]
                transactions: 0,
            },
            transport,
            features,
            park: Arc::default(),
        }
    }

    /// Turns on queues end early while `park` wants the thread to stop.
    pub(super) fn obey(&mut self, park: &Arc<Park>) {
        self.park = Arc::clone(park);
    }

    /// Whether the thread is to stop for a while.
    pub(super) fn parking(&self) -> bool {
        self.park.is_wanted()
    }

    /// What says so.
    pub(super) fn park(&self) -> Arc<Park> {
        Arc::clone(&self.park)
    }

    /// The flag that sessions of one device share.
    pub(super) fn stop_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.dma.stop)
    }

    /// Tells the driver that the device needs a reset. No part of it begins an access to guest
    /// memory from here on.
    pub(super) fn fail(&self) {
        self.transport.needs_reset();
        self.dma.stop.store(true, Ordering::Release);
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
        self.dma.stopping()
    }

    /// Whether the driver enabled queue `index`, and it is served here.
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

    /// Whether a device model goes on that changes guest memory by other ways than its transactions, piece by
    /// piece: not if it is to stop, for a while or for good.
    ///
    /// # Errors
    /// The device may make no accesses to memory at the moment.
    pub(super) fn goes_on(&mut self) -> Result<bool, QueueError> {
        if self.parking() || self.stopping() {
            return Ok(false);
        }
        match self.dma.begin()?.is_open() {
            true => Ok(true),
            false => Err(QueueError::Closed),
        }
    }

    /// Queue `index`, if the driver enabled it, for a device model that has somebody else serve it.
    pub(super) fn queue(&mut self, index: usize) -> Option<&mut VirtQueue> {
        self.queues.get_mut(index)?.as_mut()
    }

    /// Where the queues go on that are served here, by index.
    pub(super) fn rings(&self) -> Result<Vec<(usize, RingState)>, SaveError> {
        let queues = self.queues.iter().enumerate();
        let enabled = queues.filter_map(|(index, queue)| Some((index, queue.as_ref()?)));
        enabled
            .map(|(index, queue)| Ok((index, queue.save()?)))
            .collect()
    }

    /// Interrupts the driver for queue `index`, which somebody else serves.
    pub(super) fn interrupt(&self, index: usize) {
        self.transport.queue_interrupt(index);
    }

    /// Tells the driver that the device-specific configuration has changed.
    pub(super) fn config_changed(&self) {
        self.transport.config_changed();
    }

    /// Whether the driver is interrupted for queue `index` without us when its call is signalled.
    pub(super) fn has_route(&self, index: usize) -> bool {
        self.transport.has_route(index)
    }

    /// Begins a transaction, for a device model that has somebody else serve its queues. It is to
    /// be short, as all are.
    pub(super) fn begin(&mut self) -> Result<DmaTransaction<'_, Memory>, QueueError> {
        self.dma.begin()
    }

    /// One turn on queue `index`: takes `step` until that says that there is nothing left, once for
    /// each entry of the queue at most, or until the device is to stop, for a while or for good.
    pub fn turn(
        &mut self,
        index: usize,
        mut step: impl FnMut(&mut Self) -> Result<bool, QueueError>,
    ) -> Result<Progress, QueueError> {
        if !self.enabled(index) {
            return Ok(Progress::Idle);
        }
        for _ in 0..self.queue_size(index) {
            // What is left of the queue is not forgotten.
            if self.parking() {
                break;
            }
            if self.stopping() || !step(self)? {
                return Ok(Progress::Idle);
            }
        }
        Ok(Progress::More)
    }

    /// Takes the next chain of queue `index`; `false` if there is none, and then the driver notifies
    /// when there is.
    pub fn pop(&mut self, index: usize, chain: &mut Chain) -> Result<bool, QueueError> {
        self.take(index, chain, Empty::Wait)
    }

    /// The same for a device model that calls [`pop`](Self::pop) before it waits, whatever this says:
    /// the driver need not notify.
    pub fn pop_more(&mut self, index: usize, chain: &mut Chain) -> Result<bool, QueueError> {
        self.take(index, chain, Empty::LookAgain)
    }

    fn take(&mut self, index: usize, chain: &mut Chain, empty: Empty) -> Result<bool, QueueError> {
        self.transact(index, |queue, memory| queue.pop(memory, chain, empty))
    }

    /// Gives the last `count` chains that were taken from queue `index` back, to be taken again.
    pub fn undo(&mut self, index: usize, count: u16) {
        if let Some(queue) = self.queues.get_mut(index).and_then(Option::as_mut) {
            queue.undo(count);
        }
    }

    /// Fills a chain of queue `index` with `bytes` and returns it.
    pub fn give(&mut self, index: usize, chain: &Chain, bytes: &[u8]) -> Result<(), QueueError> {
        self.write(chain, 0, bytes)?;
        self.complete(index, chain, u32::try_from(bytes.len()).unwrap_or(0))
    }

    /// Returns a chain of queue `index`, `written` bytes of its writable part filled.
    pub fn complete(
        &mut self,
        index: usize,
        chain: &Chain,
        written: u32,
    ) -> Result<(), QueueError> {
        self.complete_all(index, [(chain.head(), written)])
    }

    /// Returns chains of queue `index`, by head and bytes written, so that the driver sees all of
    /// them or none.
    pub fn complete_all(
        &mut self,
        index: usize,
        used: impl IntoIterator<Item = (u16, u32)>,
    ) -> Result<(), QueueError> {
        self.transact(index, |queue, memory| queue.complete(memory, used))
    }

    /// Copies from a chain's readable part, starting `offset` bytes into it, and fills `data`.
    pub fn read(&mut self, chain: &Chain, offset: u64, data: &mut [u8]) -> Result<(), QueueError> {
        for (piece, offset) in data.chunks_mut(PIECE).zip((offset..).step_by(PIECE)) {
            chain.read(&self.dma.begin()?, offset, piece)?;
        }
        Ok(())
    }

    /// Copies `data` to a chain's writable part, starting `offset` bytes into it.
    pub fn write(&mut self, chain: &Chain, offset: u64, data: &[u8]) -> Result<(), QueueError> {
        for (piece, offset) in data.chunks(PIECE).zip((offset..).step_by(PIECE)) {
            chain.write(&self.dma.begin()?, offset, piece)?;
        }
        Ok(())
    }

    /// Pins bytes of a chain's readable part, from `offset` on: `most` of them, or as many as are
    /// pinned at a time. They are to be released before long, as the guest may wait for that.
    pub fn pin_readable<'p>(
        &mut self,
        pin: &'p mut DmaPin<Memory>,
        chain: &Chain,
        offset: u64,
        most: u64,
    ) -> Result<Pinned<'p, Memory>, QueueError> {
        let ranges = chain.readable_ranges(offset, most.min(PINNED));
        Ok(self.dma.begin()?.pin(pin, ranges, Permissions::Read)?)
    }

    /// The same of a chain's writable part, to be filled.
    pub fn pin_writable<'p>(
        &mut self,
        pin: &'p mut DmaPin<Memory>,
        chain: &Chain,
        offset: u64,
        most: u64,
    ) -> Result<Pinned<'p, Memory>, QueueError> {
        let ranges = chain.writable_ranges(offset, most.min(PINNED));
        Ok(self.dma.begin()?.pin(pin, ranges, Permissions::Write)?)
    }

    /// Runs `body` on queue `index` in one DMA transaction, then delivers the interrupt that it
    /// earned. The body accesses the rings, or takes one chain, and nothing else.
    fn transact<R>(
        &mut self,
        index: usize,
        body: impl FnOnce(&mut VirtQueue, &DmaTransaction<'_, Memory>) -> Result<R, QueueError>,
    ) -> Result<R, QueueError> {
        let queue = self
            .queues
            .get_mut(index)
            .and_then(Option::as_mut)
            .ok_or(QueueError::Disabled)?;
        let result = body(queue, &self.dma.begin()?);
        if queue.take_interrupt() {
            self.transport.queue_interrupt(index);
        }
        result
    }
}

/// A session's view of guest memory.
struct Dma {
    view: DmaView<Memory>,
    /// A reset waits, or the device cannot go on.
    stop: Arc<AtomicBool>,
    /// How many there have been.
    #[cfg(test)]
    transactions: usize,
}

impl Dma {
    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Begins a transaction, unless a reset has been asked for: guest memory may already belong to
    /// somebody else.
    fn begin(&mut self) -> Result<DmaTransaction<'_, Memory>, QueueError> {
        if self.stopping() {
            return Err(QueueError::Stopped);
        }
        #[cfg(test)]
        {
            self.transactions += 1;
        }
        Ok(self.view.begin())
    }
}

#[cfg(test)]
mod session_test;
