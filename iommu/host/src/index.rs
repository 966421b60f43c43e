//! An index that counts: which of one kind of thing go with which of another, and how often.

use std::collections::BTreeMap;

use intel_vtd::{Pasid, SourceId};

/// Who makes requests: a device, with a PASID or without.
pub(crate) type Requester = (SourceId, Option<Pasid>);

/// Pairs, each with how often it was added.
#[derive(Debug)]
pub(crate) struct Index<A, B>(BTreeMap<A, BTreeMap<B, usize>>);

impl<A, B> Default for Index<A, B> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<A: Ord, B: Ord> Index<A, B> {
    pub(crate) fn add(&mut self, first: A, second: B) {
        *self.0.entry(first).or_default().entry(second).or_default() += 1;
    }

    /// Takes one away. Tells whether nothing goes with `first` any more.
    pub(crate) fn remove(&mut self, first: &A, second: &B) -> bool {
        let Some(of_first) = self.0.get_mut(first) else {
            return true;
        };
        if let Some(count) = of_first.get_mut(second) {
            *count -= 1;
            if *count == 0 {
                of_first.remove(second);
            }
        }
        let is_empty = of_first.is_empty();
        if is_empty {
            self.0.remove(first);
        }
        is_empty
    }

    /// What goes with `first`, in ascending order.
    pub(crate) fn of<'a>(
        &'a self,
        first: &A,
    ) -> impl Iterator<Item = &'a B> + Clone + use<'a, A, B> {
        self.0.get(first).map(BTreeMap::keys).unwrap_or_default()
    }

    /// How many pairs have `first`, each as often as it was added.
    pub(crate) fn count(&self, first: &A) -> usize {
        let of_first = self.0.get(first);
        of_first.map_or(0, |of_first| of_first.values().sum())
    }

    /// All that something goes with, in ascending order.
    pub(crate) fn firsts(&self) -> impl Iterator<Item = &A> {
        self.0.keys()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod index_test;
