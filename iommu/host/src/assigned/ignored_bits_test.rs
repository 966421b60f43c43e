//! What an invalidation does not say: bits that the unit ignores mislead no shadow.

use super::testing::*;
use crate::fake::FakeFeatures;

const A: intel_vtd::SourceId = SOURCES[0];
const QUEUE: u64 = 0x3f_0000;
const STATUS: u64 = 0x3f_8000;

/// Writes descriptors of 128 bits into a queue that is empty, and has them carried out.
fn submit(guest: &Guest, descriptors: &[[u64; 2]]) {
    let write = |at: u64, value: u64| guest.unit.write(at, &value.to_le_bytes());
    write(0x90, QUEUE);
    // QIE.
    guest.unit.write(0x18, &0x0400_0000_u32.to_le_bytes());
    for (place, descriptor) in (QUEUE..).step_by(16).zip(descriptors) {
        guest.world.set(place, descriptor[0]);
        guest.world.set(place + 8, descriptor[1]);
    }
    guest.world.set(STATUS, 0);
    write(0x88, 16 * descriptors.len() as u64);
    assert_eq!(guest.world.get(STATUS), 1, "the wait has completed");
}

#[test]
fn a_page_that_is_unmapped_under_an_address_with_bits_beyond_mgaw_is_out_of_reach() {
    let (guest, ids) = Guest::with(&[FakeFeatures {
        first_stage: false,
        nesting: false,
        ..FakeFeatures::default()
    }]);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x8000_0000, 0x100_0000, 2, 3);
    guest.shadow(A, &paging, 5);
    assert_eq!(guest.dma(ids[0], 0x8000_1000), Some((0x100_1000, "rw")));
    guest.unmap(&paging, 0x8000_1000, 1);
    // Domain 5, that page, as an address that is sign-extended from bit 47; and a wait.
    let descriptors = [
        [0x0005_0032, 0xffff_0000_8000_1000],
        [0x1_0000_0025, STATUS],
    ];
    submit(&guest, &descriptors);
    assert_eq!(guest.dma(ids[0], 0x8000_1000), None);
    assert_eq!(guest.dma(ids[0], 0x8000_0000), Some((0x100_0000, "rw")));
}
