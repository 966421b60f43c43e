//! What is listed for a source.

use super::*;
use crate::translate::testing::{NOWHERE, SOURCE, World};

fn listed(world: &World) -> SourceBindings {
    bindings_of(&world.tables(), SOURCE)
}

#[test]
fn a_legacy_source_has_one_binding() {
    let world = World::legacy();
    assert_eq!(
        listed(&world).to_string(),
        "00:03.0 blocked: 0x02 ContextNotPresent\n"
    );
    world.set_context(0x40_0001, 0x0702);
    let listed = listed(&world);
    assert!(listed.pasids.is_empty());
    assert_eq!(
        listed.to_string(),
        "00:03.0 second-stage 0x400000, 4 levels PWSNP, domain 7\n"
    );
}

#[test]
fn translation_that_is_off_is_pass_through_whatever_stands_in_memory() {
    let mut world = World::scalable();
    world.set_pasid(3, &[0x101, 5]);
    world.latched.enabled = false;
    assert_eq!(
        listed(&world).to_string(),
        "00:03.0 pass-through, domain 0\n"
    );
}

#[test]
fn every_present_pasid_is_listed_but_the_one_of_requests_without_pasid() {
    let world = World::scalable();
    // Nested, first-stage with EAFE, pass-through, and one with reserved bits.
    world.set_pasid(0, &[0x40_00c9, 0x80_0007, 0x50_0000]);
    world.set_pasid(1, &[0x41, 0x8, 0x60_0000]);
    world.set_pasid(9, &[0x101, 0x9]);
    world.set_pasid(63, &[0x101, 0x1_0009]);
    let listed = listed(&world);
    assert_eq!(
        listed.to_string(),
        "00:03.0 nested: first-stage 0x500000, 4 levels PWSNP; second-stage 0x400000, 4 levels PWSNP, domain 7\n\
         00:03.0 PASID 0x1 first-stage 0x600000, 4 levels, domain 8\n\
         00:03.0 PASID 0x9 pass-through, domain 9\n\
         00:03.0 PASID 0x3f blocked: 0x5a PasidReserved\n"
    );
    assert_eq!(listed.more, 0);
}

/// Gives the source room for 2^20 PASIDs (PDTS 7), and lets the first `tables` entries of its
/// directory share a table.
fn share_table(world: &World, tables: u64) {
    world.or(world.scalable_context(), 0xe00);
    let directory = 0x200_0000;
    world.set(
        world.scalable_context(),
        world.get(world.scalable_context()) & 0xfff | directory,
    );
    for index in 0..0x4000 {
        let entry = if index < tables { world.pasids | 1 } else { 0 };
        world.set(directory + index * 8, entry);
    }
}

#[test]
fn as_many_pasids_as_are_searched_are_counted_exactly() {
    let world = World::scalable();
    share_table(&world, 128);
    for pasid in 0..64 {
        world.set_pasid(pasid, &[0x101, 0x9]);
    }
    let listed = listed(&world);
    assert_eq!(listed.pasids.len(), 64);
    assert_eq!(listed.more, 128 * 64 - 64 - 1);
    assert!(!listed.unsearched);
    let text = listed.to_string();
    assert_eq!(text.lines().count(), 66);
    assert!(text.ends_with("00:03.0 8127 more PASIDs\n"), "{text}");
}

#[test]
fn a_guest_with_all_pasids_present_gets_a_bounded_list_after_a_bounded_search() {
    let world = World::scalable();
    share_table(&world, 0x4000);
    for pasid in 0..64 {
        world.set_pasid(pasid, &[0x101, 0x9]);
    }
    let listed = listed(&world);
    assert_eq!(listed.pasids.len(), 64);
    assert_eq!(listed.more, 128 * 64 - 64 - 1);
    assert!(listed.unsearched);
    let text = listed.to_string();
    assert_eq!(text.lines().count(), 66);
    assert!(
        text.ends_with("00:03.0 at least 8127 more PASIDs; only 128 tables were searched\n"),
        "{text}"
    );
}

#[test]
fn tables_that_are_not_searched_are_mentioned_even_when_all_others_are_empty() {
    let world = World::scalable();
    share_table(&world, 129);
    let text = listed(&world).to_string();
    assert!(
        text.ends_with("00:03.0 at least 0 more PASIDs; only 128 tables were searched\n"),
        "{text}"
    );
}

#[test]
fn structures_beyond_memory_end_the_list() {
    let mut world = World::scalable();
    world.set(world.directory, NOWHERE | 1);
    assert!(listed(&world).pasids.is_empty());
    world.set(world.scalable_context(), NOWHERE | 1);
    assert!(listed(&world).pasids.is_empty());
    world.latched.root.address = !0xfff;
    assert!(listed(&world).pasids.is_empty());
}
