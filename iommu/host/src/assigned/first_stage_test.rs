//! Devices behind first-stage tables: where they are, what they reach, and what the host does when
//! it does not do as it is told.

use super::testing::*;
use super::*;
use crate::fake::{Call, FakeFeatures, FakeHost, errno};
use crate::host_iommu::{HostDeviceId, HwptId, NestedInvalidation};
use intel_vtd::spec::descriptors::{IotlbScope, PasidCacheScope};
use intel_vtd::spec::registers::TableMode;
use intel_vtd::testing::tables::Paging;
use intel_vtd::{AddressWidth, Latched, Scalable, Stages, UnitConfig};

const A: SourceId = SOURCES[0];
const B: SourceId = SOURCES[1];
/// Leaves of the first stage: P, R/W, U/S.
const LEAF: u64 = 7;
/// Leaves of the second stage.
const RW: u64 = 3;

fn blocked(binding: Placement) -> Option<Blocked> {
    match binding {
        Placement::Blocked(why) => Some(why),
        _ => None,
    }
}

/// The first-stage tables that a device is behind.
fn top(guest: &Guest, source: SourceId) -> Option<u64> {
    match guest.binding(source) {
        Placement::Nested { first, .. } => Some(first.table),
        _ => None,
    }
}

/// A device behind first-stage tables of domain 5, in which 0x8000_0000 is 0x30_0000.
fn nested() -> (Guest, HostDeviceId, Paging) {
    let (guest, ids) = Guest::with(&[NESTING]);
    let paging = guest.world.first_stage(4);
    guest.map(&paging, 0x8000_0000, 0x30_0000, 1, LEAF);
    guest.enter_first_stage_as(A, paging.top, 5);
    guest.announce_entry(5);
    assert_eq!(top(&guest, A), Some(paging.top));
    guest.host.take_calls();
    guest.host.take_invalidations();
    (guest, ids[0], paging)
}

fn calls(guest: &Guest, wanted: fn(&Call) -> bool) -> usize {
    let calls = guest.host.take_calls();
    calls.iter().filter(|(call, _)| wanted(call)).count()
}

fn is_attach(call: &Call) -> bool {
    matches!(call, Call::Attach { .. })
}

fn invalidations(guest: &Guest) -> Vec<Vec<NestedInvalidation>> {
    let calls = guest.host.take_invalidations();
    calls.into_iter().map(|(_, list)| list).collect()
}

#[test]
fn first_stage_tables_are_walked_by_the_host_and_maps_cost_nothing() {
    let (guest, device, paging) = nested();
    assert_eq!(guest.dma(device, 0x8000_0000), Some((0x30_0000, "rw")));
    assert_eq!(guest.dma(device, 0x30_0000), None);
    guest.map(&paging, 0x9000_0000, 0x40_0000, 3, LEAF & !2);
    assert_eq!(guest.dma(device, 0x9000_2123), Some((0x40_2123, "r")));
    assert_eq!(guest.host.take_calls(), []);
    assert_eq!(guest.devices.nested(), 1);
    assert_eq!(guest.devices.mapped(), (0, 0));
    assert_eq!(
        guest.binding(A).to_string(),
        format!(
            "nested first-stage {:#x}, 4 levels on guest memory, domain 5",
            paging.top
        )
    );
}

#[test]
fn what_is_unmapped_is_reached_until_it_is_invalidated_and_not_longer() {
    let (guest, device, paging) = nested();
    guest.map(&paging, 0x8000_1000, 0x31_0000, 1, LEAF);
    for page in [0x8000_0000, 0x8000_1000] {
        assert!(guest.dma(device, page).is_some());
    }
    guest.unmap(&paging, 0x8000_0000, 2);
    // It keeps what it has, as hardware may.
    assert!(guest.dma(device, 0x8000_0000).is_some());
    guest.invalidate(&[first_stage_pages(5, 0x8000_0000, 0)]);
    assert_eq!(guest.dma(device, 0x8000_0000), None);
    assert!(guest.dma(device, 0x8000_1000).is_some());
    guest.invalidate(&[first_stage_all(5)]);
    assert_eq!(guest.dma(device, 0x8000_1000), None);
}

#[test]
fn consecutive_invalidations_are_one_call_for_each_table() {
    let (guest, ids) = Guest::with(&[NESTING, NESTING]);
    let pagings = [guest.world.first_stage(4), guest.world.first_stage(4)];
    for (source, paging, domain) in [(A, &pagings[0], 5), (B, &pagings[1], 6)] {
        guest.enter_first_stage_as(source, paging.top, domain);
    }
    guest.invalidate(&[CONTEXT]);
    assert_ne!(
        guest.host.attached(ids[0]),
        guest.host.attached(ids[1]),
        "other tables are other page tables"
    );
    guest.host.take_calls();
    guest.host.take_invalidations();
    guest.invalidate(&[
        first_stage_pages(5, 0x1000, 0),
        first_stage_pages(6, 0x2000, 1),
        first_stage_pages(5, 0x4000, 2),
        first_stage_pages(7, 0x9000, 0),
    ]);
    let page = |address, pages| NestedInvalidation {
        address,
        pages,
        leaf_only: true,
    };
    assert_eq!(
        invalidations(&guest),
        [
            vec![page(0x1000, 1), page(0x4000, 4)],
            vec![page(0x2000, 2)]
        ]
    );
    assert_eq!(guest.host.take_calls().len(), 2);
    let statistics = guest.devices.statistics();
    assert_eq!(
        (statistics.invalidation_calls, statistics.invalidations),
        (2, 3)
    );
    // Nobody's.
    guest.invalidate(&[first_stage_pages(7, 0x9000, 0), first_stage_all(8)]);
    assert_eq!(guest.host.take_calls(), []);
}

#[test]
fn invalidations_of_a_domain_take_first_stage_translations_along() {
    for said in [
        Invalidation::Iotlb(IotlbScope::Global),
        Invalidation::Iotlb(IotlbScope::Domain(5)),
        pages(5, 0x7000, 0),
        Invalidation::PasidCache(PasidCacheScope::Pasid(5, 0)),
        CONTEXT,
        Invalidation::All,
    ] {
        let (guest, device, paging) = nested();
        assert!(guest.dma(device, 0x8000_0000).is_some());
        guest.unmap(&paging, 0x8000_0000, 1);
        guest.invalidate(&[said]);
        assert_eq!(guest.dma(device, 0x8000_0000), None, "{said:?}");
        assert_eq!(invalidations(&guest), [[ALL]], "{said:?}");
        assert_eq!(calls(&guest, is_attach), 0, "{said:?}");
    }
}

#[test]
fn one_page_table_serves_all_devices_with_the_same_root() {
    let (guest, ids) = Guest::with(&[NESTING, NESTING]);
    let paging = guest.world.first_stage(4);
    guest.map(&paging, 0x1000, 0x30_0000, 1, LEAF);
    guest.enter_first_stage_as(A, paging.top, 5);
    guest.announce_entry(5);
    assert!(guest.dma(ids[0], 0x1000).is_some());
    // What was kept for the first device is not for the second.
    guest.map(&paging, 0x1000, 0x31_0000, 1, LEAF);
    guest.enter_first_stage_as(B, paging.top, 6);
    guest.invalidate(&[Invalidation::PasidCache(PasidCacheScope::Pasid(6, 0))]);
    assert_eq!(guest.dma(ids[1], 0x1000), Some((0x31_0000, "rw")));
    assert_eq!(guest.host.attached(ids[0]), guest.host.attached(ids[1]));
    assert_eq!(guest.devices.nested(), 1);
    assert_eq!(guest.devices.statistics().nested_made, 1);
    // Either domain id reaches it, and both at once are one call.
    for list in [vec![5], vec![6], vec![5, 6]] {
        guest.host.take_calls();
        let list: Vec<_> = list
            .into_iter()
            .map(|domain| first_stage_pages(domain, 0x1000, 0))
            .collect();
        guest.invalidate(&list);
        assert_eq!(guest.host.take_calls().len(), 1);
    }
    // It stays for the one when the other goes.
    guest.enter_nothing(A);
    guest.announce_entry(5);
    assert_eq!(guest.devices.nested(), 1);
    assert!(guest.dma(ids[1], 0x1000).is_some());
    guest.devices.remove(B);
    assert_eq!(guest.devices.nested(), 0);
}

#[test]
fn devices_that_take_no_parent_of_the_other_get_one_of_their_own() {
    let loose = FakeFeatures {
        coherent: false,
        ..NESTING
    };
    let (guest, ids) = Guest::with(&[NESTING, loose]);
    let paging = guest.world.first_stage(4);
    guest.map(&paging, 0x1000, 0x30_0000, 1, LEAF);
    for source in [A, B] {
        guest.enter_first_stage_as(source, paging.top, 5);
    }
    guest.announce_entry(5);
    for id in &ids {
        assert_eq!(guest.dma(*id, 0x1000), Some((0x30_0000, "rw")));
    }
    assert_eq!(guest.devices.nested(), 2);
    // Both are reached.
    guest.unmap(&paging, 0x1000, 1);
    guest.invalidate(&[first_stage_pages(5, 0x1000, 0)]);
    for id in &ids {
        assert_eq!(guest.dma(*id, 0x1000), None);
    }
}

#[test]
fn another_root_is_another_page_table_and_the_old_one_is_given_back() {
    let (guest, device, _) = nested();
    let other = guest.world.first_stage(4);
    guest.map(&other, 0x8000_0000, 0x50_0000, 1, LEAF);
    let before = guest.host.attached(device).unwrap();
    guest.enter_first_stage_as(A, other.top, 5);
    guest.announce_entry(5);
    assert_eq!(guest.dma(device, 0x8000_0000), Some((0x50_0000, "rw")));
    assert_eq!(guest.devices.nested(), 1);
    let calls = guest.host.take_calls();
    assert!(calls.contains(&(Call::Destroy(before.into()), Ok(()))));
    // A domain id alone is none, but nothing is kept under another one.
    guest.enter_first_stage_as(A, other.top, 9);
    guest.map(&other, 0x8000_0000, 0x51_0000, 1, LEAF);
    guest.invalidate(&[Invalidation::PasidCache(PasidCacheScope::Pasid(9, 0))]);
    assert_eq!(self::calls(&guest, is_attach), 0);
    assert_eq!(guest.dma(device, 0x8000_0000), Some((0x51_0000, "rw")));
    guest.unmap(&other, 0x8000_0000, 1);
    guest.invalidate(&[first_stage_all(5)]);
    assert!(guest.dma(device, 0x8000_0000).is_some(), "not its id now");
    guest.invalidate(&[first_stage_all(9)]);
    assert_eq!(guest.dma(device, 0x8000_0000), None);
}

#[test]
fn a_device_goes_through_every_kind_of_entry() {
    let (guest, device, first) = nested();
    guest.enter_pass_through(A);
    guest.announce_entry(5);
    assert_eq!(guest.dma(device, 0x8000_0000), None);
    assert_eq!(guest.dma(device, 0x30_0000), Some((0x30_0000, "rw")));
    assert_eq!(guest.devices.nested(), 0);

    let second = guest.world.second_stage(4);
    guest.map(&second, 0x8000_0000, 0x60_0000, 1, RW);
    guest.shadow(A, &second, 6);
    assert_eq!(guest.dma(device, 0x8000_0000), Some((0x60_0000, "rw")));

    // The first stage's tables are where the second has them.
    for page in 0..16 {
        let table = first.top + page * 0x1000;
        guest.world.map(&second, table, 1, table | RW);
    }
    guest.map(&second, 0x30_0000, 0x70_0000, 1, RW);
    guest.enter_nested(A, first.top, &second, 7);
    guest.announce_entry(7);
    assert_eq!(guest.dma(device, 0x8000_0000), Some((0x70_0000, "rw")));
    let is_nested = matches!(
        guest.binding(A),
        Placement::Nested {
            below: Some(below),
            ..
        } if below.table == second.top
    );
    assert!(is_nested);

    guest.enter_first_stage_as(A, first.top, 5);
    guest.announce_entry(5);
    assert_eq!(guest.dma(device, 0x8000_0000), Some((0x30_0000, "rw")));
    assert_eq!(guest.devices.mapped(), (0, 0), "the shadow is gone");

    guest.enter_nothing(A);
    guest.announce_entry(5);
    assert_eq!(guest.host.attached(device), None);
    assert_eq!(guest.devices.nested(), 0);
    // Guest memory and its page table.
    assert_eq!(guest.host.objects(), 2);
}

#[test]
fn below_first_stage_tables_a_shadow_follows_and_has_nothing_read_only() {
    let (guest, ids) = Guest::with(&[NESTING]);
    let second = guest.world.second_stage(4);
    let first = guest.world.first_stage(4);
    guest.map(&first, 0x1000, 0x8000_0000, 3, LEAF);
    for page in 0..8 {
        let table = first.top + page * 0x1000;
        guest.world.map(&second, table, 1, table | RW);
    }
    guest.map(&second, 0x8000_0000, 0x30_0000, 1, RW);
    guest.map(&second, 0x8000_1000, 0x40_0000, 1, 1);
    guest.map(&second, 0x8000_2000, 0x50_0000, 1, RW);
    guest.enter_nested(A, first.top, &second, 7);
    guest.announce_entry(7);
    assert_eq!(guest.dma(ids[0], 0x1000), Some((0x30_0000, "rw")));
    assert_eq!(guest.dma(ids[0], 0x2000), None);
    assert_eq!(guest.dma(ids[0], 0x3000), Some((0x50_0000, "rw")));
    assert!(guest.devices.statistics().read_only_bytes >= 0x1000);
    // Changes below are followed.
    guest.map(&second, 0x8000_0000, 0x60_0000, 1, RW);
    guest.invalidate(&[pages(7, 0x8000_0000, 0)]);
    assert_eq!(guest.dma(ids[0], 0x1000), Some((0x60_0000, "rw")));
    // First-stage pages say nothing of them.
    guest.host.take_calls();
    guest.invalidate(&[first_stage_pages(7, 0x1000, 0)]);
    assert_eq!(guest.host.take_calls().len(), 1);
    // A plain shadow of the same tables is another one, with its read-only pages.
    let plain = guest.add(B, NESTING);
    guest.shadow(B, &second, 8);
    assert_eq!(guest.dma(plain, 0x8000_1000), Some((0x40_0000, "r")));
    assert_eq!(guest.devices.statistics().shadows_made, 2);
}

#[test]
fn below_first_stage_tables_pages_stay_read_only_where_all_hosts_take_such() {
    let exact = FakeFeatures {
        read_only_parents: true,
        ..NESTING
    };
    let (guest, ids) = Guest::with(&[exact]);
    let second = guest.world.second_stage(4);
    let first = guest.world.first_stage(4);
    guest.map(&first, 0x1000, 0x8000_0000, 2, LEAF);
    for page in 0..8 {
        let table = first.top + page * 0x1000;
        guest.world.map(&second, table, 1, table | RW);
    }
    guest.map(&second, 0x8000_0000, 0x30_0000, 1, RW);
    guest.map(&second, 0x8000_1000, 0x40_0000, 1, 1);
    let enter = |source| {
        guest.enter_nested(source, first.top, &second, 7);
        guest.announce_entry(7);
    };
    enter(A);
    assert_eq!(guest.dma(ids[0], 0x1000), Some((0x30_0000, "rw")));
    assert_eq!(guest.dma(ids[0], 0x2000), Some((0x40_0000, "r")));
    assert_eq!(guest.devices.statistics().read_only_bytes, 0);
    // A device comes whose host has the erratum: all go by the narrower.
    let other = guest.add(B, NESTING);
    enter(B);
    for device in [ids[0], other] {
        assert_eq!(guest.dma(device, 0x1000), Some((0x30_0000, "rw")));
        assert_eq!(guest.dma(device, 0x2000), None);
    }
    assert!(guest.devices.statistics().read_only_bytes >= 0x1000);
}

#[test]
fn translation_off_and_reset_end_nesting_and_it_comes_back() {
    let (guest, device, _) = nested();
    guest.unit.dma_state().set_latched(Latched::default());
    guest.change_translation();
    assert_eq!(guest.binding(A), Placement::GuestPhysical);
    assert_eq!(guest.dma(device, 0x30_0000), Some((0x30_0000, "rw")));
    assert_eq!(guest.devices.nested(), 0);
    guest.unit.dma_state().set_latched(guest.world.latched);
    guest.change_translation();
    assert_eq!(guest.dma(device, 0x8000_0000), Some((0x30_0000, "rw")));
    guest.unit.reset();
    assert_eq!(guest.binding(A), Placement::GuestPhysical);
    assert_eq!(guest.host.objects(), 2);
}

#[test]
fn legacy_mode_falls_back_to_a_shadow() {
    let (guest, device, _) = nested();
    let second = guest.world.second_stage(4);
    guest.map(&second, 0x1000, 0x40_0000, 1, 1);
    let mut latched = guest.world.latched;
    latched.root.mode = TableMode::Legacy;
    // Another context table, in which the device has an entry.
    guest.world.set_context(second.top | 1, 0x502);
    guest.unit.dma_state().set_latched(latched);
    guest.change_translation();
    assert!(matches!(guest.binding(A), Placement::Shadow { .. }));
    assert_eq!(guest.dma(device, 0x1000), Some((0x40_0000, "r")));
    assert_eq!(guest.devices.nested(), 0);
}

#[test]
fn what_the_host_lacks_is_found_before_the_device_is_touched() {
    let config = UnitConfig::legacy(46)
        .with_address_width(AddressWidth::Bits57)
        .with_scalable(Scalable::new(Stages::Nested).with_pasid_bits(20))
        .with_caching_mode(true)
        .with_snoop_control(true);
    // FSPM for five levels, SRE, EAFE.
    for (bits, name) in [(1 << 2, "FS5LP"), (1, "SRS"), (1 << 7, "EAFS")] {
        for whole_first_stage in [false, true] {
            let guest = Guest::of(&config, Limits::default());
            let features = FakeFeatures {
                whole_first_stage,
                ..NESTING
            };
            guest.add(A, features);
            guest.enter_pass_through(A);
            guest.announce_entry(1);
            let paging = guest.world.first_stage(4);
            guest.host.take_calls();
            guest.enter(A, [1 << 6 | 1, 5, paging.top | bits]);
            guest.announce_entry(5);
            if whole_first_stage {
                assert_eq!(top(&guest, A), Some(paging.top), "{name}");
            } else {
                let why = blocked(guest.binding(A)).unwrap();
                assert!(why.to_string().contains(name), "{why}");
                assert_eq!(calls(&guest, is_attach), 0);
            }
        }
    }
}

#[test]
fn a_page_table_that_cannot_be_had_blocks_the_device_until_the_next_opportunity() {
    let (guest, device, paging) = nested();
    guest.enter_pass_through(A);
    guest.announce_entry(5);
    guest.enter_first_stage_as(A, paging.top, 5);
    guest.host.fail_after(0, errno::ENOMEM);
    guest.announce_entry(5);
    assert_eq!(
        blocked(guest.binding(A)),
        Some(Blocked::Host(Some(errno::ENOMEM)))
    );
    assert_eq!(guest.host.attached(device), None);
    assert_eq!(guest.devices.nested(), 0);
    guest.announce_entry(5);
    assert_eq!(guest.dma(device, 0x8000_0000), Some((0x30_0000, "rw")));
}

#[test]
fn a_replacement_that_fails_is_made_from_a_clean_state() {
    for (more, recovers) in [(None, true), (Some(3), false)] {
        let (guest, device, _) = nested();
        let other = guest.world.first_stage(4);
        guest.map(&other, 0x8000_0000, 0x50_0000, 1, LEAF);
        guest.enter_first_stage_as(A, other.top, 5);
        // It is allocated, attached, and after a detach attached again.
        guest.host.fail_after(1, errno::ENOMEM);
        if let Some(more) = more {
            guest.host.fail_after(more, errno::ENOMEM);
        }
        guest.announce_entry(5);
        let statistics = guest.devices.statistics();
        if recovers {
            assert_eq!(guest.dma(device, 0x8000_0000), Some((0x50_0000, "rw")));
            assert_eq!((statistics.recoveries, statistics.failures), (1, 0));
        } else {
            assert_eq!(guest.host.attached(device), None);
            assert!(blocked(guest.binding(A)).is_some());
            assert_eq!((statistics.recoveries, statistics.failures), (0, 1));
            guest.announce_entry(5);
            assert_eq!(guest.dma(device, 0x8000_0000), Some((0x50_0000, "rw")));
        }
        assert_eq!(guest.devices.nested(), 1);
    }
}

#[test]
fn an_invalidation_that_is_rejected_half_way_is_repeated_in_full() {
    let (guest, device, paging) = nested();
    guest.map(&paging, 0x8000_1000, 0x31_0000, 3, LEAF);
    for page in 0..4 {
        assert!(guest.dma(device, 0x8000_0000 + page * 0x1000).is_some());
    }
    guest.unmap(&paging, 0x8000_0000, 4);
    let before = guest.devices.statistics().invalidations;
    guest.host.fail_after(0, errno::EINVAL);
    let list: Vec<_> = (0..4)
        .map(|page| first_stage_pages(5, 0x8000_0000 + page * 0x1000, 0))
        .collect();
    guest.invalidate(&list);
    for page in 0..4 {
        assert_eq!(guest.dma(device, 0x8000_0000 + page * 0x1000), None);
    }
    let called = invalidations(&guest);
    assert_eq!((called[0].len(), &called[1..]), (4, &[vec![ALL]][..]));
    assert_eq!(top(&guest, A), Some(paging.top), "it stays where it is");
    let statistics = guest.devices.statistics();
    assert_eq!(statistics.full_invalidations, 1);
    // Two of the first call, one of the second.
    assert_eq!(statistics.invalidations - before, 3);
}

#[test]
fn devices_are_detached_before_a_wait_that_the_host_cannot_make_true() {
    let (guest, ids) = Guest::with(&[NESTING, NESTING]);
    let paging = guest.world.first_stage(4);
    guest.map(&paging, 0x1000, 0x30_0000, 1, LEAF);
    for (source, domain) in [(A, 5), (B, 6)] {
        guest.enter_first_stage_as(source, paging.top, domain);
    }
    guest.invalidate(&[CONTEXT]);
    for id in &ids {
        assert!(guest.dma(*id, 0x1000).is_some());
    }
    guest.unmap(&paging, 0x1000, 1);
    guest.host.fail_after(0, errno::EINVAL);
    guest.host.fail_after(1, errno::EINVAL);
    guest.invalidate(&[first_stage_pages(5, 0x1000, 0)]);
    for (source, id) in [A, B].into_iter().zip(&ids) {
        assert_eq!(guest.host.attached(*id), None);
        assert_eq!(
            blocked(guest.binding(source)),
            Some(Blocked::NotInvalidated(Some(errno::EINVAL)))
        );
    }
    let statistics = guest.devices.statistics();
    assert_eq!(statistics.invalidation_detaches, 2);
    assert_eq!(guest.devices.nested(), 0);
    guest.map(&paging, 0x1000, 0x31_0000, 1, LEAF);
    guest.announce_entry(5);
    for id in &ids {
        assert_eq!(guest.dma(*id, 0x1000), Some((0x31_0000, "rw")));
    }
}

#[test]
fn a_page_table_that_the_host_keeps_is_given_back_later() {
    let (guest, device, _) = nested();
    guest.enter_pass_through(A);
    // Attach, then destroy.
    guest.host.fail_after(1, errno::EBUSY);
    guest.announce_entry(5);
    assert_eq!(guest.dma(device, 0x30_0000), Some((0x30_0000, "rw")));
    guest.invalidate(&[CONTEXT]);
    assert_eq!(guest.host.objects(), 2);
}

#[test]
fn writes_through_first_stage_tables_are_dirty_guest_memory() {
    let (guest, device, _) = nested();
    guest.devices.start_dirty_tracking().unwrap();
    guest.host.write(device, 0x8000_0000).unwrap();
    let mut found = Vec::new();
    let outcome = guest
        .devices
        .dirty_pages(&mut |address, pages| found.push((address, pages)));
    outcome.unwrap();
    assert_eq!(found, [(0x30_0000, 1)]);
}

#[test]
fn ids_of_objects_on_two_iommufds_are_told_apart() {
    let (guest, ids) = Guest::with(&[NESTING]);
    let other = FakeHost::new();
    other.set_memory(reader(&guest.world));
    let added = assigned_device(&other, B, NESTING);
    let id = added.id;
    guest.devices.add(added).unwrap();
    let paging = guest.world.first_stage(4);
    guest.map(&paging, 0x1000, 0x30_0000, 1, LEAF);
    for (source, domain) in [(A, 5), (B, 6)] {
        guest.enter_first_stage_as(source, paging.top, domain);
    }
    guest.invalidate(&[CONTEXT]);
    let on_both: [Option<HwptId>; 2] = [guest.host.attached(ids[0]), other.attached(id)];
    assert_eq!(on_both[0], on_both[1], "the same numbers");
    assert_eq!(guest.devices.nested(), 2);
    guest.host.take_invalidations();
    other.take_invalidations();
    guest.invalidate(&[first_stage_all(6)]);
    assert!(guest.host.take_invalidations().is_empty());
    assert_eq!(other.take_invalidations().len(), 1);
}
