//! A scan finds what a request would reach.

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use intel_vtd::testing::tables::{CAP, ECAP, Paging, SOURCE, World, gates};
use intel_vtd::{Access, Request};

fn stage(paging: &Paging) -> SecondStage {
    SecondStage {
        table: paging.top,
        levels: u8::try_from(paging.levels).unwrap(),
        accessed_dirty: false,
        snooped_walk: true,
    }
}

fn scan_all(
    world: &World,
    stage: &SecondStage,
    inputs: Range<u64>,
) -> Vec<(u64, u64, u64, &'static str)> {
    let mut runs = Vec::new();
    let mut budget = Budget::new(10_000, 0);
    scan(
        world.tables().memory(),
        &world.gates,
        stage,
        &inputs,
        &mut budget,
        |run| {
            let rights = match (run.rights.read, run.rights.write) {
                (true, true) => "rw",
                (true, false) => "r",
                (false, true) => "w",
                (false, false) => "",
            };
            runs.push((run.input, run.output, run.length, rights));
        },
    )
    .unwrap();
    runs
}

#[test]
fn contiguous_pages_are_one_run_and_all_else_ends_it() {
    let world = World::scalable();
    let paging = world.second_stage(4);
    for page in 0..3 {
        world.map(
            &paging,
            0x1f_e000 + page * 0x1000,
            1,
            0x40_0000 + page * 0x1000 + 3,
        );
    }
    // Other rights; other place; a hole.
    world.map(&paging, 0x20_1000, 1, 0x40_3001);
    world.map(&paging, 0x20_2000, 1, 0x40_5001);
    world.map(&paging, 0x20_4000, 1, 0x40_7002);
    let stage = stage(&paging);
    assert_eq!(
        scan_all(&world, &stage, 0..u64::MAX),
        [
            (0x1f_e000, 0x40_0000, 0x3000, "rw"),
            (0x20_1000, 0x40_3000, 0x1000, "r"),
            (0x20_2000, 0x40_5000, 0x1000, "r"),
            (0x20_4000, 0x40_7000, 0x1000, "w"),
        ]
    );
    assert_eq!(
        scan_all(&world, &stage, 0x1f_f000..0x20_0000),
        [(0x1f_f000, 0x40_1000, 0x1000, "rw")]
    );
}

#[test]
fn large_pages_go_on_in_small_ones_and_end_at_each_gibibyte() {
    let world = World::scalable();
    let paging = world.second_stage(4);
    world.map(&paging, 0x4000_0000, 3, 0x4000_0083);
    world.map(&paging, 0x8000_0000, 2, 0x8000_0083);
    world.map(&paging, 0x8020_0000, 1, 0x8020_0003);
    let stage = stage(&paging);
    assert_eq!(
        scan_all(&world, &stage, 0x7fff_f000..u64::MAX),
        [
            (0x7fff_f000, 0x7fff_f000, 0x1000, "rw"),
            (0x8000_0000, 0x8000_0000, 0x20_1000, "rw"),
        ]
    );
}

#[test]
fn large_pages_that_are_not_offered_are_not_mapped() {
    let mut world = World::scalable();
    let paging = world.second_stage(4);
    world.map(&paging, 0x4000_0000, 3, 0x4000_0083);
    world.map(&paging, 0x8000_0000, 2, 0x8000_0083);
    let stage = stage(&paging);
    // SSLPS: bits 37:34.
    world.gates = gates(CAP & !(2 << 34), ECAP);
    assert_eq!(scan_all(&world, &stage, 0..u64::MAX).len(), 1);
    world.gates = gates(CAP & !(3 << 34), ECAP);
    assert_eq!(scan_all(&world, &stage, 0..u64::MAX), []);
}

#[test]
fn one_page_costs_a_table_for_each_level_and_a_run() {
    let world = World::scalable();
    let paging = world.second_stage(4);
    world.map(&paging, 0x1234_5000, 1, 0x40_0003);
    let stage = stage(&paging);
    let run = |steps| {
        let mut found = 0;
        let mut budget = Budget::new(steps, 0);
        let inputs = 0x1234_5000..0x1234_6000;
        scan(
            world.tables().memory(),
            &world.gates,
            &stage,
            &inputs,
            &mut budget,
            |_| found += 1,
        )
        .map(|()| found)
    };
    assert_eq!(run(4 * 8 + 1), Ok(1));
    assert_eq!(run(4 * 8), Err(Spent::Exhausted));
    assert_eq!(run(4 * 8 - 1), Err(Spent::Exhausted));
}

#[test]
fn tables_that_hold_themselves_end_with_the_budget() {
    let world = World::scalable();
    let paging = world.second_stage(4);
    for index in 0..512 {
        world.set(paging.top + index * 8, paging.top | 3);
    }
    let mut budget = Budget::new(5_000, 0);
    let outcome = scan(
        world.tables().memory(),
        &world.gates,
        &stage(&paging),
        &(0..u64::MAX),
        &mut budget,
        |_| {},
    );
    assert_eq!(outcome, Err(Spent::Exhausted));
}

#[test]
fn found_pages_are_accessed_and_writable_ones_dirty() {
    let world = World::scalable();
    let paging = world.second_stage(3);
    let read_only = world.map(&paging, 0x1000, 1, 0x40_0001);
    let writable = world.map(&paging, 0x2000, 1, 0x40_1003);
    let table = world.slot(&paging, 0x1000, 2);
    let mut stage = stage(&paging);
    scan_all(&world, &stage, 0..u64::MAX);
    assert_eq!(world.get(writable), 0x40_1003, "nothing without SSADE");
    stage.accessed_dirty = true;
    scan_all(&world, &stage, 0..u64::MAX);
    assert_eq!(world.get(read_only), 0x40_0101);
    assert_eq!(world.get(writable), 0x40_1303);
    assert_eq!(world.get(table) & 0x300, 0x100);
}

#[test]
fn without_snooped_walks_nothing_is_mapped_that_needs_a_bit_set() {
    let world = World::scalable();
    let paging = world.second_stage(3);
    world.map(&paging, 0x1000, 1, 0x40_0003);
    world.map(&paging, 0x2000, 1, 0x40_1103);
    world.map(&paging, 0x3000, 1, 0x40_2303);
    for level in [2, 3] {
        world.or(world.slot(&paging, 0x1000, level), 0x100);
    }
    let stage = SecondStage {
        accessed_dirty: true,
        snooped_walk: false,
        ..stage(&paging)
    };
    assert_eq!(
        scan_all(&world, &stage, 0..u64::MAX),
        [
            (0x2000, 0x40_1000, 0x1000, "r"),
            (0x3000, 0x40_2000, 0x1000, "rw"),
        ]
    );
}

/// Words that have a chance to lead somewhere: mostly a page of the first 64 KiB above 1 MiB.
fn words() -> impl Strategy<Value = u64> {
    let flags = prop_oneof![8 => Just(3_u64), 2 => 0_u64..4, 1 => 0_u64..0x1000];
    prop_oneof![
        8 => (0_u64..16, flags).prop_map(|(page, flags)| 0x10_0000 | page << 12 | flags),
        1 => any::<u64>(),
        1 => Just(0),
        2 => (0_u64..16).prop_map(|block| block << 21 | 0x83),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn whatever_stands_in_memory_a_page_is_found_if_a_request_reaches_it(
        content in vec(words(), 8192),
        aw in 1_u64..4,
        caps in any::<Option<(u64, u64)>>(),
        first in any::<u64>(),
        pages in 1_u64..300,
    ) {
        let mut world = World::scalable();
        let bytes: Vec<u8> = content.iter().flat_map(|word| word.to_le_bytes()).collect();
        world.memory.write_slice(&bytes, GuestAddress(0x10_0000)).unwrap();
        // Where the tables of `World` are is part of what was written.
        let (root, context, directory, pasids) = (0x20_0000, 0x20_1000, 0x20_2000, 0x20_3000);
        world.set(root, context | 1);
        world.set(context + 0x300, directory | 0x201);
        world.set(directory, pasids | 1);
        world.set(pasids, 0x10_0000 | 2 << 6 | aw << 2 | 1);
        world.latched.root.address = root;
        if let Some((cap, ecap)) = caps {
            // Random, but with scalable mode, second stage and all depths.
            world.gates = gates(cap & !(0x1f << 8) & !(0x3f << 16) | 0xe << 8 | 56 << 16, ecap | 1 << 43 | 1 << 46);
        }
        let width = 12 + 9 * (2 + aw);
        let first = (first % (1 << width)) & !0xfff;
        let inputs = first..first + pages * 0x1000;
        let stage = SecondStage { table: 0x10_0000, levels: u8::try_from(aw + 2).unwrap(), accessed_dirty: false, snooped_walk: true };
        let mut found = std::collections::BTreeMap::new();
        let mut last_end = 0;
        let mut budget = Budget::new(1 << 20, 0);
        scan(world.tables().memory(), &world.gates, &stage, &inputs, &mut budget, |run| {
            assert!(run.input >= last_end && run.length > 0);
            last_end = run.end();
            for page in (0..run.length).step_by(4096) {
                found.insert(run.input + page, (run.output + page, run.rights));
            }
        }).unwrap();
        for page in inputs.step_by(4096) {
            if page >> 20 == 0xfee {
                continue;
            }
            let request = Request::untranslated(SOURCE, page, Access::Read);
            let reached = world.tables().probe(&request).ok();
            let reached = reached.map(|to| (to.address, Rights { read: to.readable, write: to.writable }));
            // To the interrupt range no request goes, which is not RAM.
            let scanned = found.get(&page).copied().filter(|(output, _)| output >> 20 != 0xfee);
            prop_assert_eq!(reached, scanned, "page {:#x}", page);
        }
    }
}
