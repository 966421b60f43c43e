//! Groups of page requests that wait for the guest (sec. 7.5), by what the guest calls them and by
//! what the host does.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use intel_vtd::{Pasid, SourceId};

/// Groups of one device that wait for the guest. A PRG index has 9 bits, and there are as many for
/// each PASID.
pub(super) const GROUPS: usize = 4096;

/// A group, as the guest names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Group {
    pub(super) source: SourceId,
    pub(super) pasid: Option<Pasid>,
    pub(super) index: u16,
}

/// Groups that wait. Whatever is done costs what one of them costs, however many there are.
#[derive(Default)]
pub(super) struct WaitingGroups {
    /// Cookies, by the names of their groups and then in the order in which they came. A
    /// well-behaved device has one of a name.
    cookies: BTreeMap<(Group, u64), u32>,
    /// The same by cookie.
    places: BTreeMap<u32, (Group, u64)>,
    /// How many each device has.
    counts: BTreeMap<SourceId, usize>,
    /// Groups that have come so far.
    came: u64,
}

impl WaitingGroups {
    /// Whether one more of `source` can wait.
    pub(super) fn has_room(&self, source: SourceId) -> bool {
        self.counts.get(&source).is_none_or(|count| *count < GROUPS)
    }

    /// A group waits for the guest. Another of the same cookie was answered by the host.
    pub(super) fn add(&mut self, group: Group, cookie: u32) {
        self.remove(cookie);
        self.came += 1;
        let place = (group, self.came);
        self.cookies.insert(place, cookie);
        self.places.insert(cookie, place);
        *self.counts.entry(group.source).or_default() += 1;
    }

    /// The oldest group of this name waits no longer.
    pub(super) fn take(&mut self, group: Group) -> Option<u32> {
        let cookie = self.cookies.range(all_of(group)).next()?;
        let cookie = *cookie.1;
        self.remove(cookie);
        Some(cookie)
    }

    /// This one waits no longer. Tells whether it did.
    pub(super) fn forget(&mut self, group: Group, cookie: u32) -> bool {
        let is_it = self.places.get(&cookie).is_some_and(|(of, _)| *of == group);
        if is_it {
            self.remove(cookie);
        }
        is_it
    }

    /// Those of `source` wait no longer.
    pub(super) fn forget_all(&mut self, source: SourceId) {
        self.cookies.retain(|(group, _), _| group.source != source);
        self.places.retain(|_, (group, _)| group.source != source);
        self.counts.remove(&source);
    }

    fn remove(&mut self, cookie: u32) {
        let Some(place) = self.places.remove(&cookie) else {
            return;
        };
        self.cookies.remove(&place);
        let source = place.0.source;
        if let Some(count) = self.counts.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&source);
            }
        }
    }
}

fn all_of(group: Group) -> RangeInclusive<(Group, u64)> {
    (group, 0)..=(group, u64::MAX)
}

#[cfg(test)]
mod waiting_test;
