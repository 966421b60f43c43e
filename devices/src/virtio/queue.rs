//! Virtqueues as a device model uses them: split ([`split`], section 2.7) or packed ([`packed`],
//! section 2.8), as was negotiated.

mod packed;
#[cfg(test)]
mod packed_test;
mod saved;
mod split;

use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;
use virtio_queue::QueueState;
use vm_memory::{GuestAddress, GuestMemory};

use super::chain::Chain;
use super::error::QueueError;
use super::feature;
use packed::Packed;
use split::Split;

pub(super) use saved::RingState;

/// One enabled queue.
#[derive(Debug)]
pub struct VirtQueue {
    kind: Kind,
    interrupt_due: bool,
}

/// What whoever finds a queue empty does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Empty {
    /// It waits: the driver is to notify.
    Wait,
    /// It has something else to do, and looks again then: the driver may spare the notification.
    LookAgain,
}

#[derive(Debug)]
enum Kind {
    Split(Split),
    Packed(Packed),
}

impl VirtQueue {
    /// Checks `state` as the driver has written it.
    pub(super) fn new(state: QueueState, features: u64) -> Result<Self, QueueError> {
        // Rings that wrap around the end of the address space: the largest of the three is below 1
        // MiB.
        let end = 1 << 20;
        for ring in [state.desc_table, state.avail_ring, state.used_ring] {
            ring.checked_add(end)
                .ok_or(QueueError::Setup(virtio_queue::Error::AddressOverflow))?;
        }
        let kind = if feature::has(features, VIRTIO_F_RING_PACKED) {
            Kind::Packed(Packed::new(&state, features)?)
        } else {
            Kind::Split(Split::new(state, features)?)
        };
        Ok(Self {
            kind,
            interrupt_due: false,
        })
    }

    /// Number of entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        match &self.kind {
            Kind::Split(queue) => queue.size(),
            Kind::Packed(queue) => queue.size(),
        }
    }

    /// Of a split queue, where descriptor table, available ring and used ring are. Who serves a queue
    /// elsewhere does not offer packed ones.
    pub(super) fn rings(&self) -> Result<[u64; 3], QueueError> {
        match &self.kind {
            Kind::Split(queue) => Ok(queue.rings()),
            Kind::Packed(_) => Err(QueueError::Packed),
        }
    }

    /// Of a split queue, both sides go on at `index`: somebody else has served it that far.
    pub(super) fn go_on_at(&mut self, index: u16) -> Result<(), QueueError> {
        match &mut self.kind {
            Kind::Split(queue) => {
                queue.go_on_at(index);
                Ok(())
            }
            Kind::Packed(_) => Err(QueueError::Packed),
        }
    }

    /// Of a split queue, the index of the next entry of the available ring.
    pub(super) fn next(&self) -> Result<u16, QueueError> {
        match &self.kind {
            Kind::Split(queue) => Ok(queue.next()),
            Kind::Packed(_) => Err(QueueError::Packed),
        }
    }

    /// Takes the next chain into `chain`; `false` if there is none. `empty` says whether the driver
    /// notifies then when there is.
    pub(super) fn pop<M: GuestMemory>(
        &mut self,
        memory: &M,
        chain: &mut Chain,
        empty: Empty,
    ) -> Result<bool, QueueError> {
        match &mut self.kind {
            Kind::Split(queue) => queue.pop(memory, chain, empty),
            Kind::Packed(queue) => queue.pop(memory, chain, empty),
        }
    }

    /// Gives the last `count` popped chains back, to be popped again.
    pub fn undo(&mut self, count: u16) {
        match &mut self.kind {
            Kind::Split(queue) => queue.undo(count),
            Kind::Packed(queue) => queue.undo(count),
        }
    }

    /// Returns chains to the driver: of each its name, and how many bytes of its writable part were
    /// filled. The driver sees all of them or none, as one packet may have several (5.1.6.4). Notes
    /// whether it wants an interrupt.
    pub fn complete<M: GuestMemory>(
        &mut self,
        memory: &M,
        used: impl IntoIterator<Item = (u16, u32)>,
    ) -> Result<(), QueueError> {
        self.interrupt_due |= match &mut self.kind {
            Kind::Split(queue) => queue.complete(memory, used),
            Kind::Packed(queue) => queue.complete(memory, used),
        }?;
        Ok(())
    }

    /// Whether an interrupt is due; asking clears it.
    pub(super) fn take_interrupt(&mut self) -> bool {
        std::mem::take(&mut self.interrupt_due)
    }
}

fn at(ring: u64, offset: u64) -> Result<GuestAddress, QueueError> {
    ring.checked_add(offset)
        .map(GuestAddress)
        .ok_or(QueueError::Address)
}
