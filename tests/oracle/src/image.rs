//! The expected contents of guest memory, and the earlier contents of its words.

use std::collections::BTreeMap;

use crate::index;

/// A model of guest memory with a past.
#[derive(Debug)]
pub struct Image {
    regions: Vec<(u64, Vec<u8>)>,
    /// Time: the number of edits so far.
    pub clock: u64,
    /// Of each 64-bit word: the values that it had, and when each was replaced.
    past: BTreeMap<u64, Vec<(u64, u64)>>,
}

/// The words of an entry, as they stand or as they stood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The words.
    pub words: Vec<u64>,
    /// When they were replaced; `None` if they are there now.
    pub replaced: Option<u64>,
}

impl Image {
    /// Zeroed memory of regions (start, length in bytes).
    pub fn new(regions: &[(u64, u64)]) -> Self {
        Self {
            regions: regions
                .iter()
                .map(|&(start, length)| (start, vec![0; index(length)]))
                .collect(),
            clock: 1,
            past: BTreeMap::new(),
        }
    }

    /// All regions, with their bytes.
    pub fn regions(&self) -> &[(u64, Vec<u8>)] {
        &self.regions
    }

    /// `length` bytes, if all are memory.
    pub fn bytes(&self, address: u64, length: usize) -> Option<&[u8]> {
        self.regions.iter().find_map(|(start, bytes)| {
            let offset = index(address.checked_sub(*start)?);
            bytes.get(offset..offset.checked_add(length)?)
        })
    }

    fn bytes_mut(&mut self, address: u64, length: usize) -> Option<&mut [u8]> {
        self.regions.iter_mut().find_map(|(start, bytes)| {
            let offset = index(address.checked_sub(*start)?);
            bytes.get_mut(offset..offset.checked_add(length)?)
        })
    }

    /// The aligned word at `address`.
    pub fn word(&self, address: u64) -> Option<u64> {
        self.bytes(address, 8)
            .map(|bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")))
    }

    /// Replaces a word without remembering the old value: what hardware does when it sets A and D.
    pub fn adopt(&mut self, address: u64, word: u64) {
        if let Some(bytes) = self.bytes_mut(address, 8) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// An edit: the old words are remembered.
    pub fn edit(&mut self, address: u64, bytes: &[u8]) {
        self.clock += 1;
        let first = address & !7;
        let last = (address + bytes.len() as u64).next_multiple_of(8);
        let old: Vec<(u64, Option<u64>)> = (first..last)
            .step_by(8)
            .map(|at| (at, self.word(at)))
            .collect();
        if let Some(place) = self.bytes_mut(address, bytes.len()) {
            place.copy_from_slice(bytes);
        }
        for (at, value) in old {
            if let (Some(value), now) = (value, self.word(at))
                && now != Some(value)
            {
                self.past.entry(at).or_default().push((value, self.clock));
            }
        }
    }

    /// Forgets the past: nothing of it is in any cache.
    pub fn forget(&mut self) {
        self.past.clear();
    }

    /// The versions of an entry of `count` words, the present one first. `None` if this is no
    /// memory.
    pub fn versions(&self, address: u64, count: usize) -> Option<Vec<Version>> {
        let addresses: Vec<u64> = (0..count as u64).map(|word| address + word * 8).collect();
        let words: Option<Vec<u64>> = addresses.iter().map(|at| self.word(*at)).collect();
        let mut versions = vec![Version {
            words: words?,
            replaced: None,
        }];
        let mut times: Vec<u64> = addresses
            .iter()
            .filter_map(|at| self.past.get(at))
            .flatten()
            .map(|(_, time)| *time)
            .collect();
        times.sort_unstable();
        times.dedup();
        for time in times.into_iter().rev() {
            let words: Vec<u64> = addresses
                .iter()
                .zip(&versions[0].words)
                .map(|(at, now)| {
                    self.past
                        .get(at)
                        .and_then(|past| past.iter().find(|(_, replaced)| *replaced >= time))
                        .map_or(*now, |(value, _)| *value)
                })
                .collect();
            if versions.iter().all(|version| version.words != words) {
                versions.push(Version {
                    words,
                    replaced: Some(time),
                });
            }
        }
        Some(versions)
    }
}
