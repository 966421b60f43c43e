//! Pages of guest memory in a file that have no memory of the host: a look at one by its mapping would
//! have the host give it some.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion as _};

/// Bytes of a page of the host.
const PAGE: u64 = 4096;

/// Whether the page at guest-physical `address` is known to have none: it holds zeros.
pub(crate) fn is_hole<M: GuestMemoryBackend>(memory: &M, address: u64) -> bool {
    let Some((file, place)) = place(memory, address) else {
        return false;
    };
    seek(file, place, Whence::SeekData)
        .is_ok_and(|data| data.is_none_or(|data| data >= place + PAGE))
}

/// Has these bytes of a file have none.
pub(super) fn punch_range(file: &File, place: u64, length: u64) -> io::Result<()> {
    let signed = |number| libc::off_t::try_from(number).map_err(io::Error::other);
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(
        file.as_fd(),
        hole,
        signed(place)?,
        signed(length)?,
    )?)
}

/// Where the next data of `file` are, or the next hole, from `place` on; `None` if nothing follows.
pub(super) fn seek(file: &File, place: u64, whence: Whence) -> io::Result<Option<u64>> {
    let from = i64::try_from(place).map_err(io::Error::other)?;
    match lseek(file, from, whence) {
        Ok(found) => Ok(u64::try_from(found).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The file of a page, and where it is there. Huge pages that are reserved are left alone: one that is given
/// back could not be had again.
fn place<M: GuestMemoryBackend>(memory: &M, address: u64) -> Option<(&File, u64)> {
    let (region, offset) = memory.to_region_addr(GuestAddress(address))?;
    let file = region.file_offset()?;
    let is_huge = region.is_hugetlbfs() == Some(true);
    (!is_huge).then(|| (file.file(), file.start() + offset.0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use vm_memory::Bytes as _;

    use super::*;
    use crate::config::MemoryConfig;
    use crate::memory::{Backing, allocate};

    #[test]
    fn a_page_of_a_file_that_was_never_touched_is_a_hole_and_stays_one() {
        let config = MemoryConfig::plain(8 << 20);
        let memory = allocate(&config, 0, Backing::File, None).expect("memory");
        let region = memory.iter().next().expect("a region");
        let file = region.file_offset().expect("a file").file();
        let blocks = || file.metadata().expect("metadata").blocks();
        for page in [1, 3, 2047] {
            let address = GuestAddress(page * PAGE);
            memory.write_obj(7_u8, address).expect("memory");
        }
        let before = blocks();
        let holes = (0..2048).filter(|page| is_hole(&*memory, page * PAGE));
        assert_eq!(holes.count(), 2045);
        assert!(!is_hole(&*memory, 3 * PAGE));
        assert!(!is_hole(&*memory, 8 << 20), "no memory at all");
        assert_eq!(blocks(), before);
        punch_range(file, 3 * PAGE, PAGE).expect("a file of memory");
        assert!(is_hole(&*memory, 3 * PAGE));
        assert_eq!(blocks(), before - 8);
    }

    #[test]
    fn memory_of_this_process_has_no_holes() {
        let config = MemoryConfig::plain(8 << 20);
        let memory = allocate(&config, 0, Backing::Anonymous, None).expect("memory");
        assert!(!is_hole(&*memory, 0));
    }
}
