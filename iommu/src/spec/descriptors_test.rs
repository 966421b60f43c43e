//! Every descriptor, well-formed and malformed.

use super::*;
use crate::spec::registers::{Capability, ExtendedCapability};
use TableMode::{Legacy, Scalable};

/// 64 Ki domains, page-selective invalidation up to mask 18; queue, interrupts up to mask 15, scalable mode.
fn caps() -> Caps {
    Caps {
        cap: Capability::from_bits(0x0012_0080_0000_0006),
        ecap: ExtendedCapability::from_bits(0x0000_0800_00F0_000A),
    }
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
