//! The translation cache of one view: direct-mapped, by page of 4 KiB.
//!
//! It needs no lock, as only one thread has it; and no invalidation, as each entry carries the generation in which
//! it was filled.

use std::cell::{Cell, OnceCell};

use crate::spec::ids::Pasid;
use crate::translate::Translation;

/// Number of entries. Covers the working set of a queue: rings, and the buffers in flight.
const ENTRIES: usize = 256;

const READABLE: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const SHIFT: u32 = 2;
const PAGE: u64 = 0xfff;

#[derive(Clone, Copy, Default)]
struct Entry {
    /// 0 is no generation: the entry is empty.
    generation: u64,
    /// The page number of the input address.
    page: u64,
    /// 20 bits of PASID, or all ones.
    pasid: u32,
    /// Page of the output, with the flags above, and the page shift in 7:2.
    output: u64,
}

/// What is known about one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cached {
    /// The byte that was asked for.
    pub(super) address: u64,
    /// Log2 of the size of the block for which the translation holds.
    pub(super) page_shift: u8,
    pub(super) readable: bool,
    /// Permitted, and dirty bits are set.
    pub(super) writable: bool,
}

impl Cached {
    pub(super) fn new(translation: &Translation) -> Self {
        Self {
            address: translation.address,
            page_shift: translation.page_shift,
            readable: translation.readable,
            writable: translation.writable && translation.dirty,
        }
    }
}

#[derive(Default)]
pub(super) struct Cache {
    /// Allocated by the first insertion, so that views that never translate stay small.
    entries: OnceCell<Box<[Cell<Entry>; ENTRIES]>>,
}

impl Cache {
    #[inline]
    pub(super) fn lookup(
        &self,
        generation: u64,
        pasid: Option<Pasid>,
        address: u64,
    ) -> Option<Cached> {
        let entry = self.entries.get()?.get(index(pasid, address))?.get();
        if entry.generation != generation
            || entry.page != address >> 12
            || entry.pasid != tag(pasid)
        {
            return None;
        }
        Some(Cached {
            address: entry.output & !PAGE | address & PAGE,
            page_shift: (entry.output >> SHIFT & 0x3f).to_le_bytes()[0],
            readable: entry.output & READABLE != 0,
            writable: entry.output & WRITABLE != 0,
        })
    }

    pub(super) fn insert(
        &self,
        generation: u64,
        pasid: Option<Pasid>,
        address: u64,
        cached: &Cached,
    ) {
        let entries = self
            .entries
            .get_or_init(|| Box::new([const { Cell::new(EMPTY) }; ENTRIES]));
        let mut output = cached.address & !PAGE | u64::from(cached.page_shift) << SHIFT;
        if cached.readable {
            output |= READABLE;
        }
        if cached.writable {
            output |= WRITABLE;
        }
        if let Some(entry) = entries.get(index(pasid, address)) {
            entry.set(Entry {
                generation,
                page: address >> 12,
                pasid: tag(pasid),
                output,
            });
        }
    }
}

const EMPTY: Entry = Entry {
    generation: 0,
    page: 0,
    pasid: 0,
    output: 0,
};

const fn tag(pasid: Option<Pasid>) -> u32 {
    match pasid {
        Some(pasid) => pasid.get(),
        None => u32::MAX,
    }
}

#[inline]
fn index(pasid: Option<Pasid>, address: u64) -> usize {
    let spread = u64::from(tag(pasid)).wrapping_mul(0x9e37_79b9) >> 8;
    usize::from(((address >> 12) ^ (address >> 20) ^ spread).to_le_bytes()[0])
}
