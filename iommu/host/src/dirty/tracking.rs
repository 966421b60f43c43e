//! Dirty tracking in the host: which pages its page tables say that devices have written
//! (`IOMMU_HWPT_GET_DIRTY_BITMAP`).
//!
//! # What Linux 7.3 does
//! * One bit of a page table stands for all of a huge page. Asked for a part of one, the kernel clears
//!   the bit, and tells nothing, or writes beyond what it was given. So no huge page is asked for in parts.
//! * Where nothing is mapped it stops, without an error. So nothing is asked for but what one area maps.
//! * Of a page table that is not tracked it says that nothing was written, without an error, too. So what
//!   could not be switched on is remembered, and counts as written.
//! * It does not read the bits of what it unmaps, so they are read just before. A write in between, by a
//!   device that goes on with what the guest is about to take away, may be missed: there is no call that
//!   does both.

use std::iter;
use std::sync::Arc;

use thiserror::Error;

use super::{DirtyPages, runs};
use crate::host_iommu::{HwptId, Rights};
use crate::ioas::{Hwpt, Ioas};
use crate::ram::Ram;
use crate::resources::Resources;
use crate::run::{PAGE, Run};

/// Bytes that are asked for at a time, which begin at a multiple of it: the largest page of a host.
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
         PASID capability, or boot Linux 7.1 or later"
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

/// `area` of `ioas` is about to be unmapped: what was written through it would be forgotten.
pub(crate) fn collect_unmapped(ioas: &Ioas, area: &Run, resources: &mut Resources) {
    if let Some(dirty) = &mut resources.dirty {
        collect(ioas, area, dirty);
    }
}

/// Adds what devices wrote through `area` since it was asked for last. Where the host does not say,
/// all of it was written.
pub(crate) fn collect(ioas: &Ioas, area: &Run, dirty: &mut DirtyPages) {
    if !area.rights.write {
        return;
    }
    for hwpt in &ioas.hwpts {
        for piece in pieces(area) {
            if !hwpt.is_tracked.get() || query(ioas, hwpt.id, &piece, dirty).is_err() {
                dirty.mark(&(piece.output..piece.output + piece.length));
            }
        }
    }
}

/// Nobody knows whether devices have written to what `areas` map: all of it counts as written.
pub(crate) fn mark_all<'a>(areas: impl Iterator<Item = &'a Run>, resources: &mut Resources) {
    if let Some(dirty) = &mut resources.dirty {
        let writable = areas.filter(|area| area.rights.write);
        writable.for_each(|area| dirty.mark(&(area.output..area.output + area.length)));
    }
}

/// `area` in parts of which none has a part of a huge page.
fn pieces(area: &Run) -> impl Iterator<Item = Run> {
    let (area, mut start) = (*area, area.input);
    iter::from_fn(move || {
        let next = (start / PIECE).saturating_add(1).saturating_mul(PIECE);
        let end = area.end().min(next);
        let piece = (start < end).then(|| area.part(&(start..end)));
        start = end;
        piece
    })
}

fn query(ioas: &Ioas, table: HwptId, piece: &Run, dirty: &mut DirtyPages) -> std::io::Result<()> {
    let words = usize::try_from((piece.length / PAGE).div_ceil(64)).unwrap_or(0);
    let mut bitmap = vec![0; words];
    ioas.host
        .dirty_pages(table, piece.input, piece.length, PAGE, &mut bitmap)?;
    runs(&bitmap, |first, pages| {
        let start = piece.output + first * PAGE;
        dirty.mark(&(start..start + pages * PAGE));
    });
    Ok(())
}

/// As [`collect`], for a space that maps guest memory at its own addresses.
pub(crate) fn collect_guest_physical(ioas: &Ioas, ram: &Ram, dirty: &mut DirtyPages) {
    for range in ram.ranges() {
        let all = Run {
            input: range.start,
            output: range.start,
            length: range.end - range.start,
            rights: Rights::ALL,
        };
        collect(ioas, &all, dirty);
    }
}

/// Has all page tables of `ioas` tell what is written, beginning with nothing.
pub(crate) fn start(ioas: &Ioas) -> Result<(), DirtyTrackingError> {
    let mut hwpts = ioas.hwpts.iter();
    hwpts.try_for_each(|hwpt| start_hwpt(ioas, hwpt))
}

/// Has those of them tell nothing any more that do. Returns which of them go on.
pub(crate) fn stop(ioas: &Ioas) -> Vec<DirtyTrackingError> {
    let tracked = ioas.hwpts.iter().filter(|hwpt| hwpt.is_tracked.take());
    tracked
        .filter_map(|hwpt| set(ioas, hwpt, false).err())
        .collect()
}

/// As [`start`], for one of them.
pub(crate) fn start_hwpt(ioas: &Ioas, hwpt: &Hwpt) -> Result<(), DirtyTrackingError> {
    let device = || Arc::clone(&hwpt.made_for);
    if !hwpt.options.dirty_tracking && hwpt.options.pasid && hwpt.can_track {
        return Err(DirtyTrackingError::Pasids { device: device() });
    }
    if !hwpt.options.dirty_tracking {
        return Err(DirtyTrackingError::Unsupported { device: device() });
    }
    set(ioas, hwpt, true)?;
    hwpt.is_tracked.set(true);
    Ok(())
}

fn set(ioas: &Ioas, hwpt: &Hwpt, on: bool) -> Result<(), DirtyTrackingError> {
    let outcome = ioas.host.set_dirty_tracking(hwpt.id, on);
    outcome.map_err(|cause| DirtyTrackingError::Host {
        device: Arc::clone(&hwpt.made_for),
        cause,
    })
}

#[cfg(test)]
mod tracking_test;
