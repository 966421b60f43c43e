//! Giving pages of guest memory back to the host. What was given back reads as zeros, whatever memory is
//! made of:
//!
//! * memory of this process is forgotten (`MADV_DONTNEED`);
//! * a file of its own gets a hole, for all who map it;
//! * memory that came from a snapshot's file is forgotten where the file has a hole. Elsewhere what the
//!   file has would come back, so that the page gets memory of this process in the file's place, as often
//!   as the host has room for such pieces. Beyond that it is left as it is.
//!
//! Whoever had the page pinned, or is about to read or write it, has the old page or the new one: both are
//! the guest's own.

#![allow(unsafe_code)] // madvise and mmap, which no library can know to be harmless.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use devices::marks::Marks;
use devices::virtio::balloon::Reclaim;
use nix::unistd::Whence;
use parking_lot::Mutex;
use vm_memory::bitmap::Bitmap as _;
use vm_memory::{
    Address as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _, GuestRegionMmap,
    MmapRegion,
};

use super::{Memory, holes};

/// Bytes of a page of the host.
const PAGE: u64 = 4096;
/// Most pieces of memory that take the place of a file's: a process has 65530 mappings unless its host
/// says otherwise (`vm.max_map_count`), and a piece in the middle of another makes two more.
const MOST_PIECES: usize = 16 << 10;

/// Guest memory that can be given back.
pub(crate) struct Reclaimer {
    memory: Memory,
    /// The file that it was mapped from privately, and what no longer is, if that is so.
    origin: Option<Origin>,
}

struct Origin {
    file: Arc<File>,
    replaced: Mutex<Replaced>,
}

/// Pages of memory that have nothing to do with the file any more.
#[derive(Default)]
struct Replaced {
    /// A bit for each, in the order of the file, as far as one is set.
    pages: Vec<u64>,
    pieces: usize,
    told: bool,
}

impl Replaced {
    fn has(&self, page: u64) -> bool {
        let word = usize::try_from(page / 64).ok();
        let word = word.and_then(|word| self.pages.get(word));
        word.is_some_and(|word| word & 1 << (page % 64) != 0)
    }

    /// Whether one more piece can be; says it once if not.
    fn has_room(&mut self, pages: Range<u64>) -> bool {
        if self.is_alone(&pages) && self.pieces >= MOST_PIECES {
            if !std::mem::replace(&mut self.told, true) {
                log::warn!(
                    "memory that came from a snapshot is in {MOST_PIECES} pieces, and what else the snapshot has of it is not given back to the host; take a new snapshot, and restore that"
                );
            }
            return false;
        }
        true
    }

    /// Whether there is no piece beside it that it becomes a part of.
    fn is_alone(&self, pages: &Range<u64>) -> bool {
        let before = pages.start.checked_sub(1);
        !before.is_some_and(|page| self.has(page)) && !self.has(pages.end)
    }

    fn add(&mut self, pages: Range<u64>) {
        if self.is_alone(&pages) {
            self.pieces += 1;
        }
        for page in pages {
            let Ok(word) = usize::try_from(page / 64) else {
                return;
            };
            if self.pages.len() <= word {
                self.pages.resize(word + 1, 0);
            }
            if let Some(word) = self.pages.get_mut(word) {
                *word |= 1 << (page % 64);
            }
        }
    }
}

impl Reclaimer {
    /// Of `memory`, which was mapped privately from `file` if there is one, and of which no page was given
    /// back yet. It has no huge pages that are reserved: they could not be had again.
    pub(crate) fn new(memory: &Memory, file: Option<&Arc<File>>) -> Self {
        let origin = |file: &Arc<File>| Origin {
            file: Arc::clone(file),
            replaced: Mutex::default(),
        };
        Self {
            memory: Arc::clone(memory),
            origin: file.map(origin),
        }
    }

    /// Gives back a part of one region, which is `place` bytes into all of memory.
    fn part(
        &self,
        region: &GuestRegionMmap<Marks>,
        offset: u64,
        length: u64,
        place: u64,
    ) -> io::Result<u64> {
        // What was given back has changed, even if the rest could not be. And after it has: a mark that was taken
        // before would stand for what was there until then.
        let outcome = match (region.file_offset(), &self.origin) {
            (Some(file), _) => {
                let place = file.start() + offset;
                holes::punch_range(file.file(), place, length).map(|()| length)
            }
            (None, None) => forget(region, offset, length).map(|()| length),
            (None, Some(origin)) => origin.forget(region, offset, length, place),
        };
        mark(region, offset, length);
        outcome
    }
}

/// What a page of memory that came from a file is when it is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    /// Zeros.
    Empty,
    /// What the file has.
    OfFile,
}

impl Origin {
    /// Forgets a part of a region, so that it holds zeros and not what the file has, as far as there is room.
    fn forget(
        &self,
        region: &GuestRegionMmap<Marks>,
        offset: u64,
        length: u64,
        place: u64,
    ) -> io::Result<u64> {
        let mut replaced = self.replaced.lock();
        let mut given = 0;
        let mut done = 0;
        while done < length {
            let (kind, run) = self.run(&replaced, place + done, length - done)?;
            let (at, first) = (offset + done, (place + done) / PAGE);
            done += run;
            match kind {
                Page::Empty => forget(region, at, run)?,
                Page::OfFile if replaced.has_room(first..first + run / PAGE) => {
                    replace(region, at, run)?;
                    replaced.add(first..first + run / PAGE);
                }
                Page::OfFile => continue,
            }
            given += run;
        }
        Ok(given)
    }

    /// What the page at `place` is, and for how many bytes that goes on, of `most`, which are whole pages.
    fn run(&self, replaced: &Replaced, place: u64, most: u64) -> io::Result<(Page, u64)> {
        let first = place / PAGE;
        let same = |most: u64, is_replaced: bool| {
            let pages = first..first + most / PAGE;
            let same = pages.take_while(|page| replaced.has(*page) == is_replaced);
            same.count() as u64 * PAGE
        };
        if replaced.has(first) {
            return Ok((Page::Empty, same(most, true)));
        }
        let data = holes::seek(&self.file, place, Whence::SeekData)?;
        let data = data.unwrap_or(u64::MAX) / PAGE * PAGE;
        if data > place {
            return Ok((Page::Empty, same(most.min(data - place), false)));
        }
        let hole = holes::seek(&self.file, place, Whence::SeekHole)?.unwrap_or(u64::MAX);
        let hole = hole.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
        let most = most.min(hole.saturating_sub(place)).max(PAGE);
        Ok((Page::OfFile, same(most, false)))
    }
}

impl Reclaim for Reclaimer {
    fn reclaim(&self, start: GuestAddress, length: u64) -> io::Result<u64> {
        let end = start.0.saturating_add(length) / PAGE * PAGE;
        let start = start.0.checked_next_multiple_of(PAGE).unwrap_or(end);
        let mut given = 0;
        let mut place = 0;
        for region in self.memory.iter() {
            let base = region.start_addr().raw_value();
            let (from, to) = (start.max(base), end.min(base + region.len()));
            if from < to {
                let offset = from - base;
                given += self.part(region, offset, to - from, place + offset)?;
            }
            place += region.len();
        }
        Ok(given)
    }

    fn is_followed(&self) -> bool {
        let mut regions = self.memory.iter();
        regions.any(|region| MmapRegion::bitmap(region).is_on())
    }
}

/// Marks a part of a region as written to.
fn mark(region: &GuestRegionMmap<Marks>, offset: u64, length: u64) {
    if let (Ok(offset), Ok(length)) = (usize::try_from(offset), usize::try_from(length)) {
        region.bitmap().mark_dirty(offset, length);
    }
}

/// Where a part of a region is mapped, and its bytes.
fn mapped(
    region: &GuestRegionMmap<Marks>,
    offset: u64,
    length: u64,
) -> io::Result<(*mut u8, usize)> {
    let outside = || io::Error::from(io::ErrorKind::InvalidInput);
    let end = offset.checked_add(length).ok_or_else(outside)?;
    if end > region.len() || !offset.is_multiple_of(PAGE) || !length.is_multiple_of(PAGE) {
        return Err(outside());
    }
    let offset = usize::try_from(offset).map_err(io::Error::other)?;
    let length = usize::try_from(length).map_err(io::Error::other)?;
    Ok((region.as_ptr().wrapping_add(offset), length))
}

/// Forgets what a part of a private mapping holds.
fn forget(region: &GuestRegionMmap<Marks>, offset: u64, length: u64) -> io::Result<()> {
    let (at, length) = mapped(region, offset, length)?;
    // SAFETY: the range is whole pages of a live mapping of ours, as was checked. It is guest memory, which
    // everybody reaches by volatile accesses and may change at any time, to zeros as well.
    match unsafe { libc::madvise(at.cast(), length, libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has a part of a private mapping of a file be memory of this process, which holds zeros.
fn replace(region: &GuestRegionMmap<Marks>, offset: u64, length: u64) -> io::Result<()> {
    let (at, length) = mapped(region, offset, length)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: as above; the range is mapped with the same access before and after. KVM and others who know it by
    // its address see the new memory.
    let mapped = || unsafe { libc::mmap(at.cast(), length, access, flags, -1, 0) };
    // A host that was out of memory may have taken what was there away before it gave up: guest memory has no
    // holes, so it is asked once more.
    match mapped() != libc::MAP_FAILED || mapped() != libc::MAP_FAILED {
        true => Ok(()),
        false => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod reclaim_test;
