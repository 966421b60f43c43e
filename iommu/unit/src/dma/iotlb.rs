//! The IOTLB of one view (sec. 6.2.4): direct-mapped, by page of 4 KiB.
//!
//! It needs no lock, as only one thread has it; and no invalidation, as each entry carries the
//! generation in which it was filled.

use std::cell::{Cell, OnceCell};

use crate::translate::{Permitted, Tag};

/// Number of entries. Covers the working set of a queue: rings, and the buffers in flight.
const ENTRIES: usize = 256;

const READABLE: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const SHIFT: u32 = 2;
const PAGE: u64 = 0xfff;

#[derive(Clone, Copy)]
struct Entry {
    tag: Tag,
    /// The page number of the input address.
    page: u64,
    /// Page of the output, with the flags above, and the page shift in 7:2.
    output: u64,
}

#[derive(Default)]
pub(super) struct Iotlb {
    /// Allocated by the first insertion, so that views that never translate stay small.
    entries: OnceCell<Box<[Cell<Entry>; ENTRIES]>>,
}

impl Iotlb {
    #[inline]
    pub(super) fn lookup(&self, tag: Tag, address: u64) -> Option<Permitted> {
        let entry = self.entries.get()?.get(index(tag, address))?.get();
        if entry.tag != tag || entry.page != address >> 12 {
            return None;
        }
        Some(Permitted {
            address: entry.output & !PAGE | address & PAGE,
            page_shift: (entry.output >> SHIFT & 0x3f).to_le_bytes()[0],
            readable: entry.output & READABLE != 0,
            writable: entry.output & WRITABLE != 0,
        })
    }

    pub(super) fn insert(&self, tag: Tag, address: u64, found: &Permitted) {
        let entries = self
            .entries
            .get_or_init(|| Box::new([const { Cell::new(EMPTY) }; ENTRIES]));
        let mut output = found.address & !PAGE | u64::from(found.page_shift) << SHIFT;
        if found.readable {
            output |= READABLE;
        }
        if found.writable {
            output |= WRITABLE;
        }
        if let Some(entry) = entries.get(index(tag, address)) {
            entry.set(Entry {
                tag,
                page: address >> 12,
                output,
            });
        }
    }
}

const EMPTY: Entry = Entry {
    tag: Tag::NOTHING,
    page: 0,
    output: 0,
};

#[inline]
fn index(tag: Tag, address: u64) -> usize {
    usize::from(((address >> 12) ^ (address >> 20) ^ tag.spread()).to_le_bytes()[0])
}
