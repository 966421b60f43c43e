//! Pages of guest memory that a request has pinned, as system calls take them: preadv2(2),
//! pwritev(2), and what io_uring makes of these.
#![allow(unsafe_code)] // Both take pointers. Wrappers of them take slices, and guest memory is none.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use intel_vtd::{DmaPin, Pinned};
use libc::{c_int, iovec, off_t};

use crate::Memory;
use crate::virtio::error::QueueError;

/// What one request has pinned for a call. To be used again and again.
#[derive(Default)]
pub(super) struct Pages {
    pin: DmaPin<Memory>,
    /// Where the pages are in this process, as long as they are pinned.
    vectors: Vec<iovec>,
}

// SAFETY: the pointers are into guest memory, which is mapped for all threads, and which no thread
// accesses other than through pointers.
unsafe impl Send for Pages {}

impl Pages {
    /// Pins what `pin` does and keeps it, until it is released. Returns how many bytes that
    /// are.
    pub(super) fn hold(
        &mut self,
        pin: impl for<'p> FnOnce(&'p mut DmaPin<Memory>) -> Result<Pinned<'p, Memory>, QueueError>,
    ) -> Result<u64, QueueError> {
        self.release();
        let pinned = pin(&mut self.pin)?;
        for slice in pinned.slices() {
            let guard = slice?.ptr_guard_mut();
            self.vectors.push(iovec {
                iov_base: guard.as_ptr().cast(),
                iov_len: guard.len(),
            });
        }
        Ok(pinned.keep() as u64)
    }

    /// Gives back what is pinned.
    pub(super) fn release(&mut self) {
        self.vectors.clear();
        self.pin.release();
    }

    /// Bytes that are pinned.
    pub(super) fn length(&self) -> u64 {
        self.vectors
            .iter()
            .map(|vector| vector.iov_len as u64)
            .sum()
    }

    /// Where the pages are. They are pinned until this is changed or dropped.
    pub(super) fn vectors(&self) -> &[iovec] {
        &self.vectors
    }

    /// Fills the pages from the file's `offset` on, with `flags` of preadv2(2). Returns how many
    /// bytes are filled, which may be less.
    pub(super) fn read(&self, file: &File, offset: u64, flags: c_int) -> io::Result<usize> {
        let (vectors, count, offset) = self.arguments(offset)?;
        // SAFETY: the vectors, as many as `count` says, are of guest memory that the pin keeps mapped
        // and pinned. It is accessed through pointers only, here and elsewhere, so that others may
        // write to it at the same time.
        let moved = unsafe { libc::preadv2(file.as_raw_fd(), vectors, count, offset, flags) };
        usize::try_from(moved).map_err(|_| io::Error::last_os_error())
    }

    /// Writes the pages to the file's `offset`. Returns how many bytes are written, which may be
    /// less.
    pub(super) fn write(&self, file: &File, offset: u64) -> io::Result<usize> {
        let (vectors, count, offset) = self.arguments(offset)?;
        // SAFETY: as in `read`; this only reads from them.
        let moved = unsafe { libc::pwritev(file.as_raw_fd(), vectors, count, offset) };
        usize::try_from(moved).map_err(|_| io::Error::last_os_error())
    }

    fn arguments(&self, offset: u64) -> io::Result<(*const iovec, c_int, off_t)> {
        let left = self.vectors();
        // `DmaPin::MOST_PIECES` is below IOV_MAX.
        let count = c_int::try_from(left.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let offset = off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok((left.as_ptr(), count, offset))
    }
}
