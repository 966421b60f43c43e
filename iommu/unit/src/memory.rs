//! Guest memory as the unit itself accesses it: tables, queues, status writes.
//!
//! Everything is little-endian, and every 64-bit word is accessed in one piece.

pub(crate) mod unmarked;

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use thiserror::Error;
use vm_memory::bitmap::{BS, Bitmap};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress, VolatileMemory,
    VolatileSlice,
};

/// There is no memory at an address, or the access is not aligned to its size.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("no guest memory for an access to {address:#x}")]
pub struct MemoryError {
    /// The guest-physical address of the access.
    pub address: u64,
}

/// Guest-physical memory, as the unit accesses it.
pub trait TableMemory {
    /// Reads the words of an entry, in ascending order, each of them atomically.
    ///
    /// An entry of several words may be torn by a guest that writes it at the same time. Software
    /// may not rely on more: it clears the present bit first (sec. 9), and invalidates afterwards.
    ///
    /// # Errors
    /// When not all of the entry is memory, or `address` is not aligned to 8.
    fn read_words<const N: usize>(&self, address: u64) -> Result<[u64; N], MemoryError>;

    /// Reads one word.
    ///
    /// # Errors
    /// As [`read_words`](Self::read_words).
    fn read_u64(&self, address: u64) -> Result<u64, MemoryError> {
        self.read_words::<1>(address).map(|[word]| word)
    }

    /// Replaces a word that is still `old` by `new`. The inner error is the word that stands there
    /// instead.
    ///
    /// # Errors
    /// As [`read_words`](Self::read_words).
    fn compare_exchange_u64(
        &self,
        address: u64,
        old: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemoryError>;
}

impl<T: TableMemory + ?Sized> TableMemory for &T {
    #[inline]
    fn read_words<const N: usize>(&self, address: u64) -> Result<[u64; N], MemoryError> {
        (**self).read_words(address)
    }

    #[inline]
    fn compare_exchange_u64(
        &self,
        address: u64,
        old: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        (**self).compare_exchange_u64(address, old, new)
    }
}

/// Guest memory that looks into the region of the last access first.
///
/// The accesses of one walk, and those of one transaction, mostly go to the same region, and to
/// find it costs as much as the rest of an access.
pub struct Nearby<'a, M: GuestMemoryBackend + ?Sized> {
    memory: &'a M,
    last: Cell<Option<Extent<'a, M::R>>>,
}

struct Extent<'a, R> {
    start: u64,
    length: u64,
    region: &'a R,
}

impl<R> Clone for Extent<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Extent<'_, R> {}

impl<'a, M: GuestMemoryBackend + ?Sized> Nearby<'a, M> {
    /// Looks into `memory`.
    pub const fn new(memory: &'a M) -> Self {
        Self {
            memory,
            last: Cell::new(None),
        }
    }

    /// Writes 32 bits in one piece, after everything that this thread wrote before.
    ///
    /// # Errors
    /// When there is no memory, or `address` is not aligned to 4.
    pub(crate) fn write_u32(&self, address: u64, value: u32) -> Result<(), MemoryError> {
        write_u32(self.find(address), address, value)
    }

    /// Writes the words of an entry, in ascending order, each of them atomically.
    ///
    /// # Errors
    /// As [`read_words`](TableMemory::read_words).
    pub(crate) fn write_words<const N: usize>(
        &self,
        address: u64,
        words: &[u64; N],
    ) -> Result<(), MemoryError> {
        write_words(self.find(address), address, words)
    }

    /// The region that `address` is in, and where.
    #[inline]
    pub(crate) fn find(&self, address: u64) -> Option<(&'a M::R, MemoryRegionAddress)> {
        if let Some(last) = self.last.get() {
            let offset = address.wrapping_sub(last.start);
            if offset < last.length {
                return Some((last.region, MemoryRegionAddress(offset)));
            }
        }
        self.find_other(address)
    }

    #[inline(never)]
    fn find_other(&self, address: u64) -> Option<(&'a M::R, MemoryRegionAddress)> {
        let (region, offset) = self.memory.to_region_addr(GuestAddress(address))?;
        self.last.set(Some(Extent {
            start: region.start_addr().0,
            length: region.len(),
            region,
        }));
        Some((region, offset))
    }
}

impl<M: GuestMemoryBackend + ?Sized> TableMemory for Nearby<'_, M> {
    #[inline]
    fn read_words<const N: usize>(&self, address: u64) -> Result<[u64; N], MemoryError> {
        read_words(self.find(address), address)
    }

    fn compare_exchange_u64(
        &self,
        address: u64,
        old: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        compare_exchange(self.find(address), address, old, new)
    }
}

/// Where an address is, if it is anywhere.
type Place<'a, R> = Option<(&'a R, MemoryRegionAddress)>;

#[inline]
fn slice<'a, R: GuestMemoryRegion>(
    place: Place<'a, R>,
    address: u64,
    bytes: usize,
) -> Result<VolatileSlice<'a, BS<'a, R::B>>, MemoryError> {
    let error = MemoryError { address };
    let (region, offset) = place.ok_or(error)?;
    region.get_slice(offset, bytes).map_err(|_| error)
}

#[inline]
fn read_words<R: GuestMemoryRegion, const N: usize>(
    place: Place<'_, R>,
    address: u64,
) -> Result<[u64; N], MemoryError> {
    let slice = slice(place, address, N * 8)?;
    let mut words = [0; N];
    for (index, word) in words.iter_mut().enumerate() {
        let atomic = slice
            .get_atomic_ref::<AtomicU64>(index * 8)
            .map_err(|_| MemoryError { address })?;
        *word = u64::from_le(atomic.load(Ordering::Acquire));
    }
    Ok(words)
}

fn compare_exchange<R: GuestMemoryRegion>(
    place: Place<'_, R>,
    address: u64,
    old: u64,
    new: u64,
) -> Result<Result<u64, u64>, MemoryError> {
    let slice = slice(place, address, 8)?;
    let atomic = slice
        .get_atomic_ref::<AtomicU64>(0)
        .map_err(|_| MemoryError { address })?;
    let outcome =
        atomic.compare_exchange(old.to_le(), new.to_le(), Ordering::SeqCst, Ordering::SeqCst);
    if outcome.is_ok() {
        slice.bitmap().mark_dirty(0, 8);
    }
    Ok(outcome.map(u64::from_le).map_err(u64::from_le))
}

fn write_u32<R: GuestMemoryRegion>(
    place: Place<'_, R>,
    address: u64,
    value: u32,
) -> Result<(), MemoryError> {
    let slice = slice(place, address, 4)?;
    let atomic = slice
        .get_atomic_ref::<AtomicU32>(0)
        .map_err(|_| MemoryError { address })?;
    atomic.store(value.to_le(), Ordering::SeqCst);
    slice.bitmap().mark_dirty(0, 4);
    Ok(())
}

fn write_words<R: GuestMemoryRegion, const N: usize>(
    place: Place<'_, R>,
    address: u64,
    words: &[u64; N],
) -> Result<(), MemoryError> {
    let slice = slice(place, address, N * 8)?;
    for (index, word) in words.iter().enumerate() {
        let atomic = slice
            .get_atomic_ref::<AtomicU64>(index * 8)
            .map_err(|_| MemoryError { address })?;
        atomic.store(word.to_le(), Ordering::Release);
    }
    slice.bitmap().mark_dirty(0, N * 8);
    Ok(())
}

#[cfg(test)]
mod memory_test;
