//! Every descriptor, well-formed and malformed.

use super::*;
use crate::spec::registers::{Capability, ExtendedCapability};
use TableMode::{Legacy, Scalable};

/// 64 Ki domains, addresses of 48 bits, page-selective invalidation up to mask 18; queue, interrupts up to mask 15, scalable mode.
fn caps() -> Caps {
    Caps {
        cap: Capability::from_bits(0x0012_0080_002F_0006),
        ecap: ExtendedCapability::from_bits(0x0000_0800_00F0_000A),
    }
}

/// [`caps`], device-TLBs and page requests with their drain.
fn sharing() -> Caps {
    let mut caps = caps();
    caps.ecap = ExtendedCapability::from_bits(0x0000_0C00_20F0_000E);
    caps
}

fn narrow(low: u64, high: u64) -> Result<Descriptor, QueueError> {
    decode([low, high, 0, 0], &caps(), Legacy)
}

fn wide(low: u64, high: u64) -> Result<Descriptor, QueueError> {
    decode([low, high, 0, 0], &caps(), Scalable)
}

#[test]
fn context_invalidations_are_global_or_of_a_domain_or_device() {
    assert_eq!(
        narrow(0x11, 0),
        Ok(Descriptor::Context(ContextScope::Global))
    );
    assert_eq!(
        narrow(0xBEEF_0021, 0),
        Ok(Descriptor::Context(ContextScope::Domain(0xBEEF)))
    );
    let device = ContextScope::Device {
        source: 0x1234,
        function_mask: 3,
    };
    assert_eq!(
        narrow(0x0003_1234_0000_0031, 0),
        Ok(Descriptor::Context(device))
    );
    assert_eq!(narrow(0x01, 0), Err(QueueError::Reserved));
}

#[test]
fn iotlb_invalidations_are_global_or_of_a_domain_or_pages() {
    assert_eq!(narrow(0xD2, 0), Ok(Descriptor::Iotlb(IotlbScope::Global)));
    assert_eq!(
        narrow(0x0007_00E2, 0),
        Ok(Descriptor::Iotlb(IotlbScope::Domain(7)))
    );
    let block = PageBlock {
        address: 0x1234_5000,
        mask: 0,
        leaf_only: true,
    };
    assert_eq!(
        narrow(0x0007_00F2, 0x1234_5040),
        Ok(Descriptor::Iotlb(IotlbScope::Pages(7, block)))
    );
    let block = PageBlock {
        address: 0x1234_4000,
        mask: 2,
        leaf_only: false,
    };
    assert_eq!(
        narrow(0x0007_00F2, 0x1234_7002),
        Ok(Descriptor::Iotlb(IotlbScope::Pages(7, block)))
    );
    assert_eq!(narrow(0x02, 0), Err(QueueError::Reserved));
}

#[test]
fn bits_of_an_iotlb_address_from_mgaw_on_are_ignored() {
    let mut caps = caps();
    for (mgaw, address) in [
        (47, 0x8765_4321_0000),
        (38, 0x0065_4321_0000),
        (56, 0x0123_8765_4321_0000),
    ] {
        caps.cap.set_mgaw(mgaw);
        let block = PageBlock {
            address,
            mask: 0,
            leaf_only: false,
        };
        assert_eq!(
            decode([0x0007_00F2, 0xF123_8765_4321_0000, 0, 0], &caps, Legacy),
            Ok(Descriptor::Iotlb(IotlbScope::Pages(7, block)))
        );
    }
}

#[test]
fn an_iotlb_mask_beyond_the_greatest_is_refused_only_where_it_is_used() {
    assert!(narrow(0xF2, 18).is_ok());
    assert_eq!(narrow(0xF2, 19), Err(QueueError::Reserved));
    assert!(narrow(0xE2, 19).is_ok());
}

#[test]
fn interrupt_invalidations_cover_an_aligned_block() {
    assert_eq!(
        narrow(0x04, 0),
        Ok(Descriptor::Interrupt(InterruptScope::Global))
    );
    let entries = |first, count| {
        Ok(Descriptor::Interrupt(InterruptScope::Entries {
            first,
            count,
        }))
    };
    assert_eq!(narrow(0x0000_1235_0000_0014, 0), entries(0x1235, 1));
    assert_eq!(narrow(0x0000_1235_1000_0014, 0), entries(0x1234, 4));
    assert_eq!(narrow(0x0000_FFFF_7800_0014, 0), entries(0x8000, 0x8000));
    assert_eq!(narrow(0x0000_0000_8000_0014, 0), Err(QueueError::Reserved));
}

#[test]
fn a_wait_may_ask_for_a_status_an_interrupt_both_or_neither() {
    let wait = |interrupt, status, fence| {
        Ok(Descriptor::Wait(Wait {
            interrupt,
            status,
            fence,
            page_drain: false,
        }))
    };
    assert_eq!(narrow(0x05, 0), wait(false, None, false));
    assert_eq!(
        narrow(0x0000_0002_0000_0025, 0x3004),
        wait(false, Some((0x3004, 2)), false)
    );
    assert_eq!(narrow(0x15, 0), wait(true, None, false));
    assert_eq!(
        narrow(0xFFFF_FFFF_0000_0075, 0x3004),
        wait(true, Some((0x3004, 0xFFFF_FFFF)), true)
    );
}

#[test]
fn pasid_invalidations_exist_in_scalable_mode_only() {
    let all = Descriptor::PasidIotlb {
        domain: 2,
        pasid: 0xABCDE,
        scope: PasidIotlbScope::Pasid,
    };
    assert_eq!(wide(0x000A_BCDE_0002_0026, 0), Ok(all));
    let block = PageBlock {
        address: 0x1000,
        mask: 0,
        leaf_only: true,
    };
    let pages = Descriptor::PasidIotlb {
        domain: 3,
        pasid: 0,
        scope: PasidIotlbScope::Pages(block),
    };
    assert_eq!(wide(0x0003_0036, 0x1040), Ok(pages));
    assert_eq!(
        wide(0x0002_0007, 0),
        Ok(Descriptor::PasidCache(PasidCacheScope::Domain(2)))
    );
    assert_eq!(
        wide(0x0001_0002_0017, 0),
        Ok(Descriptor::PasidCache(PasidCacheScope::Pasid(2, 1)))
    );
    assert_eq!(
        wide(0x37, 0),
        Ok(Descriptor::PasidCache(PasidCacheScope::Global))
    );
    for low in [0x26, 0x36, 0x07, 0x17, 0x37] {
        assert_eq!(narrow(low, 0), Err(QueueError::Type), "{low:#x}");
    }
    for low in [0x06, 0x16, 0x27] {
        assert_eq!(wide(low, 0), Err(QueueError::Reserved), "{low:#x}");
    }
}

#[test]
fn a_pasid_iotlb_mask_may_cover_the_whole_address_space() {
    let block = PageBlock {
        address: 0,
        mask: 63,
        leaf_only: false,
    };
    let pages = Descriptor::PasidIotlb {
        domain: 0,
        pasid: 0,
        scope: PasidIotlbScope::Pages(block),
    };
    assert_eq!(wide(0x36, 0xFFFF_FFFF_FFFF_F03F), Ok(pages));
}

fn shared(low: u64, high: u64) -> Result<Descriptor, QueueError> {
    decode([low, high, 0, 0], &sharing(), Scalable)
}

#[test]
fn device_tlb_invalidations_come_with_and_without_pasid() {
    let told = |source, target, address, shift| {
        Ok(Descriptor::DeviceTlb {
            source: SourceId(source),
            invalidation: DeviceTlbInvalidation {
                target,
                address,
                shift,
            },
        })
    };
    let none = DeviceTlbTarget::WithoutPasid;
    assert_eq!(
        shared(0x0000_BEEF_001F_0003, 0x1234_5000),
        told(0xBEEF, none, 0x1234_5000, 12)
    );
    assert_eq!(
        shared(0x0000_BEEF_0000_0003, 0x1234_3001),
        told(0xBEEF, none, 0x1234_0000, 15)
    );
    assert_eq!(
        decode([0x0000_BEEF_0000_0003, 0, 0, 0], &sharing(), Legacy),
        told(0xBEEF, none, 0, 12)
    );
    let pasid = DeviceTlbTarget::Pasid(Pasid::from_field(0xABCDE));
    assert_eq!(
        shared(0x000A_BCDE_BEEF_01F8, 0x7FFF_FFFF_FFFF_F800),
        told(0xBEEF, pasid, 0, 64)
    );
    assert_eq!(
        shared(0x000A_BCDE_BEEF_0008, 0x1234_5001),
        told(0xBEEF, DeviceTlbTarget::AllPasids, 0x1234_5000, 12)
    );
}

#[test]
fn a_throttled_invalidation_names_its_physical_function_only_if_that_is_offered() {
    let mut throttled = sharing();
    throttled.ecap.set_dit(true);
    for low in [0xFFF0_BEEF_0000_F003, 0xFFF0_0001_BEEF_F008] {
        assert_eq!(shared(low, 0), Err(QueueError::Reserved), "{low:#x}");
        assert!(decode([low, 0, 0, 0], &throttled, Scalable).is_ok());
    }
}

#[test]
fn a_page_response_names_its_group() {
    let answer = |pasid, group, code| {
        Ok(Descriptor::PageResponse {
            source: SourceId(0xBEEF),
            response: PageResponse { pasid, group, code },
        })
    };
    let pasid = Some(Pasid::from_field(0xABCDE));
    assert_eq!(
        shared(0x000A_BCDE_BEEF_0019, 0xFFC),
        answer(pasid, 0x1FF, ResponseCode::Success)
    );
    assert_eq!(
        shared(0x000A_BCDE_BEEF_F009, 0x8),
        answer(None, 1, ResponseCode::ResponseFailure)
    );
    assert_eq!(
        decode([0x19, 0, 0, 0], &sharing(), Legacy),
        Err(QueueError::Type)
    );
}

#[test]
fn a_wait_may_drain_page_requests_only_if_that_is_offered() {
    let drains = |outcome| match outcome {
        Ok(Descriptor::Wait(wait)) => wait.page_drain,
        other => panic!("{other:?}"),
    };
    assert!(drains(shared(0x85, 0)));
    assert!(!drains(shared(0x05, 0)));
    assert_eq!(wide(0x85, 0), Err(QueueError::Reserved));
}

#[test]
fn every_reserved_bit_of_the_types_for_devices_is_checked() {
    let types = [
        ([0x03, 0], [0x0000_FFFF_001F_0E0F, 0xFFFF_FFFF_FFFF_F001]),
        ([0x08, 0], [0x000F_FFFF_FFFF_0FFF, 0xFFFF_FFFF_FFFF_F801]),
        ([0x09, 0], [0x000F_FFFF_FFFF_FE1F, 0xFFC]),
    ];
    for ([low, high], used) in types {
        for bit in 0..64 {
            let flag = 1_u64 << bit;
            for (words, used) in [
                ([low | flag, high, 0, 0], used[0]),
                ([low, high | flag, 0, 0], used[1]),
                ([low, high, flag, 0], 0),
                ([low, high, 0, flag], 0),
            ] {
                let outcome = decode(words, &sharing(), Scalable);
                if used & flag == 0 {
                    assert_eq!(outcome, Err(QueueError::Reserved), "{words:x?}");
                } else if bit > 11 || words[0] == low {
                    assert!(outcome.is_ok(), "{words:x?}");
                }
            }
        }
    }
}

#[test]
fn types_that_are_not_offered_are_invalid() {
    for kind in [0, 3, 8, 9, 0xA, 0xB, 0xC, 0xD, 0xE, 0xF] {
        assert_eq!(wide(kind | 0x10, 0), Err(QueueError::Type), "{kind}");
    }
    // Bits 11:9 belong to the type.
    for kind in [0x211, 0x411, 0x811] {
        assert_eq!(wide(kind, 0), Err(QueueError::Type), "{kind:#x}");
    }
    let mut without_interrupts = caps();
    without_interrupts.ecap.set_ir(false);
    assert_eq!(
        decode([4, 0, 0, 0], &without_interrupts, Legacy),
        Err(QueueError::Type)
    );
}

#[test]
fn every_reserved_bit_of_every_type_is_checked() {
    // A well-formed descriptor of each type, and its bits that are not reserved, in both words.
    let types = [
        ([0x31, 0], [0x0003_FFFF_FFFF_0E3F, 0]),
        ([0xF2, 0], [0x0000_0000_FFFF_0EFF, 0xFFFF_FFFF_FFFF_F07F]),
        ([0x14, 0], [0x0000_FFFF_F800_0E1F, 0]),
        ([0x25, 0], [0xFFFF_FFFF_0000_0E7F, 0xFFFF_FFFF_FFFF_FFFC]),
        ([0x36, 0], [0x000F_FFFF_FFFF_0E3F, 0xFFFF_FFFF_FFFF_F07F]),
        ([0x17, 0], [0x000F_FFFF_FFFF_0E3F, 0]),
    ];
    for (good, used) in types {
        for bit in 0..128 {
            let place = bit / 64;
            let flag = 1_u64 << (bit % 64);
            let mut words = [good[0], good[1], 0, 0];
            words[place] |= flag;
            let outcome = decode(words, &caps(), Scalable);
            if used[place] & flag == 0 {
                assert_eq!(outcome, Err(QueueError::Reserved), "{good:x?} bit {bit}");
            }
        }
        for word in [2, 3] {
            let mut words = [good[0], good[1], 0, 0];
            words[word] = 1 << 63;
            assert_eq!(decode(words, &caps(), Scalable), Err(QueueError::Reserved));
        }
    }
}

#[test]
fn modes_and_widths_go_together() {
    let mut none = caps();
    none.ecap.set_smts(false);
    assert_eq!(check_mode(&caps(), Legacy, false), Ok(()));
    assert_eq!(check_mode(&caps(), Legacy, true), Ok(()));
    assert_eq!(check_mode(&caps(), Scalable, true), Ok(()));
    assert_eq!(check_mode(&caps(), Scalable, false), Err(QueueError::Width));
    assert_eq!(check_mode(&none, Legacy, true), Err(QueueError::Width));
    assert_eq!(check_mode(&none, Scalable, true), Err(QueueError::Mode));
    for mode in [TableMode::Reserved, TableMode::AbortDma] {
        assert_eq!(check_mode(&caps(), mode, true), Err(QueueError::Mode));
    }
}
