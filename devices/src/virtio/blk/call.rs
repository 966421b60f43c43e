//! What a request has the host do: one system call at a time, which blocks or is handed to io_uring.

use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::FallocateFlags;

use super::pages::Pages;
use super::target::Target;

/// What is written where the file cannot be zeroed otherwise, a piece at a time.
pub(super) static ZEROES: [u8; 256 << 10] = [0; 256 << 10];

/// A system call on the disk's file. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// Fill the request's pages from `offset` on.
    Read { offset: u64 },
    /// Write the request's pages to `offset`.
    Write { offset: u64 },
    /// Write `length` bytes of [`ZEROES`], which has as many, to `offset`.
    WriteZeroes { offset: u64, length: usize },
    /// Make stable what was written.
    Sync,
    /// Zero a range without writing it.
    Allocate(Allocate),
}

/// A change of what is allocated, after which `offset..offset + length` reads as zeroes. The file
/// keeps its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allocate {
    pub(super) offset: u64,
    pub(super) length: u64,
    /// Whether nothing is allocated there afterwards, instead of everything.
    pub(super) is_hole: bool,
}

impl Allocate {
    /// As fallocate(2) takes it.
    pub(super) fn flags(&self) -> FallocateFlags {
        let mode = if self.is_hole {
            FallocateFlags::PUNCH_HOLE
        } else {
            FallocateFlags::ZERO_RANGE
        };
        mode | FallocateFlags::KEEP_SIZE
    }
}

impl Call {
    /// Makes the call, which may block. The result is as io_uring has it: how many bytes were moved,
    /// or 0.
    pub(super) fn make(&self, target: &Target, pages: &Pages) -> io::Result<usize> {
        match *self {
            Self::Read { offset } => pages.read(&target.file, offset, 0),
            Self::Write { offset } => pages.write(&target.file, offset),
            Self::WriteZeroes { offset, length } => {
                let zeroes = ZEROES.get(..length).unwrap_or(&ZEROES);
                target.file.write_at(zeroes, offset)
            }
            Self::Sync => target.file.sync_data().map(|()| 0),
            Self::Allocate(allocate) => target.allocate(&allocate).map(|()| 0),
        }
    }
}
