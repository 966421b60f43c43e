//! Attaching the requests of a device to HWPTs, and detaching them, so that the host and iommufd
//! agree about where they are.

use std::io;

use crate::host_iommu::{Attachment, HwptId};
use intel_vtd::Pasid;

/// `EINVAL`: what a page table answers that is not for this device.
pub(crate) const EINVAL: i32 = 22;
/// `EADDRINUSE`: what the kernel answers where an address space maps what the device has reserved.
pub(crate) const EADDRINUSE: i32 = 98;
/// `EBUSY`: what the kernel answers while it resets the device.
pub(crate) const EBUSY: i32 = 16;

/// Why a device is not behind a page table.
#[derive(Debug)]
pub(crate) enum AttachError {
    /// The page table is not for this device. It is blocked.
    Incompatible,
    /// Anything else. It is blocked.
    Failed(io::Error),
    /// The device could not even be blocked.
    Stuck(io::Error),
}

/// A device is behind a page table; after this error, if the host only did so from a clean state.
pub(crate) type Attached = Option<io::Error>;

/// Puts requests of a device behind the first of `hwpts` that takes them. After an error they are
/// blocked, or stuck.
pub(crate) fn attach(
    attachment: &dyn Attachment,
    pasid: Option<Pasid>,
    hwpts: &[HwptId],
) -> Result<Attached, AttachError> {
    let mut outcome = Err(AttachError::Incompatible);
    for hwpt in hwpts {
        outcome = attach_to(attachment, pasid, *hwpt);
        if !matches!(outcome, Err(AttachError::Incompatible)) {
            break;
        }
    }
    outcome
}

/// Puts requests of a device behind `hwpt`.
///
/// A replacement that fails leaves them blocked by the hardware, while iommufd takes them to be
/// where they were, so that attaching them there does nothing. Detaching makes both agree.
fn attach_to(
    attachment: &dyn Attachment,
    pasid: Option<Pasid>,
    hwpt: HwptId,
) -> Result<Attached, AttachError> {
    let Err(error) = attachment.attach(pasid, hwpt) else {
        return Ok(None);
    };
    detach(attachment, pasid).map_err(AttachError::Stuck)?;
    if error.raw_os_error() == Some(EINVAL) {
        return Err(AttachError::Incompatible);
    }
    match attachment.attach(pasid, hwpt) {
        Ok(()) => Ok(Some(error)),
        Err(error) => {
            detach(attachment, pasid).map_err(AttachError::Stuck)?;
            Err(AttachError::Failed(error))
        }
    }
}

/// Blocks requests of a device. It waits for nothing: what holds up the guest's invalidations calls
/// this.
pub(crate) fn detach(attachment: &dyn Attachment, pasid: Option<Pasid>) -> io::Result<()> {
    const ATTEMPTS: u32 = 20;
    let mut outcome = attachment.detach(pasid);
    for _ in 1..ATTEMPTS {
        if outcome.is_ok() {
            break;
        }
        outcome = attachment.detach(pasid);
    }
    outcome
}
