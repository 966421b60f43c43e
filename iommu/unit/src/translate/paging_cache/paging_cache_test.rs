//! What is remembered of walks: when it is used, and that it never says anything but what a full
//! walk would say.

use std::cell::Cell;

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::testing::{Paging, SOURCE, World};
use super::super::{Fault, Translation};
use super::*;
use crate::memory::{MemoryError, Nearby};
use crate::spec::ids::Pasid;
use crate::translate::Request;

const PWSNP: u64 = 0x80_0000;

/// Memory that counts the entries that are read from it.
struct Counted<'a> {
    memory: Nearby<'a, GuestMemoryMmap<()>>,
    reads: Cell<u32>,
}

impl TableMemory for Counted<'_> {
    fn read_words<const N: usize>(&self, address: u64) -> Result<[u64; N], MemoryError> {
        self.reads.set(self.reads.get() + 1);
        self.memory.read_words(address)
    }

    fn compare_exchange_u64(
        &self,
        address: u64,
        old: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        self.memory.compare_exchange_u64(address, old, new)
    }
}

/// Requests without PASID of one device, as a view makes them.
struct Walks<'a> {
    world: &'a World,
    paging: PagingCache,
    tag: Tag,
}

impl<'a> Walks<'a> {
    fn new(world: &'a World) -> Self {
        Self {
            world,
            paging: PagingCache::default(),
            tag: Tag::new(1, None, false),
        }
    }

    fn full(&self, address: u64, access: Access) -> Result<Translation, Fault> {
        let tables = self.world.tables();
        let request = Request::untranslated(SOURCE, address, access);
        if let Some(outcome) = tables.without_tables(&request) {
            return outcome;
        }
        let resolved = tables.resolve_request(&request)?;
        let (translation, trail) = tables.walk(&resolved, &request)?;
        self.paging.keep(self.tag, address, &trail);
        Ok(translation)
    }

    /// What is answered without a full walk, and how many entries were read for that.
    fn short(&self, address: u64, access: Access) -> (Option<Permitted>, u32) {
        let tables = self.world.tables();
        let Ok(resolved) = tables.resolve(SOURCE, None) else {
            return (None, 0);
        };
        let counted = tables.in_memory(Counted {
            memory: Nearby::new(&*self.world.memory),
            reads: Cell::new(0),
        });
        let found = self
            .paging
            .translate(&counted, &resolved, self.tag, address, access);
        (found, counted.memory().reads.get())
    }

    #[track_caller]
    fn short_address(&self, address: u64, access: Access) -> Option<u64> {
        self.short(address, access).0.map(|found| found.address)
    }
}

fn with_first_stage(levels: usize) -> (World, Paging) {
    let world = World::scalable();
    let paging = world.first_stage(levels);
    let mode = if levels == 5 { 4 } else { 0 };
    world.set_pasid(0, &[0x41, PWSNP | 7, paging.top | mode]);
    (world, paging)
}

fn with_second_stage(levels: usize) -> (World, Paging) {
    let world = World::scalable();
    let paging = world.second_stage(levels);
    let width = u64::try_from(levels).unwrap() - 2;
    world.set_pasid(0, &[paging.top | 0x81 | width << 2, PWSNP | 7]);
    (world, paging)
}

/// A second stage that leaves all of memory where it is, in pages of 4 KiB.
fn with_nested() -> (World, Paging, Paging) {
    let world = World::scalable();
    let second = world.second_stage(4);
    for page in (0..0x400_0000).step_by(0x1000) {
        world.map(&second, page, 1, page | 3);
    }
    let first = world.first_stage(4);
    world.set_pasid(0, &[second.top | 0xc9, PWSNP | 7, first.top]);
    (world, first, second)
}

fn with_legacy() -> (World, Paging) {
    let world = World::legacy();
    let paging = world.second_stage(4);
    world.set_context(paging.top | 1, 0x702);
    (world, paging)
}

#[test]
fn a_neighbour_of_a_page_costs_one_read_in_each_stage() {
    let (first, first_paging) = with_first_stage(4);
    let (five, five_paging) = with_first_stage(5);
    let (second, second_paging) = with_second_stage(4);
    let (three, three_paging) = with_second_stage(3);
    let (nested, nested_paging, _) = with_nested();
    let (legacy, legacy_paging) = with_legacy();
    for (world, paging, flags, reads) in [
        (first, first_paging, 0x67, 1),
        (five, five_paging, 0x67, 1),
        (second, second_paging, 3, 1),
        (three, three_paging, 3, 1),
        (nested, nested_paging, 0x67, 2),
        (legacy, legacy_paging, 3, 1),
    ] {
        world.map(&paging, 0x4000_1000, 1, 0x20_1000 | flags);
        world.map(&paging, 0x4000_2000, 1, 0x20_5000 | flags);
        world.map(&paging, 0x4020_0000, 1, 0x20_6000 | flags);
        let walks = Walks::new(&world);
        for access in [Access::Read, Access::Write] {
            assert_eq!(walks.short(0x4000_2008, access), (None, 0), "nothing yet");
        }
        walks.full(0x4000_1000, Access::Read).unwrap();
        for access in [Access::Read, Access::Write] {
            let (found, count) = walks.short(0x4000_2008, access);
            let found = found.unwrap();
            assert_eq!((found.address, found.page_shift), (0x20_5008, 12));
            assert_eq!((found.readable, found.writable), (true, true));
            assert_eq!(count, reads);
            assert_eq!(walks.short(0x4020_0000, access), (None, 0), "other table");
        }
    }
}

#[test]
fn a_large_page_costs_no_read_and_one_in_each_stage_that_has_none() {
    let (world, paging) = with_first_stage(4);
    world.map(&paging, 0x4000_0000, 2, 0x0060_00e7);
    let walks = Walks::new(&world);
    walks.full(0x4000_1000, Access::Read).unwrap();
    let (found, reads) = walks.short(0x401f_f008, Access::Write);
    let found = found.unwrap();
    assert_eq!((found.address, found.page_shift), (0x7f_f008, 21));
    assert_eq!(reads, 0);

    let (world, first, second) = with_nested();
    world.map(&first, 0x4000_0000, 2, 0x0060_00e7);
    let walks = Walks::new(&world);
    walks.full(0x4000_1000, Access::Read).unwrap();
    let (found, reads) = walks.short(0x401f_f008, Access::Write);
    let found = found.unwrap();
    assert_eq!((found.address, found.page_shift), (0x7f_f008, 12));
    assert_eq!(reads, 1);
    // The second stage has a page of 2 MiB for all data.
    world.map(&second, 0x0060_0000, 2, 0x0080_0083);
    let walks = Walks::new(&world);
    walks.full(0x4000_1000, Access::Read).unwrap();
    let (found, reads) = walks.short(0x401f_f008, Access::Write);
    let found = found.unwrap();
    assert_eq!((found.address, found.page_shift), (0x9f_f008, 21));
    assert_eq!(reads, 0);
}

#[test]
fn only_two_mebibytes_of_a_gibibyte_are_remembered_at_a_time() {
    let (world, paging) = with_second_stage(4);
    world.map(&paging, 0x4000_0000, 3, 0x83);
    let walks = Walks::new(&world);
    walks.full(0x4030_1000, Access::Read).unwrap();
    let (found, reads) = walks.short(0x4020_0008, Access::Write);
    let found = found.unwrap();
    assert_eq!((found.address, found.page_shift), (0x20_0008, 30));
    assert_eq!(reads, 0);
    assert_eq!(walks.short(0x4040_0000, Access::Read), (None, 0));
}

#[test]
fn what_entries_above_withhold_is_withheld() {
    let (world, paging) = with_second_stage(4);
    world.map(&paging, 0x1000, 1, 0x20_1003);
    world.map(&paging, 0x2000, 1, 0x20_2003);
    // The entry of level 3 does not let write.
    world.clear(world.slot(&paging, 0, 3), 2);
    let walks = Walks::new(&world);
    walks.full(0x1000, Access::Read).unwrap();
    assert_eq!(walks.short_address(0x2000, Access::Read), Some(0x20_2000));
    assert_eq!(walks.short_address(0x2000, Access::Write), None);

    let (world, paging) = with_first_stage(4);
    world.map(&paging, 0x1000, 1, 0x20_1067);
    world.map(&paging, 0x2000, 1, 0x20_2067);
    world.clear(world.slot(&paging, 0, 2), 2);
    let walks = Walks::new(&world);
    walks.full(0x1000, Access::Read).unwrap();
    assert_eq!(walks.short_address(0x2000, Access::Read), Some(0x20_2000));
    assert_eq!(walks.short_address(0x2000, Access::Write), None);
}

#[test]
fn a_walk_that_fails_leaves_nothing_behind() {
    let (world, paging) = with_first_stage(4);
    world.map(&paging, 0x1000, 1, 0x20_1060);
    world.map(&paging, 0x2000, 1, 0x20_2067);
    let walks = Walks::new(&world);
    walks.full(0x1000, Access::Read).unwrap_err();
    assert_eq!(walks.short(0x2000, Access::Read), (None, 0));
}

#[test]
fn whatever_is_not_permitted_as_it_stands_is_left_to_a_full_walk() {
    let (world, paging) = with_first_stage(4);
    world.map(&paging, 0x1000, 1, 0x20_1067);
    for (page, entry) in [
        (2, 0x20_2066),          // not present
        (3, 0x20_3063),          // of a supervisor
        (4, 0x20_4047),          // A is clear
        (5, 0x4_0000_2000_5067), // beyond the host address width
        (6, 0xfee0_0067),        // the interrupt range
    ] {
        world.map(&paging, page << 12, 1, entry);
        let walks = Walks::new(&world);
        walks.full(0x1000, Access::Read).unwrap();
        for access in [Access::Read, Access::Write] {
            assert_eq!(walks.short_address(page << 12, access), None, "{page}");
        }
    }
    for (page, entry) in [
        (7, 0x20_7065), // not writable
        (8, 0x20_8027), // D is clear
    ] {
        world.map(&paging, page << 12, 1, entry);
        let walks = Walks::new(&world);
        walks.full(0x1000, Access::Read).unwrap();
        assert_eq!(walks.short_address(page << 12, Access::Write), None);
        let (found, _) = walks.short(page << 12, Access::Read);
        assert!(!found.unwrap().writable, "{page}");
    }
    // Requests to the interrupt range itself, whatever tables say.
    world.map(&paging, 0xfee0_0000, 1, 0x20_1067);
    world.map(&paging, 0xfef0_0000, 1, 0x20_2067);
    let walks = Walks::new(&world);
    walks.full(0xfef0_0000, Access::Read).unwrap();
    assert_eq!(
        walks.short_address(0xfef0_0000, Access::Read),
        Some(0x20_2000)
    );
    assert_eq!(walks.short_address(0xfee0_0000, Access::Read), None);
}

#[test]
fn the_second_stage_below_counts_as_it_does_in_full() {
    let (world, first, second) = with_nested();
    world.map(&first, 0x1000, 1, 0x20_1067);
    world.map(&first, 0x2000, 1, 0x20_2067);
    world.map(&second, 0x20_2000, 1, 0x30_2001);
    let walks = Walks::new(&world);
    walks.full(0x1000, Access::Read).unwrap();
    assert_eq!(walks.short_address(0x2000, Access::Read), Some(0x30_2000));
    assert_eq!(walks.short_address(0x2000, Access::Write), None);
    world.map(&second, 0x20_2000, 1, 0);
    assert_eq!(walks.short_address(0x2000, Access::Read), None);

    // With SSADE, bits of the second stage are due.
    world.map(&second, 0x20_2000, 1, 0x30_2003);
    world.or(world.pasid_entry(0), 0x200);
    let walks = Walks::new(&world);
    walks.full(0x1000, Access::Write).unwrap();
    assert_eq!(walks.short_address(0x2000, Access::Read), None, "A is due");
    walks.full(0x2000, Access::Read).unwrap();
    assert_eq!(walks.short_address(0x2000, Access::Read), Some(0x30_2000));
    assert_eq!(walks.short_address(0x2000, Access::Write), None, "D is due");
    walks.full(0x2000, Access::Write).unwrap();
    assert_eq!(walks.short_address(0x2000, Access::Write), Some(0x30_2000));
}

#[test]
fn what_was_remembered_under_another_generation_or_pasid_is_gone() {
    let (world, paging) = with_second_stage(4);
    world.map(&paging, 0x1000, 1, 0x20_1003);
    let mut walks = Walks::new(&world);
    walks.full(0x1000, Access::Read).unwrap();
    walks.tag.generation = 2;
    assert_eq!(walks.short(0x1000, Access::Read), (None, 0));
    for privileged in [false, true] {
        walks.tag = Tag::new(1, Pasid::new(0), privileged);
        assert_eq!(walks.short(0x1000, Access::Read), (None, 0));
    }
    walks.tag = Tag::new(1, None, false);
    assert_eq!(walks.short_address(0x1000, Access::Read), Some(0x20_1000));
}

#[test]
fn the_table_of_an_entry_that_was_replaced_is_read_as_it_is_now() {
    let (world, paging) = with_second_stage(4);
    world.map(&paging, 0x1000, 1, 0x20_1003);
    let leaf = world.slot(&paging, 0x1000, 1);
    let mut walks = Walks::new(&world);
    walks.full(0x1000, Access::Read).unwrap();
    // No invalidation yet: the entry above is as it was, the one below is not cached.
    world.set(world.slot(&paging, 0x1000, 2), 0);
    world.set(leaf, 0x20_7003);
    assert_eq!(walks.short_address(0x1000, Access::Read), Some(0x20_7000));
    walks.tag.generation = 2;
    assert_eq!(walks.short_address(0x1000, Access::Read), None);
    walks.full(0x1000, Access::Read).unwrap_err();
}

/// Words that have a chance to lead somewhere, mostly with all that a request needs.
fn words() -> impl Strategy<Value = u64> {
    let page = || (0_u64..16).prop_map(|page| 0x20_0000 | page << 12);
    prop_oneof![
        8 => (page(), prop_oneof![
            Just(0x767), Just(0x727), Just(0x367), Just(0x765), Just(0x7e7), Just(0x763)
        ]).prop_map(|(page, low)| page | low),
        1 => (page(), 0_u64..4096).prop_map(|(page, low)| page | low),
        1 => Just(0xe7),
        1 => Just(0),
    ]
}

#[test]
fn what_is_answered_is_what_a_full_walk_answers() {
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(200)
    };
    let answers = Cell::new(0);
    let kinds = prop_oneof![
        Just(0x41_u64),
        Just(0x89),
        Just(0x289),
        Just(0xc9),
        Just(0x2c9)
    ];
    let requests = vec((0_u64..4, 0_u64..4, 0_u64..16, any::<bool>()), 400);
    proptest!(config, |(
        content in vec(words(), 8192),
        kind in kinds,
        extended in any::<bool>(),
        requests in requests,
    )| {
        let world = World::scalable();
        let bytes: Vec<u8> = content.iter().flat_map(|word| word.to_le_bytes()).collect();
        let start = GuestAddress(0x20_0000);
        world.memory.write_slice(&bytes, start).unwrap();
        let extended = if extended { 0x80 } else { 0 };
        world.set_pasid(0, &[0x20_1000 | kind, PWSNP | 7, 0x20_2000 | extended]);
        let walks = Walks::new(&world);
        let (mut before, mut after) = (bytes.clone(), bytes);
        for (gibibyte, block, page, write) in requests {
            let address = gibibyte << 30 | block << 21 | page << 12 | 8;
            let access = if write { Access::Write } else { Access::Read };
            world.memory.read_slice(&mut before, start).unwrap();
            let (found, _) = walks.short(address, access);
            let full = walks.full(address, access);
            if let Some(found) = found {
                // What was remembered as clean may be dirty by now, and not the other way round.
                let full = full.as_ref().map(Permitted::new).map(|full| Permitted {
                    writable: full.writable && found.writable,
                    ..full
                });
                prop_assert_eq!(full, Ok(found));
                world.memory.read_slice(&mut after, start).unwrap();
                prop_assert!(before == after, "the full walk had nothing to set");
                answers.set(answers.get() + 1);
            }
        }
    });
    assert!(answers.get() > 1000, "{} answers", answers.get());
}
