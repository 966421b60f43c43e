//! Translations that somebody else holds: what they permit, and which invalidations take them back.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use vm_memory::Permissions;

use super::{HeldTranslation, HeldTranslations};
use crate::SourceId;
use crate::dma::DmaPort;
use crate::dma::dma_test::{Bench, bench, bench_of};
use crate::spec::descriptors::{
    ContextScope, IotlbScope, PageBlock, PasidCacheScope, PasidIotlbScope,
};
use crate::spec::device_tlb::{DeviceTlbInvalidation, DeviceTlbTarget};
use crate::spec::invalidation::Invalidation;
use crate::translate::testing::{SOURCE, World};
use crate::translate::{Access, Latched};

fn hold(bench: &Bench, address: u64, access: Permissions) -> Option<HeldTranslation> {
    bench.port.view().begin().grant(address, access)
}

/// First and last address, where it is, R and W.
fn parts(held: Option<HeldTranslation>) -> Option<(u64, u64, u64, bool, bool)> {
    let parts = |held: HeldTranslation| {
        (
            held.first,
            held.last,
            held.address,
            held.readable,
            held.writable,
        )
    };
    held.map(parts)
}

#[test]
fn an_answer_is_the_whole_page_with_all_that_is_permitted() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x1000, 1, 0x20_3003);
    bench.world.map(&bench.paging, 0x2000, 1, 0x20_4001);
    bench.world.map(&bench.paging, 0x3000, 1, 0x20_5002);
    bench.world.map(&bench.paging, 0x20_0000, 2, 0x80_0083);
    let page = hold(&bench, 0x1678, Permissions::Read);
    let all = Some((0x1000, 0x1fff, 0x20_3000, true, true));
    assert_eq!(parts(page), all);
    let page = hold(&bench, 0x2000, Permissions::Read);
    let read_only = Some((0x2000, 0x2fff, 0x20_4000, true, false));
    assert_eq!(parts(page), read_only);
    let page = hold(&bench, 0x3fff, Permissions::Write);
    let write_only = Some((0x3000, 0x3fff, 0x20_5000, false, true));
    assert_eq!(parts(page), write_only);
    let page = hold(&bench, 0x21_2345, Permissions::ReadWrite);
    let large = Some((0x20_0000, 0x3f_ffff, 0x80_0000, true, true));
    assert_eq!(parts(page), large);
    assert!(bench.log.take().is_empty());
}

#[test]
fn a_blocked_access_is_a_fault_of_that_access() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x2000, 1, 0x20_4001);
    assert_eq!(hold(&bench, 0x2000, Permissions::Write), None);
    assert_eq!(bench.log.take(), [(0x2000, Access::Write, 0x85, true)]);
    assert_eq!(hold(&bench, 0x5010, Permissions::Read), None);
    let faults = bench.log.take();
    assert!(matches!(faults[..], [(0x5010, Access::Read, _, true)]));
    // No device but one that interrupts has business there.
    assert_eq!(hold(&bench, 0xFEE0_0000, Permissions::Write), None);
    assert_eq!(bench.log.take().len(), 1);
}

#[test]
fn a_page_that_may_be_written_is_marked_dirty_at_once_and_another_is_not() {
    let bench = bench();
    let paging = bench.world.first_stage(4);
    bench.world.set_pasid(0, &[0x49, 0x80_0007, paging.top]);
    let writable = bench.world.map(&paging, 0x1000, 1, 0x20_3007);
    let read_only = bench.world.map(&paging, 0x2000, 1, 0x20_4005);
    let page = hold(&bench, 0x1000, Permissions::Read);
    assert!(page.is_some_and(|page| page.writable));
    assert_eq!(bench.world.get(writable), 0x20_3067);
    let page = hold(&bench, 0x2000, Permissions::Read);
    assert!(page.is_some_and(|page| !page.writable));
    assert_eq!(bench.world.get(read_only), 0x20_4025);
    assert!(bench.log.take().is_empty());
}

#[test]
fn addresses_stand_for_themselves_without_translation_and_nothing_passes_a_closed_gate() {
    let bench = bench();
    let direct = DmaPort::direct(Arc::clone(&bench.world.memory));
    let held = direct.view().begin().grant(0x1234, Permissions::ReadWrite);
    let identity = Some((0, u64::MAX, 0, true, true));
    assert_eq!(parts(held), identity);
    let gate = Arc::new(AtomicBool::new(false));
    let gated = direct.gated(gate);
    let held = gated.view().begin().grant(0x1234, Permissions::Read);
    assert_eq!(held, None);
    bench.state.set_latched(Latched::default());
    let held = hold(&bench, 0x1234, Permissions::Write);
    assert_eq!(parts(held), identity);
}

#[test]
fn what_is_kept_is_answered_one_page_at_a_time() {
    let bench = bench_of(World::scalable(), |state| state.keeping_translations());
    bench.world.map(&bench.paging, 0x20_0000, 2, 0x80_0083);
    let page = hold(&bench, 0x21_2345, Permissions::Read);
    let one = Some((0x21_2000, 0x21_2fff, 0x81_2000, true, true));
    assert_eq!(parts(page), one);
}

const ALL: Option<(u64, u64)> = Some((0, u64::MAX));

fn concerned(held: &HeldTranslations, invalidation: Invalidation) -> Option<(u64, u64)> {
    held.concerned(SOURCE, &invalidation)
        .map(|range| (*range.start(), *range.end()))
}

fn pages(domain: u16) -> Invalidation {
    let block = PageBlock {
        address: 0x4000,
        mask: 2,
        leaf_only: true,
    };
    Invalidation::Iotlb(IotlbScope::Pages(domain, block))
}

fn first_stage_pages(domain: u16) -> Invalidation {
    let block = PageBlock {
        address: 0x4000,
        mask: 2,
        leaf_only: true,
    };
    Invalidation::PasidIotlb {
        domain,
        pasid: 0,
        scope: PasidIotlbScope::Pages(block),
    }
}

#[test]
fn an_invalidation_takes_back_what_it_names() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x1000, 1, 0x20_3003);
    let mut held = HeldTranslations::default();
    assert_eq!(concerned(&held, Invalidation::All), None);
    // Of domain 7.
    held.add(&hold(&bench, 0x1000, Permissions::Read).unwrap());
    for all in [
        Invalidation::All,
        Invalidation::Iotlb(IotlbScope::Global),
        Invalidation::Iotlb(IotlbScope::Domain(7)),
        Invalidation::PasidCache(PasidCacheScope::Global),
        Invalidation::PasidCache(PasidCacheScope::Domain(7)),
        Invalidation::PasidCache(PasidCacheScope::Pasid(7, 0)),
        Invalidation::Context(ContextScope::Global),
        Invalidation::Context(ContextScope::Domain(9)),
        Invalidation::Context(ContextScope::Device {
            source: SOURCE.0 | 7,
            function_mask: 3,
        }),
        Invalidation::PasidIotlb {
            domain: 7,
            pasid: 0,
            scope: PasidIotlbScope::Pasid,
        },
    ] {
        assert_eq!(concerned(&held, all), ALL, "{all:?}");
    }
    for nothing in [
        Invalidation::Iotlb(IotlbScope::Domain(8)),
        pages(8),
        first_stage_pages(8),
        Invalidation::PasidCache(PasidCacheScope::Domain(8)),
        Invalidation::Context(ContextScope::Device {
            source: SOURCE.0 ^ 8,
            function_mask: 3,
        }),
        Invalidation::DeviceTlb {
            source: SourceId(SOURCE.0),
            invalidation: DeviceTlbInvalidation {
                target: DeviceTlbTarget::WithoutPasid,
                address: 0,
                shift: 64,
            },
        },
    ] {
        assert_eq!(concerned(&held, nothing), None, "{nothing:?}");
    }
    assert_eq!(concerned(&held, pages(7)), Some((0x4000, 0x7fff)));
    assert_eq!(
        concerned(&held, first_stage_pages(7)),
        Some((0x4000, 0x7fff))
    );
    held.clear();
    assert_eq!(concerned(&held, Invalidation::All), None);
}

#[test]
fn first_stage_translations_go_with_any_second_stage_page_of_their_domain() {
    let bench = bench();
    let paging = bench.world.first_stage(4);
    bench.world.set_pasid(0, &[0x49, 0x80_0007, paging.top]);
    bench.world.map(&paging, 0x1000, 1, 0x20_3007);
    let mut held = HeldTranslations::default();
    held.add(&hold(&bench, 0x1000, Permissions::Read).unwrap());
    assert_eq!(concerned(&held, pages(7)), ALL);
    assert_eq!(
        concerned(&held, first_stage_pages(7)),
        Some((0x4000, 0x7fff))
    );
    assert_eq!(concerned(&held, pages(8)), None);
}

#[test]
fn a_device_that_has_moved_between_domains_answers_for_both() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x1000, 1, 0x20_3003);
    let mut held = HeldTranslations::default();
    held.add(&hold(&bench, 0x1000, Permissions::Read).unwrap());
    bench.world.set_pasid(0, &[bench.paging.top | 0x89, 8]);
    bench.state.invalidate_all();
    held.add(&hold(&bench, 0x1000, Permissions::Read).unwrap());
    for domain in [7, 8] {
        assert_eq!(concerned(&held, pages(domain)), Some((0x4000, 0x7fff)));
    }
}
