//! Guest memory in a file of a snapshot: as long as the memory, with holes where there are only zeros.
//!
//! What was never touched is not read: reading would have the host give pages to a memfd. Nothing here
//! allocates, so that it can be done by a child of this process, which has a copy of its memory.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::FileExt as _;

use devices::GuestRam;
use devices::marks::Marks;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    GuestMemoryBackend, GuestRegionMmap, ReadVolatile, VolatileMemory, VolatileSlice, WriteVolatile,
};

use super::holes;
use super::pages::Pages;

/// Bytes of a page of the host.
const PAGE: usize = 4096;
/// Pages that are looked at together.
const PIECE_PAGES: usize = 512;
const PIECE: usize = PIECE_PAGES * PAGE;
/// An entry of /proc/PID/pagemap: bits 63 and 62 say that the page is in memory, or in swap.
const ENTRY: usize = size_of::<u64>();
const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;

/// Guest memory, and what says which of its pages were ever touched.
pub(crate) struct Touched<'a> {
    memory: &'a GuestRam,
    /// Of this process. A host that does not show it has all of memory be read.
    pagemap: Option<File>,
    /// The file that memory was mapped from privately, if that is so: it has what was not touched.
    source: Option<&'a File>,
}

impl<'a> Touched<'a> {
    /// What is touched of `memory`, which is mapped privately from `source` if there is one.
    pub(crate) fn new(memory: &'a GuestRam, source: Option<&'a File>) -> Self {
        Self {
            memory,
            pagemap: File::open("/proc/self/pagemap").ok(),
            source,
        }
    }

    /// The descriptors that [`write`](Self::write) needs, besides that of the file it writes to.
    pub(crate) fn descriptors(&self) -> [Option<RawFd>; 2] {
        [self.pagemap.as_ref(), self.source].map(|file| file.map(File::as_raw_fd))
    }

    /// Writes all of the memory to `file`, which is empty, and says by `progress` how many bytes of it
    /// have been seen to. The memory does not change meanwhile.
    ///
    /// # Errors
    /// The file takes no more, or the host does not say what is touched.
    pub(crate) fn write(
        &self,
        file: &mut File,
        mut progress: impl FnMut(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut start = 0;
        for region in self.memory.iter() {
            for offset in (0..region.size()).step_by(PIECE) {
                let length = PIECE.min(region.size() - offset);
                let pages = self.touched(region, offset, start + offset as u64)?;
                let piece = region.get_slice(offset, length).map_err(outside)?;
                write_piece(file, start + offset as u64, piece, &pages)?;
                progress(start + (offset + length) as u64)?;
            }
            start += region.size() as u64;
        }
        file.set_len(start)
    }

    /// The pages that may hold anything but zeros: all that were ever touched. Those that are touched
    /// meanwhile may be missing.
    ///
    /// # Errors
    /// The host does not say what is touched.
    pub(crate) fn pages(&self) -> io::Result<Pages> {
        let mut pages = Pages::none(self.memory);
        let mut start = 0;
        for (number, region) in self.memory.iter().enumerate() {
            let mut words = Vec::new();
            for offset in (0..region.size()).step_by(PIECE) {
                let touched = self.touched(region, offset, start + offset as u64)?;
                let word = |bits: &[bool]| {
                    (0..)
                        .zip(bits)
                        .fold(0, |word, (at, bit)| word | u64::from(*bit) << at)
                };
                words.extend(touched.chunks(64).map(word));
            }
            pages.insert(number, &words);
            start += region.size() as u64;
        }
        Ok(pages)
    }

    /// Which pages of the piece at `offset` of `region` may hold anything but zeros. The piece is at
    /// `place` in the file that it comes from.
    fn touched(
        &self,
        region: &GuestRegionMmap<Marks>,
        offset: usize,
        place: u64,
    ) -> io::Result<[bool; PIECE_PAGES]> {
        if region.is_hugetlbfs() == Some(true) {
            return Ok([true; PIECE_PAGES]);
        }
        if let Some(file) = region.file_offset() {
            return data_pages(file.file(), file.start() + offset as u64);
        }
        if let Some(source) = self.source
            && has_data(source, place)?
        {
            return Ok([true; PIECE_PAGES]);
        }
        let Some(pagemap) = &self.pagemap else {
            return Ok([true; PIECE_PAGES]);
        };
        let mut entries = [0; PIECE_PAGES * ENTRY];
        let first = (region.as_ptr().addr() + offset) / PAGE;
        pagemap.read_exact_at(&mut entries, (first * ENTRY) as u64)?;
        let mut touched = [false; PIECE_PAGES];
        for (touched, entry) in touched.iter_mut().zip(entries.as_chunks().0) {
            *touched = u64::from_ne_bytes(*entry) & PRESENT_OR_SWAPPED != 0;
        }
        Ok(touched)
    }
}

/// Fills `memory`, which holds zeros, with what `file` has.
///
/// # Errors
/// The file cannot be read, or is shorter than the memory.
pub(super) fn fill(memory: &GuestRam, mut file: &File) -> io::Result<()> {
    let mut start = 0;
    for region in memory.iter() {
        for offset in (0..region.size()).step_by(PIECE) {
            let place = start + offset as u64;
            if !has_data(file, place)? {
                continue;
            }
            let length = PIECE.min(region.size() - offset);
            let mut piece = region.get_slice(offset, length).map_err(outside)?;
            file.seek(SeekFrom::Start(place))?;
            file.read_exact_volatile(&mut piece).map_err(io_error)?;
        }
        start += region.size() as u64;
    }
    Ok(())
}

/// Writes what `pages` has of `piece`, but for pages of zeros, to `place` of `file`.
fn write_piece(
    file: &mut File,
    place: u64,
    piece: VolatileSlice<'_, impl BitmapSlice>,
    pages: &[bool; PIECE_PAGES],
) -> io::Result<()> {
    let is_data = |page: usize| -> io::Result<bool> {
        let start = page * PAGE;
        if start >= piece.len() || !pages.get(page).is_some_and(|touched| *touched) {
            return Ok(false);
        }
        let length = PAGE.min(piece.len() - start);
        let mut bytes = [0; PAGE];
        piece
            .subslice(start, length)
            .map_err(outside)?
            .copy_to(&mut bytes);
        Ok(bytes != [0; PAGE])
    };
    let mut page = 0;
    while page < PIECE_PAGES {
        let begin = page;
        while page < PIECE_PAGES && is_data(page)? {
            page += 1;
        }
        if begin < page {
            let start = begin * PAGE;
            let length = (page * PAGE).min(piece.len()) - start;
            let data = piece.subslice(start, length).map_err(outside)?;
            file.seek(SeekFrom::Start(place + start as u64))?;
            file.write_all_volatile(&data).map_err(io_error)?;
        }
        page += 1;
    }
    Ok(())
}

/// Which pages of the piece at `place` of `file` are no holes.
fn data_pages(file: &File, place: u64) -> io::Result<[bool; PIECE_PAGES]> {
    let mut pages = [false; PIECE_PAGES];
    let page_of = |at: u64| usize::try_from((at - place) / PAGE as u64).unwrap_or(PIECE_PAGES);
    let end = place + PIECE as u64;
    let mut at = place;
    while at < end
        && let Some(data) = holes::seek(file, at, Whence::SeekData)?.filter(|data| *data < end)
    {
        let hole = holes::seek(file, data, Whence::SeekHole)?
            .unwrap_or(end)
            .min(end);
        let past = page_of(hole.saturating_sub(1).max(data)) + 1;
        if let Some(pages) = pages.get_mut(page_of(data)..past) {
            pages.fill(true);
        }
        at = hole.max(data + PAGE as u64);
    }
    Ok(pages)
}

/// Whether there is anything but a hole in the piece at `place` of `file`.
fn has_data(file: &File, place: u64) -> io::Result<bool> {
    let from = i64::try_from(place).map_err(|_| io::ErrorKind::InvalidInput)?;
    match lseek(file, from, Whence::SeekData) {
        Ok(data) => Ok(data.abs_diff(from) < PIECE as u64),
        // There is none behind it.
        Err(Errno::ENXIO) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Cannot happen: pieces are within their regions.
fn outside<E>(_: E) -> io::Error {
    io::ErrorKind::InvalidInput.into()
}

fn io_error(error: vm_memory::VolatileMemoryError) -> io::Error {
    match error {
        vm_memory::VolatileMemoryError::IOError(error) => error,
        _ => io::ErrorKind::InvalidInput.into(),
    }
}

#[cfg(test)]
mod saved_test;
