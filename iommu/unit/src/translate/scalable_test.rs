//! Scalable mode: from the root entry to the PASID entry.

use super::testing::{
    ASK, CAP, ECAP, NOWHERE, Paging, RAM, SOURCE, World, address, code, gates, of_kind, with_pasid,
};
use super::{Access, Binding, Request, RequestKind, TranslationType};
use crate::spec::fault_reason::{FaultReason, Reply};
use crate::spec::ids::{Pasid, SourceId};
use crate::spec::registers::TableMode;

/// The codes that no FPD bit suppresses.
const UNQUALIFIED: &[u8] = &[
    0x01, 0x08, 0x09, 0x0a, 0x30, 0x31, 0x32, 0x33, 0x34, 0x38, 0x39, 0x3a, 0x40, 0x50, 0x58, 0x20,
    0x21, 0x23, 0x25, 0x29, 0x2a, 0x2b,
];

/// PASID 0 has a second stage of 4 levels, domain 7, that maps 1000h to 8000h.
fn second_stage() -> (World, Paging) {
    let world = World::scalable();
    let paging = world.second_stage(4);
    world.map(&paging, 0x1000, 1, 0x8003);
    world.set_pasid(0, &[paging.top | 0x89, 7]);
    (world, paging)
}

#[test]
fn exactly_the_codes_that_the_specification_names_are_not_qualified() {
    for reason in FaultReason::ALL {
        assert_eq!(
            reason.is_qualified(),
            !UNQUALIFIED.contains(&reason.code()),
            "{reason:?}"
        );
    }
}

#[test]
fn exactly_the_conditions_that_the_specification_names_are_recoverable() {
    let recoverable = [
        0x04, 0x05, 0x06, 0x51, 0x59, 0x5c, 0x5d, 0x70, 0x71, 0x72, 0x73, 0x74, 0x75, 0x76, 0x77,
        0x79, 0x80, 0x81, 0x83, 0x84, 0x85, 0x86, 0x90,
    ];
    for reason in FaultReason::ALL {
        assert_eq!(
            reason.is_recoverable(),
            recoverable.contains(&reason.code()),
            "{reason:?}"
        );
    }
}

#[test]
fn modes_that_are_not_offered_are_code_30_and_abort_dma_is_33() {
    let (mut world, _) = second_stage();
    world.latched.root.mode = TableMode::Reserved;
    assert_eq!(code(world.read(0x1000)), 0x30);
    world.latched.root.mode = TableMode::AbortDma;
    assert_eq!(code(world.read(0x1000)), 0x30);
    world.gates = gates(CAP, ECAP | 1 << 52);
    assert_eq!(code(world.read(0x1000)), 0x33);
    world.latched.root.mode = TableMode::Scalable;
    world.gates = gates(CAP, ECAP & !(1 << 43));
    assert_eq!(code(world.read(0x1000)), 0x30);
}

/// A change to tables that are in order, and the code that follows. The entries that were read by
/// then, and whose FPD bit counts: 0 none, 1 the context entry, 2 the directory entry too, 3 the
/// PASID entry too.
type Case = (u8, usize, fn(&World));

const CASES: &[Case] = &[
    (0x39, 0, |w| w.set(w.root, 0)),
    (0x3a, 0, |w| w.or(w.root, 0x800)),
    (0x3a, 0, |w| w.or(w.root, 1 << 46)),
    (0x40, 0, |w| w.set(w.root, NOWHERE | 1)),
    (0x41, 1, |w| w.clear(w.scalable_context(), 1)),
    (0x42, 1, |w| w.or(w.scalable_context(), 0x20)),
    (0x42, 1, |w| w.or(w.scalable_context(), 0x80)),
    (0x42, 1, |w| w.or(w.scalable_context(), 1 << 46)),
    (0x42, 1, |w| w.or(w.scalable_context() + 8, 0x20_0000)),
    (0x42, 1, |w| w.or(w.scalable_context() + 16, 1)),
    (0x42, 1, |w| w.or(w.scalable_context() + 24, 1 << 63)),
    (0x43, 1, |w| w.clear(w.scalable_context(), 4)),
    (0x43, 1, |w| w.clear(w.scalable_context(), 8)),
    (0x43, 1, |w| w.or(w.scalable_context() + 8, 0x4000)),
    (0x50, 1, |w| w.set(w.scalable_context(), NOWHERE | 0x25d)),
    (0x51, 2, |w| w.clear(w.directory, 1)),
    (0x52, 2, |w| w.or(w.directory, 4)),
    (0x52, 2, |w| w.or(w.directory, 1 << 46)),
    (0x58, 2, |w| w.set(w.directory, NOWHERE | 1)),
    (0x59, 3, |w| w.clear(w.pasids, 1)),
    (0x5a, 3, |w| w.or(w.pasids, 0x20)),
    (0x5a, 3, |w| w.or(w.pasids, 0x400)),
    (0x5a, 3, |w| w.or(w.pasids, 1 << 46)),
    (0x5a, 3, |w| w.or(w.pasids + 8, 0x1_0000)), // bit 80
    (0x5a, 3, |w| w.or(w.pasids + 8, 0x0200_0000)), // CD without MTS
    (0x5a, 3, |w| w.or(w.pasids + 8, 0x0400_0000)), // EMTE without MTS
    (0x5a, 3, |w| w.or(w.pasids + 8, 0x8000_0000)), // bit 95
    (0x5a, 3, |w| w.or(w.pasids + 8, 0x1_0000_0000)), // PAT without MTS
    (0x5a, 3, |w| w.or(w.pasids + 16, 2)),
    (0x5a, 3, |w| w.or(w.pasids + 16, 0x100)),
    (0x5a, 3, |w| w.or(w.pasids + 24, 1)),
    (0x5a, 3, |w| w.or(w.pasids + 32, 1)),
    (0x5a, 3, |w| w.or(w.pasids + 56, 1 << 63)),
    (0x5b, 3, |w| w.clear(w.pasids, 0x80)), // PGTT 000
    (0x5b, 3, |w| w.or(w.pasids, 0x140)),   // PGTT 111
    (0x5b, 3, |w| w.clear(w.pasids, 0x8)),  // AW 0
    (0x5b, 3, |w| w.or(w.pasids, 0x10)),    // AW 6
    (0x7b, 3, |w| w.set(w.pasids, NOWHERE | 0x89)),
];

#[test]
fn each_entry_fails_with_its_code() {
    for (index, (expected, _, spoil)) in CASES.iter().enumerate() {
        let (world, _) = second_stage();
        assert!(world.read(0x1000).is_ok());
        spoil(&world);
        let fault = world.read(0x1000).unwrap_err();
        assert_eq!(
            (fault.reason.code(), fault.record),
            (*expected, true),
            "case {index}"
        );
    }
}

#[test]
fn fpd_of_each_entry_that_was_read_suppresses_what_is_qualified() {
    for (index, (expected, reached, spoil)) in CASES.iter().enumerate() {
        for level in 1..=3 {
            let (world, _) = second_stage();
            spoil(&world);
            match level {
                1 => world.or(world.scalable_context(), 2),
                2 => world.or(world.directory, 2),
                _ => world.or(world.pasids, 2),
            }
            let fault = world.read(0x1000).unwrap_err();
            let recorded = level > *reached || UNQUALIFIED.contains(expected);
            assert_eq!(
                (fault.reason.code(), fault.record),
                (*expected, recorded),
                "case {index}, {level}"
            );
        }
    }
}

#[test]
fn a_root_table_that_is_no_memory_is_code_38() {
    let (mut world, _) = second_stage();
    world.latched.root.address = RAM as u64;
    assert_eq!(code(world.read(0x1000)), 0x38);
}

#[test]
fn only_the_half_of_the_root_entry_that_is_used_counts() {
    let (world, _) = second_stage();
    world.set(world.root + 8, 0xffe);
    assert!(world.read(0x1000).is_ok());

    let upper = world.page();
    world.set(world.root, 0xffe);
    world.set(world.root + 8, upper | 1);
    // 10h.2: function 82h is the third of the upper table.
    world.set(upper + 0x40, world.directory | 0x201);
    let request = Request::untranslated(SourceId(0x0082), 0x1000, Access::Read);
    assert_eq!(address(world.translate(&request)), 0x8000);
    assert_eq!(code(world.read(0x1000)), 0x39);
}

#[test]
fn entries_of_a_capability_that_is_not_offered_are_reserved() {
    // Bits of ECAP to take away, the code, and what has to be set for it.
    type Gated = (u64, u8, fn(&World));
    let cases: &[Gated] = &[
        (1 << 2, 0x42, |_| ()),                                         // DT: DTE
        (1 << 40, 0x42, |_| ()),                                        // PASID: PASIDE
        (1 << 29, 0x42, |_| ()),                                        // PRS: PRE
        (1 << 56, 0x42, |_| ()),                                        // PTRS: EPTR
        (1 << 49, 0x42, |w| w.or(w.scalable_context() + 8, 1)),         // RPS: RID_PASID
        (1 << 53, 0x42, |w| w.or(w.scalable_context() + 8, 0x10_0000)), // RPRIVS: RID_PRIV
        (1 << 45, 0x5a, |w| w.or(w.pasids, 0x200)),                     // SSADS: SSADE
        (1 << 48, 0x5a, |w| w.or(w.pasids + 8, 0x80_0000)),             // SMPWCS: PWSNP
        (1 << 7, 0x5a, |w| w.or(w.pasids + 8, 0x100_0000)),             // SC: PGSNP
        (1 << 31, 0x5a, |w| w.or(w.pasids + 16, 1)),                    // SRS: SRE
        (1 << 34, 0x5a, |w| w.or(w.pasids + 16, 0x80)),                 // EAFS: EAFE
        (1 << 47, 0x5a, |w| w.or(w.pasids + 16, 0x10)),                 // FSTS: WPE
        (1 << 47, 0x5a, |w| w.or(w.pasids + 16, 0x5000)),               // FSTS: FSPTPTR
        (1 << 46, 0x5a, |_| ()),                                        // SSTS: SSPTPTR
        (1 << 26, 0x5b, |w| w.or(w.pasids, 0x40)),                      // NEST
        (1 << 47, 0x5b, |w| w.set(w.pasids, 0x49)),                     // FSTS
        (1 << 6, 0x5b, |w| w.set(w.pasids, 0x109)),                     // PT
    ];
    for (index, (capability, expected, set)) in cases.iter().enumerate() {
        let (mut world, _) = second_stage();
        world.gates = gates(CAP, ECAP & !capability);
        set(&world);
        assert_eq!(code(world.read(0x1000)), *expected, "case {index}");
    }
}

#[test]
fn fields_of_a_stage_that_is_not_used_are_ignored() {
    let (world, _) = second_stage();
    // FSPM 11, WPE, NXE, SMEP, EAFE, and a first-stage pointer with every bit.
    world.set(world.pasids + 16, 0xffff_ffff_ffff_f0fc);
    assert!(world.read(0x1000).is_ok());

    // First stage: AW 7, SSADE, and a second-stage pointer.
    let world = World::scalable();
    let paging = world.first_stage(4);
    world.map(&paging, 0x1000, 1, 0x8027);
    world.set_pasid(0, &[0x0000_3fff_ffff_f25d, 7, paging.top]);
    assert_eq!(address(world.read(0x1000)), 0x8000);
}

#[test]
fn linux_writes_the_address_width_into_first_stage_entries_even_without_a_second_stage() {
    let mut world = World::scalable();
    let paging = world.first_stage(4);
    world.map(&paging, 0x1000, 1, 0x8027);
    world.set_pasid(0, &[0x49, 2, paging.top]);
    world.gates = gates(CAP, ECAP & !(1 << 46 | 1 << 26 | 1 << 45));
    assert_eq!(address(world.read(0x1000)), 0x8000);
}

#[test]
fn the_first_stage_depth_must_be_offered() {
    let mut world = World::scalable();
    let paging = world.first_stage(5);
    world.map(&paging, 0x1000, 1, 0x8027);
    world.set_pasid(0, &[0x41, 7, paging.top | 4]);
    assert_eq!(address(world.read(0x1000)), 0x8000);
    world.gates = gates(CAP & !(1 << 60), ECAP);
    assert_eq!(code(world.read(0x1000)), 0x5b);
    world.gates = gates(CAP, ECAP);
    world.or(world.pasids + 16, 8);
    assert_eq!(code(world.read(0x1000)), 0x5b);
}

#[test]
fn pasids_have_tables_of_their_own() {
    let (world, paging) = second_stage();
    world.map(&paging, 0x1000, 1, 0x8003);
    let other = world.second_stage(4);
    world.map(&other, 0x1000, 1, 0x9003);
    // PASID 3fffh is the last one: directory entry 255, entry 63.
    let table = world.page();
    world.set(world.directory + 0x7f8, table | 1);
    world.set(table + 0xfc0, other.top | 0x89);
    world.set(table + 0xfc8, 9);
    let answer = world
        .translate(&with_pasid(0x3fff, 0x1234, Access::Write))
        .unwrap();
    assert_eq!((answer.address, answer.domain), (0x9234, 9));
    assert_eq!(address(world.write(0x1234)), 0x8234);
}

#[test]
fn the_context_entry_decides_which_requests_pass() {
    let (mut world, _) = second_stage();
    assert_eq!(
        code(world.translate(&with_pasid(0x4000, 0x1000, Access::Read))),
        0x46
    );
    assert_eq!(
        code(world.translate(&with_pasid(0, 0x1000, Access::Read))),
        0x48
    );
    world.gates = gates(CAP, ECAP & !(0x1f << 35) | 9 << 35); // 10 bits of PASID
    assert_eq!(
        code(world.translate(&with_pasid(0x400, 0x1000, Access::Read))),
        0x89
    );
    assert_eq!(
        code(world.translate(&with_pasid(0x3ff, 0x1000, Access::Read))),
        0x51
    );

    world.clear(world.scalable_context(), 0x4c);
    world.clear(world.scalable_context(), 0x10);
    assert_eq!(
        code(world.translate(&with_pasid(1, 0x1000, Access::Read))),
        0x45
    );
    assert_eq!(code(world.translate(&of_kind(ASK, 0x1000))), 0x44);
    assert_eq!(
        code(world.translate(&of_kind(RequestKind::Translated, 0x1000))),
        0x44
    );
    assert_eq!(
        code(world.translate(&of_kind(RequestKind::PageRequest, 0x1000))),
        0x47
    );
    let translated = Request {
        kind: RequestKind::Translated,
        ..with_pasid(1, 0x1000, Access::Read)
    };
    world.or(world.scalable_context(), 0xc);
    assert_eq!(code(world.translate(&translated)), 0x49);
}

#[test]
fn requests_without_pasid_use_rid_pasid_only_if_offered() {
    let (mut world, _) = second_stage();
    let other = world.second_stage(4);
    world.map(&other, 0x1000, 1, 0x9003);
    world.set_pasid(5, &[other.top | 0x89, 9]);
    world.set(world.scalable_context() + 8, 5);
    assert_eq!(address(world.read(0x1000)), 0x9000);
    assert_eq!(
        code(world.translate(&with_pasid(5, 0x1000, Access::Read))),
        0x48
    );
    assert_eq!(
        address(world.translate(&with_pasid(0, 0x1000, Access::Read))),
        0x8000
    );
    world.gates = gates(CAP, ECAP & !(1 << 49));
    world.set(world.scalable_context() + 8, 0);
    assert_eq!(address(world.read(0x1000)), 0x8000);
}

#[test]
fn supervisor_requests_need_sre() {
    let (world, _) = second_stage();
    world.or(world.scalable_context() + 8, 0x10_0000);
    assert_eq!(code(world.read(0x1000)), 0x5d);
    world.or(world.pasids + 16, 1);
    assert!(world.read(0x1000).is_ok());
}

#[test]
fn pass_through_is_limited_by_the_host_width() {
    let world = World::scalable();
    world.set_pasid(0, &[0x101, 0x100_0003]);
    let answer = world.access(0x3fff_ffff_f000, Access::Atomic).unwrap();
    assert_eq!((answer.address, answer.domain), (0x3fff_ffff_f000, 3));
    assert_eq!(answer.translated_by, Some(TranslationType::PassThrough));
    assert!(answer.force_snoop, "PGSNP holds for pass-through, too");
    assert_eq!(code(world.write(0x4000_0000_0000)), 0x83);
}

#[test]
fn the_interrupt_range_is_special_without_pasid_only() {
    let (world, paging) = second_stage();
    world.set_pasid(1, &[paging.top | 0x89, 7]);
    world.map(&paging, 0xfee0_0000, 1, 0x8003);
    world.map(&paging, 0x2000, 1, 0xfee0_0003);
    assert_eq!(code(world.write(0xfee0_0000)), 0x29);
    assert_eq!(
        address(world.translate(&with_pasid(1, 0xfee0_0000, Access::Write))),
        0x8000
    );
    assert_eq!(
        code(world.translate(&with_pasid(1, 0x2000, Access::Write))),
        0x87
    );
    assert_eq!(code(world.write(0x2000)), 0x87);
    world.set_pasid(1, &[0x101, 7]);
    assert_eq!(
        code(world.translate(&with_pasid(1, 0xfee0_0000, Access::Write))),
        0x87
    );
    let asking = Request {
        kind: ASK,
        ..with_pasid(1, 0xfee0_1000, Access::Read)
    };
    let answer = world.translate(&asking).unwrap();
    assert_eq!((answer.address, answer.page_shift), (0xfee0_1000, 12));
    assert!(answer.readable && answer.writable && !answer.untranslated_only);

    let answer = world.translate(&of_kind(ASK, 0xfee0_0000)).unwrap();
    assert!(!answer.readable && answer.writable && answer.untranslated_only);
    let answer = world
        .translate(&of_kind(super::testing::ASK_NO_WRITE, 0xfee0_0000))
        .unwrap();
    assert!(!answer.readable && !answer.writable && !answer.untranslated_only);
    let fault = world
        .translate(&of_kind(RequestKind::Translated, 0xfee0_0000))
        .unwrap_err();
    assert_eq!(
        (fault.reason.code(), fault.reply),
        (0x87, Reply::UnsupportedRequest)
    );
}

#[test]
fn translated_requests_pass_without_a_pasid_entry() {
    let world = World::scalable();
    world.set(world.directory, 0);
    assert_eq!(
        address(world.translate(&of_kind(RequestKind::Translated, 0x5678))),
        0x5678
    );
    assert_eq!(
        code(world.translate(&of_kind(RequestKind::Translated, 1 << 46))),
        0x83
    );
}

#[test]
fn translation_requests_are_told_recoverable_conditions_without_a_record() {
    let (world, paging) = second_stage();
    world.map(&paging, 0x2000, 1, 0);
    let fault = world.translate(&of_kind(ASK, 0x2000)).unwrap_err();
    assert_eq!(
        (fault.reason.code(), fault.record, fault.reply),
        (0x79, false, Reply::NoAccess)
    );
    world.map(&paging, 0x2000, 1, 0x4000_0000_0000_8003);
    let fault = world.translate(&of_kind(ASK, 0x2000)).unwrap_err();
    assert_eq!(
        (fault.reason.code(), fault.record, fault.reply),
        (0x7a, true, Reply::CompleterAbort)
    );
    world.map(&paging, 0x2000, 1, 0x8001);
    let answer = world.translate(&of_kind(ASK, 0x2000)).unwrap();
    assert!(answer.readable && !answer.writable);
}

#[test]
fn bindings_are_canonical() {
    let (mut world, paging) = second_stage();
    let bind = |world: &World, pasid| world.tables().binding(SOURCE, pasid);
    let Binding::SecondStage(stage) = bind(&world, None) else {
        panic!("second stage");
    };
    assert_eq!(
        (stage.table, stage.levels, stage.accessed_dirty),
        (paging.top, 4, false)
    );
    // Fields that second-stage translation ignores make no difference.
    world.or(world.pasids + 16, 0xffff_f010);
    assert_eq!(bind(&world, None), Binding::SecondStage(stage));
    assert_eq!(bind(&world, Pasid::new(1)), Binding::Blocked);
    world.set_pasid(1, &[0x101, 3]);
    assert_eq!(bind(&world, Pasid::new(1)), Binding::PassThrough);
    world.latched.enabled = false;
    assert_eq!(bind(&world, None), Binding::PassThrough);
}

#[test]
fn a_page_request_is_resolved_and_grants_nothing() {
    let (world, _) = second_stage();
    let answer = world
        .translate(&of_kind(RequestKind::PageRequest, 0x1000))
        .unwrap();
    assert!(!answer.readable && !answer.writable);
    world.clear(world.pasids, 1);
    let fault = world
        .translate(&of_kind(RequestKind::PageRequest, 0x1000))
        .unwrap_err();
    assert_eq!((fault.reason.code(), fault.record), (0x59, true));
}
