//! Invalidations of nested HWPTs that follow from the guest's.

use std::collections::{BTreeMap, BTreeSet};

use super::users::NestedUsers;
use crate::host_iommu::{HwptId, NestedInvalidation};
use crate::run::PAGE;
use intel_vtd::spec::descriptors::{
    ContextScope, IotlbScope, PageBlock, PasidCacheScope, PasidIotlbScope,
};
use intel_vtd::{DeviceTlbInvalidation, Invalidation, SourceId};

/// Every translation.
pub(crate) const ALL: NestedInvalidation = NestedInvalidation {
    address: 0,
    pages: u64::MAX,
    leaf_only: false,
};

/// Blocks of so many pages (as a power of two) are all that there is: they have 64 bits of address.
const EVERYTHING: u8 = 52;

/// What the guest invalidates translations by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CacheTag {
    /// DID.
    pub domain: u16,
    /// PASID; that of the context entry, for requests without.
    pub pasid: u32,
}

/// Invalidations for one page table beyond which it costs the host less to forget everything.
const MOST: usize = 64;

/// What each page table is to forget.
pub(crate) type Lists = BTreeMap<HwptId, Vec<NestedInvalidation>>;

/// What is to be invalidated, in the order of the guest's invalidations, of each page table that
/// has `users` whom they concern. Entries of tables were found to be what they were; whoever says
/// that one changed does not say in what, so everything that was kept for it goes.
///
/// The host has devices forget what it forgets itself. So what a device is to forget adds nothing
/// to what is in a list before, nor to what was `done` since the guest asked for it.
pub(crate) fn batches(invalidations: &[Invalidation], users: &NestedUsers, done: &Lists) -> Lists {
    let mut batches = Batches {
        users,
        done,
        lists: Lists::new(),
        domains: BTreeSet::new(),
        sources: BTreeSet::new(),
    };
    if users.is_empty() {
        return batches.lists;
    }
    for invalidation in invalidations {
        if batches.add(invalidation) == Selected::Everything {
            return users.all().map(|id| (id, vec![ALL])).collect();
        }
    }
    batches.lists
}

#[derive(PartialEq, Eq)]
enum Selected {
    Some,
    Everything,
}

struct Batches<'a> {
    users: &'a NestedUsers,
    done: &'a Lists,
    lists: Lists,
    /// Domains and devices of which everything is in the lists, so that naming them again costs
    /// nothing.
    domains: BTreeSet<u16>,
    sources: BTreeSet<SourceId>,
}

impl Batches<'_> {
    fn add(&mut self, invalidation: &Invalidation) -> Selected {
        match *invalidation {
            Invalidation::All
            | Invalidation::Context(ContextScope::Global | ContextScope::Domain(_))
            | Invalidation::PasidCache(PasidCacheScope::Global)
            | Invalidation::Iotlb(IotlbScope::Global) => return Selected::Everything,
            Invalidation::Context(scope @ ContextScope::Device { .. }) => self.add_devices(&scope),
            // Page-selective ones name addresses of the second stage, and take all others of the
            // domain along (section 6.5.2.3).
            Invalidation::PasidCache(PasidCacheScope::Domain(domain))
            | Invalidation::Iotlb(IotlbScope::Domain(domain) | IotlbScope::Pages(domain, _)) => {
                if self.domains.insert(domain) {
                    for id in self.users.of_domain(domain) {
                        push(&mut self.lists, id, ALL);
                    }
                }
            }
            Invalidation::PasidCache(PasidCacheScope::Pasid(domain, pasid)) => {
                self.add_tagged(CacheTag { domain, pasid }, ALL);
            }
            Invalidation::PasidIotlb {
                domain,
                pasid,
                scope,
            } => {
                let what = match scope {
                    PasidIotlbScope::Pages(block) => pages(&block),
                    PasidIotlbScope::Pasid => ALL,
                };
                self.add_tagged(CacheTag { domain, pasid }, what);
            }
            Invalidation::DeviceTlb {
                source,
                invalidation,
            } => self.add_device_tlb(source, &invalidation),
        }
        Selected::Some
    }

    fn add_devices(&mut self, scope: &ContextScope) {
        for source in self.users.sources() {
            if scope.concerns(source) && self.sources.insert(source) {
                for (_, id) in self.users.of_source(source) {
                    push(&mut self.lists, id, ALL);
                }
            }
        }
    }

    fn add_tagged(&mut self, tag: CacheTag, what: NestedInvalidation) {
        for id in self.users.of_tag(&tag) {
            push(&mut self.lists, id, what);
        }
    }

    fn add_device_tlb(&mut self, source: SourceId, invalidation: &DeviceTlbInvalidation) {
        let what = pages(&PageBlock {
            address: invalidation.address,
            mask: invalidation.shift.saturating_sub(12),
            // Translations of the host's IOMMU are not what this is about, so as few as can be.
            leaf_only: true,
        });
        let of_source = self.users.of_source(source);
        for (_, id) in of_source.filter(|(pasid, _)| invalidation.concerns(*pasid)) {
            let list = self.lists.get(&id).into_iter().chain(self.done.get(&id));
            if !list.flatten().any(|is| covers(is, &what)) {
                push(&mut self.lists, id, what);
            }
        }
    }
}

/// One more for a page table; of all, nothing is left for others to say.
fn push(lists: &mut Lists, id: HwptId, what: NestedInvalidation) {
    let list = lists.entry(id).or_default();
    if what == ALL || list.len() >= MOST {
        list.clear();
        list.push(ALL);
    } else if list.first() != Some(&ALL) {
        list.push(what);
    }
}

/// Whether everything that `less` names is named by `is`, however deep.
const fn covers(is: &NestedInvalidation, less: &NestedInvalidation) -> bool {
    if is.pages == u64::MAX {
        return true;
    }
    let (start, asked) = (is.address / PAGE, less.address / PAGE);
    less.pages != u64::MAX
        && start <= asked
        && asked.saturating_add(less.pages) <= start.saturating_add(is.pages)
}

fn pages(block: &PageBlock) -> NestedInvalidation {
    if block.mask >= EVERYTHING {
        return ALL;
    }
    NestedInvalidation {
        address: block.address,
        pages: 1 << block.mask,
        leaf_only: block.leaf_only,
    }
}

#[cfg(test)]
mod batch_test;
