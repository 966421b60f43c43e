//! A cache whose entries are found by key, and taken out by ranges of what invalidations name.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::ops::RangeInclusive;

/// The most entries that a cache has. The next one empties it: what software cannot rely on to stay
/// may go at any time.
pub(super) const LIMIT: usize = 0x1_0000;

/// An entry under keys of type `K`.
pub(super) trait Indexes<K> {
    /// What invalidations name, in the order of their ranges. It is of one entry only.
    type Index: Copy + Ord;

    /// What the entry is taken out by.
    fn indexes(&self, key: &K) -> impl Iterator<Item = Self::Index>;
}

/// The entries, and an index that is always in step with them.
pub(super) struct Indexed<K, V: Indexes<K>> {
    entries: HashMap<K, V>,
    index: BTreeMap<V::Index, K>,
}

impl<K, V: Indexes<K>> Default for Indexed<K, V> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            index: BTreeMap::new(),
        }
    }
}

impl<K: Copy + Eq + Hash, V: Indexes<K>> Indexed<K, V> {
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key)
    }

    /// Puts `entry` in the place of what is there. At the limit, all others go.
    pub(super) fn insert(&mut self, key: K, entry: V) {
        if self.entries.len() >= LIMIT {
            self.clear();
        }
        self.remove(&key);
        for index in entry.indexes(&key) {
            self.index.insert(index, key);
        }
        self.entries.insert(key, entry);
    }

    pub(super) fn remove(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            for index in entry.indexes(key) {
                self.index.remove(&index);
            }
        }
    }

    /// Takes out what is named by something in `range`, and looks at nothing else.
    pub(super) fn take_range(&mut self, range: RangeInclusive<V::Index>) {
        let keys: Vec<K> = self.index.range(range).map(|(_, key)| *key).collect();
        for key in &keys {
            self.remove(key);
        }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.index.clear();
    }

    /// The number of entries, and of what they are taken out by.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.entries.len(), self.index.len())
    }
}
