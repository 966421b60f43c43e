//! The file or host block device behind a disk, and how ranges of it are zeroed or given back.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;

use rustix::fs::{Advice, fadvise};
use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

/// Bytes per sector, whatever the block size (section 5.2.4).
pub(super) const SECTOR: u64 = 512;
/// Length of the identification string.
pub(super) const ID_LENGTH: usize = VIRTIO_BLK_ID_BYTES as usize;

/// What requests work on.
pub(super) struct Target {
    pub(super) file: File,
    pub(super) sectors: u64,
    pub(super) readonly: bool,
    pub(super) id: [u8; ID_LENGTH],
}

impl Target {
    /// Start and length in bytes of `count` sectors from `sector`, if the disk has them.
    pub(super) fn range(&self, sector: u64, count: u64) -> Option<(u64, u64)> {
        let end = sector.checked_add(count)?;
        (end <= self.sectors).then_some((sector * SECTOR, count * SECTOR))
    }

    /// Has the host fetch `offset..offset + length` from its storage, without waiting for it.
    pub(super) fn fetch(&self, offset: u64, length: u64) {
        // Where it cannot be done, the read that follows waits for longer.
        let _ = fadvise(
            &self.file,
            offset,
            NonZeroU64::new(length),
            Advice::WillNeed,
        );
    }

    /// Deallocates `offset..offset + length`, which reads as zeroes afterwards. The file keeps its
    /// size.
    pub(super) fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        self.allocate(|| FallocateMode::PunchHole, offset, length)
    }

    /// Zeroes `offset..offset + length` and keeps it allocated.
    pub(super) fn zero_range(&self, offset: u64, length: u64) -> io::Result<()> {
        self.allocate(|| FallocateMode::ZeroRange, offset, length)
    }

    fn allocate(
        &self,
        mode: impl Fn() -> FallocateMode,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        loop {
            match fallocate(&self.file, mode(), true, offset, length) {
                Err(error) if error.errno() == libc::EINTR => {}
                result => return Ok(result?),
            }
        }
    }
}

/// Whether the file behind the disk has no such operation.
pub(super) fn unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV)
    )
}
