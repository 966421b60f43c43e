//! Files that assigned devices need, and the limits on memory that is locked and on files that are
//! opened for them.

#![allow(unsafe_code)] // A descriptor that is known by its number only has no safe interface.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;

use intel_vtd_host::iommufd::Iommufd;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

use super::AssignError;
use crate::config::{FileSource, IommufdConfig};

/// Opens an iommufd.
pub(super) fn iommufd(config: &IommufdConfig) -> Result<Iommufd, AssignError> {
    match &config.source {
        FileSource::Path(path) => Iommufd::open(path).map_err(|cause| AssignError::Iommufd {
            id: config.id.clone(),
            path: path.clone(),
            cause,
        }),
        FileSource::Descriptor(fd) => {
            let iommufd = duplicate(*fd).and_then(Iommufd::from_file);
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

/// Bytes that this process may lock; `None` if there is no limit.
pub(super) fn lock_limit() -> Option<u64> {
    let (limit, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    (limit != RLIM_INFINITY).then_some(limit)
}

/// Lets this process have as many files open as the host allows it at all. Each interrupt vector
/// that a guest enables takes two, and a device can have 2048 of them; the usual limit of 1024 is
/// for programs that use select(2), which nido does not.
pub(super) fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        log::debug!("the limit on open files stays as it is: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_can_be_open_as_the_host_allows() {
        raise_file_limit();
        let (limit, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        assert_eq!(limit, most);
    }
}
