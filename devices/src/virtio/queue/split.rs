//! Split queues (section 2.7).
//!
//! The rings' indexes and their setup are virtio-queue's; taking a chain is ours, because it has to
//! be strict (see `chain`), must not log for every mistake of a guest, and must accept a
//! ring at I/O virtual address 0. So is returning chains, because several may belong together.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT,
};
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::{Empty, at};
use crate::virtio::chain::{Chain, Table};
use crate::virtio::error::QueueError;
use crate::virtio::feature;

/// See the module.
#[derive(Debug)]
pub(super) struct Split {
    queue: Queue,
    indirect: bool,
    /// The driver has been asked not to notify.
    quiet: bool,
}

impl Split {
    pub(super) fn new(state: QueueState, features: u64) -> Result<Self, QueueError> {
        let state = QueueState {
            event_idx_enabled: feature::has(features, VIRTIO_RING_F_EVENT_IDX),
            ready: true,
            ..state
        };
        let queue = Queue::try_from(state).map_err(QueueError::Setup)?;
        Ok(Self {
            queue,
            indirect: feature::has(features, VIRTIO_RING_F_INDIRECT_DESC),
            quiet: false,
        })
    }

    pub(super) fn size(&self) -> u16 {
        self.queue.size()
    }

    pub(super) fn rings(&self) -> [u64; 3] {
        let queue = &self.queue;
        [queue.desc_table(), queue.avail_ring(), queue.used_ring()]
    }

    /// The index of the next entry of the available ring.
    pub(super) fn next(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Where both sides go on, if no chain is out: as many were returned as were taken.
    pub(super) fn place(&self) -> Option<u16> {
        let next = self.queue.next_avail();
        (next == self.queue.next_used()).then_some(next)
    }

    /// Both sides go on at `next`.
    pub(super) fn go_on_at(&mut self, next: u16) {
        self.queue.set_next_avail(next);
        self.queue.set_next_used(next);
    }

    pub(super) fn pop<M: GuestMemory>(
        &mut self,
        memory: &M,
        chain: &mut Chain,
        empty: Empty,
    ) -> Result<bool, QueueError> {
        let Some(head) = self.next_head(memory, empty)? else {
            return Ok(false);
        };
        let table = Table {
            address: self.queue.desc_table(),
            size: self.queue.size(),
            indirect: self.indirect,
        };
        chain.load(memory, table, head)?;
        Ok(true)
    }

    pub(super) fn undo(&mut self, count: u16) {
        self.queue
            .set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    pub(super) fn complete<M: GuestMemory>(
        &mut self,
        memory: &M,
        used: impl IntoIterator<Item = (u16, u32)>,
    ) -> Result<bool, QueueError> {
        let size = self.queue.size();
        let old = self.queue.next_used();
        let mut new = old;
        for (head, written) in used {
            if head >= size {
                return Err(QueueError::DescriptorIndex { index: head, size });
            }
            let entry = 4 + 8 * u64::from(new % size);
            // The head as 32 bits, then the length.
            let element = u64::from(head) | u64::from(written) << 32;
            memory.write_obj(element.to_le(), used_ring(&self.queue, entry)?)?;
            new = new.wrapping_add(1);
        }
        self.queue.set_next_used(new);
        let index = used_ring(&self.queue, 2)?;
        memory.store(new.to_le(), index, Ordering::Release)?;
        // The driver writes what it wants to hear of, and then looks at the index; here it is the
        // other way round (2.7.7.2).
        fence(Ordering::SeqCst);
        self.wants_interrupt(memory, old, new)
    }

    /// The index that the driver put next into the available ring.
    fn next_head<M: GuestMemory>(
        &mut self,
        memory: &M,
        empty: Empty,
    ) -> Result<Option<u16>, QueueError> {
        let size = self.queue.size();
        let next = self.queue.next_avail();
        let mut pending = self.pending(memory)?;
        if pending == 0 && empty == Empty::Wait {
            // Ask for a notification, and look again in case the driver was faster.
            self.queue
                .enable_notification(memory)
                .map_err(QueueError::Ring)?;
            self.quiet = false;
            pending = self.pending(memory)?;
        }
        if pending == 0 {
            return Ok(None);
        }
        if pending > size {
            return Err(QueueError::AvailableIndex { pending, size });
        }
        if !self.quiet {
            self.queue
                .disable_notification(memory)
                .map_err(QueueError::Ring)?;
            self.quiet = true;
        }
        let entry = 4 + 2 * u64::from(next % size);
        let head: u16 = memory.load(available_ring(&self.queue, entry)?, Ordering::Relaxed)?;
        self.queue.set_next_avail(next.wrapping_add(1));
        Ok(Some(u16::from_le(head)))
    }

    /// Entries in the available ring that have not been taken yet.
    fn pending<M: GuestMemory>(&self, memory: &M) -> Result<u16, QueueError> {
        let index = self
            .queue
            .avail_idx(memory, Ordering::Acquire)
            .map_err(QueueError::Ring)?;
        Ok(index.0.wrapping_sub(self.queue.next_avail()))
    }

    /// Whether the driver wants to hear that the used index went from `old` to `new`
    /// (section 2.7.7.2): with `EVENT_IDX` if it passed the one named behind the available ring,
    /// and else unless a flag says no.
    fn wants_interrupt<M: GuestMemory>(
        &self,
        memory: &M,
        old: u16,
        new: u16,
    ) -> Result<bool, QueueError> {
        if self.queue.event_idx_enabled() {
            let at = available_ring(&self.queue, 4 + 2 * u64::from(self.queue.size()))?;
            let event = u16::from_le(memory.load(at, Ordering::Relaxed)?);
            let since = new.wrapping_sub(event).wrapping_sub(1);
            return Ok(since < new.wrapping_sub(old));
        }
        let flags: u16 = memory.load(available_ring(&self.queue, 0)?, Ordering::Relaxed)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}

fn available_ring(queue: &Queue, offset: u64) -> Result<GuestAddress, QueueError> {
    at(queue.avail_ring(), offset)
}

fn used_ring(queue: &Queue, offset: u64) -> Result<GuestAddress, QueueError> {
    at(queue.used_ring(), offset)
}
