//! Receive buffers of the guest (section 5.1.6.3): the chains that one packet takes.

use vm_memory::GuestMemory;

use super::tap::{HEADER, NUM_BUFFERS};
use crate::virtio::chain::Chain;
use crate::virtio::error::QueueError;
use crate::virtio::queue::VirtQueue;

/// Chains taken for one packet; reused from packet to packet.
#[derive(Default)]
pub(super) struct Buffers {
    chains: Vec<Chain>,
}

/// Whether a packet fits into the buffers that the driver has made available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Into that many chains.
    Chains(u16),
    /// Not until there are more of them.
    NotYet,
    /// Never: it may not take more chains, and waiting makes none of them larger.
    Never,
}

impl Buffers {
    /// Takes as many chains as a packet of `length` bytes needs, `most` at the most. If it does not
    /// fit, they are available again.
    pub(super) fn gather<M: GuestMemory>(
        &mut self,
        queue: &mut VirtQueue,
        memory: &M,
        length: usize,
        most: u16,
    ) -> Result<Room, QueueError> {
        if self.chains.len() < most.into() {
            self.chains.resize_with(most.into(), Chain::default);
        }
        let mut room: u64 = 0;
        for (taken, chain) in (0..most).zip(&mut self.chains) {
            if !queue.pop(memory, chain)? {
                queue.undo(taken);
                return Ok(Room::NotYet);
            }
            if chain.writable() == 0 {
                return Err(QueueError::Length);
            }
            room = room.saturating_add(chain.writable());
            if room >= length as u64 {
                return Ok(Room::Chains(taken + 1));
            }
        }
        queue.undo(most);
        Ok(Room::Never)
    }

    /// Copies `packet` into the `count` chains that were gathered for it, says so in its header,
    /// and returns them to the driver.
    pub(super) fn fill<M: GuestMemory>(
        &self,
        queue: &mut VirtQueue,
        memory: &M,
        count: u16,
        packet: &mut [u8],
    ) -> Result<(), QueueError> {
        // 5.1.6.4: 1 if buffers are not merged.
        if let Some(field) = packet.get_mut(NUM_BUFFERS..HEADER) {
            field.copy_from_slice(&count.to_le_bytes());
        }
        let mut rest: &[u8] = packet;
        for chain in self.chains.iter().take(count.into()) {
            let here = usize::try_from(chain.writable())
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let (now, later) = rest.split_at_checked(here).ok_or(QueueError::Length)?;
            chain.write(memory, 0, now)?;
            queue.complete(
                memory,
                chain.head(),
                u32::try_from(here).unwrap_or(u32::MAX),
            )?;
            rest = later;
        }
        Ok(())
    }
}
