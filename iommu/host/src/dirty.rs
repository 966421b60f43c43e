//! Pages of guest memory that assigned devices have written: a bit for each.

pub(crate) mod tracking;

use std::ops::Range;

use crate::ram::Ram;
use crate::run::PAGE;

/// A bit for each page of guest memory.
#[derive(Debug)]
pub(crate) struct DirtyPages {
    parts: Vec<(Range<u64>, Vec<u64>)>,
}

impl DirtyPages {
    /// None is dirty.
    pub(crate) fn new(ram: &Ram) -> Self {
        let parts = ram.ranges().map(|range| {
            let pages = (range.end - range.start).div_ceil(PAGE);
            let words = usize::try_from(pages.div_ceil(64)).unwrap_or(0);
            (range.clone(), vec![0; words])
        });
        Self {
            parts: parts.collect(),
        }
    }

    /// Notes that the pages in `range` were written.
    pub(crate) fn mark(&mut self, range: &Range<u64>) {
        for (part, words) in &mut self.parts {
            let start = range.start.max(part.start);
            let end = range.end.min(part.end);
            for address in (start..end).step_by(4096) {
                let page = (address - part.start) / PAGE;
                if let Some(word) = usize::try_from(page / 64)
                    .ok()
                    .and_then(|word| words.get_mut(word))
                {
                    *word |= 1 << (page % 64);
                }
            }
        }
    }

    /// Calls `found` for runs of pages that were written, in ascending order, and forgets them.
    pub(crate) fn take(&mut self, found: &mut dyn FnMut(u64, u64)) {
        for (part, words) in &mut self.parts {
            runs(words, |first, pages| {
                found(part.start + first * PAGE, pages)
            });
            words.fill(0);
        }
    }
}

/// Calls `found` for runs of set bits: the first, and how many.
pub(crate) fn runs(words: &[u64], mut found: impl FnMut(u64, u64)) {
    let mut run: Option<(u64, u64)> = None;
    for (word, base) in words.iter().zip((0..).step_by(64)) {
        let mut word = *word;
        while word != 0 {
            let skipped = word.trailing_zeros();
            let length = (word >> skipped).trailing_ones();
            let first = base + u64::from(skipped);
            match &mut run {
                Some((start, pages)) if *start + *pages == first => *pages += u64::from(length),
                _ => {
                    if let Some((start, pages)) = run.replace((first, u64::from(length))) {
                        found(start, pages);
                    }
                }
            }
            let done = skipped + length;
            word = if done == 64 { 0 } else { word >> done << done };
        }
    }
    if let Some((start, pages)) = run {
        found(start, pages);
    }
}

#[cfg(test)]
mod dirty_test;
