//! The descriptor that software reads.

use super::*;

fn words(request: &PageRequest) -> [u64; 4] {
    PageRequestDescriptor::describe(SourceId(0x1234), request).words()
}

#[test]
fn each_field_has_its_place() {
    let request = PageRequest {
        pasid: Pasid::new(0xABCDE),
        address: 0xFEDC_BA98_7654_3210,
        read: false,
        write: true,
        execute: false,
        privileged: true,
        group: 0x1A5,
        last: true,
    };
    assert_eq!(
        words(&request),
        [0x002A_BCDE_1234_0101, 0xFEDC_BA98_7654_3D2E, 0, 0]
    );
    let other = PageRequest {
        read: true,
        write: false,
        execute: true,
        privileged: false,
        group: 0,
        last: false,
        ..request
    };
    assert_eq!(
        words(&other),
        [0x001A_BCDE_1234_0101, 0xFEDC_BA98_7654_3001, 0, 0]
    );
}

#[test]
fn without_a_pasid_there_is_nothing_that_needs_one() {
    let request = PageRequest {
        execute: true,
        privileged: true,
        read: true,
        ..PageRequest::default()
    };
    assert_eq!(words(&request), [0x1234_0001, 1, 0, 0]);
}

#[test]
fn a_group_index_has_nine_bits() {
    let request = PageRequest {
        group: 0xFFFF,
        ..PageRequest::default()
    };
    assert_eq!(words(&request)[1], 0xFF8);
}
