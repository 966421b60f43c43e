//! Which pages of guest memory assigned devices have written.

use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;

use crate::ioas::{PAGE, PageTable, Space};
use crate::ram::Ram;
use crate::run::Run;
use crate::{ObjectId, Rights};

/// Bytes that are asked for at a time.
const PIECE: u64 = 1 << 30;

/// Why it is not known which pages were written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DirtyTrackingError {
    /// The host's IOMMU cannot tell.
    #[error(
        "the host's IOMMU cannot tell which pages {device} writes (no IOMMU_HW_CAP_DIRTY_TRACKING): remove the device"
    )]
    Unsupported {
        /// Name of the device.
        device: Arc<str>,
    },
    /// The kernel cannot tell what a device writes by requests with PASIDs.
    #[error(
        "the host's kernel cannot tell which pages {device} writes by requests with PASIDs, which the guest has it make: hide its \
         PASID capability"
    )]
    Pasids {
        /// Name of the device.
        device: Arc<str>,
    },
    /// It was not asked to.
    #[error("dirty pages are not tracked: start tracking first")]
    Off,
    /// The host failed.
    #[error("the host does not track which pages {device} writes: {cause}")]
    Host {
        /// Name of the device.
        device: Arc<str>,
        /// What the kernel said.
        cause: std::io::Error,
    },
}

/// A bit for each page of guest memory.
#[derive(Debug)]
pub(crate) struct DirtyPages {
    parts: Vec<(Range<u64>, Vec<u64>)>,
}

impl DirtyPages {
    /// None is dirty.
    pub(crate) fn new(ram: &Ram) -> Self {
        let parts = ram.ranges().map(|range| {
            let pages = (range.end - range.start).div_ceil(PAGE);
            let words = usize::try_from(pages.div_ceil(64)).unwrap_or(0);
            (range.clone(), vec![0; words])
        });
        Self {
            parts: parts.collect(),
        }
    }

    /// Notes that the pages in `range` were written.
    pub(crate) fn mark(&mut self, range: &Range<u64>) {
        for (part, words) in &mut self.parts {
            let start = range.start.max(part.start);
            let end = range.end.min(part.end);
            for address in (start..end).step_by(4096) {
                let page = (address - part.start) / PAGE;
                if let Some(word) = usize::try_from(page / 64)
                    .ok()
                    .and_then(|word| words.get_mut(word))
                {
                    *word |= 1 << (page % 64);
                }
            }
        }
    }

    /// Calls `found` for runs of pages that were written, in ascending order, and forgets them.
    pub(crate) fn take(&mut self, found: &mut dyn FnMut(u64, u64)) {
        for (part, words) in &mut self.parts {
            runs(words, |first, pages| {
                found(part.start + first * PAGE, pages)
            });
            words.fill(0);
        }
    }
}

/// Calls `found` for runs of set bits: the first, and how many.
fn runs(words: &[u64], mut found: impl FnMut(u64, u64)) {
    let mut run: Option<(u64, u64)> = None;
    for (word, base) in words.iter().zip((0..).step_by(64)) {
        let mut word = *word;
        while word != 0 {
            let skipped = word.trailing_zeros();
            let length = (word >> skipped).trailing_ones();
            let first = base + u64::from(skipped);
            match &mut run {
                Some((start, pages)) if *start + *pages == first => *pages += u64::from(length),
                _ => {
                    if let Some((start, pages)) = run.replace((first, u64::from(length))) {
                        found(start, pages);
                    }
                }
            }
            let done = skipped + length;
            word = if done == 64 { 0 } else { word >> done << done };
        }
    }
    if let Some((start, pages)) = run {
        found(start, pages);
    }
}

/// Adds what devices wrote through `area` since it was asked for last. Where the host does not say, all of it was written.
pub(crate) fn collect(space: &Space, area: &Run, dirty: &mut DirtyPages) {
    if !area.rights.write {
        return;
    }
    for table in &space.tables {
        let mut start = area.input;
        while start < area.end() {
            let end = area.end().min(start + PIECE);
            let piece = area.part(&(start..end));
            if query(space, table.id, &piece, dirty).is_err() {
                dirty.mark(&(piece.output..piece.output + piece.length));
            }
            start = end;
        }
    }
}

fn query(
    space: &Space,
    table: ObjectId,
    piece: &Run,
    dirty: &mut DirtyPages,
) -> std::io::Result<()> {
    let words = usize::try_from((piece.length / PAGE).div_ceil(64)).unwrap_or(0);
    let mut bitmap = vec![0; words];
    space
        .host
        .dirty_pages(table, piece.input, piece.length, PAGE, &mut bitmap)?;
    runs(&bitmap, |first, pages| {
        let start = piece.output + first * PAGE;
        dirty.mark(&(start..start + pages * PAGE));
    });
    Ok(())
}

/// As [`collect`], for a space that maps guest memory at its own addresses.
pub(crate) fn collect_guest_physical(space: &Space, ram: &Ram, dirty: &mut DirtyPages) {
    for range in ram.ranges() {
        let all = Run {
            input: range.start,
            output: range.start,
            length: range.end - range.start,
            rights: Rights::ALL,
        };
        collect(space, &all, dirty);
    }
}

/// Has all page tables of `space` tell what is written, beginning with nothing, or stop to.
pub(crate) fn switch(space: &Space, on: bool) -> Result<(), DirtyTrackingError> {
    space
        .tables
        .iter()
        .try_for_each(|table| switch_table(space, table, on))
}

/// As [`switch`], for one of them.
pub(crate) fn switch_table(
    space: &Space,
    table: &PageTable,
    on: bool,
) -> Result<(), DirtyTrackingError> {
    let device = || Arc::clone(&table.made_for);
    if !table.options.dirty_tracking && table.options.pasid && table.can_track {
        return Err(DirtyTrackingError::Pasids { device: device() });
    }
    if !table.options.dirty_tracking {
        return Err(DirtyTrackingError::Unsupported { device: device() });
    }
    let outcome = space.host.set_dirty_tracking(table.id, on);
    outcome.map_err(|cause| DirtyTrackingError::Host {
        device: device(),
        cause,
    })
}

#[cfg(test)]
#[path = "dirty_test.rs"]
mod dirty_test;
