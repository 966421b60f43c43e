//! Which invalidations reach a nested page table, and as what.

use super::*;

const USER: User = User {
    source: SourceId(0x0018),
    requester: None,
    tag: CacheTag {
        domain: 5,
        pasid: 7,
    },
};

fn block(address: u64, mask: u8, leaf_only: bool) -> PageBlock {
    PageBlock {
        address,
        mask,
        leaf_only,
    }
}

fn pasid_pages(domain: u16, pasid: u32, block: PageBlock) -> Invalidation {
    Invalidation::PasidIotlb {
        domain,
        pasid,
        scope: PasidIotlbScope::Pages(block),
    }
}

fn pasid_all(domain: u16, pasid: u32) -> Invalidation {
    Invalidation::PasidIotlb {
        domain,
        pasid,
        scope: PasidIotlbScope::Pasid,
    }
}

fn of(invalidation: Invalidation) -> Vec<NestedInvalidation> {
    batch(&[invalidation], &[USER], &[])
}

fn device(source: u16, function_mask: u8) -> Invalidation {
    Invalidation::Context(ContextScope::Device {
        source,
        function_mask,
    })
}

#[test]
fn pages_keep_their_number_and_their_hint() {
    let pages = |address, pages, leaf_only| NestedInvalidation {
        address,
        pages,
        leaf_only,
    };
    assert_eq!(
        of(pasid_pages(5, 7, block(0x1000, 0, true))),
        [pages(0x1000, 1, true)]
    );
    assert_eq!(
        of(pasid_pages(5, 7, block(0x40_0000, 9, false))),
        [pages(0x40_0000, 512, false)]
    );
    assert_eq!(
        of(pasid_pages(5, 7, block(0, 51, false))),
        [pages(0, 0x8_0000_0000_0000, false)]
    );
    for mask in [52, 63] {
        assert_eq!(of(pasid_pages(5, 7, block(0, mask, true))), [ALL]);
    }
}

#[test]
fn only_what_names_the_domain_and_pasid_reaches_the_table() {
    let none: [NestedInvalidation; 0] = [];
    for other in [
        pasid_pages(5, 8, block(0, 0, false)),
        pasid_pages(6, 7, block(0, 0, false)),
        pasid_all(5, 0),
        pasid_all(0, 7),
        Invalidation::Iotlb(IotlbScope::Domain(7)),
        Invalidation::Iotlb(IotlbScope::Pages(4, block(0, 0, false))),
        Invalidation::PasidCache(PasidCacheScope::Domain(6)),
        Invalidation::PasidCache(PasidCacheScope::Pasid(5, 6)),
        device(0x0019, 0),
        device(0x0119, 3),
        device(0x001a, 1),
        device(0x0019, 2),
    ] {
        assert_eq!(of(other), none, "{other:?}");
    }
    for all in [
        pasid_all(5, 7),
        Invalidation::All,
        Invalidation::Iotlb(IotlbScope::Global),
        Invalidation::Iotlb(IotlbScope::Domain(5)),
        Invalidation::Iotlb(IotlbScope::Pages(5, block(0x5000, 0, true))),
        Invalidation::PasidCache(PasidCacheScope::Global),
        Invalidation::PasidCache(PasidCacheScope::Domain(5)),
        Invalidation::PasidCache(PasidCacheScope::Pasid(5, 7)),
        Invalidation::Context(ContextScope::Global),
        Invalidation::Context(ContextScope::Domain(99)),
        device(0x0018, 0),
        device(0x001c, 1),
        device(0x001e, 2),
        device(0x001f, 3),
    ] {
        assert_eq!(of(all), [ALL], "{all:?}");
        assert_eq!(batch(&[all], &[], &[]), none, "nobody uses it: {all:?}");
    }
}

#[test]
fn consecutive_ones_keep_their_order_and_one_of_all_stands_for_them() {
    let (one, other) = (
        pasid_pages(5, 7, block(0x3000, 0, true)),
        pasid_pages(5, 7, block(0x1000, 0, false)),
    );
    let list = batch(&[one, pasid_all(6, 7), other], &[USER], &[]);
    let addresses: Vec<_> = list.iter().map(|entry| entry.address).collect();
    assert_eq!(addresses, [0x3000, 0x1000]);
    assert_eq!(batch(&[one, pasid_all(5, 7), other], &[USER], &[]), [ALL]);
    let second = User {
        tag: CacheTag {
            domain: 6,
            pasid: 7,
        },
        ..USER
    };
    assert_eq!(batch(&[one, pasid_all(6, 7)], &[USER, second], &[]), [ALL]);
}
