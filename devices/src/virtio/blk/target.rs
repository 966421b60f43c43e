//! The file or host block device behind a disk, and how ranges of it are zeroed or given back.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::path::PathBuf;

use rustix::fs::{Advice, fadvise, fallocate, fstatfs};
use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;

use super::call::Allocate;

/// Bytes per sector, whatever the block size (section 5.2.4).
pub(super) const SECTOR: u64 = 512;
/// Length of the identification string.
pub(super) const ID_LENGTH: usize = VIRTIO_BLK_ID_BYTES as usize;

/// statfs(2)'s name of ramfs.
const RAMFS_MAGIC: libc::c_long = 0x8584_58F6;

/// What requests work on.
pub(super) struct Target {
    pub(super) file: File,
    /// By which it was opened.
    pub(super) path: PathBuf,
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

    /// Zeroes a range.
    pub(super) fn allocate(&self, range: &Allocate) -> io::Result<()> {
        Ok(fallocate(
            &self.file,
            range.flags(),
            range.offset,
            range.length,
        )?)
    }

    /// Whether the file is in the host's memory: nothing there waits for storage.
    pub(super) fn is_in_memory(&self) -> bool {
        // The file system of a device's node says nothing of the device.
        let is_file = self.file.metadata().is_ok_and(|data| data.is_file());
        is_file
            && fstatfs(&self.file)
                .is_ok_and(|system| matches!(system.f_type, libc::TMPFS_MAGIC | RAMFS_MAGIC))
    }
}

/// Whether the file behind the disk has no such operation.
pub(super) fn unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_of_a_device_is_not_in_memory_though_its_file_system_is() {
        let target = |path: &str| Target {
            file: File::open(path).unwrap(),
            path: path.into(),
            sectors: 1,
            readonly: true,
            id: [0; ID_LENGTH],
        };
        // devtmpfs calls itself tmpfs.
        let node = target("/dev/null");
        assert_eq!(fstatfs(&node.file).unwrap().f_type, libc::TMPFS_MAGIC);
        assert!(!node.is_in_memory());
        assert!(!target("/proc/self/status").is_in_memory());
    }
}
