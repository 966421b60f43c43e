//! Memory that notes what is read from it, and that nothing can change.

use std::cell::RefCell;

use crate::memory::unmarked::Unmarked;
use crate::memory::{MemoryError, TableMemory};

/// One entry that was read.
#[derive(Clone, Debug)]
pub(super) struct Read {
    pub(super) address: u64,
    /// `None` where there is no memory.
    pub(super) words: Option<Vec<u64>>,
}

/// Notes every entry that is read, in order.
///
/// An entry that was read before is answered as it was then: whatever the guest changes in between,
/// everything that is found out through one recorder agrees with what it noted.
///
/// Accessed and dirty bits that a walk sets count as set, and the memory stays as it is.
pub(super) struct Recorder<T> {
    memory: Unmarked<T>,
    reads: RefCell<Vec<Read>>,
}

impl<T: TableMemory> Recorder<T> {
    pub(super) fn new(memory: T) -> Self {
        Self {
            memory: Unmarked(memory),
            reads: RefCell::default(),
        }
    }

    /// What was read until now.
    pub(super) fn reads(&self) -> Vec<Read> {
        self.reads.borrow().clone()
    }

    fn remembered<const N: usize>(&self, address: u64) -> Option<Result<[u64; N], MemoryError>> {
        self.reads
            .borrow()
            .iter()
            .filter(|read| read.address == address)
            .find_map(|read| match &read.words {
                Some(words) => words.as_slice().try_into().ok().map(Ok),
                None => Some(Err(MemoryError { address })),
            })
    }
}

impl<T: TableMemory> TableMemory for Recorder<T> {
    fn read_words<const N: usize>(&self, address: u64) -> Result<[u64; N], MemoryError> {
        let outcome = self
            .remembered(address)
            .unwrap_or_else(|| self.memory.read_words::<N>(address));
        self.reads.borrow_mut().push(Read {
            address,
            words: outcome.ok().map(|words: [u64; N]| words.to_vec()),
        });
        outcome
    }

    fn compare_exchange_u64(
        &self,
        address: u64,
        old: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        self.memory.compare_exchange_u64(address, old, new)
    }
}
