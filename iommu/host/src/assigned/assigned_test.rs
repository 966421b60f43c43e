//! Devices are where the guest's tables put them.

use super::testing::*;
use super::*;
use crate::fake::{Call, FakeFeatures, FakeHost, errno};
use crate::host_iommu::HostDeviceId;
use intel_vtd::Latched;
use intel_vtd::spec::descriptors::IotlbScope;
use intel_vtd::spec::registers::TableMode;
use intel_vtd::testing::tables::Paging;

const A: SourceId = SOURCES[0];
const B: SourceId = SOURCES[1];
const RW: u64 = 3;

const PLAIN: FakeFeatures = FakeFeatures {
    address_bits: 48,
    coherent: true,
    first_stage: false,
    nesting: false,
    whole_first_stage: false,
    dirty_tracking: false,
    pasid_bits: 0,
    page_requests: false,
    tracks_pasids: false,
    read_only_parents: false,
    reserved: None,
};

fn is_shadow(binding: Placement) -> bool {
    matches!(binding, Placement::Shadow { .. })
}

fn blocked(binding: Placement) -> Option<Blocked> {
    match binding {
        Placement::Blocked(why) => Some(why),
        _ => None,
    }
}

fn shares(guest: &Guest) -> Vec<(u64, u64, u64)> {
    let calls = guest.host.take_calls();
    let shares = calls.iter().filter_map(|(call, _)| match call {
        Call::Share(mapping) => Some((
            mapping.target_address,
            mapping.source_address,
            mapping.length,
        )),
        _ => None,
    });
    shares.collect()
}

#[test]
fn a_device_goes_where_its_entry_says() {
    let (guest, ids) = Guest::with(&[PLAIN]);
    let device = ids[0];
    assert_eq!(guest.dma(device, 0x5000), None, "no entry is present");
    assert!(blocked(guest.binding(A)).unwrap().is_asked_for());

    guest.enter_pass_through(A);
    guest.announce_entry(1);
    assert_eq!(guest.binding(A), Placement::GuestPhysical);
    assert_eq!(guest.dma(device, 0x5000), Some((0x5000, "rw")));

    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x8000_0000, 0x30_0000, 1, RW);
    guest.shadow(A, &paging, 5);
    assert!(is_shadow(guest.binding(A)));
    assert_eq!(guest.dma(device, 0x8000_0000), Some((0x30_0000, "rw")));
    assert_eq!(guest.dma(device, 0x5000), None);

    let first = guest.world.first_stage(4);
    guest.enter_first_stage(A, first.top);
    guest.invalidate(&[CONTEXT]);
    assert_eq!(blocked(guest.binding(A)), Some(Blocked::FirstStage));
    assert_eq!(guest.dma(device, 0x8000_0000), None);

    guest.enter_nothing(A);
    guest.invalidate(&[Invalidation::All]);
    assert!(blocked(guest.binding(A)).unwrap().is_asked_for());
    assert_eq!(guest.host.attached(device), None);
    // Guest memory and its page table.
    assert_eq!(guest.host.objects(), 2);
}

#[test]
fn translation_off_is_guest_memory_and_reset_brings_it_back() {
    let (guest, ids) = Guest::with(&[PLAIN]);
    let paging = guest.world.second_stage(3);
    guest.map(&paging, 0, 0x30_0000, 1, RW);
    guest.shadow(A, &paging, 5);
    guest.unit.reset();
    assert_eq!(guest.dma(ids[0], 0), Some((0, "rw")));
    assert_eq!(guest.host.objects(), 2);
    guest.unit.dma_state().set_latched(guest.world.latched);
    guest.change_translation();
    assert_eq!(guest.dma(ids[0], 0), Some((0x30_0000, "rw")));
    guest.unit.dma_state().set_latched(Latched::default());
    guest.change_translation();
    assert_eq!(guest.dma(ids[0], 0), Some((0, "rw")));
}

#[test]
fn legacy_tables_are_shadowed_under_their_domain_id() {
    let (guest, ids) = Guest::with(&[PLAIN]);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x1000, 0x30_0000, 1, RW);
    let mut latched = guest.world.latched;
    latched.root.mode = TableMode::Legacy;
    guest.unit.dma_state().set_latched(latched);
    guest.change_translation();
    assert_eq!(guest.dma(ids[0], 0x1000), None);
    guest.world.set_context(paging.top | 1, 0x502);
    guest.invalidate(&[CONTEXT]);
    assert_eq!(guest.dma(ids[0], 0x1000), Some((0x30_0000, "rw")));
    guest.unmap(&paging, 0x1000, 1);
    guest.invalidate(&[pages(5, 0x1000, 0)]);
    assert_eq!(guest.dma(ids[0], 0x1000), None);
    // TT 10 is pass-through.
    guest.world.set_context(paging.top | 9, 0x502);
    guest.invalidate(&[CONTEXT]);
    assert_eq!(guest.dma(ids[0], 0x1000), Some((0x1000, "rw")));
}

#[test]
fn without_a_unit_devices_have_guest_memory_and_no_interrupt_range() {
    let host = FakeHost::new();
    let mut pieces = ram();
    pieces[1].guest_address = 0xfed0_0000;
    let devices = AssignedDevices::<Memory>::new(pieces, None, Limits::default());
    let device = assigned_device(&host, A, PLAIN);
    let id = device.id;
    devices.add(device).unwrap();
    let goes = |address| host.dma(id, address).map(|to| to.offset);
    assert_eq!(goes(0x1000), Some(0x1000));
    assert_eq!(goes(0xfedf_ffff), Some(MIDDLE + 0xf_ffff));
    assert_eq!(goes(0xfee0_0000), None);
    assert_eq!(goes(0xfeef_ffff), None);
    assert_eq!(goes(0xfef0_0000), Some(MIDDLE + 0x20_0000));
}

#[test]
fn a_shadow_is_filled_before_a_device_is_attached_to_it() {
    let (guest, _) = Guest::with(&[PLAIN]);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x1000, 0x30_0000, 3, RW);
    guest.map(&paging, 0x9000, 0x40_0000, 1, RW);
    guest.shadow(A, &paging, 5);
    let calls = guest.host.take_calls();
    let at = |wanted: fn(&Call) -> bool| {
        calls
            .iter()
            .enumerate()
            .filter(|(_, (call, _))| wanted(call))
            .map(|(at, _)| at)
            .collect::<Vec<_>>()
    };
    let shares = at(|call| matches!(call, Call::Share(_)));
    let attaches = at(|call| matches!(call, Call::Attach { .. }));
    assert_eq!((shares.len(), attaches.len()), (2, 1));
    assert!(shares[1] < attaches[0]);
}

#[test]
fn one_call_maps_what_one_invalidation_announced_and_one_unmaps_it() {
    let (guest, ids) = Guest::with(&[PLAIN]);
    let paging = guest.world.second_stage(4);
    guest.shadow(A, &paging, 5);
    guest.host.take_calls();
    // A page, and beside it 256 more that go on where it ends.
    guest.map(&paging, 0x4000_0000, 0x40_0000, 1, RW);
    guest.invalidate(&[pages(5, 0x4000_0000, 0)]);
    assert_eq!(shares(&guest), [(0x4000_0000, 0x40_0000, 0x1000)]);
    guest.map(&paging, 0x4000_1000, 0x40_1000, 256, RW);
    // The block that Linux names holds the first page, too.
    guest.invalidate(&[pages(5, 0x4000_0000, 9)]);
    assert_eq!(shares(&guest), [(0x4000_1000, 0x40_1000, 0x10_0000)]);
    assert_eq!(guest.dma(ids[0], 0x4010_0123), Some((0x50_0123, "rw")));

    guest.unmap(&paging, 0x4000_1000, 256);
    guest.invalidate(&[pages(5, 0x4000_0000, 9)]);
    let ioas = match guest.host.take_calls()[..] {
        [
            (
                Call::Unmap {
                    ioas,
                    address: 0x4000_1000,
                    length: 0x10_0000,
                },
                Ok(()),
            ),
        ] => ioas,
        ref calls => panic!("{calls:?}"),
    };
    guest.unmap(&paging, 0x4000_0000, 1);
    guest.invalidate(&[pages(5, 0x4000_0000, 0)]);
    let gone = Call::Unmap {
        ioas,
        address: 0x4000_0000,
        length: 0x1000,
    };
    assert_eq!(guest.host.take_calls(), [(gone, Ok(()))]);
    assert_eq!(guest.devices.mapped(), (0, 0));
}

#[test]
fn nothing_is_called_when_nothing_changed() {
    let (guest, _) = Guest::with(&[PLAIN, PLAIN]);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x4000_0000, 0x40_0000, 20, RW);
    guest.shadow(A, &paging, 5);
    guest.enter_pass_through(B);
    guest.announce_entry(1);
    guest.host.take_calls();
    guest.invalidate(&[
        pages(5, 0x4000_0000, 3),
        Invalidation::Iotlb(IotlbScope::Global),
        Invalidation::All,
    ]);
    guest.invalidate(&[pages(6, 0, 18), Invalidation::Iotlb(IotlbScope::Domain(9))]);
    guest.change_translation();
    assert_eq!(guest.host.take_calls(), []);
}

#[test]
fn what_is_announced_apart_at_once_stays_apart() {
    let (guest, _) = Guest::with(&[PLAIN]);
    let paging = guest.world.second_stage(4);
    guest.shadow(A, &paging, 5);
    guest.host.take_calls();
    guest.map(&paging, 0x1000, 0x40_1000, 2, RW);
    // A block is walked once, though it is named twice, and within another.
    guest.invalidate(&[
        pages(5, 0x2000, 0),
        pages(5, 0x1000, 0),
        pages(5, 0x2000, 0),
    ]);
    assert_eq!(
        shares(&guest),
        [(0x1000, 0x40_1000, 0x1000), (0x2000, 0x40_2000, 0x1000)]
    );
    guest.unmap(&paging, 0x1000, 2);
    guest.invalidate(&[pages(5, 0x2000, 0), pages(5, 0, 2), pages(5, 0x1000, 0)]);
    assert_eq!(
        guest.host.take_calls().len(),
        1,
        "neighbours go by one call"
    );
    assert_eq!(guest.devices.mapped(), (0, 0));
}

#[test]
fn many_pages_that_are_unmapped_at_once_take_one_call() {
    let (guest, ids) = Guest::with(&[PLAIN]);
    let paging = guest.world.second_stage(4);
    guest.shadow(A, &paging, 5);
    // Neighbours, and others beside them with nothing between that is mapped; one stays.
    let near = (0..40).chain((50..90).step_by(4));
    let near: Vec<u64> = near.map(|page| 0x4000_0000 + page * 0x1000).collect();
    let announced: Vec<_> = near.iter().map(|address| pages(5, *address, 0)).collect();
    let stays = 0x4000_0000 + 100 * 0x1000;
    let far = [stays + 0x1000, stays + 0x3000];
    for address in near.iter().chain(&far).chain(&[stays]) {
        guest.map(&paging, *address, 0x40_0000, 1, RW);
        guest.invalidate(&[pages(5, *address, 0)]);
    }
    assert_eq!(guest.devices.mapped().0, 53);
    guest.host.take_calls();
    for address in near.iter().chain(&far) {
        guest.unmap(&paging, *address, 1);
    }
    let far = far.map(|address| pages(5, address, 0));
    let announced: Vec<_> = far.into_iter().chain(announced).collect();
    guest.invalidate(&announced);
    let calls = guest.host.take_calls();
    let unmapped: Vec<_> = calls
        .iter()
        .map(|(call, outcome)| match call {
            Call::Unmap {
                address, length, ..
            } if outcome.is_ok() => (*address, *length),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        unmapped,
        [(0x4000_0000, 0x5_7000), (stays + 0x1000, 0x3000)]
    );
    assert_eq!(guest.dma(ids[0], stays), Some((0x40_0000, "rw")));
    for address in near {
        assert_eq!(guest.dma(ids[0], address), None);
    }
    // Each was mapped by itself, so that each can go by itself.
    assert_eq!(guest.devices.statistics().splits, 0);
}

/// A guest with a device that reaches 16 pages, which are one area of its shadow.
fn with_16_pages() -> (Guest, Vec<HostDeviceId>, Paging) {
    let (guest, ids) = Guest::with(&[PLAIN]);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x1_0000, 0x40_0000, 16, RW);
    guest.shadow(A, &paging, 5);
    (guest, ids, paging)
}

/// The device reaches all of them but those that are `gone`.
fn expect_all_but(guest: &Guest, device: HostDeviceId, gone: &[u64]) {
    for page in 0..16 {
        let address = 0x1_0000 + page * 0x1000;
        let stays = !gone.contains(&page);
        let expected = stays.then_some((0x40_0000 + page * 0x1000, "rw"));
        assert_eq!(guest.dma(device, address), expected);
    }
}

#[test]
fn an_area_of_which_several_parts_change_at_once_is_done_over_once() {
    let (guest, ids, paging) = with_16_pages();
    guest.host.take_calls();
    guest.unmap(&paging, 0x1_5000, 1);
    guest.unmap(&paging, 0x1_9000, 2);
    let announced = [0x1_9000, 0x1_5000, 0x1_a000, 0x1_7000];
    guest.invalidate(&announced.map(|address| pages(5, address, 0)));
    assert_eq!(
        shares(&guest),
        [
            (0x1_0000, 0x40_0000, 0x4000),
            (0x1_4000, 0x40_4000, 0x1000),
            (0x1_6000, 0x40_6000, 0x1000),
            (0x1_7000, 0x40_7000, 0x1000),
            (0x1_8000, 0x40_8000, 0x1000),
            (0x1_b000, 0x40_b000, 0x1000),
            (0x1_c000, 0x40_c000, 0x4000),
        ]
    );
    expect_all_but(&guest, ids[0], &[5, 9, 10]);
    assert_eq!(guest.devices.statistics().splits, 1);
    assert_eq!(guest.devices.statistics().unmaps, 1);
}

#[test]
fn a_part_that_is_unmapped_takes_the_area_with_it_and_the_rest_comes_back() {
    let (guest, ids, paging) = with_16_pages();
    guest.host.take_calls();
    guest.unmap(&paging, 0x1_5000, 1);
    guest.invalidate(&[pages(5, 0x1_5000, 0)]);
    assert_eq!(
        shares(&guest),
        [
            (0x1_0000, 0x40_0000, 0x4000),
            (0x1_4000, 0x40_4000, 0x1000),
            (0x1_6000, 0x40_6000, 0x2000),
            (0x1_8000, 0x40_8000, 0x8000),
        ]
    );
    expect_all_but(&guest, ids[0], &[5]);
    assert_eq!(guest.devices.statistics().splits, 1);
    assert_eq!(guest.devices.mapped(), (4, 0xf000));
}

/// Wherever it is interrupted: an area that is unmapped is not found again, but what of it nobody has
/// named comes back.
#[test]
fn an_area_that_was_unmapped_before_an_interruption_comes_back_but_for_what_is_gone() {
    for patience in 1..700 {
        let (guest, ids, paging) = with_16_pages();
        guest.impatience.set(patience);
        guest.unmap(&paging, 0x1_5000, 1);
        guest.invalidate(&[pages(5, 0x1_5000, 0)]);
        println!("{patience} steps");
        expect_all_but(&guest, ids[0], &[5]);
    }
}

#[test]
fn rights_and_places_that_change_are_unmapped_before_anything_is_mapped() {
    let (guest, ids) = Guest::with(&[PLAIN]);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x1000, 0x40_0000, 1, RW);
    guest.map(&paging, 0x3000, 0x50_0000, 1, RW);
    guest.shadow(A, &paging, 5);
    guest.host.take_calls();
    guest.map(&paging, 0x1000, 0x40_0000, 1, 1);
    guest.map(&paging, 0x3000, 0x60_0000, 1, RW);
    guest.invalidate(&[pages(5, 0x1000, 0), pages(5, 0x3000, 0)]);
    let calls = guest.host.take_calls();
    let kinds: Vec<bool> = calls
        .iter()
        .map(|(call, _)| matches!(call, Call::Unmap { .. }))
        .collect();
    assert_eq!(kinds, [true, false, false]);
    assert_eq!(guest.dma(ids[0], 0x1000), Some((0x40_0000, "r")));
    assert_eq!(guest.dma(ids[0], 0x3000), Some((0x60_0000, "rw")));
}

#[test]
fn only_ram_is_reached_and_never_where_interrupts_go() {
    let (guest, ids) = Guest::with(&[FakeFeatures {
        address_bits: 39,
        ..PLAIN
    }]);
    let paging = guest.world.second_stage(4);
    let end = 0x400_0000;
    // Over both pieces of RAM, and beyond.
    guest.map(&paging, 0x10_0000, MIDDLE - 0x1000, 2, RW);
    guest.map(&paging, 0x20_0000, end - 0x1000, 3, RW);
    // Across the interrupt range, and across what 39 bits reach.
    guest.map(&paging, 0xfedf_f000, 0x40_0000, 258, RW);
    guest.map(&paging, 0x7f_ffff_f000, 0x30_0000, 2, RW);
    guest.shadow(A, &paging, 5);
    assert_eq!(
        shares(&guest),
        [
            (0x10_0000, MIDDLE - 0x1000, 0x1000),
            (0x10_1000, MIDDLE, 0x1000),
            (0x20_0000, end - 0x1000, 0x1000),
            (0xfedf_f000, 0x40_0000, 0x1000),
            (0xfef0_0000, 0x50_1000, 0x1000),
            (0x7f_ffff_f000, 0x30_0000, 0x1000),
        ]
    );
    assert_eq!(guest.dma(ids[0], 0xfee0_1000), None);
    // And it stays so.
    guest.invalidate(&[Invalidation::Iotlb(IotlbScope::Global)]);
    assert_eq!(guest.host.take_calls(), []);
}

#[test]
fn devices_of_the_same_tables_share_a_shadow_whatever_their_domain_ids() {
    let (guest, ids) = Guest::with(&[PLAIN, PLAIN, PLAIN]);
    let (paging, other) = (guest.world.second_stage(4), guest.world.second_stage(4));
    guest.shadow(A, &paging, 5);
    guest.shadow(B, &paging, 6);
    guest.shadow(SOURCES[2], &other, 7);
    assert_eq!(guest.host.objects(), 2 + 2 + 2);
    guest.host.take_calls();
    for (domain, address) in [(5, 0x1000), (6, 0x2000)] {
        guest.map(&paging, address, 0x40_0000, 1, RW);
        guest.invalidate(&[pages(domain, address, 0)]);
        assert_eq!(shares(&guest).len(), 1);
        for id in &ids[..2] {
            assert_eq!(guest.dma(*id, address), Some((0x40_0000, "rw")));
        }
        assert_eq!(guest.dma(ids[2], address), None);
    }
    guest.map(&paging, 0x3000, 0x40_0000, 1, RW);
    guest.invalidate(&[pages(7, 0x3000, 0)]);
    assert_eq!(guest.host.take_calls(), [], "not of this domain");
    // One leaves, the other stays.
    guest.enter_nothing(A);
    guest.invalidate(&[CONTEXT]);
    assert_eq!(guest.dma(ids[0], 0x1000), None);
    assert_eq!(guest.dma(ids[1], 0x1000), Some((0x40_0000, "rw")));
    guest.enter_nothing(B);
    guest.invalidate(&[CONTEXT]);
    assert_eq!(guest.host.objects(), 4);
}

#[test]
fn a_device_that_takes_no_page_table_of_a_space_gets_one_of_its_own() {
    let loose = FakeFeatures {
        coherent: false,
        ..PLAIN
    };
    let (guest, ids) = Guest::with(&[PLAIN, loose]);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x1000, 0x40_0000, 1, RW);
    guest.shadow(A, &paging, 5);
    guest.shadow(B, &paging, 5);
    for id in &ids {
        assert_eq!(guest.dma(*id, 0x1000), Some((0x40_0000, "rw")));
    }
    // One page table of guest memory, as the second device was never there, and two of the shadow.
    assert_eq!(guest.host.objects(), 2 + 3);
    for source in [A, B] {
        guest.enter_pass_through(source);
    }
    guest.invalidate(&[CONTEXT]);
    for id in ids {
        assert_eq!(guest.dma(id, 0x1000), Some((0x1000, "rw")));
    }
    assert_eq!(guest.host.objects(), 3);
}

#[test]
fn pages_that_can_only_be_written_are_readable_where_the_host_has_none_such() {
    let first = FakeFeatures {
        first_stage: true,
        ..PLAIN
    };
    let tracking = FakeFeatures {
        dirty_tracking: true,
        ..first
    };
    for (features, reached) in [
        (PLAIN, Some((0x40_0000, "w"))),
        (first, Some((0x40_0000, "rw"))),
        (tracking, Some((0x40_0000, "w"))),
    ] {
        let (guest, ids) = Guest::with(&[features]);
        let paging = guest.world.second_stage(4);
        guest.map(&paging, 0x1000, 0x40_0000, 1, 2);
        guest.shadow(A, &paging, 5);
        assert_eq!(guest.dma(ids[0], 0x1000), reached);
        let more = guest.devices.statistics().write_only_bytes;
        assert_eq!(more != 0, reached == Some((0x40_0000, "rw")));
    }
}

#[test]
fn a_page_table_that_knows_no_write_only_pages_takes_them_from_nobody() {
    let tracking = FakeFeatures {
        dirty_tracking: true,
        ..PLAIN
    };
    let first = FakeFeatures {
        first_stage: true,
        coherent: false,
        ..PLAIN
    };
    let (guest, ids) = Guest::with(&[tracking, first]);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x1000, 0x40_0000, 1, 2);
    guest.map(&paging, 0x2000, 0x50_0000, 1, 3);
    guest.shadow(A, &paging, 5);
    assert_eq!(guest.dma(ids[0], 0x1000), Some((0x40_0000, "w")));
    guest.shadow(B, &paging, 5);
    assert_eq!(guest.dma(ids[0], 0x1000), Some((0x40_0000, "w")));
    assert_eq!(guest.dma(ids[1], 0x1000), Some((0x40_0000, "rw")));
    assert_eq!(guest.dma(ids[1], 0x2000), Some((0x50_0000, "rw")));
}

#[test]
fn a_guest_that_maps_too_many_pieces_is_blocked_until_it_sets_the_device_up_anew() {
    // For nine areas in each shadow: tables of four levels, and 320 bytes for each area.
    let guest = Guest::new(Limits {
        shadow_memory: 4 * (4 * 4096 + 9 * 320),
        ..Limits::default()
    });
    let ids = [guest.add(A, PLAIN), guest.add(B, PLAIN)];
    let (paging, other) = (guest.world.second_stage(4), guest.world.second_stage(4));
    guest.map(&other, 0x1000, 0x40_0000, 1, RW);
    guest.shadow(A, &paging, 5);
    guest.shadow(B, &other, 6);
    for page in 0..10 {
        guest.map(&paging, page * 0x2000, 0x30_0000, 1, RW);
    }
    guest.invalidate(&[pages(5, 0, 18)]);
    assert_eq!(blocked(guest.binding(A)), Some(Blocked::TooManyAreas));
    assert_eq!(guest.dma(ids[0], 0), None);
    assert_eq!(guest.dma(ids[1], 0x1000), Some((0x40_0000, "rw")));
    // Its areas are free for others.
    assert_eq!(guest.devices.mapped(), (1, 0x1000));
    guest.unmap(&paging, 0, 1);
    guest.invalidate(&[pages(5, 0, 0)]);
    assert_eq!(blocked(guest.binding(A)), Some(Blocked::TooManyAreas));
    guest.invalidate(&[CONTEXT]);
    assert!(is_shadow(guest.binding(A)));
    assert_eq!(guest.devices.mapped(), (10, 0xa000));
    assert_eq!(guest.dma(ids[0], 0x2000), Some((0x30_0000, "rw")));
}

#[test]
fn work_for_one_exit_is_bounded() {
    let guest = Guest::new(Limits {
        // A call of the host is 100, a table 8, a run 1.
        steps_per_exit: 100 + 119 * (4 * 8 + 1) + 32,
        ..Limits::default()
    });
    let id = guest.add(A, PLAIN);
    let paging = guest.world.second_stage(4);
    guest.shadow(A, &paging, 5);
    guest.map(&paging, 0x1000, 0x30_0000, 1, RW);
    guest.devices.run_begins();
    // Four tables and a run each, and a call of the host once.
    for _ in 0..119 {
        guest.tell(&[pages(5, 0x1000, 0)]);
    }
    assert_eq!(guest.dma(id, 0x1000), Some((0x30_0000, "rw")));
    guest.tell(&[pages(5, 0x1000, 0)]);
    assert_eq!(blocked(guest.binding(A)), Some(Blocked::TooMuchWork));
    guest.tell(&[CONTEXT]);
    assert_eq!(
        blocked(guest.binding(A)),
        Some(Blocked::TooMuchWork),
        "not in the same exit"
    );
    guest.devices.run_begins();
    guest.tell(&[CONTEXT]);
    assert_eq!(guest.dma(id, 0x1000), Some((0x30_0000, "rw")));
}

#[test]
fn a_page_that_the_host_does_not_map_stays_unmapped_until_it_is_announced_again() {
    let (guest, ids) = Guest::with(&[PLAIN]);
    let paging = guest.world.second_stage(4);
    guest.shadow(A, &paging, 5);
    guest.map(&paging, 0x1000, 0x30_0000, 2, RW);
    guest.host.fail_after(0, errno::ENOMEM);
    guest.invalidate(&[pages(5, 0x1000, 0), pages(5, 0x2000, 0)]);
    assert_eq!(guest.dma(ids[0], 0x1000), None);
    assert_eq!(guest.dma(ids[0], 0x2000), Some((0x30_1000, "rw")));
    assert_eq!(guest.devices.statistics().map_failures, 1);
    guest.invalidate(&[pages(5, 0, 2)]);
    assert_eq!(guest.dma(ids[0], 0x1000), Some((0x30_0000, "rw")));
}

#[test]
fn what_the_host_does_not_unmap_is_out_of_reach_nevertheless() {
    let (guest, ids) = Guest::with(&[PLAIN, PLAIN]);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x1000, 0x30_0000, 2, RW);
    guest.shadow(A, &paging, 5);
    guest.shadow(B, &paging, 5);
    guest.unmap(&paging, 0x1000, 1);
    guest.host.fail_after(0, errno::EBUSY);
    guest.invalidate(&[pages(5, 0x1000, 0)]);
    for (id, source) in ids.iter().zip([A, B]) {
        assert_eq!(guest.dma(*id, 0x1000), None);
        assert_eq!(
            blocked(guest.binding(source)),
            Some(Blocked::Host(Some(errno::EBUSY)))
        );
    }
    guest.invalidate(&[CONTEXT]);
    for id in ids {
        assert_eq!(guest.dma(id, 0x1000), None);
        assert_eq!(guest.dma(id, 0x2000), Some((0x30_1000, "rw")));
    }
}

#[test]
fn a_replacement_that_fails_is_done_again_from_a_known_state() {
    let (guest, ids) = Guest::with(&[PLAIN]);
    guest.enter_pass_through(A);
    guest.announce_entry(1);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x1000, 0x30_0000, 1, RW);
    guest.shadow(A, &paging, 5);
    guest.host.take_calls();
    // Back, and the attach fails once: it is detached, and attached again.
    guest.enter_pass_through(A);
    guest.host.fail_after(0, errno::ENOMEM);
    guest.announce_entry(1);
    assert_eq!(guest.binding(A), Placement::GuestPhysical);
    assert_eq!(guest.dma(ids[0], 0x1000), Some((0x1000, "rw")));
    let outcomes: Vec<_> = guest
        .host
        .take_calls()
        .into_iter()
        .take(3)
        .map(|(call, outcome)| (matches!(call, Call::Detach { .. }), outcome.is_ok()))
        .collect();
    assert_eq!(outcomes, [(false, false), (true, true), (false, true)]);
}

#[test]
fn a_device_that_does_not_get_where_it_belongs_is_detached_and_tried_again_later() {
    let (guest, ids) = Guest::with(&[PLAIN]);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x1000, 0x30_0000, 1, RW);
    guest.shadow(A, &paging, 5);
    guest.enter_pass_through(A);
    guest.host.fail_after(0, errno::ENOMEM);
    guest.host.fail_after(2, errno::ENOMEM);
    guest.announce_entry(1);
    assert_eq!(
        blocked(guest.binding(A)),
        Some(Blocked::Host(Some(errno::ENOMEM)))
    );
    assert_eq!(guest.dma(ids[0], 0x1000), None);
    assert_eq!(guest.devices.statistics().failures, 1);
    guest.announce_entry(1);
    assert_eq!(guest.dma(ids[0], 0x1000), Some((0x1000, "rw")));
}

#[test]
fn the_last_device_of_an_iommufd_leaves_nothing_behind() {
    let (guest, ids) = Guest::with(&[PLAIN, PLAIN]);
    let second = FakeHost::new();
    let third = guest.add_of(&second, SOURCES[2]);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x1000, 0x30_0000, 1, RW);
    for source in [A, B, SOURCES[2]] {
        guest.shadow(source, &paging, 5);
    }
    assert_eq!((guest.host.objects(), second.objects()), (4, 4));
    assert_eq!(
        second.dma(third, 0x1000).map(|to| to.offset),
        Some(0x30_0000)
    );
    assert!(guest.devices.remove(A));
    assert!(!guest.devices.remove(A));
    assert_eq!(guest.dma(ids[0], 0x1000), None);
    assert_eq!(guest.dma(ids[1], 0x1000), Some((0x30_0000, "rw")));
    assert!(guest.devices.remove(B));
    assert_eq!(objects(&[&guest.host]), 0);
    assert!(guest.devices.remove(SOURCES[2]));
    assert_eq!(objects(&[&guest.host, &second]), 0);
    assert_eq!(guest.devices.mapped(), (0, 0));
    // And one can come again.
    let again = guest.add(A, PLAIN);
    assert_eq!(guest.dma(again, 0x1000), Some((0x30_0000, "rw")));
}

#[test]
fn what_the_host_refuses_at_first_is_said_and_leaves_nothing() {
    let guest = Guest::new(Limits::default());
    guest.unit.dma_state().set_latched(Latched::default());
    // Hardware info, space, no nesting parent, a page table, ranges, two maps, attach, detach,
    // attach.
    for (call, expected) in [
        (0, "does not tell"),
        (1, "no I/O address space"),
        (3, "no page table"),
        (4, "no page table"),
        (5, "locked"),
        (6, "locked"),
    ] {
        guest.host.fail_after(call, errno::ENOMEM);
        let device = assigned_device(&guest.host, A, PLAIN);
        let error = guest.devices.add(device).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(objects(&[&guest.host]), 0, "{error}");
    }
    guest.host.fail_after(7, errno::ENOMEM);
    guest.host.fail_after(9, errno::ENOMEM);
    let error = guest.devices.add(assigned_device(&guest.host, A, PLAIN));
    assert!(matches!(error, Err(AddError::Attach { .. })), "{error:?}");
    assert_eq!(objects(&[&guest.host]), 0);
    let narrow = FakeFeatures {
        address_bits: 25,
        ..PLAIN
    };
    let error = guest.devices.add(assigned_device(&guest.host, A, narrow));
    assert!(
        matches!(
            error,
            Err(AddError::OutOfReach {
                start: MIDDLE,
                last: 0x3ff_ffff,
                ..
            })
        ),
        "{error:?}"
    );
    assert_eq!(objects(&[&guest.host]), 0);
    guest.add(A, PLAIN);
    let error = guest
        .devices
        .add(assigned_device(&guest.host, A, PLAIN))
        .unwrap_err();
    assert!(matches!(error, AddError::SourceTaken { .. }));
}

#[test]
fn guest_memory_is_a_nesting_parent_where_the_host_can() {
    for (nesting, dirty_tracking) in [(false, false), (true, false), (false, true), (true, true)] {
        let guest = Guest::new(Limits::default());
        guest.add(
            A,
            FakeFeatures {
                nesting,
                dirty_tracking,
                ..PLAIN
            },
        );
        let calls = guest.host.take_calls();
        let options = calls.iter().find_map(|(call, outcome)| match call {
            Call::AllocateHwpt { options, .. } if outcome.is_ok() => Some(*options),
            _ => None,
        });
        let options = options.unwrap();
        assert_eq!(
            (options.nesting_parent, options.dirty_tracking),
            (nesting, dirty_tracking)
        );
    }
}

#[test]
fn written_pages_are_found_behind_memory_and_behind_shadows() {
    let tracking = FakeFeatures {
        dirty_tracking: true,
        ..PLAIN
    };
    let (guest, ids) = Guest::with(&[tracking, tracking]);
    guest.enter_pass_through(A);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x8000_0000, 0x30_0000, 8, RW);
    guest.map(&paging, 0x9000_0000, MIDDLE, 1, RW);
    guest.announce_entry(1);
    guest.shadow(B, &paging, 5);
    let dirty = || {
        let mut found = Vec::new();
        guest
            .devices
            .dirty_pages(&mut |address, pages| found.push((address, pages)))
            .map(|()| found)
    };
    assert!(matches!(dirty(), Err(DirtyTrackingError::Off)));
    guest.devices.start_dirty_tracking().unwrap();
    guest.host.write(ids[0], 0x5_0000).unwrap();
    guest.host.write(ids[1], 0x8000_0000).unwrap();
    guest.host.write(ids[1], 0x8000_1000).unwrap();
    guest.host.write(ids[1], 0x8000_7fff).unwrap();
    guest.host.write(ids[1], 0x9000_0000).unwrap();
    // This mapping is gone before anybody asks.
    guest.unmap(&paging, 0x9000_0000, 1);
    guest.invalidate(&[pages(5, 0x9000_0000, 0)]);
    assert_eq!(
        dirty().unwrap(),
        [(0x5_0000, 1), (0x30_0000, 2), (0x30_7000, 1), (MIDDLE, 1)]
    );
    assert_eq!(dirty().unwrap(), []);
    // The shadow goes, and with the device another one comes.
    guest.host.write(ids[1], 0x8000_2000).unwrap();
    guest.enter_nothing(B);
    guest.invalidate(&[CONTEXT]);
    let other = guest.world.second_stage(4);
    guest.map(&other, 0, 0x70_0000, 1, RW);
    guest.shadow(B, &other, 6);
    guest.host.write(ids[1], 0).unwrap();
    assert_eq!(dirty().unwrap(), [(0x30_2000, 1), (0x70_0000, 1)]);
    guest.devices.stop_dirty_tracking();
    assert!(dirty().is_err());
}

#[test]
fn a_host_that_cannot_track_is_named() {
    let (guest, _) = Guest::with(&[PLAIN]);
    let error = guest.devices.start_dirty_tracking().unwrap_err();
    let name = guest.devices.describe()[0].name.to_string();
    assert!(error.to_string().contains(&name), "{error}");
    assert!(guest.devices.dirty_pages(&mut |_, _| {}).is_err());
}

#[test]
fn all_counts_as_written_where_the_host_does_not_tell() {
    let tracking = FakeFeatures {
        dirty_tracking: true,
        ..PLAIN
    };
    let (guest, _) = Guest::with(&[tracking]);
    guest.enter_pass_through(A);
    guest.enter_pass_through(B);
    guest.announce_entry(1);
    guest.devices.start_dirty_tracking().unwrap();
    // It gets a page table of its own.
    let loose = FakeFeatures {
        coherent: false,
        ..PLAIN
    };
    guest.add(B, loose);
    let mut found = Vec::new();
    let outcome = guest
        .devices
        .dirty_pages(&mut |address, pages| found.push((address, pages)));
    outcome.unwrap();
    assert_eq!(found, [(0, 0x2000), (MIDDLE, 0x2000)]);
}

#[test]
fn each_device_is_a_line() {
    let (guest, _) = Guest::with(&[PLAIN, PLAIN, PLAIN]);
    let paging = guest.world.second_stage(4);
    guest.map(&paging, 0x1000, 0x30_0000, 2, RW);
    guest.shadow(A, &paging, 5);
    guest.enter_pass_through(B);
    guest.announce_entry(1);
    let top = paging.top;
    let names: Vec<_> = guest
        .devices
        .describe()
        .into_iter()
        .map(|report| report.name)
        .collect();
    assert_eq!(
        guest.devices.to_string(),
        format!(
            "00:03.0 {}: shadow of second-stage {top:#x}, 4 levels PWSNP, domain 5: 8 KiB in 1 areas\n\
             00:04.0 {}: guest-physical memory\n\
             00:05.0 {}: blocked: the guest's tables block it (0x41 ScalableContextNotPresent)\n",
            names[0], names[1], names[2]
        )
    );
}

#[test]
fn objects_that_the_host_kept_are_destroyed_later() {
    let (guest, _) = Guest::with(&[PLAIN]);
    let paging = guest.world.second_stage(4);
    guest.shadow(A, &paging, 5);
    guest.enter_nothing(A);
    // Detach, then the page table stays, and so does what it is on.
    guest.host.fail_after(1, errno::EBUSY);
    guest.invalidate(&[CONTEXT]);
    assert_eq!(guest.host.objects(), 4);
    guest.invalidate(&[CONTEXT]);
    assert_eq!(guest.host.objects(), 2);
}
