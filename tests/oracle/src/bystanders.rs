//! What several tests put around a unit: an end for its events, a device that only obeys, and memory whose pages show who
//! wrote them.

use std::sync::Arc;

use iommu::{DeviceTlb, DeviceTlbInvalidation, EventSink, InterruptMessage, PageResponse};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::ram::Memory;

/// Events end here.
pub struct Nowhere;

impl EventSink for Nowhere {
    fn deliver(&self, _: InterruptMessage) {}
}

/// Answers every invalidation.
pub struct Obedient;

impl DeviceTlb for Obedient {
    fn invalidate(&self, _: DeviceTlbInvalidation) {}

    fn page_response(&self, _: PageResponse) {}
}

/// Input pages that are mapped to the pages below.
pub const INPUTS: u64 = 8;
/// What fills a page that no input is mapped to.
pub const FREE: u8 = 0xee;
/// The first of the pages that inputs are mapped to.
pub const DATA: u64 = 0x10_0000;
/// How many there are.
pub const PHYSICAL: u64 = 24;
/// The devices.
pub const SOURCES: [u16; 2] = [0x0008, 0x0010];

/// The address of an input page.
pub fn input(number: u64) -> u64 {
    // Neighbours, in two tables.
    0x3fff_c000 + number * 0x1000
}

/// What devices write to an input page, and nothing else.
pub fn mark(number: u64) -> u8 {
    u8::try_from(number + 1).expect("few inputs")
}

/// 2 MiB.
pub fn memory() -> Memory {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20_0000)]);
    Arc::new(memory.expect("guest memory"))
}

/// Fills a physical page.
pub fn fill(memory: &Memory, page: u64, byte: u8) {
    memory
        .write_slice(&[byte; 4096], GuestAddress(page))
        .expect("guest memory");
}

/// Whether a physical page holds nothing else.
pub fn is_filled(memory: &Memory, page: u64, byte: u8) -> bool {
    let mut bytes = [0; 4096];
    memory
        .read_slice(&mut bytes, GuestAddress(page))
        .expect("guest memory");
    bytes == [byte; 4096]
}
