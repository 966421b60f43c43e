//! Guest memory, as it is mapped for devices.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::host_iommu::HostMemory;

/// The interrupt address range (sec. 3.14), which no IOMMU of a PC translates.
pub(crate) const INTERRUPTS: Range<u64> = 0xfee0_0000..0xfef0_0000;

/// A piece of guest RAM.
#[derive(Clone, Debug)]
pub struct RamPiece {
    /// Guest-physical address of its first byte.
    pub guest_address: u64,
    /// The file that backs it.
    pub file: Arc<File>,
    /// Offset of its first byte there.
    pub offset: u64,
    /// Where it is mapped in this process.
    pub host_address: u64,
    /// Bytes. This, the offset and both addresses are multiples of the page size.
    pub length: u64,
}

impl RamPiece {
    /// Its guest-physical addresses.
    pub(crate) fn range(&self) -> Range<u64> {
        self.guest_address..self.guest_address.saturating_add(self.length)
    }

    /// What backs `part` of its addresses.
    pub(crate) fn memory(&self, part: &Range<u64>) -> HostMemory<'_> {
        let skipped = part.start.saturating_sub(self.guest_address);
        HostMemory {
            file: (self.file.as_fd(), self.offset.saturating_add(skipped)),
            address: self.host_address.saturating_add(skipped),
            length: part.end - part.start,
        }
    }
}

/// All of guest RAM that can be mapped.
#[derive(Debug)]
pub(crate) struct Ram {
    /// In ascending order, each with the part of it that is mapped: what an interrupt would be is
    /// left out.
    parts: Vec<(Range<u64>, RamPiece)>,
}

impl Ram {
    pub(crate) fn new(mut pieces: Vec<RamPiece>) -> Self {
        pieces.sort_by_key(|piece| piece.guest_address);
        let mut parts = Vec::new();
        for piece in pieces {
            let range = piece.range();
            let below = range.start..range.end.min(INTERRUPTS.start);
            let above = range.start.max(INTERRUPTS.end)..range.end;
            for part in [below, above] {
                if !part.is_empty() {
                    parts.push((part, piece.clone()));
                }
            }
        }
        Self { parts }
    }

    /// The same with `pieces` besides.
    ///
    /// # Errors
    /// The first of them that there is something of already.
    pub(crate) fn with(&self, pieces: &[RamPiece]) -> Result<Self, Range<u64>> {
        let old = self.parts.iter().cloned();
        let new = Self::new(pieces.to_vec()).parts;
        let mut parts: Vec<_> = old.chain(new).collect();
        parts.sort_by_key(|(range, _)| range.start);
        let mut neighbours = parts.iter().zip(parts.iter().skip(1));
        match neighbours.find(|((one, _), (next, _))| next.start < one.end) {
            Some((_, (range, _))) => Err(range.clone()),
            None => Ok(Self { parts }),
        }
    }

    /// The same without what is in `range`.
    ///
    /// # Errors
    /// The first part of which something is in it, and something is not.
    pub(crate) fn without(&self, range: &Range<u64>) -> Result<Self, Range<u64>> {
        let mut left = Vec::new();
        for (part, piece) in &self.parts {
            if part.end <= range.start || range.end <= part.start {
                left.push((part.clone(), piece.clone()));
            } else if part.start < range.start || range.end < part.end {
                return Err(part.clone());
            }
        }
        Ok(Self { parts: left })
    }

    /// The pieces of guest-physical addresses that are mapped, and what backs each.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (&Range<u64>, HostMemory<'_>)> {
        self.parts
            .iter()
            .map(|(range, piece)| (range, piece.memory(range)))
    }

    /// The pieces of guest-physical addresses.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = &Range<u64>> {
        self.parts.iter().map(|(range, _)| range)
    }

    /// The parts of `range` that are RAM, in ascending order; no part goes from one piece into the
    /// next.
    pub(crate) fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self
            .parts
            .partition_point(|(part, _)| part.end <= range.start);
        self.ranges()
            .skip(first)
            .take_while({
                let end = range.end;
                move |part| part.start < end
            })
            .map(move |part| part.start.max(range.start)..part.end.min(range.end))
    }
}
