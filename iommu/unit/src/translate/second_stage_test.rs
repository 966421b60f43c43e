//! Second-stage tables in scalable mode.

use super::Access;
use super::testing::{ASK, CAP, ECAP, NOWHERE, Paging, World, address, code, gates, of_kind};

const PWSNP: u64 = 0x80_0000;
const SSADE: u64 = 0x200;

/// PASID 0 has a second stage of `levels` levels, domain 7, PWSNP.
fn second_stage(levels: usize) -> (World, Paging) {
    let world = World::scalable();
    let paging = world.second_stage(levels);
    let width = (levels as u64 - 2) * 4;
    world.set_pasid(0, &[paging.top | 0x81 | width, PWSNP | 7]);
    (world, paging)
}

#[test]
fn each_depth_translates_pages_of_every_size() {
    for levels in [3, 4, 5] {
        let (world, paging) = second_stage(levels);
        world.map(&paging, 0x12_3456_7000, 1, 0x98_7654_3003);
        world.map(&paging, 0x22_0020_0000, 2, 0x11_0040_0083);
        world.map(&paging, 0x23_4000_0000, 3, 0x12_8000_0083);
        assert_eq!(address(world.read(0x12_3456_7abc)), 0x98_7654_3abc);
        assert_eq!(address(world.write(0x22_0032_1cba)), 0x11_0052_1cba);
        assert_eq!(address(world.write(0x23_7654_3210)), 0x12_b654_3210);
    }
}

#[test]
fn an_address_beyond_the_tables_is_code_84() {
    for (levels, first) in [
        (3, 0x80_0000_0000),
        (4, 0x1_0000_0000_0000),
        (5, 0x200_0000_0000_0000),
    ] {
        let (world, _) = second_stage(levels);
        assert_eq!(code(world.read(first)), 0x84);
        assert_eq!(code(world.read(first - 1)), 0x79);
    }
}

#[test]
fn a_depth_that_is_not_offered_is_code_5b() {
    let (mut world, _) = second_stage(5);
    world.gates = gates(CAP & !0x800, ECAP);
    assert_eq!(code(world.read(0x1000)), 0x5b);
}

#[test]
fn no_right_is_code_79_and_a_missing_one_85_or_86() {
    let (world, paging) = second_stage(4);
    let leaf = world.map(&paging, 0x1000, 1, 0x4000_0000_0000_8000);
    assert_eq!(code(world.read(0x1000)), 0x79);
    world.set(leaf, 0x8001);
    assert!(world.read(0x1000).is_ok());
    assert_eq!(code(world.write(0x1000)), 0x85);
    assert_eq!(code(world.access(0x1000, Access::Atomic)), 0x85);
    world.set(leaf, 0x8002);
    assert!(world.write(0x1000).is_ok());
    assert_eq!(code(world.read(0x1000)), 0x86);
    assert_eq!(code(world.access(0x1000, Access::Atomic)), 0x86);
    assert!(world.access(0x1000, Access::ZeroLengthRead).is_ok());
    // Read above, write below: nothing is left.
    world.clear(world.slot(&paging, 0x1000, 3), 2);
    assert_eq!(code(world.write(0x1000)), 0x79);
}

#[test]
fn a_zero_length_read_of_a_write_only_page_needs_zlr() {
    let (mut world, paging) = second_stage(4);
    world.gates = gates(CAP & !0x40_0000, ECAP);
    world.map(&paging, 0x1000, 1, 0x8002);
    assert_eq!(code(world.access(0x1000, Access::ZeroLengthRead)), 0x86);
}

#[test]
fn reserved_bits_are_code_7a_and_come_before_permissions() {
    for (level, entry) in [
        (1, 0x4000_0000_0000_8001),
        (1, 0x0000_4000_0000_8001),
        (2, 0x10_0081),
        (3, 0x2000_0081),
        (4, 0x81),
        (3, 0x2000_0801),
    ] {
        let (world, paging) = second_stage(4);
        world.map(&paging, 0x1000, level, entry);
        assert_eq!(code(world.write(0x1000)), 0x7a, "{level} {entry:#x}");
    }
}

#[test]
fn tables_that_are_no_memory_are_code_7b_at_the_top_and_78_below() {
    let (world, paging) = second_stage(4);
    world.map(&paging, 0x1000, 3, NOWHERE | 3);
    assert_eq!(code(world.read(0x1000)), 0x78);
    world.set(world.pasids, NOWHERE | 0x89);
    assert_eq!(code(world.read(0x1000)), 0x7b);
}

#[test]
fn accessed_and_dirty_are_set_with_ssade_only() {
    let (world, paging) = second_stage(4);
    let leaf = world.map(&paging, 0x1000, 1, 0x8003);
    assert!(world.write(0x1000).is_ok());
    assert_eq!(world.get(leaf), 0x8003);

    world.or(world.pasids, SSADE);
    let answer = world.read(0x1000).unwrap();
    assert!(answer.writable && !answer.dirty);
    assert_eq!(world.get(leaf), 0x8103);
    let answer = world.write(0x1000).unwrap();
    assert!(answer.dirty);
    assert_eq!(world.get(leaf), 0x8303);
    for level in 2..=4 {
        assert_eq!(world.get(world.slot(&paging, 0x1000, level)) & 0xfff, 0x103);
    }
}

#[test]
fn a_write_that_is_denied_sets_no_dirty_bit() {
    let (world, paging) = second_stage(4);
    world.or(world.pasids, SSADE);
    let leaf = world.map(&paging, 0x1000, 1, 0x8101);
    assert_eq!(code(world.write(0x1000)), 0x85);
    assert_eq!(world.get(leaf), 0x8101);
}

#[test]
fn bits_that_need_setting_are_code_7c_if_the_walk_is_not_snooped() {
    let (world, mut paging) = second_stage(4);
    world.set_pasid(0, &[paging.top | 0x289, 7]);
    paging.table_flags = 0x103;
    let leaf = world.map(&paging, 0x1000, 1, 0x8003);
    assert_eq!(code(world.read(0x1000)), 0x7c);
    world.set(leaf, 0x8103);
    assert!(world.read(0x1000).is_ok());
    assert_eq!(code(world.write(0x1000)), 0x7c);
    world.set(leaf, 0x8303);
    assert!(world.write(0x1000).is_ok());
}

#[test]
fn a_translation_request_that_may_write_sets_dirty() {
    let (world, paging) = second_stage(4);
    world.or(world.pasids, SSADE);
    let leaf = world.map(&paging, 0x1000, 1, 0x8003);
    assert!(world.translate(&of_kind(ASK, 0x1000)).is_ok());
    assert_eq!(world.get(leaf), 0x8303);
    world.set(leaf, 0x8001);
    assert!(world.translate(&of_kind(ASK, 0x1000)).is_ok());
    assert_eq!(world.get(leaf), 0x8101);
}

#[test]
fn snoop_control_reaches_the_answer() {
    let (world, paging) = second_stage(4);
    let leaf = world.map(&paging, 0x1000, 1, 0x8003);
    assert!(!world.read(0x1000).unwrap().force_snoop);
    world.or(leaf, 0x800);
    assert!(world.read(0x1000).unwrap().force_snoop);
    world.clear(leaf, 0x800);
    world.or(world.pasids + 8, 0x100_0000);
    assert!(world.read(0x1000).unwrap().force_snoop);
}

#[test]
fn each_fault_of_a_walk_is_suppressed_by_the_pasid_entry() {
    let cases: &[(u8, usize, u64)] = &[
        (0x79, 1, 0),
        (0x7a, 4, 0x83),
        (0x78, 2, NOWHERE | 3),
        (0x85, 1, 0x8001),
        (0x87, 1, 0xfee0_0003),
    ];
    for (expected, level, entry) in cases {
        let (world, paging) = second_stage(4);
        world.map(&paging, 0x1000, *level, *entry);
        let fault = world.write(0x1000).unwrap_err();
        assert_eq!((fault.reason.code(), fault.record), (*expected, true));
        world.or(world.pasids, 2);
        let fault = world.write(0x1000).unwrap_err();
        assert_eq!((fault.reason.code(), fault.record), (*expected, false));
    }
}
