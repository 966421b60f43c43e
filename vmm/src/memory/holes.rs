//! Pages of guest memory in a file that have no memory of the host: a look at one by its mapping would
//! have the host give it some.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd as _;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion as _};

/// Bytes of a page of the host.
const PAGE: u64 = 4096;

/// Whether pages are holes, for who looks at one after the other: the host is asked once for a stretch of pages that
/// are, or are not. What it has said is not asked for again.
#[derive(Debug, Default)]
pub(crate) struct Holes {
    /// Guest-physical addresses of the stretch that was asked for last.
    stretch: Range<u64>,
    are_holes: bool,
}

impl Holes {
    /// Whether the page at guest-physical `address` is known to have no memory: it holds zeros.
    pub(crate) fn has<M: GuestMemoryBackend>(&mut self, memory: &M, address: u64) -> bool {
        if !self.stretch.contains(&address) {
            let (are_holes, length) = stretch(memory, address).unwrap_or((false, PAGE));
            self.stretch = address..address.saturating_add(length);
            self.are_holes = are_holes;
        }
        self.are_holes
    }
}

/// Whether the page at guest-physical `address` is a hole, and for how many bytes that goes on, as far as it is known.
fn stretch<M: GuestMemoryBackend>(memory: &M, address: u64) -> Option<(bool, u64)> {
    let (region, offset) = memory.to_region_addr(GuestAddress(address))?;
    let left = region.len() - offset.0;
    let file = region.file_offset();
    // Reserved huge pages are memory, whether or not anybody has written to them.
    let Some(file) = file.filter(|_| region.is_hugetlbfs() != Some(true)) else {
        return Some((false, left));
    };
    let place = file.start() + offset.0;
    let data = seek(file.file(), place, Whence::SeekData).ok()?;
    let until_data = data.map_or(left, |data| left.min((data - place) / PAGE * PAGE));
    if until_data != 0 {
        return Some((true, until_data));
    }
    let hole = seek(file.file(), place, Whence::SeekHole).ok()?;
    let until_hole = hole.map_or(left, |hole| {
        (hole - place)
            .checked_next_multiple_of(PAGE)
            .unwrap_or(left)
    });
    Some((false, until_hole.clamp(PAGE, left.max(PAGE))))
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use vm_memory::Bytes as _;

    use super::*;
    use crate::config::MemoryConfig;
    use crate::memory::{Backing, allocate};

    fn is_hole<M: GuestMemoryBackend>(memory: &M, address: u64) -> bool {
        Holes::default().has(memory, address)
    }

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
        // The same for who looks at one after the other, or back.
        let mut holes = Holes::default();
        let mut count = 0;
        for page in (0..2048).chain((0..2048).rev()) {
            let is_one = holes.has(&*memory, page * PAGE);
            assert_eq!(is_one, ![1, 3, 2047].contains(&page), "{page}");
            count += usize::from(is_one);
        }
        assert_eq!(count, 2 * 2045);
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
