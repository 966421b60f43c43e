//! The limits, and what an invalidation costs.

use std::time::{Duration, Instant};

use super::*;
use crate::spec::descriptors::{
    ContextScope, IotlbScope, PageBlock, PasidCacheScope, PasidIotlbScope,
};
use crate::spec::invalidation::Invalidation;
use crate::translate::Access;

/// Keeps the page at `address` of a second stage.
fn keep(store: &mut Store, source: u16, address: u64, domain: u16) {
    let request = Request::untranslated(SourceId(source), address, Access::Read);
    let tables = SecondStage {
        table: 0x1000,
        levels: 4,
        accessed_dirty: false,
        snooped_walk: true,
    };
    let resolved = Resolved {
        binding: Binding::SecondStage(tables),
        domain,
        pasid: Pasid::new(0),
        privileged: false,
        snooped_pages: false,
        fault_disable: false,
        legacy: false,
    };
    let entry = UpperEntry {
        level: 2,
        table: 0x2000,
        rights: (true, true),
    };
    let notes = Notes {
        context: Some(([1; 4], None)),
        pasid: Some((0, [1; 8], false, domain)),
        resolved: Some(resolved),
        uppers: vec![(Stage::Second, address, entry)],
    };
    let translation = Translation {
        address,
        page_shift: 12,
        readable: true,
        writable: true,
        dirty: true,
        force_snoop: false,
        untranslated_only: false,
        translated_by: Some(TranslationType::SecondStage),
        domain,
    };
    store.keep(&notes, &request, Some(&translation));
}

#[test]
fn a_cache_that_is_full_is_emptied() {
    let mut store = Store::new(48);
    for page in 0..0x1_0000 {
        keep(&mut store, 0x18, page << 21, 7);
    }
    // A page is found by PASID, and by domain.
    assert_eq!(store.pages.sizes(), (0x1_0000, 0x2_0000));
    assert_eq!(store.second.sizes(), (0x1_0000, 0x1_0000));
    keep(&mut store, 0x18, 0x1_0000 << 21, 7);
    assert_eq!(store.pages.sizes(), (1, 2));
    assert_eq!(store.second.sizes(), (1, 1));
}

#[test]
fn indices_name_what_is_there_and_nothing_else() {
    let mut store = Store::new(48);
    for round in 0..3 {
        for page in 0..100 {
            let source = 0x18 + u16::from(page % 2 == 0);
            keep(&mut store, source, page << 12, 7 + round);
        }
    }
    assert_eq!(store.pages.sizes(), (100, 200));
    assert_eq!(store.pasids.sizes(), (2, 2));
    assert_eq!(store.contexts.sizes(), (2, 2));
    store.forget(&Invalidation::Iotlb(IotlbScope::Domain(8)));
    assert_eq!(store.pages.sizes(), (100, 200));
    store.forget(&Invalidation::Iotlb(IotlbScope::Domain(9)));
    assert_eq!(store.pages.sizes(), (0, 0));
    store.forget(&Invalidation::PasidCache(PasidCacheScope::Domain(9)));
    assert_eq!(store.pasids.sizes(), (0, 0));
    store.forget(&Invalidation::Context(ContextScope::Domain(1)));
    assert_eq!(store.contexts.sizes(), (0, 0));
}

#[test]
fn bits_above_the_width_of_an_address_are_ignored_where_the_domain_is_named() {
    let mut store = Store::new(48);
    keep(&mut store, 0x18, 0x5000, 7);
    let block = PageBlock {
        address: 0xffff_0000_0000_5000,
        mask: 0,
        leaf_only: true,
    };
    store.forget(&Invalidation::Iotlb(IotlbScope::Pages(7, block)));
    assert_eq!(store.pages.sizes(), (0, 0));
}

/// A queue has up to 16384 descriptors of 32 bytes, all of which a guest can have carried out in
/// one register write.
#[test]
fn invalidations_of_a_full_store_that_hit_nothing_take_no_time() {
    let mut store = Store::new(48);
    for page in 0..0x1_0000 {
        keep(&mut store, 0x18, page << 12, 7);
    }
    let block = |page: u64, mask| PageBlock {
        address: page << 12,
        mask,
        leaf_only: false,
    };
    let started = Instant::now();
    for page in 0x1_0000..0x1_4000_u64 {
        store.forget(&Invalidation::Iotlb(IotlbScope::Pages(
            7,
            block(page << 9, 9),
        )));
        store.forget(&Invalidation::Iotlb(IotlbScope::Domain(8)));
        store.forget(&Invalidation::PasidIotlb {
            domain: 7,
            pasid: 1,
            scope: PasidIotlbScope::Pasid,
        });
    }
    let took = started.elapsed();
    println!("{} ns each", took.as_nanos() / (3 * 0x4000));
    assert_eq!(store.pages.sizes().0, 0x1_0000);
    assert!(took < Duration::from_secs(5), "{took:?}");
}
