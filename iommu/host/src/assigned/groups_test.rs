//! Devices of one IOMMU group are placed together, or not at all.

use std::sync::Arc;

use super::testing::*;
use super::*;
use crate::fake::{Call, FakeFeatures, FakeHost, errno};
use crate::host_iommu::{FaultQueueId, HostDeviceId};
use crate::page_requests::PageResponses;
use intel_vtd::spec::fault_reason::FaultReason;
use intel_vtd::testing::tables::Paging;
use intel_vtd::{Latched, PageResponse, Pasid};

const ONE: SourceId = SOURCES[0];
const TWO: SourceId = SOURCES[1];
const PLAIN: FakeFeatures = FakeFeatures {
    pasid_bits: 20,
    ..NESTING
};
const WITHOUT_PASIDS: FakeFeatures = FakeFeatures {
    pasid_bits: 0,
    ..NESTING
};

struct Nobody;

impl PageResponses for Nobody {
    fn respond(&self, _: SourceId, _: PageResponse) {}
}

struct Pair {
    guest: Guest,
    ids: [HostDeviceId; 2],
    pagings: [Paging; 2],
}

impl Pair {
    fn new(features: FakeFeatures) -> Self {
        let guest = Guest::new(Limits::default());
        let ids = [ONE, TWO].map(|source| {
            let device = grouped_device(&guest.host, source, features);
            let id = device.id;
            guest.devices.add(device).unwrap();
            id
        });
        Self::of(guest, ids)
    }

    fn of(guest: Guest, ids: [HostDeviceId; 2]) -> Self {
        let pagings = [4, 3].map(|levels| guest.world.second_stage(levels));
        guest.map(&pagings[0], 0x1000, 0x10_0000, 1, 3);
        guest.map(&pagings[1], 0x1000, 0x20_0000, 1, 3);
        Self {
            guest,
            ids,
            pagings,
        }
    }

    /// The guest has both behind these tables, by their places in the list.
    fn enter(&self, tables: [usize; 2]) {
        for (source, (table, domain)) in [ONE, TWO].into_iter().zip(tables.into_iter().zip(5..)) {
            self.guest
                .enter_second_stage(source, &self.pagings[table], domain);
        }
        self.guest.invalidate(&[CONTEXT]);
    }

    fn dma(&self) -> [Option<(u64, &'static str)>; 2] {
        self.ids.map(|id| self.guest.dma(id, 0x1000))
    }

    fn attached(&self, pasid: u32) -> [bool; 2] {
        let pasid = Pasid::new(pasid).filter(|pasid| pasid.get() != 0);
        self.ids
            .map(|id| self.guest.host.attached_with(id, pasid).is_some())
    }
}

const FIRST: Option<(u64, &str)> = Some((0x10_0000, "rw"));
const SECOND: Option<(u64, &str)> = Some((0x20_0000, "rw"));

#[test]
fn two_of_a_group_in_one_domain_are_behind_one_table() {
    let pair = Pair::new(PLAIN);
    pair.enter([0, 0]);
    assert_eq!(pair.dma(), [FIRST; 2]);
    pair.enter([1, 1]);
    assert_eq!(pair.dma(), [SECOND; 2]);
}

#[test]
fn two_of_a_group_in_two_domains_are_both_blocked_and_the_report_says_why() {
    let pair = Pair::new(PLAIN);
    pair.enter([0, 0]);
    pair.enter([0, 1]);
    assert_eq!(pair.dma(), [None; 2]);
    assert_eq!(pair.attached(0), [false; 2]);
    let apart = |other| Placement::Blocked(Blocked::GroupApart(other));
    assert_eq!(pair.guest.binding(ONE), apart(TWO));
    assert_eq!(pair.guest.binding(TWO), apart(ONE));
    let report = pair.guest.devices.to_string();
    for said in [
        "00:03.0 fake",
        "shares its IOMMU group of the host with 00:04.0",
        "shares its IOMMU group of the host with 00:03.0",
        "the guest wants: shadow of",
        "domain 5)",
        "domain 6)",
        "assign one of them only",
    ] {
        assert!(report.contains(said), "{said} is not in {report}");
    }
}

#[test]
fn what_the_guest_blocks_of_a_group_is_blocked_in_the_hardware() {
    let pair = Pair::new(PLAIN);
    pair.enter([0, 0]);
    pair.guest.enter_nothing(ONE);
    pair.guest.invalidate(&[CONTEXT]);
    assert_eq!(pair.dma(), [None; 2]);
    let blocked = Blocked::Guest(FaultReason::PasidNotPresent);
    assert_eq!(pair.guest.binding(ONE), Placement::Blocked(blocked));
    assert_eq!(
        pair.guest.binding(TWO),
        Placement::Blocked(Blocked::GroupApart(ONE))
    );
}

#[test]
fn a_group_that_agrees_again_is_placed_again() {
    let pair = Pair::new(PLAIN);
    pair.enter([0, 1]);
    assert_eq!(pair.dma(), [None; 2]);
    pair.enter([1, 1]);
    assert_eq!(pair.dma(), [SECOND; 2]);
    pair.guest.enter_nothing(TWO);
    pair.guest.invalidate(&[CONTEXT]);
    assert_eq!(pair.dma(), [None; 2]);
    pair.enter([0, 0]);
    assert_eq!(pair.dma(), [FIRST; 2]);
    let statistics = pair.guest.devices.statistics();
    assert_eq!(statistics.recoveries, 0);
}

#[test]
fn a_group_that_disagrees_still_is_left_alone() {
    let pair = Pair::new(PLAIN);
    pair.enter([0, 1]);
    let before = pair.guest.devices.statistics();
    pair.guest.host.take_calls();
    for _ in 0..3 {
        pair.guest.invalidate(&[CONTEXT]);
    }
    assert_eq!(pair.guest.devices.statistics(), before);
    assert_eq!(pair.guest.host.take_calls(), []);
}

#[test]
fn other_domain_ids_of_the_same_tables_do_not_part_a_group() {
    let pair = Pair::new(PLAIN);
    pair.enter([0, 0]);
    pair.guest.host.take_calls();
    for (source, domain) in [(ONE, 8), (TWO, 9)] {
        pair.guest
            .enter_second_stage(source, &pair.pagings[0], domain);
    }
    pair.guest.invalidate(&[CONTEXT]);
    assert_eq!(pair.dma(), [FIRST; 2]);
    assert_eq!(pair.guest.host.take_calls(), [], "nothing is attached anew");
}

#[test]
fn a_group_follows_pass_through_and_translation_off() {
    let pair = Pair::new(PLAIN);
    pair.enter([0, 1]);
    let turn = |enabled| {
        pair.guest.unit.dma_state().set_latched(Latched {
            enabled,
            ..pair.guest.world.latched
        });
        pair.guest.change_translation();
    };
    turn(false);
    assert_eq!(pair.dma(), [Some((0x1000, "rw")); 2]);
    turn(true);
    assert_eq!(pair.dma(), [None; 2]);
    pair.guest.enter_pass_through(ONE);
    pair.guest.enter_pass_through(TWO);
    pair.guest.invalidate(&[CONTEXT]);
    assert_eq!(pair.dma(), [Some((0x1000, "rw")); 2]);
}

#[test]
fn a_group_is_behind_one_nested_table() {
    let pair = Pair::new(PLAIN);
    let first = pair.guest.world.first_stage(4);
    let other = pair.guest.world.first_stage(4);
    pair.guest.map(&first, 0x1000, 0x30_0000, 1, 7);
    pair.guest.map(&other, 0x1000, 0x40_0000, 1, 7);
    for source in [ONE, TWO] {
        pair.guest.enter_first_stage(source, first.top);
    }
    pair.guest.invalidate(&[CONTEXT]);
    assert_eq!(pair.dma(), [Some((0x30_0000, "rw")); 2]);
    pair.guest.enter_first_stage(TWO, other.top);
    pair.guest.invalidate(&[CONTEXT]);
    assert_eq!(pair.dma(), [None; 2]);
    pair.guest.enter_first_stage(ONE, other.top);
    pair.guest.invalidate(&[CONTEXT]);
    assert_eq!(pair.dma(), [Some((0x40_0000, "rw")); 2]);
}

#[test]
fn each_pasid_of_a_group_is_one_thing() {
    let pair = Pair::new(PLAIN);
    pair.enter([0, 0]);
    let enter = |source, pasid, table: usize, domain| {
        let words = entry::second_stage(&pair.pagings[table], domain);
        pair.guest.enter_with(source, pasid, words);
        pair.guest
            .announce_pasid(u16::try_from(domain).unwrap(), pasid);
    };
    enter(ONE, 7, 1, 6);
    assert_eq!(pair.attached(7), [false; 2], "the other has no such entry");
    enter(TWO, 7, 1, 6);
    assert_eq!(pair.attached(7), [true; 2]);
    enter(TWO, 8, 0, 5);
    enter(ONE, 8, 1, 6);
    assert_eq!(pair.attached(8), [false; 2]);
    assert_eq!(
        pair.guest.binding_of(ONE, 8),
        Some(Placement::Blocked(Blocked::GroupApart(TWO)))
    );
    // Requests without PASID and with the other one go on.
    assert_eq!(pair.dma(), [FIRST; 2]);
    assert_eq!(pair.attached(7), [true; 2]);
    pair.guest.enter_with(TWO, 7, entry::NOTHING);
    pair.guest.announce_pasid(6, 7);
    assert_eq!(pair.attached(7), [false; 2]);
}

#[test]
fn a_device_without_pasids_has_no_say_about_them() {
    let guest = Guest::new(Limits::default());
    let features = [PLAIN, WITHOUT_PASIDS];
    let ids = [0, 1].map(|at| {
        let device = grouped_device(&guest.host, SOURCES[at], features[at]);
        let id = device.id;
        guest.devices.add(device).unwrap();
        id
    });
    let pair = Pair::of(guest, ids);
    pair.enter([0, 0]);
    assert_eq!(pair.dma(), [FIRST; 2]);
    pair.guest
        .enter_with(ONE, 7, entry::second_stage(&pair.pagings[1], 6));
    pair.guest.announce_pasid(6, 7);
    assert_eq!(pair.attached(7), [true, false]);
}

#[test]
fn without_a_unit_a_group_is_behind_guest_memory() {
    let host = FakeHost::new();
    let devices = AssignedDevices::<Memory>::new(ram(), None, Limits::default());
    let ids = [ONE, TWO].map(|source| {
        let device = grouped_device(&host, source, WITHOUT_PASIDS);
        let id = device.id;
        devices.add(device).unwrap();
        id
    });
    for id in ids {
        assert!(host.dma(id, 0x1000).is_some());
    }
    devices.remove(ONE);
    assert!(host.dma(ids[1], 0x1000).is_some());
    devices.remove(TWO);
    assert_eq!(ids.map(|id| host.attached(id)), [None; 2]);
    assert_eq!(host.objects(), 0);
}

#[test]
fn a_second_one_that_is_plugged_in_elsewhere_blocks_the_first_until_both_agree() {
    let guest = Guest::new(Limits::default());
    let first = grouped_device(&guest.host, ONE, PLAIN);
    let second = grouped_device(&guest.host, TWO, PLAIN);
    let pair = Pair::of(guest, [first.id, second.id]);
    pair.guest.devices.add(first).unwrap();
    pair.guest.shadow(ONE, &pair.pagings[0], 5);
    assert_eq!(pair.guest.dma(pair.ids[0], 0x1000), FIRST);
    pair.guest.devices.add(second).unwrap();
    assert_eq!(pair.dma(), [None; 2], "the guest has no entry for it");
    pair.guest.shadow(TWO, &pair.pagings[0], 5);
    assert_eq!(pair.dma(), [FIRST; 2]);
}

#[test]
fn a_second_one_with_pasids_gets_the_first_behind_other_tables() {
    let guest = Guest::new(Limits::default());
    let first = grouped_device(&guest.host, ONE, WITHOUT_PASIDS);
    let second = grouped_device(&guest.host, TWO, PLAIN);
    let pair = Pair::of(guest, [first.id, second.id]);
    for source in [ONE, TWO] {
        pair.guest.enter_second_stage(source, &pair.pagings[0], 5);
    }
    pair.guest.devices.add(first).unwrap();
    pair.guest.devices.add(second).unwrap();
    assert_eq!(pair.dma(), [FIRST; 2]);
    pair.guest
        .enter_with(TWO, 7, entry::second_stage(&pair.pagings[1], 6));
    pair.guest.announce_pasid(6, 7);
    assert_eq!(pair.attached(7), [false, true]);
}

#[test]
fn when_one_of_a_group_goes_the_rest_is_put_where_it_belongs() {
    let pair = Pair::new(PLAIN);
    pair.enter([0, 1]);
    assert_eq!(pair.dma(), [None; 2]);
    assert!(pair.guest.devices.remove(TWO));
    assert_eq!(pair.guest.dma(pair.ids[0], 0x1000), FIRST);
    // Both did agree, and the one that is left is blocked alone.
    let pair = Pair::new(PLAIN);
    pair.enter([0, 0]);
    assert!(pair.guest.devices.remove(TWO));
    assert_eq!(pair.guest.dma(pair.ids[0], 0x1000), FIRST);
    pair.guest.enter_nothing(ONE);
    pair.guest.invalidate(&[CONTEXT]);
    assert_eq!(pair.dma(), [None; 2]);
    assert_eq!(pair.attached(0), [false; 2]);
}

#[test]
fn a_failure_of_one_blocks_the_group_and_the_next_entry_places_it() {
    // Whichever call fails for good while both are placed.
    for calls in 0..12 {
        let pair = Pair::new(PLAIN);
        for later in 0..40 {
            pair.guest.host.fail_after(calls + later, errno::ENOMEM);
        }
        pair.enter([0, 0]);
        let placed = [ONE, TWO].map(|source| {
            let placement = pair.guest.binding(source);
            !matches!(placement, Placement::Blocked(_))
        });
        assert_eq!(placed[0], placed[1], "with {calls} calls before it");
        pair.guest.host.fail_no_more();
        pair.guest.invalidate(&[CONTEXT]);
        assert_eq!(pair.dma(), [FIRST; 2], "with {calls} calls before it");
    }
}

#[test]
fn a_group_has_no_queue_for_page_requests() {
    // The host would not tell whose they are.
    let guest = Guest::new(Limits::default());
    let features = FakeFeatures {
        page_requests: true,
        ..PLAIN
    };
    let path = PageRequestPath {
        queue: FaultQueueId(900),
        responses: Arc::new(Nobody),
    };
    let first = guest.world.first_stage(4);
    for source in [ONE, TWO] {
        guest.enter_first_stage(source, first.top);
        let device = AssignedDevice {
            page_requests: Some(path.clone()),
            ..grouped_device(&guest.host, source, features)
        };
        guest.devices.add(device).unwrap();
    }
    let queues = || {
        let calls = guest.host.take_calls().into_iter();
        let queues = calls.filter_map(|(call, _)| match call {
            Call::AllocateNested { options, .. } => Some(options.page_requests),
            _ => None,
        });
        queues.collect::<Vec<_>>()
    };
    assert_eq!(
        queues(),
        [Some(path.queue), None],
        "the first was alone at first"
    );
    assert_eq!(guest.devices.nested(), 1);
    guest.devices.remove(TWO);
    guest.enter_nothing(ONE);
    guest.invalidate(&[CONTEXT]);
    guest.enter_first_stage(ONE, first.top);
    guest.invalidate(&[CONTEXT]);
    assert_eq!(queues(), [Some(path.queue)]);
}
