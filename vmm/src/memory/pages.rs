//! A set of pages of guest memory.

use std::iter::from_fn;

use devices::marks::Marks;
use vm_memory::{Address as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::GuestRam;

/// Pages of the host within a word of a bitmap.
const WORD: usize = u64::BITS as usize;

/// Some pages of a guest memory. It belongs to a memory with these regions; by default, to none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pages(Vec<Region>);

/// Those of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Region {
    start: GuestAddress,
    /// How many pages it has, whether they are in the set or not.
    size: usize,
    /// A bit for each, from the lowest of the first word on; those beyond `size` are zero.
    words: Vec<u64>,
}

impl Pages {
    /// No page of `memory`.
    pub(crate) fn none(memory: &GuestRam) -> Self {
        let region = |region: &vm_memory::GuestRegionMmap<Marks>| {
            let size = region.size().div_ceil(Marks::PAGE);
            Region {
                start: region.start_addr(),
                size,
                words: vec![0; size.div_ceil(WORD)],
            }
        };
        Self(memory.iter().map(region).collect())
    }

    /// Every page of `memory`.
    #[cfg(test)]
    pub(crate) fn all(memory: &GuestRam) -> Self {
        let mut pages = Self::none(memory);
        for region in &mut pages.0 {
            region.words.fill(u64::MAX);
            region.trim();
        }
        pages
    }

    /// Adds the pages of region `number` that have a bit in `words`, from the lowest of the first on.
    /// What is beyond the region is left out.
    pub(super) fn insert(&mut self, number: usize, words: &[u64]) {
        if let Some(region) = self.0.get_mut(number) {
            region.insert(words);
        }
    }

    /// Adds `count` pages from the one on that begins at `start`. What is not in its region is left out.
    pub(crate) fn add(&mut self, start: GuestAddress, count: u64) {
        let mut regions = self.0.iter_mut().rev();
        if let Some(region) = regions.find(|region| region.start <= start) {
            region.add(start, count);
        }
    }

    /// Adds the pages of `other`, which is of the same memory.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (region, other) in self.0.iter_mut().zip(&other.0) {
            region.insert(&other.words);
        }
    }

    /// How many pages there are, of 4 KiB.
    pub(crate) fn count(&self) -> u64 {
        let words = self.0.iter().flat_map(|region| &region.words);
        words.map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether there are none.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        let mut words = self.0.iter().flat_map(|region| &region.words);
        words.all(|word| *word == 0)
    }

    /// The pages in ascending order, as runs of neighbours: where each begins, and how many pages it
    /// has, at most `most` of them, which are in one region.
    pub(crate) fn runs(&self, most: usize) -> impl Iterator<Item = (GuestAddress, usize)> {
        self.0.iter().flat_map(move |region| region.runs(most))
    }
}

impl Region {
    fn add(&mut self, start: GuestAddress, count: u64) {
        let page = start.0.saturating_sub(self.start.0) / Marks::PAGE as u64;
        let end = page.saturating_add(count).min(self.size as u64);
        for page in page..end {
            let word = usize::try_from(page).unwrap_or(usize::MAX) / WORD;
            if let Some(word) = self.words.get_mut(word) {
                *word |= 1 << (page % WORD as u64);
            }
        }
    }

    fn insert(&mut self, words: &[u64]) {
        for (word, other) in self.words.iter_mut().zip(words) {
            *word |= other;
        }
        self.trim();
    }

    /// Clears the bits beyond the region.
    fn trim(&mut self) {
        let used = self.size % WORD;
        if used != 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << used) - 1;
        }
    }

    /// How many pages from `page` on are all in the set, or all not.
    fn stretch(&self, page: usize, is_in: bool) -> usize {
        let mut end = page;
        while let Some(word) = self.words.get(end / WORD) {
            let others = if is_in { !word } else { *word };
            // A one is what ends the stretch.
            let others = others >> (end % WORD);
            if others != 0 {
                end += others.trailing_zeros() as usize;
                break;
            }
            end += WORD - end % WORD;
        }
        end.min(self.size).saturating_sub(page)
    }

    fn runs(&self, most: usize) -> impl Iterator<Item = (GuestAddress, usize)> {
        let mut page = 0;
        from_fn(move || {
            page += self.stretch(page, false);
            let length = self.stretch(page, true).min(most.max(1));
            let address = self.start.unchecked_add((page * Marks::PAGE) as u64);
            page += length;
            (length != 0).then_some((address, length))
        })
    }
}

#[cfg(test)]
mod pages_test;
