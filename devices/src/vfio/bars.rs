//! The BARs of an assigned device: which of them the guest gets, and which pages it may touch
//! without the VMM.

use std::ops::Range;

use pci::BarKind;
use pci::header::{BAR_COUNT, BAR0};

use super::image::{Image, MsixLayout, chunk};

/// Bytes of a page: nothing smaller can be mapped.
pub(super) const PAGE: u64 = 4096;
/// No BAR is larger than this: it would fit no aperture.
const LARGEST: u64 = 1 << 52;

/// A BAR that the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bar {
    /// Its first register.
    pub(super) index: usize,
    pub(super) kind: BarKind,
    /// Bytes: a power of two, at least 16.
    pub(super) size: u64,
}

impl Bar {
    /// Offset of its first register in configuration space.
    pub(super) fn register(&self) -> u16 {
        BAR0 + 4 * u16::try_from(self.index).unwrap_or(0)
    }

    /// The read-only type bits of its first register.
    pub(super) const fn type_bits(&self) -> u32 {
        match self.kind {
            BarKind::Memory32 => 0,
            BarKind::Memory64 {
                prefetchable: false,
            } => 0b0100,
            BarKind::Memory64 { prefetchable: true } => 0b1100,
        }
    }
}

/// The memory BARs that a host's configuration space and the sizes of its regions describe. I/O
/// BARs are left out, as the machine has no window for them.
pub(super) fn decode(host: &Image, sizes: &[u64; BAR_COUNT]) -> Vec<Bar> {
    let mut bars = Vec::new();
    let mut upper_half = false;
    for (index, &size) in sizes.iter().enumerate() {
        if std::mem::take(&mut upper_half) {
            continue;
        }
        let register = BAR0 + 4 * u16::try_from(index).unwrap_or(0);
        let bits = u32::from_le_bytes(chunk(host, register));
        let io = bits & 1 != 0;
        let wide = !io && bits >> 1 & 3 == 2;
        upper_half = wide;
        let size = size.checked_next_power_of_two().unwrap_or(0);
        let fits = match (io, wide) {
            (true, _) => false,
            (_, true) => index + 1 < BAR_COUNT && size <= LARGEST,
            (_, false) => size <= 1 << 31,
        };
        if !(fits && size >= 16) {
            continue;
        }
        let kind = if wide {
            BarKind::Memory64 {
                prefetchable: bits & 8 != 0,
            }
        } else {
            BarKind::Memory32
        };
        bars.push(Bar { index, kind, size });
    }
    bars
}

/// The bytes of BAR `bar` that hold the MSI-X table and the pending bits.
pub(super) fn msix_ranges(bar: usize, msix: &MsixLayout) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    if msix.table_bar == bar {
        ranges.push(msix.table..msix.table.saturating_add(msix.table_size()));
    }
    if msix.pba_bar == bar {
        ranges.push(msix.pba..msix.pba.saturating_add(msix.pba_size()));
    }
    ranges
}

/// The parts of a region of `size` bytes that the guest may be given as memory: whole pages of
/// `mappable` that hold nothing of `trapped`, in order and disjoint.
pub(super) fn direct_parts(
    size: u64,
    mappable: &[Range<u64>],
    trapped: &[Range<u64>],
) -> Vec<Range<u64>> {
    let mut parts: Vec<Range<u64>> = mappable
        .iter()
        .filter_map(|area| {
            let start = area.start.checked_next_multiple_of(PAGE)?;
            let end = area.end.min(size) / PAGE * PAGE;
            (start < end).then_some(start..end)
        })
        .collect();
    parts.sort_by_key(|part| part.start);
    // Areas that overlap count once.
    let mut end = 0;
    parts.retain_mut(|part| {
        part.start = part.start.max(end);
        end = end.max(part.end);
        part.start < part.end
    });
    for hole in trapped.iter().filter(|hole| hole.start < hole.end) {
        let first = hole.start / PAGE * PAGE;
        let last = hole.end.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
        parts = parts
            .into_iter()
            .flat_map(|part| {
                let before = part.start..part.end.min(first);
                let after = part.start.max(last)..part.end;
                [before, after]
            })
            .filter(|part| part.start < part.end)
            .collect();
    }
    parts
}

#[cfg(test)]
mod bars_test;
