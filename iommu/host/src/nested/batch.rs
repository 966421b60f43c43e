//! Invalidations of one nested HWPT that follow from the guest's.

use crate::host_iommu::NestedInvalidation;
use crate::run::PAGE;
use intel_vtd::spec::descriptors::{
    ContextScope, IotlbScope, PageBlock, PasidCacheScope, PasidIotlbScope,
};
use intel_vtd::{Invalidation, Pasid, SourceId};

/// Every translation.
pub(crate) const ALL: NestedInvalidation = NestedInvalidation {
    address: 0,
    pages: u64::MAX,
    leaf_only: false,
};

/// Blocks of so many pages (as a power of two) are all that there is: they have 64 bits of address.
const EVERYTHING: u8 = 52;

/// What the guest invalidates translations by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheTag {
    /// DID.
    pub domain: u16,
    /// PASID; that of the context entry, for requests without.
    pub pasid: u32,
}

/// Requests of a device behind a nested page table, and how the guest names what is kept for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) source: SourceId,
    /// What its requests carry.
    pub(crate) requester: Option<Pasid>,
    pub(crate) tag: CacheTag,
}

/// What is to be invalidated, in the order of the guest's invalidations, for a table that has these
/// users. Entries of tables were found to be what they were; whoever says that one changed does not
/// say in what, so everything that was kept for it goes.
///
/// The host has devices forget what it forgets itself. So what a device is to forget adds nothing
/// to what is in the list before, nor to what was `done` since the guest asked for it.
pub(crate) fn batch(
    invalidations: &[Invalidation],
    users: &[User],
    done: &[NestedInvalidation],
) -> Vec<NestedInvalidation> {
    let mut list = Vec::new();
    for invalidation in invalidations {
        let of_device = matches!(invalidation, Invalidation::DeviceTlb { .. });
        match selected(invalidation, users) {
            None => {}
            Some(pages) if of_device && list.iter().chain(done).any(|is| covers(is, &pages)) => {}
            // Nothing is left for others to say.
            Some(ALL) => return vec![ALL],
            Some(pages) => list.push(pages),
        }
    }
    list
}

fn selected(invalidation: &Invalidation, users: &[User]) -> Option<NestedInvalidation> {
    let any = |wanted: &dyn Fn(&User) -> bool| users.iter().any(wanted);
    let of_domain = |domain: u16| any(&|user| user.tag.domain == domain);
    let tagged = |tag: CacheTag| any(&|user| user.tag == tag);
    let is_meant = match *invalidation {
        Invalidation::All
        | Invalidation::Context(ContextScope::Global | ContextScope::Domain(_))
        | Invalidation::PasidCache(PasidCacheScope::Global)
        | Invalidation::Iotlb(IotlbScope::Global) => !users.is_empty(),
        Invalidation::Context(scope @ ContextScope::Device { .. }) => {
            any(&|user| scope.concerns(user.source))
        }
        // Page-selective ones name addresses of the second stage, and take all others of the domain
        // along (section 6.5.2.3).
        Invalidation::PasidCache(PasidCacheScope::Domain(domain))
        | Invalidation::Iotlb(IotlbScope::Domain(domain) | IotlbScope::Pages(domain, _)) => {
            of_domain(domain)
        }
        Invalidation::PasidCache(PasidCacheScope::Pasid(domain, pasid)) => {
            tagged(CacheTag { domain, pasid })
        }
        Invalidation::PasidIotlb {
            domain,
            pasid,
            scope,
        } => {
            let is_meant = tagged(CacheTag { domain, pasid });
            if let (true, PasidIotlbScope::Pages(block)) = (is_meant, scope) {
                return Some(pages(&block));
            }
            is_meant
        }
        Invalidation::DeviceTlb {
            source,
            invalidation,
        } => {
            return any(&|user| user.source == source && invalidation.concerns(user.requester))
                .then(|| {
                    pages(&PageBlock {
                        address: invalidation.address,
                        mask: invalidation.shift.saturating_sub(12),
                        // Translations of the host's IOMMU are not what this is about, so as few as
                        // can be.
                        leaf_only: true,
                    })
                });
        }
    };
    is_meant.then_some(ALL)
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
