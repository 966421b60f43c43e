//! What is marked, and when.

use vm_memory::{
    Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, MmapRegion, VolatileMemory,
};

use super::*;
use crate::GuestRam;

/// Two regions of three pages each.
fn memory() -> GuestRam {
    let ranges = [(GuestAddress(0), 0x3000), (GuestAddress(0x10_0000), 0x3000)];
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

fn marks(memory: &GuestRam) -> Vec<&Marks> {
    memory
        .iter()
        .map(|region| MmapRegion::bitmap(region))
        .collect()
}

fn taken(memory: &GuestRam) -> Vec<u64> {
    marks(memory).into_iter().flat_map(Marks::take).collect()
}

fn begun() -> GuestRam {
    let memory = memory();
    marks(&memory).into_iter().for_each(Marks::begin);
    memory
}

#[test]
fn nothing_is_marked_before_the_begin_and_after_the_end() {
    let memory = memory();
    let write = || memory.write_obj(7_u32, GuestAddress(0x1000)).unwrap();
    write();
    assert_eq!(taken(&memory), [0, 0]);
    marks(&memory).into_iter().for_each(Marks::begin);
    assert_eq!(taken(&memory), [0, 0]);
    write();
    marks(&memory).into_iter().for_each(Marks::end);
    assert_eq!(taken(&memory), [0b10, 0]);
    write();
    assert_eq!(taken(&memory), [0, 0]);
}

#[test]
fn a_begin_forgets_what_was_marked_before() {
    let memory = begun();
    memory.write_obj(7_u32, GuestAddress(0x1000)).unwrap();
    marks(&memory).into_iter().for_each(Marks::begin);
    assert_eq!(taken(&memory), [0, 0]);
}

#[test]
fn each_page_of_a_write_is_marked_in_its_region_and_once() {
    let memory = begun();
    memory
        .write_slice(&[1; 0x1002], GuestAddress(0xfff))
        .unwrap();
    memory
        .write_slice(&[1; 1], GuestAddress(0x10_2fff))
        .unwrap();
    assert_eq!(taken(&memory), [0b111, 0b100]);
    assert_eq!(taken(&memory), [0, 0]);
}

#[test]
fn stores_references_and_copies_are_marked_and_reads_are_not() {
    let memory = begun();
    let at = GuestAddress(0x10_1000);
    memory.store(1_u64, at, Ordering::Release).unwrap();
    assert_eq!(taken(&memory), [0, 0b10]);
    let slice = memory.get_slice(at, 0x100).unwrap();
    slice.get_ref::<u32>(8).unwrap().store(3);
    assert_eq!(taken(&memory), [0, 0b10]);
    slice.subslice(0x80, 4).unwrap().copy_from(&[1_u8; 4]);
    assert_eq!(taken(&memory), [0, 0b10]);
    let other = memory.get_slice(GuestAddress(0x2ff0), 0x10).unwrap();
    slice.copy_to_volatile_slice(other);
    assert_eq!(taken(&memory), [0b100, 0]);
    let mut bytes = [0; 0x100];
    slice.copy_to(&mut bytes);
    memory.read_slice(&mut bytes, at).unwrap();
    let _: u64 = memory.load(at, Ordering::Acquire).unwrap();
    assert_eq!(taken(&memory), [0, 0]);
}

#[test]
fn nothing_that_is_written_while_marks_are_taken_is_lost() {
    const TIMES: u64 = 20_000;
    let memory = begun();
    let memory = &memory;
    let address = GuestAddress(0x2000);
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            for count in 1..=TIMES {
                memory.store(count, address, Ordering::Relaxed).unwrap();
            }
        });
        // A copy that follows the marks has all when the writer has ended.
        let mut copy = 0_u64;
        loop {
            let is_last = writer.is_finished();
            if taken(memory)[0] & 0b100 != 0 {
                copy = memory.load(address, Ordering::Relaxed).unwrap();
            }
            if is_last {
                break;
            }
        }
        assert_eq!(copy, TIMES);
    });
}
