//! Legacy mode: root entry, context entry, second-stage tables.

use super::testing::{
    ASK, ASK_NO_WRITE, NOWHERE, RAM, World, address, code, gates, of_kind, with_pasid,
};
use super::{Access, RequestKind, TranslationType};

/// A context entry with TT 00, and second-stage tables of `levels` levels, domain 7.
fn second_stage(levels: usize) -> (World, super::testing::Paging) {
    let world = World::legacy();
    let paging = world.second_stage(levels);
    let width = levels as u64 - 2;
    world.set_context(paging.top | 1, 0x700 | width);
    (world, paging)
}

#[test]
fn each_depth_translates_pages_of_every_size() {
    for levels in [3, 4, 5] {
        let (world, paging) = second_stage(levels);
        world.map(&paging, 0x12_3456_7000, 1, 0x98_7654_3000 | 3);
        world.map(&paging, 0x22_0020_0000, 2, 0x11_0040_0000 | 0x83);
        world.map(&paging, 0x23_4000_0000, 3, 0x12_8000_0000 | 0x83);

        let page = world.read(0x12_3456_7abc).unwrap();
        assert_eq!(
            (page.address, page.page_shift, page.domain),
            (0x98_7654_3abc, 12, 7)
        );
        assert_eq!(page.translated_by, Some(TranslationType::SecondStage));
        let page = world.write(0x22_0032_1cba).unwrap();
        assert_eq!((page.address, page.page_shift), (0x11_0052_1cba, 21));
        let page = world.write(0x23_7654_3210).unwrap();
        assert_eq!((page.address, page.page_shift), (0x12_b654_3210, 30));
    }
}

#[test]
fn a_five_level_table_translates_the_last_page_of_57_bits() {
    let (world, paging) = second_stage(5);
    world.map(&paging, 0x01ff_ffff_ffff_f000, 1, 0x5000 | 3);
    assert_eq!(address(world.read(0x01ff_ffff_ffff_f123)), 0x5123);
    assert_eq!(code(world.read(0x0200_0000_0000_0000)), 0x04);
}

#[test]
fn an_address_beyond_the_narrower_of_mgaw_and_aw_is_code_04() {
    let (world, _) = second_stage(3);
    assert_eq!(code(world.read(0x80_0000_0000)), 0x04);
    let (mut world, _) = second_stage(4);
    assert_eq!(code(world.read(0x1_0000_0000_0000)), 0x04);
    // MGAW 48 instead of 57, with a five-level table.
    let (narrow, _) = second_stage(5);
    world = narrow;
    world.gates = gates(0x1100_008c_006f_0e06, super::testing::ECAP);
    assert_eq!(code(world.read(0x1_0000_0000_0000)), 0x04);
}

#[test]
fn rights_are_the_conjunction_of_all_levels() {
    let (world, paging) = second_stage(4);
    let leaf = world.map(&paging, 0x1000, 1, 0x8000 | 3);
    let middle = world.slot(&paging, 0x1000, 2);
    assert!(world.access(0x1000, Access::Atomic).is_ok());

    world.clear(middle, 2);
    let answer = world.read(0x1000).unwrap();
    assert!(answer.readable && !answer.writable);
    assert_eq!(code(world.write(0x1000)), 0x05);
    assert_eq!(code(world.access(0x1000, Access::Atomic)), 0x05);

    world.or(middle, 2);
    world.clear(leaf, 1);
    let answer = world.write(0x1000).unwrap();
    assert!(answer.writable && !answer.readable);
    assert_eq!(code(world.read(0x1000)), 0x06);
    assert_eq!(code(world.access(0x1000, Access::Atomic)), 0x06);
}

#[test]
fn a_zero_length_read_passes_on_a_write_only_page_only_with_zlr() {
    let (mut world, paging) = second_stage(4);
    world.map(&paging, 0x1000, 1, 0x8000 | 2);
    assert_eq!(
        address(world.access(0x1000, Access::ZeroLengthRead)),
        0x8000
    );
    world.gates = gates(0x1100_008c_0038_0e06, super::testing::ECAP);
    assert_eq!(code(world.access(0x1000, Access::ZeroLengthRead)), 0x06);
}

#[test]
fn an_entry_without_rights_is_code_05_for_writes_and_06_for_reads_whatever_else_it_has() {
    let (world, paging) = second_stage(4);
    world.map(&paging, 0x1000, 1, 0x4000_0000_0000_0800);
    assert_eq!(code(world.write(0x1000)), 0x05);
    assert_eq!(code(world.read(0x1000)), 0x06);
    assert_eq!(code(world.access(0x1000, Access::ZeroLengthRead)), 0x06);
}

#[test]
fn lack_of_a_right_is_found_before_reserved_bits_and_those_before_deeper_levels() {
    let (world, paging) = second_stage(4);
    world.map(&paging, 0x1000, 1, 0);
    let top = world.slot(&paging, 0x1000, 4);
    world.or(top, 0x80);
    assert_eq!(code(world.write(0x1000)), 0x0c);
    world.clear(top, 2);
    assert_eq!(code(world.write(0x1000)), 0x05);
    assert_eq!(code(world.read(0x1000)), 0x0c);
}

#[test]
fn reserved_bits_of_second_stage_entries_are_code_0c() {
    let leaf_4k = [
        0x800,
        0x4000_0000_0000_0000,
        0x0000_4000_0000_0000,
        0x0008_0000_0000_0000,
    ];
    for bits in leaf_4k {
        let (mut world, paging) = second_stage(4);
        world.gates = gates(super::testing::CAP, super::testing::ECAP & !0x80); // no SC: SNP is reserved
        world.map(&paging, 0x1000, 1, 0x8003 | bits);
        assert_eq!(code(world.read(0x1000)), 0x0c, "{bits:#x}");
    }
    for (level, entry) in [
        (2, 0x1083),    // 2M: bit 12
        (2, 0x10_0083), // 2M: bit 20
        (3, 0x1083),
        (3, 0x2000_0083), // 1G: bit 29
        (4, 0x83),        // PS in a PML4E
        (2, 0x2000_0803), // SNP in a pointer to a table
    ] {
        let (world, paging) = second_stage(4);
        world.map(&paging, 0x1000, level, entry);
        assert_eq!(code(world.read(0x1000)), 0x0c, "{level} {entry:#x}");
    }
}

#[test]
fn ignored_bits_of_second_stage_entries_are_ignored() {
    let (world, paging) = second_stage(4);
    // X, EMT, IPAT, A, D, 10, 60:52, 61, 63; PS in a 4K leaf; SNP as SC is offered.
    world.map(&paging, 0x1000, 1, 0xbff0_0000_0000_8fff);
    let answer = world.write(0x1000).unwrap();
    assert_eq!(answer.address, 0x8000);
    assert!(answer.force_snoop);
    world.or(world.slot(&paging, 0x1000, 2), 0xbff0_0000_0000_077c);
    assert_eq!(address(world.write(0x1000)), 0x8000);
}

#[test]
fn large_pages_that_are_not_offered_are_reserved() {
    for (level, entry) in [(2, 0x20_0083), (3, 0x4000_0083)] {
        let (mut world, paging) = second_stage(4);
        world.map(&paging, 0x1000, level, entry);
        assert!(world.read(0x1000).is_ok());
        world.gates = gates(0x1100_0080_0078_0e06, super::testing::ECAP);
        assert_eq!(code(world.read(0x1000)), 0x0c);
    }
}

#[test]
fn accessed_and_dirty_bits_are_not_touched() {
    let (world, paging) = second_stage(4);
    let leaf = world.map(&paging, 0x1000, 1, 0x8003);
    let answer = world.write(0x1000).unwrap();
    assert!(answer.dirty);
    assert_eq!(world.get(leaf), 0x8003);
}

#[test]
fn pass_through_gives_the_address_back_up_to_the_host_width() {
    let world = World::legacy();
    world.set_context(0xdead_f009, 0x503); // TT 10; the pointer is ignored; AW 57 bits
    let answer = world.access(0x3fff_ffff_f123, Access::Atomic).unwrap();
    assert_eq!((answer.address, answer.domain), (0x3fff_ffff_f123, 5));
    assert_eq!(answer.translated_by, Some(TranslationType::PassThrough));
    assert_eq!(code(world.read(0x4000_0000_0000)), 0x04);
}

#[test]
fn an_output_in_the_interrupt_range_is_code_0e() {
    let (world, paging) = second_stage(4);
    world.map(&paging, 0x1000, 1, 0xfee0_0003);
    world.map(&paging, 0x2000, 1, 0xfeef_f003);
    world.map(&paging, 0x3000, 1, 0xfef0_0003);
    world.map(&paging, 0x4000, 1, 0xfedf_f003);
    assert_eq!(code(world.write(0x1000)), 0x0e);
    assert_eq!(code(world.read(0x2fff)), 0x0e);
    assert!(world.write(0x3000).is_ok());
    assert!(world.write(0x4000).is_ok());
    world.map(&paging, 0x8000_0000, 3, 0xc000_0083);
    assert_eq!(code(world.write(0x8000_0000 + 0x3ee0_0000)), 0x0e);
    assert_eq!(code(world.write(0x8000_0000 + 0x3eef_ffff)), 0x0e);
    assert!(world.write(0x8000_0000 + 0x3ef0_0000).is_ok());
    let beside = world.write(0x8000_0000).unwrap();
    assert_eq!(
        beside.page_shift, 12,
        "a block around the interrupt range holds for one page only"
    );
}

#[test]
fn a_request_to_the_interrupt_range_is_code_29_whatever_the_tables_say() {
    let (world, paging) = second_stage(4);
    world.map(&paging, 0xfee0_0000, 1, 0x8003);
    world.or(world.context + 0x180, 2);
    for access in [Access::Read, Access::Write, Access::Atomic] {
        let fault = world.access(0xfee0_0000, access).unwrap_err();
        assert_eq!((fault.reason.code(), fault.record), (0x29, true));
    }
    assert_eq!(
        address(world.access(0xfee0_0004, Access::ZeroLengthRead)),
        0xfee0_0004
    );
}

#[test]
fn while_translation_is_off_untranslated_requests_pass_and_others_are_unsupported() {
    let mut world = World::legacy();
    world.latched.enabled = false;
    assert_eq!(
        address(world.write(0xffff_ffff_ffff_f123)),
        0xffff_ffff_ffff_f123
    );
    assert_eq!(
        address(world.translate(&with_pasid(1, 0x5000, Access::Read))),
        0x5000
    );
    for kind in [ASK, RequestKind::Translated] {
        let fault = world.translate(&of_kind(kind, 0x1000)).unwrap_err();
        assert!(!fault.record);
        assert_eq!(
            fault.reply,
            crate::spec::fault_reason::Reply::UnsupportedRequest
        );
    }
}

/// What makes a context entry, on the way to which everything is in order, fail with which code.
const CONTEXTS: &[(u8, u64, u64)] = &[
    (0x02, 0, 0),
    (0x0b, 0x11, 2),
    (0x0b, 0x801, 2),
    (0x0b, 0x4000_0000_0001, 2), // bit 46 = HAW
    (0x0b, 0x1, 0x82),           // bit 71
    (0x0b, 0x1, 0x100_0002),     // bit 88
    (0x0b, 0x1, 0x8000_0000_0000_0002),
    (0x03, 0x1, 0), // AW
    (0x03, 0x1, 4),
    (0x03, 0xd, 2),         // TT 11
    (0x03, 0x9, 2),         // pass-through with AW 48 bits of 57
    (0x03, NOWHERE | 1, 2), // the top table
];

#[test]
fn context_entries_fail_with_their_codes_and_fpd_suppresses_each() {
    for (expected, low, high) in CONTEXTS {
        let world = World::legacy();
        world.set_context(*low, *high);
        let fault = world.read(0x1000).unwrap_err();
        assert_eq!(
            (fault.reason.code(), fault.record),
            (*expected, true),
            "{low:#x} {high:#x}"
        );
        world.set_context(*low | 2, *high);
        let fault = world.read(0x1000).unwrap_err();
        assert_eq!(
            (fault.reason.code(), fault.record),
            (*expected, false),
            "{low:#x} {high:#x}"
        );
    }
}

#[test]
fn software_bits_of_a_context_entry_are_ignored() {
    let (world, paging) = second_stage(4);
    world.map(&paging, 0x1000, 1, 0x8003);
    world.or(world.context + 0x188, 0x78);
    assert!(world.read(0x1000).is_ok());
}

#[test]
fn domain_ids_wider_than_offered_are_reserved() {
    let (mut world, paging) = second_stage(4);
    world.map(&paging, 0x1000, 1, 0x8003);
    world.gates = gates(0x1100_008c_0078_0e00, super::testing::ECAP); // 4 bits
    assert!(world.read(0x1000).is_ok());
    world.or(world.context + 0x188, 0x1000);
    assert_eq!(code(world.read(0x1000)), 0x0b);
}

#[test]
fn faults_of_walks_are_suppressed_by_the_context() {
    let cases: &[(u8, usize, u64)] = &[
        (0x07, 2, NOWHERE | 3),
        (0x0c, 3, 0x2000_0883),
        (0x06, 1, 2),
        (0x06, 2, 0),
        (0x0e, 1, 0xfee0_0003),
    ];
    for (expected, level, entry) in cases {
        let (world, paging) = second_stage(4);
        world.map(&paging, 0x1000, *level, *entry);
        let fault = world.read(0x1000).unwrap_err();
        assert_eq!((fault.reason.code(), fault.record), (*expected, true));
        world.or(world.context + 0x180, 2);
        let fault = world.read(0x1000).unwrap_err();
        assert_eq!((fault.reason.code(), fault.record), (*expected, false));
    }
    let (world, _) = second_stage(4);
    world.or(world.context + 0x180, 2);
    let fault = world.read(1 << 48).unwrap_err();
    assert_eq!((fault.reason.code(), fault.record), (0x04, false));
}

#[test]
fn faults_of_the_root_are_always_recorded() {
    let root = |word: u64, high: u64| {
        let world = World::legacy();
        world.set_context(2, 0);
        world.set(world.root, word);
        world.set(world.root + 8, high);
        let fault = world.read(0x1000).unwrap_err();
        assert!(fault.record);
        fault.reason.code()
    };
    let good = World::legacy().context | 1;
    assert_eq!(root(0, 0), 0x01);
    assert_eq!(root(good | 2, 0), 0x0a);
    assert_eq!(root(good | 0x4000_0000_0000, 0), 0x0a);
    assert_eq!(root(good, 1), 0x0a);
    assert_eq!(root(NOWHERE | 1, 0), 0x09);
    let mut world = World::legacy();
    world.latched.root.address = RAM as u64;
    assert_eq!(code(world.read(0x1000)), 0x08);
}

#[test]
fn requests_with_pasid_and_page_requests_do_not_exist_in_legacy_mode() {
    let (world, _) = second_stage(4);
    assert_eq!(
        code(world.translate(&with_pasid(1, 0x1000, Access::Read))),
        0x31
    );
    assert_eq!(
        code(world.translate(&of_kind(RequestKind::PageRequest, 0x1000))),
        0x32
    );
}

#[test]
fn the_bus_selects_the_root_entry_and_the_function_the_context_entry() {
    let (world, paging) = second_stage(4);
    world.map(&paging, 0x1000, 1, 0x8003);
    let other = world.page();
    world.set(world.root + 0x420, other | 1); // bus 42h
    world.set(other + 0xfd0, paging.top | 1); // 1f.5
    world.set(other + 0xfd8, 0x902);
    let source = crate::SourceId(0x42fd);
    let request = super::Request::untranslated(source, 0x1000, Access::Read);
    assert_eq!(world.translate(&request).unwrap().domain, 9);
}

#[test]
fn translation_requests_need_translation_type_01() {
    use crate::spec::fault_reason::Reply;
    let (world, paging) = second_stage(4);
    let leaf = world.map(&paging, 0x1000, 1, 0x8003);
    for kind in [ASK, RequestKind::Translated] {
        let fault = world.translate(&of_kind(kind, 0x1000)).unwrap_err();
        assert_eq!((fault.reason.code(), fault.record), (0x0d, true));
        assert_eq!(fault.reply, Reply::UnsupportedRequest);
    }
    world.or(world.context + 0x180, 4);
    let answer = world.translate(&of_kind(ASK, 0x1000)).unwrap();
    assert!(answer.readable && answer.writable);
    assert_eq!(answer.address, 0x8000);
    let answer = world.translate(&of_kind(ASK_NO_WRITE, 0x1000)).unwrap();
    assert!(answer.readable && !answer.writable);
    world.set(leaf, 0);
    let answer = world.translate(&of_kind(ASK, 0x1000)).unwrap();
    assert!(!answer.readable && !answer.writable);

    let fault = world.translate(&of_kind(ASK, 1 << 48)).unwrap_err();
    assert_eq!(
        (fault.reason.code(), fault.record, fault.reply),
        (0x04, false, Reply::NoAccess)
    );
    assert_eq!(
        address(world.translate(&of_kind(RequestKind::Translated, 1 << 45))),
        1 << 45
    );
    assert_eq!(
        code(world.translate(&of_kind(RequestKind::Translated, 1 << 46))),
        0x04
    );
    assert_eq!(
        code(world.translate(&of_kind(RequestKind::Translated, 0xfee0_0000))),
        0x0e
    );
}
