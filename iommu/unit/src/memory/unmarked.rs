//! Guest memory that a walk leaves as it is: no entry in it is marked accessed or dirty.

use crate::memory::{MemoryError, TableMemory};

/// What a walk writes is not written, and it goes on as if it were.
pub(crate) struct Unmarked<T>(pub(crate) T);

impl<T: TableMemory> TableMemory for Unmarked<T> {
    fn read_words<const N: usize>(&self, address: u64) -> Result<[u64; N], MemoryError> {
        self.0.read_words(address)
    }

    fn compare_exchange_u64(
        &self,
        _address: u64,
        old: u64,
        _new: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        Ok(Ok(old))
    }
}
