//! Invalidations of the retained caches (tables in sections 6.5.2.1 to 6.5.2.4).

use std::ops::RangeInclusive;

use super::caches::{PageIndex, PageKey, Store, prefix};
use crate::spec::descriptors::{
    ContextScope, IotlbScope, PageBlock, PasidCacheScope, PasidIotlbScope, ignored_bits,
};
use crate::spec::invalidation::Invalidation;

/// The whole of what an index has of one domain and more: the least and the greatest of the other
/// parts of its keys.
const PASIDS: RangeInclusive<u32> = 0..=u32::MAX;
const PAGES: RangeInclusive<u64> = 0..=u64::MAX;

impl Store {
    /// Takes out what `invalidation` names, and nothing else.
    pub(crate) fn forget(&mut self, invalidation: &Invalidation) {
        match *invalidation {
            Invalidation::Context(scope) => self.forget_contexts(scope),
            Invalidation::PasidCache(scope) => self.forget_pasids(scope),
            Invalidation::Iotlb(scope) => self.forget_domain(scope),
            Invalidation::PasidIotlb {
                domain,
                pasid,
                scope: PasidIotlbScope::Pasid,
            } => {
                self.forget_first(domain, pasid..=pasid);
                for first in [false, true] {
                    self.forget_pages_by_pasid(domain, first, pasid..=pasid, PAGES);
                }
            }
            Invalidation::PasidIotlb {
                domain,
                pasid,
                scope: PasidIotlbScope::Pages(block),
            } => {
                let bytes = span(block, 64);
                if !block.leaf_only {
                    for level in 2..=5 {
                        let places = prefix(*bytes.start(), level)..=prefix(*bytes.end(), level);
                        let least = (domain, pasid, level, *places.start());
                        let greatest = (domain, pasid, level, *places.end());
                        self.first.take_range(least..=greatest);
                    }
                }
                let pages = bytes.start() >> 12..=bytes.end() >> 12;
                self.forget_pages_by_pasid(domain, true, pasid..=pasid, pages);
            }
            // What devices keep is not kept here.
            Invalidation::DeviceTlb { .. } => {}
            Invalidation::All => {
                self.contexts.clear();
                self.pasids.clear();
                self.forget_domain(IotlbScope::Global);
            }
        }
    }

    fn forget_contexts(&mut self, scope: ContextScope) {
        match scope {
            ContextScope::Global => self.contexts.clear(),
            // Entries of scalable mode are of no domain: all are taken out, for what they lead to
            // may be of this one.
            ContextScope::Domain(domain) => {
                for domain in [None, Some(domain)] {
                    self.contexts.take_range((domain, 0)..=(domain, u16::MAX));
                }
            }
            ContextScope::Device {
                source,
                function_mask,
            } => {
                let ignored = ignored_bits(function_mask);
                for function in 0..8 {
                    self.contexts
                        .remove(&(source & !ignored | function & ignored));
                }
            }
        }
    }

    fn forget_pasids(&mut self, scope: PasidCacheScope) {
        let (domain, pasids) = match scope {
            PasidCacheScope::Global => return self.pasids.clear(),
            PasidCacheScope::Domain(domain) => (domain, PASIDS),
            PasidCacheScope::Pasid(domain, pasid) => (domain, pasid..=pasid),
        };
        let least = (domain, *pasids.start(), 0);
        let greatest = (domain, *pasids.end(), u16::MAX);
        self.pasids.take_range(least..=greatest);
    }

    fn forget_domain(&mut self, scope: IotlbScope) {
        match scope {
            IotlbScope::Global => {
                self.first.clear();
                self.second.clear();
                self.pages.clear();
            }
            IotlbScope::Domain(domain) => {
                self.forget_first(domain, PASIDS);
                self.second
                    .take_range((domain, 0, 0)..=(domain, u8::MAX, u64::MAX));
                for first in [false, true] {
                    self.forget_pages_by_pasid(domain, first, PASIDS, PAGES);
                }
            }
            IotlbScope::Pages(domain, block) => {
                let bytes = span(block, self.guest_width);
                self.forget_first(domain, PASIDS);
                self.forget_pages_by_pasid(domain, true, PASIDS, PAGES);
                if !block.leaf_only {
                    for level in 2..=5 {
                        let places = prefix(*bytes.start(), level)..=prefix(*bytes.end(), level);
                        let least = (domain, level, *places.start());
                        self.second
                            .take_range(least..=(domain, level, *places.end()));
                    }
                }
                let (least, greatest) = PageKey::range(&(bytes.start() >> 12..=bytes.end() >> 12));
                let least = PageIndex::Domain(domain, least);
                self.pages
                    .take_range(least..=PageIndex::Domain(domain, greatest));
            }
        }
    }

    fn forget_first(&mut self, domain: u16, pasids: RangeInclusive<u32>) {
        let least = (domain, *pasids.start(), 0, 0);
        let greatest = (domain, *pasids.end(), u8::MAX, u64::MAX);
        self.first.take_range(least..=greatest);
    }

    /// `pages` is of use with one PASID only.
    fn forget_pages_by_pasid(
        &mut self,
        domain: u16,
        first: bool,
        pasids: RangeInclusive<u32>,
        pages: RangeInclusive<u64>,
    ) {
        let (least, greatest) = PageKey::range(&pages);
        let least = PageIndex::Pasid(domain, first, *pasids.start(), least);
        let greatest = PageIndex::Pasid(domain, first, *pasids.end(), greatest);
        self.pages.take_range(least..=greatest);
    }
}

/// First and last byte of `block`, whose address has `width` bits; what is above them is ignored.
fn span(block: PageBlock, width: u8) -> RangeInclusive<u64> {
    let within = 1_u64.checked_shl(u32::from(width));
    let within = within.map_or(u64::MAX, |size| size - 1);
    let address = block.address & within;
    PageBlock { address, ..block }.span()
}
