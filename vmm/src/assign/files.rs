//! Files that assigned devices need: opened by name, or open already and known by number.

#![allow(unsafe_code)] // A descriptor that is known by its number only has no safe interface.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd};
use std::sync::Arc;

use devices::vfio::{VfioIommufd, share_iommufd};
use intel_vtd_host::Iommufd;

use super::error::AssignError;
use crate::config::{FileSource, IommufdConfig};

/// Opens an iommufd; the second value is what devices are bound to.
pub(super) fn iommufd(config: &IommufdConfig) -> Result<(Iommufd, Arc<VfioIommufd>), AssignError> {
    let shared = |iommufd: Iommufd| {
        let shared = share_iommufd(iommufd.as_fd())?;
        Ok((iommufd.with_huge_pages(config.huge_pages), shared))
    };
    match &config.source {
        FileSource::Path(path) => {
            let iommufd = Iommufd::open(path).and_then(shared);
            iommufd.map_err(|cause| AssignError::Iommufd {
                id: config.id.clone(),
                path: path.clone(),
                cause,
            })
        }
        FileSource::Descriptor(fd) => {
            let iommufd = duplicate(*fd).and_then(Iommufd::from_file).and_then(shared);
            iommufd.map_err(|cause| AssignError::Descriptor {
                id: config.id.clone(),
                fd: *fd,
                cause,
            })
        }
    }
}

/// A descriptor of our own for what is open as number `fd`.
///
/// # Errors
/// `EBADF` if nothing is.
pub(super) fn duplicate(fd: i32) -> io::Result<File> {
    // SAFETY: the command takes a number and no pointer, and changes no descriptor that exists.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just created and nothing else owns it.
    Ok(unsafe { File::from_raw_fd(copy) })
}

/// Closes what is open as number `fd`, a VFIO device of which [`duplicate`] has made a descriptor
/// that was bound: else the device would stay in use after its removal.
pub(super) fn close(fd: i32) {
    // The descriptor is the user's, who gave it to this process for this device, and no object here
    // owns it: what is open here for VFIO was bound before, and the kernel binds no file twice, so
    // that a number of one of those would have been refused when its duplicate was bound.
    let _ = nix::unistd::close(fd);
}
