//! Ranges of device-TLB invalidations.

use super::*;

fn range(address: u64, sized: bool) -> (u64, u8) {
    let decoded = DeviceTlbInvalidation::new(DeviceTlbTarget::WithoutPasid, address, sized);
    (decoded.address, decoded.shift)
}

#[test]
fn without_s_the_range_is_a_page() {
    assert_eq!(range(0x1234_5000, false), (0x1234_5000, 12));
    assert_eq!(
        range(0xFFFF_FFFF_FFFF_F000, false),
        (0xFFFF_FFFF_FFFF_F000, 12)
    );
}

#[test]
fn with_s_the_lowest_zero_tells_the_size() {
    assert_eq!(range(0x1234_4000, true), (0x1234_4000, 13));
    assert_eq!(range(0x1234_5000, true), (0x1234_4000, 14));
    assert_eq!(range(0x1234_7000, true), (0x1234_0000, 16));
    assert_eq!(range(0x000F_F000, true), (0, 21));
    // 2 MiB at 0x4000_0000.
    assert_eq!(range(0x400F_F000, true), (0x4000_0000, 21));
    // As Linux flushes all.
    assert_eq!(range(0x7FFF_FFFF_FFFF_F000, true), (0, 64));
    assert_eq!(range(0x3FFF_FFFF_FFFF_F000, true), (0, 63));
    assert_eq!(range(0xFFFF_FFFF_FFFF_F000, true), (0, 64));
}

#[test]
fn a_range_overlaps_the_blocks_it_contains_and_those_that_contain_it() {
    let page = DeviceTlbInvalidation::new(DeviceTlbTarget::WithoutPasid, 0x1234_5000, false);
    assert!(page.overlaps(0x1234_5678, 12));
    assert!(!page.overlaps(0x1234_4FFF, 12));
    assert!(page.overlaps(0x1220_0000, 21));
    assert!(!page.overlaps(0x1240_0000, 21));
    let all = DeviceTlbInvalidation::new(DeviceTlbTarget::WithoutPasid, u64::MAX >> 1, true);
    assert!(all.overlaps(0, 12) && all.overlaps(u64::MAX, 12));
}

#[test]
fn targets_tell_requests_with_and_without_pasid_apart() {
    let five = Pasid::new(5);
    let concerns = |target, pasid| DeviceTlbInvalidation::new(target, 0, false).concerns(pasid);
    assert!(concerns(DeviceTlbTarget::WithoutPasid, None));
    assert!(!concerns(DeviceTlbTarget::WithoutPasid, five));
    assert!(concerns(DeviceTlbTarget::Pasid(five.unwrap()), five));
    assert!(!concerns(
        DeviceTlbTarget::Pasid(five.unwrap()),
        Pasid::new(6)
    ));
    assert!(!concerns(DeviceTlbTarget::Pasid(Pasid::ZERO), None));
    assert!(concerns(DeviceTlbTarget::AllPasids, five));
    assert!(!concerns(DeviceTlbTarget::AllPasids, None));
}
