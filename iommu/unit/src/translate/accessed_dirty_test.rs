//! Accessed and dirty bits in the face of a guest that changes its tables meanwhile.

use std::cell::Cell;

use vm_memory::GuestMemoryMmap;

use super::testing::{SOURCE, World};
use super::{Access, Fault, Request, Translation};
use crate::memory::{MemoryError, Nearby, TableMemory};

/// Guest memory that something happens to before a compare-and-swap.
struct Meddler<'a, F> {
    memory: Nearby<'a, GuestMemoryMmap<()>>,
    swaps: Cell<u32>,
    meddle: F,
}

impl<F: Fn(u32) -> Result<(), MemoryError>> TableMemory for Meddler<'_, F> {
    fn read_words<const N: usize>(&self, address: u64) -> Result<[u64; N], MemoryError> {
        self.memory.read_words(address)
    }

    fn compare_exchange_u64(
        &self,
        address: u64,
        old: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, MemoryError> {
        self.swaps.set(self.swaps.get() + 1);
        (self.meddle)(self.swaps.get())?;
        self.memory.compare_exchange_u64(address, old, new)
    }
}

/// PASID 0 has a first stage of 4 levels that maps 1000h to 8000h, clean.
fn clean_page() -> (World, u64) {
    let world = World::scalable();
    let paging = world.first_stage(4);
    let leaf = world.map(&paging, 0x1000, 1, 0x8007);
    world.set_pasid(0, &[0x41, 0x80_0000, paging.top]);
    (world, leaf)
}

fn write_while(
    world: &World,
    meddle: impl Fn(u32) -> Result<(), MemoryError>,
) -> (Result<Translation, Fault>, u32) {
    let memory = Meddler {
        memory: Nearby::new(&*world.memory),
        swaps: Cell::new(0),
        meddle,
    };
    let request = Request::untranslated(SOURCE, 0x1000, Access::Write);
    let outcome = world.tables().in_memory(&memory).translate(&request);
    (outcome, memory.swaps.get())
}

#[test]
fn accessed_and_dirty_of_a_leaf_are_set_at_once() {
    let (world, leaf) = clean_page();
    let (outcome, swaps) = write_while(&world, |_| Ok(()));
    assert!(outcome.is_ok());
    assert_eq!((world.get(leaf), swaps), (0x8067, 1));
}

#[test]
fn an_entry_that_is_changed_meanwhile_is_walked_again() {
    let (world, leaf) = clean_page();
    let (outcome, _) = write_while(&world, |swap| {
        if swap == 1 {
            world.set(leaf, 0x9007);
        }
        Ok(())
    });
    assert_eq!(outcome.unwrap().address, 0x9000);
    assert_eq!(world.get(leaf), 0x9067);
}

#[test]
fn an_entry_that_is_removed_meanwhile_is_a_fault_and_stays_removed() {
    let (world, leaf) = clean_page();
    let (outcome, _) = write_while(&world, |_| {
        world.set(leaf, 0);
        Ok(())
    });
    assert_eq!(outcome.unwrap_err().reason.code(), 0x71);
    assert_eq!(world.get(leaf), 0);
}

#[test]
fn bits_that_another_walk_sets_meanwhile_are_kept() {
    let (world, leaf) = clean_page();
    let (outcome, swaps) = write_while(&world, |swap| {
        if swap == 1 {
            world.or(leaf, 0x20);
        }
        Ok(())
    });
    assert!(outcome.is_ok());
    assert_eq!((world.get(leaf), swaps), (0x8067, 2));
}

#[test]
fn a_guest_that_keeps_changing_an_entry_gets_a_fault_after_bounded_work() {
    let (world, leaf) = clean_page();
    let (outcome, swaps) = write_while(&world, |swap| {
        world.set(leaf, 0x8007 | u64::from(swap) << 12);
        Ok(())
    });
    assert_eq!(outcome.unwrap_err().reason.code(), 0x91);
    assert!(swaps < 200);
}

#[test]
fn an_entry_that_cannot_be_written_is_code_91_in_the_first_stage_and_7d_in_the_second() {
    let (world, leaf) = clean_page();
    let (outcome, _) = write_while(&world, |_| Err(MemoryError { address: 0 }));
    let fault = outcome.unwrap_err();
    assert_eq!((fault.reason.code(), fault.record), (0x91, true));
    assert_eq!(world.get(leaf), 0x8007);

    let world = World::scalable();
    let paging = world.second_stage(4);
    world.map(&paging, 0x1000, 1, 0x8003);
    world.set_pasid(0, &[paging.top | 0x289, 0x80_0000]);
    let (outcome, _) = write_while(&world, |_| Err(MemoryError { address: 0 }));
    assert_eq!(outcome.unwrap_err().reason.code(), 0x7d);
}
