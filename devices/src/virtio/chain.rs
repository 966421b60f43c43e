//! Descriptor chains (section 2.7.5), read once and strictly.
//!
//! The iterator that virtio-queue offers ends silently at a loop, at an index beyond the table, and
//! at a read that faults. Here each of these is an error, because a device that goes on with half a
//! request would corrupt what the driver believes.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::error::QueueError;

/// Longest chain that is followed through an indirect table: the largest queue of any device here,
/// as a chain must not be longer than its queue (section 2.7.5.3.1). It does not follow a queue
/// that the driver has made smaller, since drivers exceed that.
pub(super) const MAX_INDIRECT: u16 = 256;

/// Size of a descriptor.
const DESCRIPTOR_SIZE: u32 = 16;

/// A piece of guest memory that a descriptor names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    address: GuestAddress,
    length: u32,
}

/// One request of the driver: readable segments, then writable ones. Reused from request to
/// request, so that handling one allocates nothing once the largest has been seen.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    /// How many of `segments` are readable; they come first (section 2.7.4.2).
    readable_segments: usize,
    readable: u64,
    writable: u64,
    descriptors: usize,
}

/// Where the descriptors of a queue are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub(super) address: u64,
    /// Entries.
    pub(super) size: u16,
    /// Whether descriptors may name further tables: `INDIRECT_DESC` was negotiated.
    pub(super) indirect: bool,
}

impl Table {
    /// The table of `length` bytes that a descriptor names, in which no other is named.
    pub(super) fn of_bytes(address: GuestAddress, length: u32) -> Result<Self, QueueError> {
        let entries = length / DESCRIPTOR_SIZE;
        if entries == 0 || !length.is_multiple_of(DESCRIPTOR_SIZE) {
            return Err(QueueError::Indirect);
        }
        Ok(Self {
            address: address.0,
            // An index is 16 bits wide, so entries from 65535 on cannot be named anyway.
            size: u16::try_from(entries).unwrap_or(u16::MAX),
            indirect: false,
        })
    }

    /// Its entries, if all of it is one chain.
    pub(super) fn entries_of_a_chain(&self) -> Result<u16, QueueError> {
        if self.size > MAX_INDIRECT {
            return Err(QueueError::ChainTooLong);
        }
        Ok(self.size)
    }

    /// Address of descriptor `index`.
    pub(super) fn descriptor(&self, index: u16) -> Result<GuestAddress, QueueError> {
        if index >= self.size {
            return Err(QueueError::DescriptorIndex {
                index,
                size: self.size,
            });
        }
        self.address
            .checked_add(u64::from(index) * u64::from(DESCRIPTOR_SIZE))
            .map(GuestAddress)
            .ok_or(QueueError::Address)
    }

    /// The table that `descriptor` of this one names, in which no other is named
    /// (section 2.7.5.3.1).
    fn follow(&self, descriptor: &Descriptor) -> Result<Self, QueueError> {
        if !self.indirect || descriptor.has_next() {
            return Err(QueueError::Indirect);
        }
        Self::of_bytes(descriptor.addr(), descriptor.len())
    }
}

impl Chain {
    /// What names the request when it is returned: the index of the first descriptor, or of a packed
    /// queue the buffer ID.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that the device may read.
    #[must_use]
    pub fn readable(&self) -> u64 {
        self.readable
    }

    /// Bytes that the device may write.
    #[must_use]
    pub fn writable(&self) -> u64 {
        self.writable
    }

    /// Descriptors that it took, one that names an indirect table included.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        self.descriptors
    }

    /// Where the readable part is, from `offset` on, for `length` bytes or as many as there are.
    pub(super) fn readable_ranges(
        &self,
        offset: u64,
        length: u64,
    ) -> impl Iterator<Item = (GuestAddress, usize)> {
        let segments = self.segments.get(..self.readable_segments);
        ranges(segments.unwrap_or_default(), offset, length)
    }

    /// The same of the writable part.
    pub(super) fn writable_ranges(
        &self,
        offset: u64,
        length: u64,
    ) -> impl Iterator<Item = (GuestAddress, usize)> {
        let segments = self.segments.get(self.readable_segments..);
        ranges(segments.unwrap_or_default(), offset, length)
    }

    /// Copies from the readable part, starting `offset` bytes into it, and fills `data`. Asking for
    /// more than there is is an error.
    pub fn read<M: GuestMemory>(
        &self,
        memory: &M,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), QueueError> {
        let segments = self
            .segments
            .get(..self.readable_segments)
            .unwrap_or_default();
        let mut rest = data;
        for piece in pieces(segments, offset, rest.len() as u64) {
            let length = usize::try_from(piece.length).map_err(|_| QueueError::Length)?;
            let (now, later) = rest
                .split_at_mut_checked(length)
                .ok_or(QueueError::Length)?;
            memory.read_slice(now, piece.address)?;
            rest = later;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(QueueError::Length)
        }
    }

    /// Copies `data` to the writable part, starting `offset` bytes into it. Writing more than fits
    /// is an error.
    pub fn write<M: GuestMemory>(
        &self,
        memory: &M,
        offset: u64,
        data: &[u8],
    ) -> Result<(), QueueError> {
        let segments = self
            .segments
            .get(self.readable_segments..)
            .unwrap_or_default();
        let mut rest = data;
        for piece in pieces(segments, offset, rest.len() as u64) {
            let length = usize::try_from(piece.length).map_err(|_| QueueError::Length)?;
            let (now, later) = rest.split_at_checked(length).ok_or(QueueError::Length)?;
            memory.write_slice(now, piece.address)?;
            rest = later;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(QueueError::Length)
        }
    }

    /// Reads the chain that starts at `head`, which is no longer than the table and then
    /// [`MAX_INDIRECT`]. One in which nothing can be read or written is refused.
    pub(super) fn load<M: GuestMemory>(
        &mut self,
        memory: &M,
        table: Table,
        head: u16,
    ) -> Result<(), QueueError> {
        self.begin();
        let mut table = table;
        let mut index = head;
        let mut left = table.size;
        loop {
            let address = table.descriptor(index)?;
            left = left.checked_sub(1).ok_or(QueueError::ChainTooLong)?;
            let descriptor: Descriptor = memory.read_obj(address)?;
            self.count();
            if descriptor.refers_to_indirect_table() {
                table = table.follow(&descriptor)?;
                left = MAX_INDIRECT;
                index = 0;
                continue;
            }
            let (at, length) = (descriptor.addr(), descriptor.len());
            self.push(at, length, descriptor.is_write_only())?;
            if !descriptor.has_next() {
                break;
            }
            index = descriptor.next();
        }
        self.end(head)
    }

    /// Forgets what was there.
    pub(super) fn begin(&mut self) {
        self.segments.clear();
        self.readable_segments = 0;
        self.readable = 0;
        self.writable = 0;
        self.descriptors = 0;
    }

    /// Counts a descriptor.
    pub(super) fn count(&mut self) {
        self.descriptors += 1;
    }

    /// What was appended is all of the chain `name`. One in which nothing can be read or written is
    /// refused.
    pub(super) fn end(&mut self, name: u16) -> Result<(), QueueError> {
        self.head = name;
        if self.readable + self.writable == 0 {
            return Err(QueueError::Length);
        }
        Ok(())
    }

    /// Appends one buffer.
    pub(super) fn push(
        &mut self,
        address: GuestAddress,
        length: u32,
        is_writable: bool,
    ) -> Result<(), QueueError> {
        let segment = Segment { address, length };
        segment
            .address
            .0
            .checked_add(u64::from(segment.length))
            .ok_or(QueueError::Address)?;
        if is_writable {
            self.writable += u64::from(segment.length);
        } else if self.readable_segments == self.segments.len() {
            self.readable_segments += 1;
            self.readable += u64::from(segment.length);
        } else {
            return Err(QueueError::Order);
        }
        // 2.7.5.2: a chain is at most 2^32 bytes long in total.
        if self.readable + self.writable > 1 << 32 {
            return Err(QueueError::ChainTooLong);
        }
        self.segments.push(segment);
        Ok(())
    }
}

/// The same as [`pieces`], for those who translate.
fn ranges(
    segments: &[Segment],
    offset: u64,
    length: u64,
) -> impl Iterator<Item = (GuestAddress, usize)> {
    let range = |piece: Segment| {
        let length = usize::try_from(piece.length).unwrap_or(usize::MAX);
        (piece.address, length)
    };
    pieces(segments, offset, length).map(range)
}

/// The parts of `segments` that hold bytes `offset..offset + length` of their concatenation.
fn pieces(segments: &[Segment], offset: u64, length: u64) -> impl Iterator<Item = Segment> {
    let mut skip = offset;
    let mut left = length;
    segments.iter().filter_map(move |segment| {
        let here = u64::from(segment.length);
        if skip >= here {
            skip -= here;
            return None;
        }
        let start = skip;
        skip = 0;
        let take = left.min(here - start);
        if take == 0 {
            return None;
        }
        left -= take;
        let address = GuestAddress(segment.address.0.wrapping_add(start));
        Some(Segment {
            address,
            length: u32::try_from(take).unwrap_or(u32::MAX),
        })
    })
}
