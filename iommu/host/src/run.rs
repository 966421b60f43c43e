//! A piece of a shadow: pages that follow each other on both sides.

use std::iter;
use std::ops::Range;

use crate::host_iommu::Rights;

/// What mappings are aligned to.
pub(crate) const PAGE: u64 = 0x1000;

/// The pages of a device's address space from `input` on, which are guest memory from `output` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// First address, as the device uses it.
    pub(crate) input: u64,
    /// Guest-physical address of the same byte.
    pub(crate) output: u64,
    /// Bytes.
    pub(crate) length: u64,
    /// What the device may do.
    pub(crate) rights: Rights,
}

impl Run {
    pub(crate) const fn end(&self) -> u64 {
        self.input + self.length
    }

    /// The part of it with the addresses of `inputs`, which are its own.
    pub(crate) const fn part(&self, inputs: &Range<u64>) -> Self {
        Self {
            input: inputs.start,
            output: self.output + (inputs.start - self.input),
            length: inputs.end - inputs.start,
            rights: self.rights,
        }
    }

    /// Whether both map an address that both have to the same place with the same rights.
    pub(crate) fn agrees(&self, other: &Self) -> bool {
        self.output.wrapping_sub(self.input) == other.output.wrapping_sub(other.input)
            && self.rights == other.rights
    }

    /// The same in naturally aligned pieces of powers of two.
    pub(crate) fn aligned_pieces(self) -> impl Iterator<Item = Self> {
        let mut at = self.input;
        iter::from_fn(move || {
            let left = self.end().checked_sub(at).filter(|left| *left > 0)?;
            let size = 1 << at.trailing_zeros().min(left.ilog2());
            let piece = self.part(&(at..at + size));
            at += size;
            Some(piece)
        })
    }
}
