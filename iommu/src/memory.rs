//! How the unit itself reaches guest memory: tables, queues, status writes.
//!
//! Everything is little-endian, and every 64-bit word is accessed in one piece.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use thiserror::Error;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, VolatileMemory};

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
    /// An entry of several words may be torn by a guest that writes it at the same time. Software may not
    /// rely on more: it clears the present bit first (sec. 9), and invalidates afterwards.
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

    /// Replaces a word that is still `old` by `new`. The inner error is the word that stands there instead.
    ///
    /// # Errors
    /// As [`read_words`](Self::read_words).
    fn compare_exchange_u64(
        &self,
        address: u64,
        old: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemoryError>;

    /// Writes 32 bits in one piece, after everything that this thread wrote before.
    ///
    /// # Errors
    /// When there is no memory, or `address` is not aligned to 4.
    fn write_u32(&self, address: u64, value: u32) -> Result<(), MemoryError>;

    /// Writes the words of an entry, in ascending order, each of them atomically.
    ///
    /// # Errors
    /// As [`read_words`](Self::read_words).
    fn write_words<const N: usize>(
        &self,
        address: u64,
        words: &[u64; N],
    ) -> Result<(), MemoryError>;
}

impl<M: GuestMemoryBackend + ?Sized> TableMemory for M {
    #[inline]
    fn read_words<const N: usize>(&self, address: u64) -> Result<[u64; N], MemoryError> {
        let error = MemoryError { address };
        let (region, offset) = self.to_region_addr(GuestAddress(address)).ok_or(error)?;
        let slice = region.get_slice(offset, N * 8).map_err(|_| error)?;
        let mut words = [0; N];
        for (index, word) in words.iter_mut().enumerate() {
            let atomic = slice
                .get_atomic_ref::<AtomicU64>(index * 8)
                .map_err(|_| error)?;
            *word = u64::from_le(atomic.load(Ordering::Acquire));
        }
        Ok(words)
    }

    fn compare_exchange_u64(
        &self,
        address: u64,
        old: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        let error = MemoryError { address };
        let (region, offset) = self.to_region_addr(GuestAddress(address)).ok_or(error)?;
        let slice = region.get_slice(offset, 8).map_err(|_| error)?;
        let atomic = slice.get_atomic_ref::<AtomicU64>(0).map_err(|_| error)?;
        let outcome =
            atomic.compare_exchange(old.to_le(), new.to_le(), Ordering::SeqCst, Ordering::SeqCst);
        if outcome.is_ok() {
            slice.bitmap().mark_dirty(0, 8);
        }
        Ok(outcome.map(u64::from_le).map_err(u64::from_le))
    }

    fn write_u32(&self, address: u64, value: u32) -> Result<(), MemoryError> {
        let error = MemoryError { address };
        let (region, offset) = self.to_region_addr(GuestAddress(address)).ok_or(error)?;
        let slice = region.get_slice(offset, 4).map_err(|_| error)?;
        let atomic = slice.get_atomic_ref::<AtomicU32>(0).map_err(|_| error)?;
        atomic.store(value.to_le(), Ordering::SeqCst);
        slice.bitmap().mark_dirty(0, 4);
        Ok(())
    }

    fn write_words<const N: usize>(
        &self,
        address: u64,
        words: &[u64; N],
    ) -> Result<(), MemoryError> {
        let error = MemoryError { address };
        let (region, offset) = self.to_region_addr(GuestAddress(address)).ok_or(error)?;
        let slice = region.get_slice(offset, N * 8).map_err(|_| error)?;
        for (index, word) in words.iter().enumerate() {
            let atomic = slice
                .get_atomic_ref::<AtomicU64>(index * 8)
                .map_err(|_| error)?;
            atomic.store(word.to_le(), Ordering::Release);
        }
        slice.bitmap().mark_dirty(0, N * 8);
        Ok(())
    }
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod memory_test;
