//! Which invalidations reach a nested page table, and as what.

use super::*;
use intel_vtd::Pasid;

/// Requests of a device behind the page table.
#[derive(Clone, Copy)]
struct User {
    source: SourceId,
    requester: Option<Pasid>,
    tag: CacheTag,
}

const TABLE: HwptId = HwptId(9);

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

/// What is invalidated of a page table with these users.
fn batch(
    invalidations: &[Invalidation],
    users: &[User],
    done: &[NestedInvalidation],
) -> Vec<NestedInvalidation> {
    let mut index = NestedUsers::default();
    for user in users {
        index.set((user.source, user.requester), Some((TABLE, user.tag)));
    }
    let done = Lists::from([(TABLE, done.to_vec())]);
    let mut lists = batches(invalidations, &index, &done);
    let list = lists.remove(&TABLE).unwrap_or_default();
    assert!(lists.is_empty());
    list
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
        requester: Pasid::new(1),
        tag: CacheTag {
            domain: 6,
            pasid: 7,
        },
        ..USER
    };
    assert_eq!(batch(&[one, pasid_all(6, 7)], &[USER, second], &[]), [ALL]);
}

#[test]
fn a_long_list_is_everything() {
    let page = |number: u64| pasid_pages(5, 7, block(number * 0x1000, 0, true));
    let list: Vec<_> = (0..64).map(page).collect();
    assert_eq!(batch(&list, &[USER], &[]).len(), 64);
    let list: Vec<_> = (0..65).map(page).collect();
    assert_eq!(batch(&list, &[USER], &[]), [ALL]);
}

#[test]
fn each_table_has_a_list_of_its_own() {
    let mut index = NestedUsers::default();
    let tag = |pasid| CacheTag { domain: 5, pasid };
    for (table, pasid) in [(1, 7), (2, 8), (3, 9)] {
        let requester = (SourceId(0x18), Pasid::new(pasid));
        index.set(requester, Some((HwptId(table), tag(pasid))));
    }
    let one = pasid_pages(5, 7, block(0x1000, 0, true));
    let lists = batches(&[one, pasid_all(5, 9)], &index, &Lists::new());
    assert!(lists.keys().eq(&[HwptId(1), HwptId(3)]));
    assert_eq!(lists[&HwptId(3)], [ALL]);
    // One that has left has none.
    index.set((SourceId(0x18), Pasid::new(9)), None);
    assert_eq!(index.take_left(), [HwptId(3)]);
    let lists = batches(&[Invalidation::All], &index, &Lists::new());
    assert!(lists.keys().eq(&[HwptId(1), HwptId(2)]));
}
