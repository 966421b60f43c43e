//! Who is behind which nested page table, and how the guest names what is kept for them.

use std::collections::BTreeMap;

use super::batch::CacheTag;
use crate::host_iommu::HwptId;
use crate::index::{Index, Requester};
use intel_vtd::{Pasid, SourceId};

/// Index of the requests that are behind nested page tables.
#[derive(Default)]
pub(crate) struct NestedUsers {
    /// By source and PASID.
    known: BTreeMap<SourceId, BTreeMap<Option<Pasid>, (HwptId, CacheTag)>>,
    users: Index<HwptId, ()>,
    domains: Index<u16, HwptId>,
    tags: Index<CacheTag, HwptId>,
    /// Those that nobody is behind any more, as far as that is new.
    left: Vec<HwptId>,
}

impl NestedUsers {
    /// `requester` is behind this page table now, with this tag, or behind none.
    pub(crate) fn set(&mut self, requester: Requester, now: Option<(HwptId, CacheTag)>) {
        let (source, pasid) = requester;
        let of_source = self.known.entry(source).or_default();
        let before = match now {
            Some(now) => of_source.insert(pasid, now),
            None => of_source.remove(&pasid),
        };
        if of_source.is_empty() {
            self.known.remove(&source);
        }
        if before == now {
            return;
        }
        if let Some((id, tag)) = now {
            self.users.add(id, ());
            self.domains.add(tag.domain, id);
            self.tags.add(tag, id);
        }
        if let Some((id, tag)) = before {
            self.domains.remove(&tag.domain, &id);
            self.tags.remove(&tag, &id);
            if self.users.remove(&id, &()) {
                self.left.push(id);
            }
        }
    }

    /// The page tables that have users.
    pub(crate) fn all(&self) -> impl Iterator<Item = HwptId> {
        self.users.firsts().copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// The devices that have requests behind any.
    pub(crate) fn sources(&self) -> impl Iterator<Item = SourceId> {
        self.known.keys().copied()
    }

    /// What the requests of a device are behind, with the PASID that they carry.
    pub(crate) fn of_source(
        &self,
        source: SourceId,
    ) -> impl Iterator<Item = (Option<Pasid>, HwptId)> {
        let of_source = self.known.get(&source).into_iter().flatten();
        of_source.map(|(pasid, (id, _))| (*pasid, *id))
    }

    /// The page tables of which the guest names something by this domain id.
    pub(crate) fn of_domain(&self, domain: u16) -> impl Iterator<Item = HwptId> {
        self.domains.of(&domain).copied()
    }

    /// The page tables of which the guest names something by this tag.
    pub(crate) fn of_tag(&self, tag: &CacheTag) -> impl Iterator<Item = HwptId> {
        self.tags.of(tag).copied()
    }

    /// How many are behind a page table.
    pub(crate) fn count(&self, id: HwptId) -> usize {
        self.users.count(&id)
    }

    /// The page tables whose last user has gone since this was asked before; some may have users
    /// again.
    pub(crate) fn take_left(&mut self) -> Vec<HwptId> {
        std::mem::take(&mut self.left)
    }
}

#[cfg(test)]
impl NestedUsers {
    /// Whether both know the same.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.known == other.known
    }
}
