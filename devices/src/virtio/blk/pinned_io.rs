//! Reads and writes of a file straight into and out of pinned guest memory: preadv2(2), pwritev(2).
#![allow(unsafe_code)] // Both take pointers. Wrappers of them take slices, and guest memory is none.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use intel_vtd::Pinned;
use libc::{c_int, iovec, off_t};

use crate::Memory;

/// I/O of all that is pinned, at an offset of a file.
pub(super) trait PinnedIo {
    /// Fills `memory` from the file's `offset` on.
    ///
    /// # Errors
    /// The system's, or that the file ends before: a part may be filled.
    fn read_pinned(&self, memory: &Pinned<'_, Memory>, offset: u64) -> io::Result<()>;

    /// Fills `memory` from the file's `offset` on, if that takes no waiting for storage; otherwise a
    /// part may be filled. Tells whether all is.
    ///
    /// # Errors
    /// The system's: of some file systems, that they do not know (EOPNOTSUPP).
    fn read_pinned_at_once(&self, memory: &Pinned<'_, Memory>, offset: u64) -> io::Result<bool>;

    /// Writes `memory` to the file's `offset`.
    ///
    /// # Errors
    /// The system's: a part may be written.
    fn write_pinned(&self, memory: &Pinned<'_, Memory>, offset: u64) -> io::Result<()>;
}

impl PinnedIo for File {
    fn read_pinned(&self, memory: &Pinned<'_, Memory>, offset: u64) -> io::Result<()> {
        fill(self, memory, offset, 0)
    }

    fn read_pinned_at_once(&self, memory: &Pinned<'_, Memory>, offset: u64) -> io::Result<bool> {
        match fill(self, memory, offset, libc::RWF_NOWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            outcome => outcome.map(|()| true),
        }
    }

    fn write_pinned(&self, memory: &Pinned<'_, Memory>, offset: u64) -> io::Result<()> {
        let slices: Vec<_> = memory
            .slices()
            .collect::<Result<_, _>>()
            .map_err(io::Error::other)?;
        let guards: Vec<_> = slices.iter().map(|slice| slice.ptr_guard()).collect();
        let vectors = guards.iter().map(|guard| iovec {
            iov_base: guard.as_ptr().cast_mut().cast(),
            iov_len: guard.len(),
        });
        let full = io::ErrorKind::WriteZero;
        transfer(
            vectors.collect(),
            offset,
            full,
            |(vectors, count), offset| {
                // SAFETY: as in `fill`; this only reads from them.
                unsafe { libc::pwritev(self.as_raw_fd(), vectors, count, offset) }
            },
        )
    }
}

/// Reads with `flags` of preadv2(2).
fn fill(file: &File, memory: &Pinned<'_, Memory>, offset: u64, flags: c_int) -> io::Result<()> {
    let slices: Vec<_> = memory
        .slices()
        .collect::<Result<_, _>>()
        .map_err(io::Error::other)?;
    let guards: Vec<_> = slices.iter().map(|slice| slice.ptr_guard_mut()).collect();
    let vectors = guards.iter().map(|guard| iovec {
        iov_base: guard.as_ptr().cast(),
        iov_len: guard.len(),
    });
    let ended = io::ErrorKind::UnexpectedEof;
    transfer(
        vectors.collect(),
        offset,
        ended,
        |(vectors, count), offset| {
            // SAFETY: the vectors, as many as `count` says, are of guest memory that the guards keep
            // mapped, and `memory` keeps it pinned. It is accessed through pointers only, here and
            // elsewhere, so that others may write to it at the same time.
            unsafe { libc::preadv2(file.as_raw_fd(), vectors, count, offset, flags) }
        },
    )
}

/// Makes `call` until all of `vectors` are moved. A call that moves nothing is the error `stuck`.
fn transfer(
    mut vectors: Vec<iovec>,
    mut offset: u64,
    stuck: io::ErrorKind,
    call: impl Fn((*const iovec, c_int), off_t) -> isize,
) -> io::Result<()> {
    // How many are done with.
    let mut first = 0;
    while let Some(left @ [_, ..]) = vectors.get(first..) {
        // `DmaPin::MOST_PIECES` is below IOV_MAX.
        let count = c_int::try_from(left.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let at = off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let Ok(mut moved) = usize::try_from(call((left.as_ptr(), count), at)) else {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        };
        if moved == 0 {
            return Err(stuck.into());
        }
        offset += moved as u64;
        for vector in vectors.iter_mut().skip(first) {
            if moved < vector.iov_len {
                vector.iov_base = vector.iov_base.wrapping_byte_add(moved);
                vector.iov_len -= moved;
                break;
            }
            moved -= vector.iov_len;
            first += 1;
        }
    }
    Ok(())
}
