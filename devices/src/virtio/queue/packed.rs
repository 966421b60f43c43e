//! Packed queues (section 2.8): one ring of descriptors, which the driver makes available and the
//! device overwrites with what is used, and for each side a place where it says what it wants to hear
//! of.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_PACKED_DESC_F_AVAIL,
    VRING_PACKED_DESC_F_USED, VRING_PACKED_EVENT_F_WRAP_CTR, VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE, VRING_PACKED_EVENT_FLAG_ENABLE,
};
use virtio_queue::QueueState;
use virtio_queue::desc::packed::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::{Empty, at};
use crate::virtio::chain::{Chain, Table};
use crate::virtio::error::QueueError;
use crate::virtio::feature;

/// Size of a descriptor, and where in it are length and name, and the flags.
const DESCRIPTOR: u64 = 16;
const LENGTH: u64 = 8;
const FLAGS: u64 = 14;
/// Entries at the most (section 2.8.10.1).
const MAX_SIZE: u16 = 1 << 15;
const AVAILABLE: u16 = 1 << VRING_PACKED_DESC_F_AVAIL;
const USED: u16 = 1 << VRING_PACKED_DESC_F_USED;
/// Of a used descriptor: its length says something (section 2.8.4).
const WRITTEN: u16 = 2;

/// A place in the ring, and the wrap counter there (section 2.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) index: u16,
    pub(super) wrap: bool,
}

impl Position {
    const START: Self = Self {
        index: 0,
        wrap: true,
    };

    /// `count` entries further, at most a whole ring of `size`.
    fn forward(self, count: u16, size: u16) -> Self {
        let index = u32::from(self.index) + u32::from(count);
        match index.checked_sub(u32::from(size)) {
            Some(rest) => Self {
                index: u16::try_from(rest).unwrap_or(0),
                wrap: !self.wrap,
            },
            None => Self {
                index: u16::try_from(index).unwrap_or(0),
                ..self
            },
        }
    }

    /// `count` entries back, at most a whole ring of `size`.
    fn back(self, count: u16, size: u16) -> Self {
        match self.index.checked_sub(count) {
            Some(index) => Self { index, ..self },
            None => Self {
                index: size - (count - self.index),
                wrap: !self.wrap,
            },
        }
    }

    /// How far `other` is from here, going forward.
    fn distance(self, other: Self, size: u16) -> u32 {
        let size = u32::from(size);
        let rounds = if self.wrap == other.wrap { 0 } else { size };
        (u32::from(other.index) + rounds + 2 * size - u32::from(self.index)) % (2 * size)
    }

    /// As the event suppression structures have it (section 2.8.14).
    fn to_event(self) -> u16 {
        self.index | u16::from(self.wrap) << VRING_PACKED_EVENT_F_WRAP_CTR
    }

    fn of_event(event: u16) -> Self {
        Self {
            index: event & !(1 << VRING_PACKED_EVENT_F_WRAP_CTR),
            wrap: event >> VRING_PACKED_EVENT_F_WRAP_CTR != 0,
        }
    }

    /// The flags of a descriptor here that the driver has made available.
    fn available(self) -> u16 {
        if self.wrap { AVAILABLE } else { USED }
    }

    /// The flags of a descriptor here that is used.
    fn used(self) -> u16 {
        if self.wrap { AVAILABLE | USED } else { 0 }
    }
}

/// A chain that was taken and has not been returned.
#[derive(Clone, Copy, Debug)]
struct Taken {
    name: u16,
    /// Entries of the ring.
    entries: u16,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Packed {
    descriptors: u64,
    /// Where the driver says what it wants to hear of.
    driver: u64,
    /// Where the device does.
    device: u64,
    size: u16,
    indirect: bool,
    event_idx: bool,
    next_available: Position,
    next_used: Position,
    /// In the order in which they were taken.
    taken: VecDeque<Taken>,
    /// Entries of all that are taken.
    outstanding: u16,
    /// The driver has been asked not to notify.
    quiet: bool,
}

impl Packed {
    pub(super) fn new(state: &QueueState, features: u64) -> Result<Self, QueueError> {
        let aligned = state.desc_table.is_multiple_of(16)
            && state.avail_ring.is_multiple_of(4)
            && state.used_ring.is_multiple_of(4);
        if !aligned {
            return Err(QueueError::Setup(
                virtio_queue::Error::InvalidDescTableAlign,
            ));
        }
        if state.size == 0 || state.size > state.max_size.min(MAX_SIZE) {
            return Err(QueueError::Setup(virtio_queue::Error::InvalidSize));
        }
        Ok(Self {
            descriptors: state.desc_table,
            driver: state.avail_ring,
            device: state.used_ring,
            size: state.size,
            indirect: feature::has(features, VIRTIO_RING_F_INDIRECT_DESC),
            event_idx: feature::has(features, VIRTIO_RING_F_EVENT_IDX),
            next_available: Position::START,
            next_used: Position::START,
            taken: VecDeque::new(),
            outstanding: 0,
            quiet: false,
        })
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// Where both sides go on, if no chain is out.
    pub(super) fn place(&self) -> Option<Position> {
        let next = self.next_available;
        (self.taken.is_empty() && next == self.next_used).then_some(next)
    }

    /// Both sides go on at `next`, whose index is below the size.
    pub(super) fn go_on_at(&mut self, next: Position) {
        self.next_available = next;
        self.next_used = next;
    }

    pub(super) fn pop<M: GuestMemory>(
        &mut self,
        memory: &M,
        chain: &mut Chain,
        empty: Empty,
    ) -> Result<bool, QueueError> {
        if !self.is_available(memory)? {
            if empty == Empty::LookAgain {
                return Ok(false);
            }
            // Ask for a notification, and look again in case the driver was faster.
            self.ask_for_notifications(memory, true)?;
            self.quiet = false;
            if !self.is_available(memory)? {
                return Ok(false);
            }
        }
        if !self.quiet {
            self.ask_for_notifications(memory, false)?;
            self.quiet = true;
        }
        let taken = self.load(memory, chain)?;
        // A driver that makes more available than there are entries overwrites what it waits for.
        let outstanding = u32::from(self.outstanding) + u32::from(taken.entries);
        self.outstanding = u16::try_from(outstanding)
            .ok()
            .filter(|outstanding| *outstanding <= self.size)
            .ok_or(QueueError::AvailableIndex {
                pending: taken.entries,
                size: self.size,
            })?;
        self.next_available = self.next_available.forward(taken.entries, self.size);
        self.taken.push_back(taken);
        Ok(true)
    }

    /// Reads the chain that is next, whose name is in its last descriptor (section 2.8.6).
    fn load<M: GuestMemory>(&self, memory: &M, chain: &mut Chain) -> Result<Taken, QueueError> {
        chain.begin();
        let mut place = self.next_available;
        for entries in 1..=self.size {
            let descriptor: Descriptor = memory.read_obj(self.entry(place, 0)?)?;
            chain.count();
            let more = descriptor.has_next();
            if descriptor.refers_to_indirect_table() {
                if !self.indirect || more {
                    return Err(QueueError::Indirect);
                }
                load_indirect(memory, &descriptor, chain)?;
            } else {
                let (address, length) = (descriptor.addr(), descriptor.len());
                chain.push(address, length, descriptor.is_write_only())?;
            }
            if !more {
                let name = descriptor.id();
                chain.end(name)?;
                return Ok(Taken { name, entries });
            }
            place = place.forward(1, self.size);
        }
        Err(QueueError::ChainTooLong)
    }

    pub(super) fn undo(&mut self, count: u16) {
        for _ in 0..count {
            let Some(taken) = self.taken.pop_back() else {
                return;
            };
            self.outstanding = self.outstanding.saturating_sub(taken.entries);
            self.next_available = self.next_available.back(taken.entries, self.size);
        }
    }

    pub(super) fn complete<M: GuestMemory>(
        &mut self,
        memory: &M,
        used: impl IntoIterator<Item = (u16, u32)>,
    ) -> Result<bool, QueueError> {
        let old = self.next_used;
        let mut advanced = 0;
        let mut first = None;
        for (name, written) in used {
            let taken = self.take_back(name)?;
            let place = self.next_used;
            // Length, then name.
            let element = u64::from(written) | u64::from(name) << 32;
            let flags = place.used() | if written > 0 { WRITTEN } else { 0 };
            if first.is_none() {
                memory.write_slice(
                    element.to_le_bytes().get(..6).unwrap_or_default(),
                    self.entry(place, LENGTH)?,
                )?;
                first = Some((self.entry(place, FLAGS)?, flags));
            } else {
                let element = element | u64::from(flags) << 48;
                memory.write_obj(element.to_le(), self.entry(place, LENGTH)?)?;
            }
            self.next_used = place.forward(taken.entries, self.size);
            advanced += u32::from(taken.entries);
        }
        let Some((place, flags)) = first else {
            return Ok(false);
        };
        // The driver looks at the others when it has found the first.
        memory.store(flags.to_le(), place, Ordering::Release)?;
        // The driver writes what it wants to hear of, and then looks at the ring; here it is the other
        // way round.
        fence(Ordering::SeqCst);
        self.wants_interrupt(memory, old, advanced)
    }

    /// The chain `name`, which is among the first as a rule.
    fn take_back(&mut self, name: u16) -> Result<Taken, QueueError> {
        let at = self.taken.iter().position(|taken| taken.name == name);
        let taken = at.and_then(|at| self.taken.remove(at));
        let taken = taken.ok_or(QueueError::DescriptorIndex {
            index: name,
            size: self.size,
        })?;
        self.outstanding = self.outstanding.saturating_sub(taken.entries);
        Ok(taken)
    }

    /// Whether the driver has made the next descriptor available.
    fn is_available<M: GuestMemory>(&self, memory: &M) -> Result<bool, QueueError> {
        let place = self.next_available;
        let flags: u16 = memory.load(self.entry(place, FLAGS)?, Ordering::Acquire)?;
        Ok(u16::from_le(flags) & (AVAILABLE | USED) == place.available())
    }

    /// Tells the driver whether to notify.
    fn ask_for_notifications<M: GuestMemory>(
        &self,
        memory: &M,
        wanted: bool,
    ) -> Result<(), QueueError> {
        let flags = match (wanted, self.event_idx) {
            (false, _) => VRING_PACKED_EVENT_FLAG_DISABLE,
            (true, false) => VRING_PACKED_EVENT_FLAG_ENABLE,
            (true, true) => {
                let event = self.next_available.to_event();
                memory.store(event.to_le(), at(self.device, 0)?, Ordering::Relaxed)?;
                VRING_PACKED_EVENT_FLAG_DESC
            }
        };
        let flags = u16::try_from(flags).unwrap_or(0);
        memory.store(flags.to_le(), at(self.device, 2)?, Ordering::Release)?;
        // The driver looks at this after it has made something available; what was made available
        // before is looked for after this.
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Whether the driver wants to hear that `advanced` entries from `old` on are used
    /// (section 2.8.10).
    fn wants_interrupt<M: GuestMemory>(
        &self,
        memory: &M,
        old: Position,
        advanced: u32,
    ) -> Result<bool, QueueError> {
        let suppression: u32 = memory.load(at(self.driver, 0)?, Ordering::Acquire)?;
        let [event, flags] = halves(u32::from_le(suppression));
        Ok(match u32::from(flags & 3) {
            VRING_PACKED_EVENT_FLAG_DISABLE => false,
            VRING_PACKED_EVENT_FLAG_DESC if self.event_idx => {
                old.distance(Position::of_event(event), self.size) < advanced
            }
            _ => true,
        })
    }

    /// Where a part of the descriptor at `place` is.
    fn entry(&self, place: Position, part: u64) -> Result<GuestAddress, QueueError> {
        at(self.descriptors, DESCRIPTOR * u64::from(place.index) + part)
    }
}

/// The lower and the upper half.
fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_le_bytes();
    [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])]
}

/// The table that `descriptor` names, all of whose descriptors are buffers (section 2.8.7).
fn load_indirect<M: GuestMemory>(
    memory: &M,
    descriptor: &Descriptor,
    chain: &mut Chain,
) -> Result<(), QueueError> {
    let table = Table::of_bytes(descriptor.addr(), descriptor.len())?;
    for index in 0..table.entries_of_a_chain()? {
        let descriptor: Descriptor = memory.read_obj(table.descriptor(index)?)?;
        if descriptor.refers_to_indirect_table() {
            return Err(QueueError::Indirect);
        }
        chain.count();
        let (address, length) = (descriptor.addr(), descriptor.len());
        chain.push(address, length, descriptor.is_write_only())?;
    }
    Ok(())
}
