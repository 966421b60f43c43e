//! First-stage tables nested on second-stage tables.

use super::testing::{ECAP, NOWHERE, Paging, World, address, code, gates};
use super::{Access, TranslationType};

const PWSNP: u64 = 0x80_0000;
const SSADE: u64 = 0x200;

/// What a second-stage input is ahead of the memory that it stands for.
const BIAS: u64 = 0x1_0000_0000;

struct Nested {
    world: World,
    first: Paging,
    second: Paging,
}

/// PASID 0 is nested, domain 7, PWSNP. The second stage has 4 levels and maps the 64 MiB of memory
/// at 4 GiB, in pages of 4 KiB. The first stage has `levels` levels.
fn nested(levels: usize) -> Nested {
    let world = World::scalable();
    let second = world.second_stage(4);
    for page in (0..0x400_0000).step_by(0x1000) {
        world.map(&second, BIAS + page, 1, page | 3);
    }
    let first = Paging {
        top: world.page(),
        levels,
        bias: BIAS,
        table_flags: 0x27,
    };
    let mode = if levels == 5 { 4 } else { 0 };
    world.set_pasid(
        0,
        &[second.top | 0xc9, PWSNP | 7, (first.top + BIAS) | mode],
    );
    Nested {
        world,
        first,
        second,
    }
}

impl Nested {
    /// The second-stage entry for the first-stage table of `level` that translates `input`.
    fn below(&self, input: u64, level: usize) -> u64 {
        let slot = self.world.slot(&self.first, input, level);
        self.world.slot(&self.second, BIAS + slot, 1)
    }
}

#[test]
fn both_stages_translate_and_the_smaller_page_holds() {
    for levels in [4, 5] {
        let Nested {
            world,
            first,
            second,
        } = nested(levels);
        world.map(&first, 0x7f12_3456_7000, 1, 0x1_0030_0067);
        let answer = world.write(0x7f12_3456_7abc).unwrap();
        assert_eq!(
            (answer.address, answer.page_shift, answer.domain),
            (0x30_0abc, 12, 7)
        );
        assert_eq!(answer.translated_by, Some(TranslationType::Nested));

        // 2M on 4K, 4K on 1G, 2M on 1G, 1G on 1G.
        world.map(&first, 0x20_0000, 2, 0x1_0020_00e7);
        world.map(&second, 0x2_0000_0000, 3, 0x5_4000_0083);
        world.map(&first, 0x50_0000, 1, 0x2_1234_5067);
        world.map(&first, 0x60_0000, 2, 0x2_1240_00e7);
        world.map(&first, 0x4000_0000, 3, 0x2_0000_00e7);
        for (input, output, shift) in [
            (0x21_0123, 0x21_0123, 12),
            (0x50_0123, 0x5_5234_5123, 12),
            (0x7f_1234, 0x5_525f_1234, 21),
            (0x5234_5678, 0x5_5234_5678, 30),
        ] {
            let answer = world.write(input).unwrap();
            assert_eq!(
                (answer.address, answer.page_shift),
                (output, shift),
                "{input:#x}"
            );
        }
    }
}

#[test]
fn a_top_table_beyond_the_second_stage_is_code_5b() {
    let Nested { world, .. } = nested(4);
    world.set(world.pasids + 16, 0x1_0000_0000_0000);
    assert_eq!(
        code(world.read(0x1000)),
        0x5a,
        "beyond the host width, too: reserved comes first"
    );
    let mut world = nested(4).world;
    world.gates = gates(0x1100_008c_0066_0e06, ECAP); // MGAW 39
    world.set(world.pasids + 16, 0x80_0000_0000);
    assert_eq!(code(world.read(0x1000)), 0x5b);
}

#[test]
fn first_stage_addresses_beyond_the_second_stage_are_code_74() {
    for (level, entry) in [
        (1, 0x80_0000_0067),
        (3, 0x80_0000_0027),
        (3, 0x80_0000_00e7),
    ] {
        let Nested {
            mut world, first, ..
        } = nested(4);
        world.map(&first, 0x1000, level, entry);
        world.gates = gates(0x1100_008c_0066_0e06, ECAP); // MGAW 39
        assert_eq!(code(world.read(0x1000)), 0x74, "{level}");
    }
}

#[test]
fn the_second_stage_denies_first_stage_tables_with_codes_of_their_own() {
    let n = nested(4);
    n.world.map(&n.first, 0x1000, 1, 0x1_0030_0067);
    for (level, expected) in [(4, 0x75), (3, 0x76), (2, 0x76), (1, 0x76)] {
        let entry = n.below(0x1000, level);
        n.world.clear(entry, 1);
        assert_eq!(code(n.world.read(0x1000)), expected);
        n.world.clear(entry, 3);
        assert_eq!(code(n.world.read(0x1000)), 0x79);
        n.world.or(entry, 0x4000_0000_0000_0003);
        assert_eq!(code(n.world.read(0x1000)), 0x7a);
        n.world.clear(entry, 0x4000_0000_0000_0000);
        assert!(n.world.read(0x1000).is_ok());
    }
    n.world.map(&n.second, BIAS, 3, NOWHERE | 3);
    assert_eq!(code(n.world.read(0x1000)), 0x78);
    n.world.set(n.world.pasids, NOWHERE | 0xc9);
    assert_eq!(code(n.world.read(0x1000)), 0x7b);
}

#[test]
fn first_stage_tables_that_are_no_memory_are_code_73_and_70() {
    let n = nested(4);
    n.world.map(&n.first, 0x1000, 1, 0x1_0030_0067);
    for (level, expected) in [(4, 0x73), (3, 0x70), (1, 0x70)] {
        let entry = n.below(0x1000, level);
        let before = n.world.get(entry);
        n.world.set(entry, NOWHERE | 3);
        assert_eq!(code(n.world.read(0x1000)), expected);
        n.world.set(entry, before);
    }
}

#[test]
fn accessed_bits_need_write_permission_of_the_second_stage() {
    let n = nested(4);
    let leaf = n.world.map(&n.first, 0x1000, 1, 0x1_0030_0007);
    let below = n.below(0x1000, 1);
    n.world.clear(below, 2);
    assert_eq!(code(n.world.read(0x1000)), 0x77);
    assert_eq!(n.world.get(leaf), 0x1_0030_0007);
    n.world.or(leaf, 0x20);
    assert!(n.world.read(0x1000).is_ok());
    assert_eq!(code(n.world.write(0x1000)), 0x77);
    n.world.or(leaf, 0x40);
    assert!(n.world.write(0x1000).is_ok());
}

#[test]
fn final_rights_are_those_of_both_stages() {
    let n = nested(4);
    let leaf = n.world.map(&n.first, 0x1000, 1, 0x1_0030_0027);
    let page = n.world.slot(&n.second, 0x1_0030_0000, 1);
    n.world.clear(page, 2);
    assert_eq!(code(n.world.write(0x1000)), 0x85);
    assert_eq!(
        n.world.get(leaf),
        0x1_0030_0027,
        "a blocked write leaves the page clean"
    );
    let answer = n.world.read(0x1000).unwrap();
    assert!(answer.readable && !answer.writable);

    n.world.set(page, 0x30_0002);
    assert_eq!(code(n.world.read(0x1000)), 0x86);
    assert_eq!(code(n.world.access(0x1000, Access::Atomic)), 0x86);
    assert!(n.world.access(0x1000, Access::ZeroLengthRead).is_ok());
    assert!(n.world.write(0x1000).is_ok());

    n.world.clear(leaf, 2);
    assert_eq!(code(n.world.write(0x1000)), 0x85);
    n.world.clear(leaf, 4);
    assert_eq!(code(n.world.write(0x1000)), 0x81);
    n.world.set(page, 0);
    n.world.or(leaf, 6);
    assert_eq!(code(n.world.write(0x1000)), 0x79);
    n.world.set(page, 0xfee0_0003);
    assert_eq!(code(n.world.write(0x1000)), 0x87);
}

#[test]
fn with_ssade_reading_a_first_stage_entry_counts_as_writing_it() {
    let mut n = nested(4);
    n.first.table_flags = 0x7;
    let leaf = n.world.map(&n.first, 0x1000, 1, 0x1_0030_0007);
    n.world.or(n.world.pasids, SSADE);
    let answer = n.world.read(0x1000).unwrap();
    assert!(answer.writable && !answer.dirty);
    assert_eq!(n.world.get(leaf), 0x1_0030_0027);
    for level in 1..=4 {
        assert_eq!(
            n.world.get(n.below(0x1000, level)) & 0xfff,
            0x303,
            "level {level}"
        );
    }
    let page = n.world.slot(&n.second, 0x1_0030_0000, 1);
    assert_eq!(n.world.get(page), 0x30_0103);

    let answer = n.world.write(0x1000).unwrap();
    assert!(answer.dirty);
    assert_eq!(n.world.get(leaf), 0x1_0030_0067);
    assert_eq!(n.world.get(page), 0x30_0303);

    n.world.clear(n.below(0x1000, 2), 2);
    assert_eq!(code(n.world.read(0x1000)), 0x77);
}

#[test]
fn bits_that_need_setting_in_either_stage_need_snooped_walks() {
    let n = nested(4);
    n.world.map(&n.first, 0x1000, 1, 0x1_0030_0007);
    n.world.clear(n.world.pasids + 8, PWSNP);
    assert_eq!(code(n.world.read(0x1000)), 0x90);
    n.world.or(n.world.pasids, SSADE);
    assert_eq!(code(n.world.read(0x1000)), 0x7c);
}

#[test]
fn the_input_is_first_stage_canonical_and_the_fault_is_suppressed_by_fpd() {
    let n = nested(4);
    let fault = n.world.read(0x8000_0000_0000).unwrap_err();
    assert_eq!((fault.reason.code(), fault.record), (0x80, true));
    n.world.or(n.world.directory, 2);
    let fault = n.world.read(0x8000_0000_0000).unwrap_err();
    assert_eq!((fault.reason.code(), fault.record), (0x80, false));
    n.world.map(&n.first, 0x1000, 1, 0x1_0030_0067);
    let entry = n.below(0x1000, 4);
    n.world.clear(entry, 1);
    let fault = n.world.read(0x1000).unwrap_err();
    assert_eq!((fault.reason.code(), fault.record), (0x75, false));
    n.world.or(entry, 1);
    assert_eq!(address(n.world.read(0x1fff)), 0x30_0fff);
}
