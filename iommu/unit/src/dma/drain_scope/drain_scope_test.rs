//! Whom each invalidation concerns.

use super::*;
use crate::spec::descriptors::PageBlock;
use crate::spec::device_tlb::{DeviceTlbInvalidation, DeviceTlbTarget};

const OWN: SourceId = SourceId(0x0018);

fn takes_in(invalidation: Invalidation, source: SourceId, domains: Domains) -> bool {
    DrainScope::from_iter([&invalidation]).takes_in(source, domains)
}

#[test]
fn what_names_a_domain_concerns_its_views_and_those_of_which_nothing_is_known() {
    let block = PageBlock {
        address: 0,
        mask: 0,
        leaf_only: true,
    };
    for invalidation in [
        Invalidation::Iotlb(IotlbScope::Domain(7)),
        Invalidation::Iotlb(IotlbScope::Pages(7, block)),
        Invalidation::PasidIotlb {
            domain: 7,
            pasid: 3,
            scope: PasidIotlbScope::Pasid,
        },
        Invalidation::PasidIotlb {
            domain: 7,
            pasid: 3,
            scope: PasidIotlbScope::Pages(block),
        },
        Invalidation::PasidCache(PasidCacheScope::Domain(7)),
        Invalidation::PasidCache(PasidCacheScope::Pasid(7, 3)),
    ] {
        assert!(takes_in(invalidation, OWN, Domains::One(7)));
        assert!(takes_in(invalidation, OWN, Domains::Any));
        assert!(!takes_in(invalidation, OWN, Domains::One(8)));
        assert!(!takes_in(invalidation, OWN, Domains::None));
    }
}

#[test]
fn what_names_a_source_concerns_that_and_what_its_mask_takes_in() {
    let device = |function_mask| {
        Invalidation::Context(ContextScope::Device {
            source: 0x0018,
            function_mask,
        })
    };
    // Bit 2 of the function; bits 2:1; all three (section 6.5.2.1, FM).
    for (mask, functions) in [(0, 0b1), (1, 0b1_0001), (2, 0b101_0101), (3, 0xff_u32)] {
        for function in 0..8_u16 {
            let source = SourceId(0x0018 + function);
            let named = functions >> function & 1 != 0;
            assert_eq!(takes_in(device(mask), source, Domains::None), named);
        }
        assert!(!takes_in(device(mask), SourceId(0x0020), Domains::Any));
    }
    let tlb = Invalidation::DeviceTlb {
        source: OWN,
        invalidation: DeviceTlbInvalidation {
            target: DeviceTlbTarget::WithoutPasid,
            address: 0,
            shift: 64,
        },
    };
    assert!(takes_in(tlb, OWN, Domains::None));
    assert!(!takes_in(tlb, SourceId(0x0019), Domains::Any));
}

#[test]
fn what_names_neither_concerns_everyone() {
    for invalidation in [
        Invalidation::Context(ContextScope::Global),
        Invalidation::Context(ContextScope::Domain(7)),
        Invalidation::Iotlb(IotlbScope::Global),
        Invalidation::PasidCache(PasidCacheScope::Global),
        Invalidation::All,
    ] {
        assert!(takes_in(invalidation, OWN, Domains::None));
        assert!(takes_in(invalidation, OWN, Domains::One(8)));
    }
}

#[test]
fn several_invalidations_concern_the_views_of_each_and_too_many_concern_all() {
    let domain = |domain| Invalidation::Iotlb(IotlbScope::Domain(domain));
    let mut scope = DrainScope::default();
    assert!(scope.is_empty());
    assert!(!scope.takes_in(OWN, Domains::Any));
    for number in 1..=8 {
        assert!(scope.add(&domain(number)));
        assert!(!scope.add(&domain(number)));
    }
    assert!(!scope.is_empty());
    for number in 1..=8 {
        assert!(scope.takes_in(OWN, Domains::One(number)));
    }
    assert!(!scope.takes_in(OWN, Domains::One(9)));
    assert!(scope.add(&domain(9)));
    assert!(!scope.add(&domain(10)));
    assert!(scope.takes_in(OWN, Domains::One(10)));
    assert_eq!(scope, DrainScope::ALL);
}
