//! First-stage tables in scalable mode.

use super::testing::{
    ASK, ASK_NO_WRITE, CAP, ECAP, NOWHERE, Paging, World, address, code, gates, of_kind, with_pasid,
};
use super::{Access, Request, TranslationType};
use crate::spec::fault_reason::Reply;

const PWSNP: u64 = 0x80_0000;

/// PASID 0 has a first stage of `levels` levels, domain 7, PWSNP.
fn first_stage(levels: usize) -> (World, Paging) {
    let world = World::scalable();
    let paging = world.first_stage(levels);
    let mode = if levels == 5 { 4 } else { 0 };
    world.set_pasid(0, &[0x41, PWSNP | 7, paging.top | mode]);
    (world, paging)
}

#[test]
fn each_depth_translates_pages_of_every_size() {
    for levels in [4, 5] {
        let (world, paging) = first_stage(levels);
        world.map(&paging, 0x12_3456_7000, 1, 0x98_7654_3067);
        world.map(&paging, 0x22_0020_0000, 2, 0x11_0040_00e7);
        world.map(&paging, 0x23_4000_0000, 3, 0x12_8000_00e7);
        let page = world.read(0x12_3456_7abc).unwrap();
        assert_eq!(
            (page.address, page.page_shift, page.domain),
            (0x98_7654_3abc, 12, 7)
        );
        assert_eq!(page.translated_by, Some(TranslationType::FirstStage));
        let page = world.write(0x22_0032_1cba).unwrap();
        assert_eq!((page.address, page.page_shift), (0x11_0052_1cba, 21));
        let page = world.write(0x23_7654_3210).unwrap();
        assert_eq!((page.address, page.page_shift), (0x12_b654_3210, 30));
    }
}

#[test]
fn input_addresses_must_be_canonical() {
    let (world, paging) = first_stage(4);
    world.map(&paging, 0xffff_8000_0000_0000, 1, 0x8067);
    world.map(&paging, 0x0000_7fff_ffff_f000, 1, 0x9067);
    assert_eq!(address(world.read(0xffff_8000_0000_0123)), 0x8123);
    assert_eq!(address(world.read(0x0000_7fff_ffff_f123)), 0x9123);
    for bad in [
        0x0000_8000_0000_0000,
        0xffff_7fff_ffff_f000,
        0x8000_0000_0000_0000,
        0x0001_0000_0000_0000,
    ] {
        assert_eq!(code(world.read(bad)), 0x80, "{bad:#x}");
    }
    let (world, paging) = first_stage(5);
    world.map(&paging, 0xff00_0000_0000_0000, 1, 0x8067);
    assert_eq!(address(world.read(0xff00_0000_0000_0123)), 0x8123);
    for bad in [0x0100_0000_0000_0000, 0xfeff_ffff_ffff_f000] {
        assert_eq!(code(world.read(bad)), 0x80, "{bad:#x}");
    }
}

#[test]
fn users_need_the_user_bit_and_writes_the_write_bit_at_every_level() {
    for level in 1..=4 {
        let (world, paging) = first_stage(4);
        world.map(&paging, 0x1000, 1, 0x8067);
        let slot = world.slot(&paging, 0x1000, level);
        world.clear(slot, 2);
        let answer = world.read(0x1000).unwrap();
        assert!(answer.readable && !answer.writable);
        assert_eq!(code(world.write(0x1000)), 0x85);
        assert_eq!(code(world.access(0x1000, Access::Atomic)), 0x85);
        world.clear(slot, 4);
        assert_eq!(code(world.write(0x1000)), 0x81, "before 85h");
        assert_eq!(code(world.read(0x1000)), 0x81);
        world.clear(slot, 1);
        assert_eq!(code(world.read(0x1000)), 0x71);
    }
}

#[test]
fn supervisor_requests_ignore_the_user_bit_and_the_write_bit_unless_wpe() {
    let (world, paging) = first_stage(4);
    world.map(&paging, 0x1000, 1, 0x8061);
    world.set_pasid(1, &[0x41, PWSNP | 7, paging.top | 1]);
    let request = |access| Request {
        privileged: true,
        ..with_pasid(1, 0x1000, access)
    };
    assert!(world.translate(&request(Access::Atomic)).is_ok());
    assert_eq!(
        code(world.translate(&with_pasid(1, 0x1000, Access::Read))),
        0x81
    );
    world.or(world.pasid_entry(1) + 16, 0x10);
    assert_eq!(code(world.translate(&request(Access::Write))), 0x85);
    assert!(world.translate(&request(Access::Read)).is_ok());
}

#[test]
fn reserved_bits_are_code_72() {
    for (level, entry) in [
        (1, 0x0000_4000_0000_8067), // bit 46 = HAW
        (1, 0x0008_0000_0000_8067), // bit 51
        (2, 0x0020_20e7),           // 2M: bit 13
        (2, 0x0030_00e7),           // 2M: bit 20
        (3, 0x0000_20e7),           // 1G: bit 13
        (3, 0x2000_00e7),           // 1G: bit 29
        (4, 0x00e7),                // PS in a PML4E
        (5, 0x00e7),                // PS in a PML5E
        (3, 0x0000_4000_0000_8067),
    ] {
        let (world, paging) = first_stage(5);
        world.map(&paging, 0x1000, level, entry);
        assert_eq!(code(world.read(0x1000)), 0x72, "{level} {entry:#x}");
        world.map(&paging, 0x1000, level, entry & !1);
        assert_eq!(code(world.read(0x1000)), 0x71, "{level} {entry:#x}");
    }
}

#[test]
fn large_pages_of_1g_are_reserved_unless_offered_and_2m_are_always_there() {
    let (mut world, paging) = first_stage(4);
    world.gates = gates(CAP & !(1 << 56), ECAP);
    world.map(&paging, 0x4000_0000, 3, 0xe7);
    world.map(&paging, 0x20_0000, 2, 0xe7);
    assert_eq!(code(world.read(0x4000_0000)), 0x72);
    assert_eq!(address(world.read(0x20_0123)), 0x123);
}

#[test]
fn ignored_bits_are_ignored() {
    let (world, paging) = first_stage(4);
    // XD, 62:52, 11:8, PAT, PCD, PWT.
    world.map(&paging, 0x1000, 1, 0xfff0_0000_0000_8fff);
    assert_eq!(address(world.write(0x1000)), 0x8000);
    // PAT of a large page is bit 12.
    world.map(&paging, 0x40_0000, 2, 0xfff0_0000_0020_1fff);
    assert_eq!(address(world.write(0x40_0000)), 0x20_0000);
    world.or(world.slot(&paging, 0x1000, 3), 0xfff0_0000_0000_0f58);
    assert_eq!(address(world.write(0x1000)), 0x8000);
}

#[test]
fn tables_that_are_no_memory_are_code_73_at_the_top_and_70_below() {
    let (world, paging) = first_stage(4);
    world.map(&paging, 0x1000, 2, NOWHERE | 0x27);
    assert_eq!(code(world.read(0x1000)), 0x70);
    world.set(world.pasids + 16, NOWHERE);
    assert_eq!(code(world.read(0x1000)), 0x73);
}

#[test]
fn a_read_sets_accessed_in_every_entry_and_dirty_nowhere() {
    let (world, mut paging) = first_stage(4);
    paging.table_flags = 0x7;
    let leaf = world.map(&paging, 0x1000, 1, 0x8007);
    let answer = world.read(0x1000).unwrap();
    assert!(
        answer.writable && !answer.dirty,
        "a write has to walk again"
    );
    assert_eq!(world.get(leaf), 0x8027);
    for level in 2..=4 {
        assert_eq!(world.get(world.slot(&paging, 0x1000, level)) & 0xfff, 0x27);
    }
}

#[test]
fn a_write_sets_dirty_in_the_leaf_only() {
    let (world, mut paging) = first_stage(4);
    paging.table_flags = 0x7;
    let leaf = world.map(&paging, 0x20_0000, 2, 0x60_0087);
    let answer = world.write(0x20_0000).unwrap();
    assert!(answer.writable && answer.dirty);
    assert_eq!(world.get(leaf), 0x60_00e7);
    for level in 3..=4 {
        assert_eq!(
            world.get(world.slot(&paging, 0x20_0000, level)) & 0xfff,
            0x27
        );
    }
}

#[test]
fn a_write_that_is_denied_sets_no_dirty_bit() {
    let (world, paging) = first_stage(4);
    let leaf = world.map(&paging, 0x1000, 1, 0x8025);
    assert_eq!(code(world.write(0x1000)), 0x85);
    assert_eq!(world.get(leaf), 0x8025);
    let leaf = world.map(&paging, 0x1000, 1, 0x8023);
    assert_eq!(code(world.write(0x1000)), 0x81);
    assert_eq!(world.get(leaf), 0x8023);
    let leaf = world.map(&paging, 0x1000, 1, 0xfee0_0027);
    assert_eq!(code(world.write(0x1000)), 0x87);
    assert_eq!(world.get(leaf), 0xfee0_0027);
}

#[test]
fn extended_accessed_is_set_in_every_entry_if_eafe() {
    let (world, paging) = first_stage(4);
    world.or(world.pasids + 16, 0x80);
    let leaf = world.map(&paging, 0x1000, 1, 0x8027);
    assert!(world.write(0x1000).is_ok());
    assert_eq!(world.get(leaf), 0x8467);
    for level in 2..=4 {
        assert_eq!(world.get(world.slot(&paging, 0x1000, level)) & 0xfff, 0x427);
    }
}

#[test]
fn bits_that_need_setting_are_code_90_if_the_walk_is_not_snooped() {
    let (world, paging) = first_stage(4);
    world.clear(world.pasids + 8, PWSNP);
    let leaf = world.map(&paging, 0x1000, 1, 0x8007);
    assert_eq!(code(world.read(0x1000)), 0x90);
    world.set(leaf, 0x8027);
    assert!(world.read(0x1000).is_ok());
    assert_eq!(code(world.write(0x1000)), 0x90);
    world.set(leaf, 0x8067);
    assert!(world.write(0x1000).is_ok());
    world.clear(world.slot(&paging, 0x1000, 3), 0x20);
    assert_eq!(code(world.read(0x1000)), 0x90);
    assert_eq!(world.get(leaf), 0x8067);
}

#[test]
fn a_translation_request_sets_dirty_unless_it_renounces_writing() {
    let (mut world, paging) = first_stage(4);
    let leaf = world.map(&paging, 0x1000, 1, 0x8007);
    let answer = world.translate(&of_kind(ASK_NO_WRITE, 0x1000)).unwrap();
    assert!(answer.readable && !answer.writable);
    assert_eq!(world.get(leaf), 0x8027);
    let answer = world.translate(&of_kind(ASK, 0x1000)).unwrap();
    assert!(answer.writable);
    assert_eq!(world.get(leaf), 0x8067);
    // Without NWFS, the flag is not honoured.
    world.gates = gates(CAP, ECAP & !(1 << 33));
    world.set(leaf, 0x8007);
    let answer = world.translate(&of_kind(ASK_NO_WRITE, 0x1000)).unwrap();
    assert!(answer.writable);
    assert_eq!(world.get(leaf), 0x8067);
    // A read-only page stays clean.
    world.set(leaf, 0x8005);
    let answer = world.translate(&of_kind(ASK, 0x1000)).unwrap();
    assert!(answer.readable && !answer.writable);
    assert_eq!(world.get(leaf), 0x8025);
    // Nor is a page that the user may not touch an error to be recorded.
    world.set(leaf, 0x8003);
    let fault = world.translate(&of_kind(ASK, 0x1000)).unwrap_err();
    assert_eq!(
        (fault.reason.code(), fault.record, fault.reply),
        (0x81, false, Reply::NoAccess)
    );
}

#[test]
fn each_fault_of_a_walk_is_suppressed_by_the_pasid_entry() {
    let cases: &[(u8, usize, u64)] = &[
        (0x71, 1, 0),
        (0x72, 4, 0xa7),
        (0x70, 3, NOWHERE | 0x27),
        (0x81, 1, 0x8023),
        (0x85, 1, 0x8025),
        (0x87, 1, 0xfee0_0027),
    ];
    for (expected, level, entry) in cases {
        let (world, paging) = first_stage(4);
        world.map(&paging, 0x1000, *level, *entry);
        let fault = world.write(0x1000).unwrap_err();
        assert_eq!((fault.reason.code(), fault.record), (*expected, true));
        world.or(world.pasids, 2);
        let fault = world.write(0x1000).unwrap_err();
        assert_eq!((fault.reason.code(), fault.record), (*expected, false));
    }
}
