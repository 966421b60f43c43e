//! Explanations, against what a translation does with the same tables.

use proptest::prelude::*;

use super::super::entry::{EntryKind, Leads, SecondStageInput};
use super::*;
use crate::translate::testing::{NOWHERE, Paging, SOURCE, World, with_pasid};

const PWSNP: u64 = 0x80_0000;
const SSADE: u64 = 0x200;

fn explained(world: &World, pasid: Option<u32>, address: u64) -> Explanation {
    let pasid = pasid.map(|pasid| Pasid::new(pasid).unwrap());
    explain(&world.tables(), SOURCE, pasid, address)
}

/// All of memory that tables are in.
fn image(world: &World) -> Vec<u64> {
    let pages = (0x10_0000..world.page()).step_by(8);
    pages.map(|address| world.get(address)).collect()
}

/// Explains, checks that this changed nothing, and that a device fares as was said.
#[track_caller]
fn checked(world: &World, pasid: Option<u32>, address: u64) -> Explanation {
    let before = image(world);
    let explanation = explained(world, pasid, address);
    assert!(image(world).starts_with(&before), "memory has changed");

    let request = |access| match pasid {
        None => Request::untranslated(SOURCE, address, access),
        Some(pasid) => with_pasid(pasid, address, access),
    };
    let read = world.translate(&request(Access::Read));
    let write = world.translate(&request(Access::Write));
    check_chain(&explanation);
    assert_eq!(explanation.read, read.map(|_| ()));
    assert_eq!(explanation.write, write.map(|_| ()));
    for answer in [read, write].into_iter().flatten() {
        let found = explanation.outcome.expect("the probe passes, too");
        assert_eq!(
            (found.address, found.page_shift, found.domain),
            (answer.address, answer.page_shift, answer.domain)
        );
        assert_eq!(
            (found.readable, found.writable),
            (answer.readable, answer.writable)
        );
    }
    explanation
}

/// Each page-table entry is where the one before says.
#[track_caller]
fn check_chain(explanation: &Explanation) {
    for pair in explanation.steps.windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        let place = after.address / 0x1000 * 0x1000;
        match (before.entry, before.leads, after.entry) {
            (EntryKind::FirstStage { level }, Some(Leads::Table(table)), next) => match next {
                EntryKind::FirstStage { level: below } => {
                    assert_eq!((table, level), (place, below + 1))
                }
                _ => assert!(matches!(explanation.binding, Binding::Nested(..))),
            },
            (EntryKind::SecondStage { level, of }, Some(Leads::Table(table)), next) => {
                let below = EntryKind::SecondStage {
                    level: level - 1,
                    of,
                };
                assert_eq!((next, place), (below, table));
            }
            (EntryKind::SecondStage { .. }, Some(Leads::Page { address, shift }), next) => {
                assert!(matches!(next, EntryKind::FirstStage { .. }), "{next}");
                assert_eq!(after.address >> shift, address >> shift);
            }
            _ => {}
        }
    }
}

fn kinds(explanation: &Explanation) -> Vec<String> {
    let steps = explanation.steps.iter();
    steps.map(|step| step.entry.to_string()).collect()
}

/// Page tables of two pages at 2 MiB and 4 KiB, with `leaf` as the low bits of the entries.
fn map_two(world: &World, paging: &Paging, leaf: u64) {
    world.map(paging, 0x1234_5000, 1, 0x30_0000 | leaf);
    world.map(paging, 0x4020_0000, 2, 0x20_0080 | leaf);
}

#[test]
fn legacy_mode_is_root_context_and_second_stage() {
    let world = World::legacy();
    let paging = world.second_stage(4);
    world.set_context(paging.top | 1, 0x0702);
    map_two(&world, &paging, 3);
    let explanation = checked(&world, None, 0x1234_5678);
    assert_eq!(
        kinds(&explanation),
        [
            "root",
            "context",
            "second stage 4",
            "second stage 3",
            "second stage 2",
            "second stage 1"
        ]
    );
    let leaf = explanation.steps.last().unwrap();
    assert_eq!(leaf.address, world.slot(&paging, 0x1234_5000, 1));
    assert_eq!(leaf.words, [0x30_0003]);
    let page = Leads::Page {
        address: 0x30_0000,
        shift: 12,
    };
    assert_eq!(leaf.leads, Some(page));
    let found = explanation.outcome.unwrap();
    assert_eq!((found.address, found.domain), (0x30_0678, 7));

    let large = checked(&world, None, 0x4020_0123);
    assert_eq!(large.steps.len(), 5);
    assert_eq!(large.outcome.unwrap().page_shift, 21);
}

#[test]
fn a_walk_ends_with_the_entry_that_ends_it() {
    let world = World::legacy();
    let paging = world.second_stage(4);
    world.set_context(paging.top | 1, 0x0702);
    map_two(&world, &paging, 3);
    let absent = checked(&world, None, 0x8000_0000);
    assert_eq!(absent.steps.len(), 4);
    assert_eq!(absent.outcome.unwrap_err().reason.code(), 0x06);

    world.map(&paging, 0x1234_5000, 1, 0x30_0001);
    let read_only = checked(&world, None, 0x1234_5000);
    assert_eq!(read_only.read, Ok(()));
    assert_eq!(read_only.write.unwrap_err().reason.code(), 0x05);
    let text = read_only.to_string();
    assert!(text.contains("permits: read only\n"), "{text}");
    assert!(
        text.ends_with("writes are blocked: 0x05 WriteDenied\n"),
        "{text}"
    );

    world.map(&paging, 0x1234_5000, 2, NOWHERE | 3);
    let nowhere = checked(&world, None, 0x1234_5000);
    assert_eq!(nowhere.outcome.unwrap_err().reason.code(), 0x07);
    assert!(nowhere.steps.last().unwrap().words.is_empty());
    assert!(nowhere.to_string().contains("no memory\n"));

    world.set_context(0, 0);
    let context = checked(&world, None, 0x1234_5000);
    assert_eq!(kinds(&context), ["root", "context"]);
    assert_eq!(context.binding, Binding::Blocked);
    assert!(context.to_string().contains("not present\n"));
}

#[test]
fn first_stage_and_second_stage_of_scalable_mode_name_their_structures() {
    for (pgtt, first) in [(0x41, true), (0x81, false)] {
        let world = World::scalable();
        let paging = if first {
            world.first_stage(4)
        } else {
            world.second_stage(4)
        };
        // Accessed bits are clear, and for the second stage they are maintained.
        let (low, high) = if first {
            (pgtt, paging.top)
        } else {
            (paging.top | SSADE | pgtt | 8, 0)
        };
        world.set_pasid(5, &[low, PWSNP | 9, high]);
        map_two(&world, &paging, 7);
        let explanation = checked(&world, Some(5), 0x1234_5678);
        let stage = if first { "first" } else { "second" };
        assert_eq!(
            kinds(&explanation),
            [
                "root".to_owned(),
                "context".to_owned(),
                "PASID directory".to_owned(),
                "PASID entry".to_owned(),
                format!("{stage} stage 4"),
                format!("{stage} stage 3"),
                format!("{stage} stage 2"),
                format!("{stage} stage 1"),
            ]
        );
        assert_eq!(explanation.outcome.unwrap().domain, 9);
        assert_eq!(checked(&world, Some(5), 0x4020_0000).steps.len(), 7);
        // PASID 6 has no entry.
        let absent = checked(&world, Some(6), 0);
        assert_eq!(absent.steps.len(), 4);
        assert_eq!(absent.outcome.unwrap_err().reason.code(), 0x59);
    }
}

/// PASID 0 nested: 4 levels of first stage on 4 levels of second stage, which maps 8 MiB of memory
/// at 4 GiB.
fn nested(flags: u64) -> (World, Paging, Paging) {
    const BIAS: u64 = 0x1_0000_0000;
    let world = World::scalable();
    let second = world.second_stage(4);
    for page in (0..0x80_0000).step_by(0x1000) {
        world.map(&second, BIAS + page, 1, page | 3);
    }
    let first = Paging {
        top: world.page(),
        levels: 4,
        bias: BIAS,
        table_flags: 0x7,
    };
    world.set_pasid(0, &[second.top | 0xc9 | flags, PWSNP | 7, first.top + BIAS]);
    (world, first, second)
}

#[test]
fn a_nested_walk_shows_the_second_stage_walk_of_every_first_stage_address() {
    for flags in [0, SSADE] {
        let (world, first, second) = nested(flags);
        world.map(&first, 0x7f12_3456_7000, 1, 0x1_0030_0007);
        let explanation = checked(&world, None, 0x7f12_3456_7abc);
        assert_eq!(explanation.steps.len(), 4 + 4 * 5 + 4);
        let kinds = kinds(&explanation);
        for (index, kind) in [
            (4, "second stage 4 for first 4"),
            (7, "second stage 1 for first 4"),
            (8, "first stage 4"),
            (9, "second stage 4 for first 3"),
            (23, "first stage 1"),
            (24, "second stage 4 for page"),
            (27, "second stage 1 for page"),
        ] {
            assert_eq!(kinds[index], kind);
        }
        let leaf = explanation.steps.last().unwrap();
        assert_eq!(leaf.address, world.slot(&second, 0x1_0030_0000, 1));
        assert_eq!(explanation.outcome.unwrap().address, 0x30_0abc);

        // The table of level 2 is taken away from the first stage.
        let below = world.slot(
            &second,
            0x1_0000_0000 + world.slot(&first, 0x7f12_3456_7000, 2),
            1,
        );
        world.set(below, 0);
        let blocked = checked(&world, None, 0x7f12_3456_7abc);
        let last = blocked.steps.last().unwrap();
        assert_eq!(
            last.entry,
            EntryKind::SecondStage {
                level: 1,
                of: SecondStageInput::FirstStageEntry { level: 2 }
            }
        );
        assert_eq!(last.address, below);
        assert_eq!(blocked.outcome.unwrap_err().reason.code(), 0x79);
    }
}

#[test]
fn large_pages_end_each_stage_early() {
    let (world, first, second) = nested(0);
    world.map(&first, 0x20_0000, 2, 0x2_0000_0087);
    world.map(&second, 0x2_0000_0000, 3, 0x83);
    let explanation = checked(&world, None, 0x21_2345);
    assert_eq!(explanation.steps.len(), 4 + 3 * 5 + 2);
    let found = explanation.outcome.unwrap();
    assert_eq!((found.address, found.page_shift), (0x1_2345, 21));
}

#[test]
fn what_needs_no_table_reads_none() {
    let mut world = World::legacy();
    let interrupt = checked(&world, None, 0xfee0_0000);
    assert!(interrupt.steps.is_empty());
    assert_eq!(interrupt.outcome.unwrap_err().reason.code(), 0x29);
    world.latched.enabled = false;
    let off = checked(&world, None, 0x1234);
    assert!(off.steps.is_empty());
    assert_eq!(off.outcome.unwrap().address, 0x1234);
    assert_eq!(off.binding, Binding::PassThrough);
}

#[test]
fn a_missing_permission_to_update_is_foreseen_for_the_access_that_needs_it() {
    let world = World::scalable();
    let paging = world.second_stage(4);
    // SSADE without PWSNP: a bit that is to be set is a fault.
    world.set_pasid(0, &[paging.top | SSADE | 0x89, 7]);
    world.map(&paging, 0x5000, 1, 0x30_0103);
    for level in 2..=4 {
        world.or(world.slot(&paging, 0x5000, level), 0x100);
    }
    let explanation = checked(&world, None, 0x5000);
    assert!(explanation.outcome.is_ok());
    assert_eq!(explanation.read, Ok(()));
    assert_eq!(explanation.write.unwrap_err().reason.code(), 0x7c);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn whatever_stands_in_the_tables_the_explanation_agrees_with_the_translation(
        content in proptest::collection::vec((0_u64..16, 0_u64..4096, any::<bool>()), 4096),
        scalable in any::<bool>(),
        address in any::<u64>(),
        pasid in proptest::option::of(0_u32..64),
    ) {
        let mut world = if scalable { World::scalable() } else { World::legacy() };
        for (at, (page, low, wild)) in (0x10_0000..).step_by(16).zip(content) {
            let high = if wild { 0x7 } else { 0 };
            world.set(at, 0x10_0000 | page << 12 | low | 1);
            world.set(at + 8, high << 20 | low);
        }
        world.latched.root.address = 0x10_0000;
        let explanation = checked(&world, pasid, address & 0x7fff_ffff_ffff);
        prop_assert!(explanation.steps.len() <= 39);
        // Each step was labelled with what was read, down to the entry that ended it.
        prop_assert!(explanation.to_string().lines().count() > explanation.steps.len());
    }
}
