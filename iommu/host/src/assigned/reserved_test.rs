//! Devices that bring reserved regions: addresses at which the host maps nothing for them.

use super::testing::*;
use super::*;
use crate::fake::FakeFeatures;

const A: SourceId = SOURCES[0];
const RW: u64 = 3;
/// Beyond guest memory, but not beyond what the guest's tables map.
const FIRST: u64 = 0x10_0000_0000;
const RESERVING: FakeFeatures = FakeFeatures {
    reserved: Some((FIRST, FIRST + 0xffff)),
    ..SHADOWED
};

#[test]
fn what_the_guest_maps_later_where_the_host_cannot_is_counted() {
    let (guest, ids) = Guest::with(&[RESERVING]);
    let paging = guest.world.second_stage(4);
    guest.shadow(A, &paging, 5);
    guest.map(&paging, FIRST - 0x2000, 0x40_0000, 4, RW);
    guest.invalidate(&[pages(5, FIRST - 0x2000, 2)]);
    assert_eq!(guest.dma(ids[0], FIRST - 0x1000), Some((0x40_1000, "rw")));
    assert_eq!(guest.dma(ids[0], FIRST), None);
    assert_eq!(guest.devices.statistics().outside_bytes, 0x2000);
    // What it maps beside that is not.
    guest.map(&paging, 0x1000, 0x41_0000, 1, RW);
    guest.invalidate(&[pages(5, 0x1000, 0)]);
    assert_eq!(guest.dma(ids[0], 0x1000), Some((0x41_0000, "rw")));
    assert_eq!(guest.devices.statistics().outside_bytes, 0x2000);
}

#[test]
fn what_an_interrupt_is_is_nobody_s_to_map() {
    let (guest, ids) = Guest::with(&[SHADOWED]);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0xfedf_f000, 0x40_0000, 2, RW);
    guest.shadow(A, &paging, 5);
    assert_eq!(guest.dma(ids[0], 0xfedf_f000), Some((0x40_0000, "rw")));
    assert_eq!(guest.dma(ids[0], 0xfee0_0000), None);
    assert_eq!(guest.devices.statistics().outside_bytes, 0);
}
