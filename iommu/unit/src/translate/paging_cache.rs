//! The paging-structure caches of a view (sec. 6.2): what walks leave for further ones in the same
//! 2 MiB.
//!
//! Of each stage, the entry above level 1 is remembered as it was used: where the table is that it
//! points to, or the large page that it maps, and what it and all entries above it grant. Only
//! walks that end well leave something behind. So each of these entries is present and in order,
//! and has its accessed bits set, which is what the specification asks of those that are cached.
//!
//! [`PagingCache::translate`] then reads one entry for each stage instead of all. It answers
//! requests that are permitted and need no bit set in any entry. About all others it says nothing,
//! and a full walk is to find out: so faults, updates and their order are those of full walks.

use std::cell::{Cell, OnceCell};

use super::binding::{Binding, FirstStage, Resolved, SecondStage};
use super::guest_tables::GuestTables;
use super::interrupt_range::{block_shift, is_interrupt_range};
use super::request::{Access, Translation};
use super::tag::Tag;
use crate::memory::TableMemory;
use crate::spec::first_stage::{DIRTY, FirstStageEntry};
use crate::spec::gates::Gates;
use crate::spec::second_stage::{self, SecondStageEntry};

/// Entries for each stage: rings and buffers of a device lie in few blocks of 2 MiB.
const ENTRIES: usize = 16;

/// Log2 of the bytes that an entry is for.
const BLOCK: u32 = 21;
const WITHIN_BLOCK: u64 = (1 << BLOCK) - 1;
const WITHIN_PAGE: u64 = 0xfff;

/// What one stage makes of 2 MiB of its input.
#[derive(Clone, Copy, Debug)]
pub(super) struct Upper {
    /// Guest-physical address of the table of level 1. Of a large page: what the first byte of the
    /// 2 MiB is mapped to.
    base: u64,
    /// Log2 of the size of the large page; 12 for a table.
    shift: u8,
    read: bool,
    /// Of a large page: without setting anything before.
    write: bool,
}

impl Upper {
    /// The entries that lead to a last entry at `entry_address`, if that maps a page of 2^`shift`
    /// bytes in which the input is at `address`.
    ///
    /// `above` is what the entries above that one grant, `all` what it grants as well: reading, and
    /// writing without setting anything before.
    pub(super) const fn new(
        entry_address: u64,
        shift: u8,
        address: u64,
        above: (bool, bool),
        all: (bool, bool),
    ) -> Self {
        let (base, (read, write)) = if shift == 12 {
            (entry_address & !WITHIN_PAGE, above)
        } else {
            (address & !WITHIN_BLOCK, all)
        };
        Self {
            base,
            shift,
            read,
            write,
        }
    }

    /// The entry of level 1 for `input`, if there is such a level.
    #[inline]
    fn entry<T: TableMemory>(&self, memory: &T, input: u64) -> Option<Option<u64>> {
        if self.shift != 12 {
            return Some(None);
        }
        let at = self.base + (input >> 12 & 0x1ff) * 8;
        memory.read_u64(at).ok().map(Some)
    }

    /// What a large page makes of `input`.
    #[inline]
    const fn page(&self, input: u64) -> Permitted {
        Permitted {
            address: self.base | input & WITHIN_BLOCK,
            page_shift: self.shift,
            readable: self.read,
            writable: self.write,
        }
    }

    #[inline]
    fn first<T: TableMemory>(
        &self,
        memory: &T,
        gates: &Gates,
        stage: &FirstStage,
        privileged: bool,
        input: u64,
    ) -> Option<Permitted> {
        let Some(word) = self.entry(memory, input)? else {
            return Some(self.page(input));
        };
        let entry = FirstStageEntry(word);
        entry.validate(1, gates).ok()?;
        // That the walk ended well says as much for the entries above.
        let user = entry.user() || privileged;
        (user && stage.accessed_bits() & !word == 0).then(|| Permitted {
            address: entry.page(12) | input & WITHIN_PAGE,
            page_shift: 12,
            readable: true,
            writable: stage.writes(self.write && entry.writable(), privileged) && word & DIRTY != 0,
        })
    }

    #[inline]
    fn second<T: TableMemory>(
        &self,
        memory: &T,
        gates: &Gates,
        stage: &SecondStage,
        input: u64,
    ) -> Option<Permitted> {
        let Some(word) = self.entry(memory, input)? else {
            return Some(self.page(input));
        };
        let entry = SecondStageEntry(word);
        entry.validate(1, gates).ok()?;
        let has = |bit: u64| !stage.accessed_dirty || word & bit != 0;
        has(second_stage::ACCESSED).then(|| Permitted {
            address: entry.page(12) | input & WITHIN_PAGE,
            page_shift: 12,
            readable: self.read && entry.read(),
            writable: self.write && entry.write() && has(second_stage::DIRTY),
        })
    }
}

/// What a walk leaves behind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Trail {
    /// Of the stage that translates the address of the request.
    pub(super) input: Option<Upper>,
    /// Of the second stage below the first: its input, and what it made of it.
    pub(super) below: Option<(u64, Upper)>,
}

/// The translation of a request that is permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Permitted {
    /// Guest-physical address of the byte that was asked for.
    pub(crate) address: u64,
    /// Log2 of the size of the block for which it holds.
    pub(crate) page_shift: u8,
    /// Reads are permitted.
    pub(crate) readable: bool,
    /// Writes are permitted, and no entry needs an update for that.
    pub(crate) writable: bool,
}

impl Permitted {
    pub(crate) const fn new(translation: &Translation) -> Self {
        Self {
            address: translation.address,
            page_shift: translation.page_shift,
            readable: translation.readable,
            writable: translation.writable && translation.dirty,
        }
    }
}

#[derive(Clone, Copy)]
struct Entry {
    tag: Tag,
    /// Bits 63:21 of the input.
    block: u64,
    upper: Upper,
}

const EMPTY: Entry = Entry {
    tag: Tag::NOTHING,
    block: 0,
    upper: Upper {
        base: 0,
        shift: 0,
        read: false,
        write: false,
    },
};

type Set = [Cell<Entry>; ENTRIES];

/// The caches of one device thread. No entry is ever invalidated: its tag goes out of use.
#[derive(Default)]
pub(crate) struct PagingCache(OnceCell<Box<[Set; 2]>>);

const INPUT: usize = 0;
const BELOW: usize = 1;

impl PagingCache {
    /// Translates an untranslated request, if what is remembered for `tag` is enough for that.
    /// `resolved` is what translates such requests.
    #[inline]
    pub(crate) fn translate<T: TableMemory>(
        &self,
        tables: &GuestTables<'_, T>,
        resolved: &Resolved,
        tag: Tag,
        address: u64,
        access: Access,
    ) -> Option<Permitted> {
        let upper = self.find(INPUT, tag, address)?;
        let (memory, gates) = (tables.memory(), tables.gates());
        let mut found = match &resolved.binding {
            Binding::SecondStage(stage) => upper.second(memory, gates, stage, address)?,
            Binding::FirstStage(stage) => {
                upper.first(memory, gates, stage, resolved.privileged, address)?
            }
            Binding::Nested(first, second) => {
                let leaf = upper.first(memory, gates, first, resolved.privileged, address)?;
                let upper = self.find(BELOW, tag, leaf.address)?;
                let page = upper.second(memory, gates, second, leaf.address)?;
                Permitted {
                    address: page.address,
                    page_shift: leaf.page_shift.min(page.page_shift),
                    readable: page.readable,
                    writable: leaf.writable && page.writable,
                }
            }
            Binding::Blocked | Binding::PassThrough => return None,
        };
        let permitted = match access {
            Access::Read => found.readable,
            Access::Write => found.writable,
            Access::Atomic | Access::ZeroLengthRead => false,
        };
        if !permitted || is_interrupt_range(address) || is_interrupt_range(found.address) {
            return None;
        }
        found.page_shift = block_shift(found.page_shift, &[address, found.address]);
        Some(found)
    }

    /// Remembers what the walk for `address` has left behind.
    pub(crate) fn keep(&self, tag: Tag, address: u64, trail: &Trail) {
        if let Some(upper) = trail.input {
            self.insert(INPUT, tag, address, upper);
        }
        if let Some((address, upper)) = trail.below {
            self.insert(BELOW, tag, address, upper);
        }
    }

    #[inline]
    fn find(&self, set: usize, tag: Tag, address: u64) -> Option<Upper> {
        let entry = self.0.get()?.get(set)?.get(index(tag, address))?.get();
        (entry.tag == tag && entry.block == address >> BLOCK).then_some(entry.upper)
    }

    fn insert(&self, set: usize, tag: Tag, address: u64, upper: Upper) {
        let sets = self
            .0
            .get_or_init(|| Box::new([const { [const { Cell::new(EMPTY) }; ENTRIES] }; 2]));
        if let Some(entry) = sets.get(set).and_then(|set| set.get(index(tag, address))) {
            entry.set(Entry {
                tag,
                block: address >> BLOCK,
                upper,
            });
        }
    }
}

#[inline]
fn index(tag: Tag, address: u64) -> usize {
    let block = address >> BLOCK;
    usize::from(((block ^ block >> 4 ^ tag.spread()) & 0xf).to_le_bytes()[0])
}

#[cfg(test)]
mod paging_cache_test;
