//! Dirty tracking in the host: which pages its page tables say that devices have written
//! (`IOMMU_HWPT_GET_DIRTY_BITMAP`).

use std::sync::Arc;

use thiserror::Error;

use super::{DirtyPages, runs};
use crate::host_iommu::{HwptId, Rights};
use crate::ioas::{Hwpt, Ioas};
use crate::ram::Ram;
use crate::resources::Resources;
use crate::run::{PAGE, Run};

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
        let mut start = area.input;
        while start < area.end() {
            let end = area.end().min(start + PIECE);
            let piece = area.part(&(start..end));
            if query(ioas, hwpt.id, &piece, dirty).is_err() {
                dirty.mark(&(piece.output..piece.output + piece.length));
            }
            start = end;
        }
    }
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

/// Has all page tables of `ioas` tell what is written, beginning with nothing, or stop to.
pub(crate) fn switch(ioas: &Ioas, on: bool) -> Result<(), DirtyTrackingError> {
    ioas.hwpts
        .iter()
        .try_for_each(|hwpt| switch_hwpt(ioas, hwpt, on))
}

/// As [`switch`], for one of them.
pub(crate) fn switch_hwpt(ioas: &Ioas, hwpt: &Hwpt, on: bool) -> Result<(), DirtyTrackingError> {
    let device = || Arc::clone(&hwpt.made_for);
    if !hwpt.options.dirty_tracking && hwpt.options.pasid && hwpt.can_track {
        return Err(DirtyTrackingError::Pasids { device: device() });
    }
    if !hwpt.options.dirty_tracking {
        return Err(DirtyTrackingError::Unsupported { device: device() });
    }
    let outcome = ioas.host.set_dirty_tracking(hwpt.id, on);
    outcome.map_err(|cause| DirtyTrackingError::Host {
        device: device(),
        cause,
    })
}
