//! Which blocks of the region are plugged.

use std::iter::from_fn;

use state::RestoreError;

use super::MemOptions;
use super::request::State;

/// Blocks from one up to another, by their numbers, which are in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    first: u64,
    end: u64,
}

/// The region.
#[derive(Debug)]
pub(super) struct Blocks {
    address: u64,
    /// Bytes of a block.
    block: u64,
    count: u64,
    /// A bit for each block, from the lowest of the first word on.
    words: Vec<u64>,
    /// How many are set.
    plugged: u64,
}

impl Blocks {
    pub(super) fn new(options: &MemOptions) -> Self {
        let count = options.size / options.block.max(1);
        let words = usize::try_from(count.div_ceil(64)).unwrap_or(0);
        Self {
            address: options.address,
            block: options.block,
            count,
            words: vec![0; words],
            plugged: 0,
        }
    }

    /// So many blocks from `address` on; `None` if one is not in the region, or there are none.
    pub(super) fn range(&self, address: u64, count: u16) -> Option<Range> {
        let offset = address.checked_sub(self.address)?;
        if count == 0 || !offset.is_multiple_of(self.block) {
            return None;
        }
        let first = offset / self.block;
        let end = first + u64::from(count);
        (end <= self.count).then_some(Range { first, end })
    }

    pub(super) fn all(&self) -> Range {
        Range {
            first: 0,
            end: self.count,
        }
    }

    /// The same range in pieces of at most so many bytes, or one block.
    pub(super) fn pieces(&self, range: Range, most: u64) -> impl Iterator<Item = Range> + use<> {
        let most = (most / self.block).max(1);
        let mut first = range.first;
        from_fn(move || {
            let end = range.end.min(first + most);
            let piece = Range { first, end };
            first = end;
            (piece.first < piece.end).then_some(piece)
        })
    }

    pub(super) fn address(&self, range: Range) -> u64 {
        self.address + range.first * self.block
    }

    pub(super) fn bytes(&self, range: Range) -> u64 {
        (range.end - range.first) * self.block
    }

    /// Bytes that are plugged.
    pub(super) fn plugged(&self) -> u64 {
        self.plugged * self.block
    }

    fn is_plugged(&self, block: u64) -> bool {
        let word = usize::try_from(block / 64).ok();
        let word = word.and_then(|word| self.words.get(word));
        word.is_some_and(|word| word & 1 << (block % 64) != 0)
    }

    pub(super) fn state(&self, range: Range) -> State {
        let mut blocks = range.first..range.end;
        match self.is_plugged(range.first) {
            first if blocks.any(|block| self.is_plugged(block) != first) => State::Mixed,
            true => State::Plugged,
            false => State::Unplugged,
        }
    }

    pub(super) fn set(&mut self, range: Range, plugged: bool) {
        for block in range.first..range.end {
            let bit = 1 << (block % 64);
            let word = usize::try_from(block / 64).ok();
            let Some(word) = word.and_then(|word| self.words.get_mut(word)) else {
                return;
            };
            match (plugged, *word & bit != 0) {
                (true, false) => {
                    *word |= bit;
                    self.plugged += 1;
                }
                (false, true) => {
                    *word &= !bit;
                    self.plugged -= 1;
                }
                _ => {}
            }
        }
    }

    /// Those of a range that are plugged, as ranges of neighbours.
    pub(super) fn plugged_of(&self, range: Range) -> Vec<Range> {
        let mut runs: Vec<Range> = Vec::new();
        for block in (range.first..range.end).filter(|block| self.is_plugged(*block)) {
            match runs.last_mut() {
                Some(last) if last.end == block => last.end += 1,
                _ => runs.push(Range {
                    first: block,
                    end: block + 1,
                }),
            }
        }
        runs
    }

    /// Those that are plugged, as numbers of the first and of the one after the last.
    pub(super) fn runs(&self) -> Vec<(u64, u64)> {
        let runs = self.plugged_of(self.all()).into_iter();
        runs.map(|run| (run.first, run.end)).collect()
    }

    /// Has those be plugged that [`runs`](Self::runs) has told, and no others.
    pub(super) fn restore(&mut self, runs: &[(u64, u64)]) -> Result<(), RestoreError> {
        self.set(self.all(), false);
        let mut before = 0;
        for &(first, end) in runs {
            if first < before || end <= first || end > self.count {
                let why = format_args!("{first} to {end} of {} after {before}", self.count);
                return Err(RestoreError::damaged("the blocks that are plugged", why));
            }
            self.set(Range { first, end }, true);
            before = end;
        }
        Ok(())
    }
}
