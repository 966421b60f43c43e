//! Receive buffers of the guest (section 5.1.6.3): the chains that one packet takes.

use super::tap::{HEADER, NUM_BUFFERS};
use crate::virtio::chain::Chain;
use crate::virtio::error::QueueError;
use crate::virtio::session::Session;

/// Descriptors after which a packet takes no further chain. The driver's buffers would be of 64 bytes
/// on average if this did not do for the largest packet.
const MAX_DESCRIPTORS: usize = 1024;

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
    /// Takes as many chains from queue `index` as a packet of `length` bytes needs, `most` at the
    /// most. If it does not fit, they are available again.
    pub(super) fn gather(
        &mut self,
        index: usize,
        session: &mut Session,
        length: usize,
        most: u16,
    ) -> Result<Room, QueueError> {
        if self.chains.len() < most.into() {
            self.chains.resize_with(most.into(), Chain::default);
        }
        let mut room: u64 = 0;
        let mut descriptors = 0;
        for (taken, chain) in (0..most).zip(&mut self.chains) {
            if descriptors >= MAX_DESCRIPTORS {
                return Err(QueueError::Scattered);
            }
            if !session.pop(index, chain)? {
                session.undo(index, taken);
                return Ok(Room::NotYet);
            }
            if chain.writable() == 0 {
                return Err(QueueError::Length);
            }
            descriptors += chain.descriptors();
            room = room.saturating_add(chain.writable());
            if room >= length as u64 {
                return Ok(Room::Chains(taken + 1));
            }
        }
        session.undo(index, most);
        Ok(Room::Never)
    }

    /// Copies `packet` into the `count` chains that were gathered for it from queue `index`, says
    /// so in its header, and returns them to the driver: all at once, as it expects the rest of a
    /// packet with its first buffer.
    pub(super) fn fill(
        &self,
        index: usize,
        session: &mut Session,
        count: u16,
        packet: &mut [u8],
    ) -> Result<(), QueueError> {
        // 5.1.6.4: 1 if buffers are not merged.
        if let Some(field) = packet.get_mut(NUM_BUFFERS..HEADER) {
            field.copy_from_slice(&count.to_le_bytes());
        }
        let mut rest: &[u8] = packet;
        for chain in self.chains.iter().take(count.into()) {
            let here = part(chain, rest.len());
            let (now, later) = rest.split_at_checked(here).ok_or(QueueError::Length)?;
            session.write(chain, 0, now)?;
            rest = later;
        }
        let mut left = packet.len();
        let used = self.chains.iter().take(count.into()).map(|chain| {
            let here = part(chain, left);
            left -= here;
            (chain.head(), u32::try_from(here).unwrap_or(u32::MAX))
        });
        session.complete_all(index, used)
    }
}

/// How many of `left` bytes go into `chain`.
fn part(chain: &Chain, left: usize) -> usize {
    usize::try_from(chain.writable())
        .unwrap_or(usize::MAX)
        .min(left)
}
