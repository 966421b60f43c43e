//! Devices that bring reserved regions: addresses at which the host maps nothing for them.

use super::testing::*;
use super::*;
use crate::fake::{FakeFeatures, FakeHost};

const A: SourceId = SOURCES[0];
const B: SourceId = SOURCES[1];
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

#[test]
fn a_device_whose_reserved_region_others_have_pages_in_gets_a_shadow_of_its_own() {
    let (guest, ids) = Guest::with(&[SHADOWED, RESERVING]);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, FIRST - 0x2000, 0x40_0000, 4, RW);
    guest.shadow(A, &paging, 5);
    guest.shadow(B, &paging, 5);
    for id in &ids {
        assert_eq!(guest.dma(*id, FIRST - 0x1000), Some((0x40_1000, "rw")));
    }
    assert_eq!(guest.dma(ids[0], FIRST), Some((0x40_2000, "rw")));
    assert_eq!(guest.dma(ids[1], FIRST), None);
    assert!(guest.devices.statistics().outside_bytes >= 0x2000);
    assert_eq!(guest.devices.statistics().failures, 0);
    // Both follow.
    guest.unmap(&paging, FIRST - 0x1000, 1);
    guest.map(&paging, 0x1000, 0x41_0000, 1, RW);
    guest.invalidate(&[pages(5, FIRST - 0x1000, 0), pages(5, 0x1000, 0)]);
    for id in &ids {
        assert_eq!(guest.dma(*id, FIRST - 0x1000), None);
        assert_eq!(guest.dma(*id, 0x1000), Some((0x41_0000, "rw")));
    }
    // It goes on so, and nothing is left when both have gone elsewhere.
    guest.enter_pass_through(B);
    guest.announce_entry(5);
    assert_eq!(guest.binding(B), Placement::GuestPhysical);
    guest.shadow(B, &paging, 5);
    assert_eq!(guest.dma(ids[1], 0x1000), Some((0x41_0000, "rw")));
    assert!(guest.binding(B).to_string().starts_with("own shadow of"));
    let with_shadows = guest.host.objects();
    for source in [A, B] {
        guest.enter_nothing(source);
    }
    guest.announce_entry(5);
    assert_eq!(guest.host.objects(), with_shadows - 4);
    assert_eq!(guest.devices.mapped(), (0, 0));
}

#[test]
fn a_first_device_with_a_reserved_region_gets_what_the_guest_had_mapped_before() {
    let (guest, ids) = Guest::with(&[RESERVING]);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, FIRST - 0x2000, 0x40_0000, 4, RW);
    guest.shadow(A, &paging, 5);
    assert_eq!(guest.dma(ids[0], FIRST - 0x1000), Some((0x40_1000, "rw")));
    assert_eq!(guest.dma(ids[0], FIRST), None);
}

#[test]
fn first_stage_tables_of_a_device_with_a_reserved_region_are_on_a_shadow_of_its_own() {
    let reserving = FakeFeatures {
        reserved: RESERVING.reserved,
        ..NESTING
    };
    let (guest, ids) = Guest::with(&[NESTING, reserving]);
    let second = guest.world.second_stage(4);
    let first = guest.world.first_stage(4);
    guest.map(&first, 0x1000, 0x8000_0000, 1, 7);
    guest.map(&first, 0x2000, FIRST, 1, 7);
    for page in 0..8 {
        let table = first.top + page * 0x1000;
        guest.world.map(&second, table, 1, table | RW);
    }
    guest.map(&second, 0x8000_0000, 0x30_0000, 1, RW);
    guest.map(&second, FIRST, 0x31_0000, 1, RW);
    for source in [A, B] {
        guest.enter_nested(source, first.top, &second, 7);
        guest.announce_entry(7);
    }
    for id in &ids {
        assert_eq!(guest.dma(*id, 0x1000), Some((0x30_0000, "rw")));
    }
    assert_eq!(guest.dma(ids[0], 0x2000), Some((0x31_0000, "rw")));
    assert_eq!(guest.dma(ids[1], 0x2000), None);
    assert_eq!(guest.devices.statistics().failures, 0);
}

#[test]
fn a_device_whose_reserved_region_is_in_guest_memory_is_refused_with_the_reason() {
    let guest = Guest::new(Limits::default());
    guest.unit.dma_state().set_latched(Default::default());
    let features = FakeFeatures {
        reserved: Some((0x10_0000, 0x10_ffff)),
        ..SHADOWED
    };
    let host = FakeHost::new();
    let device = assigned_device(&host, A, features);
    let error = guest.devices.add(device).unwrap_err().to_string();
    for part in ["guest memory", "reserved_regions", "less memory"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(host.objects(), 0);
}
