//! Fixtures of several tests: an end for events, a device that only obeys, and memory whose pages
//! show who wrote them.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use intel_vtd::{DeviceTlb, DeviceTlbInvalidation, EventSink, InterruptMessage, PageResponse};
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

/// How many devices run beside a driver: two of one source, so that views of the same device are
/// among them.
pub const DEVICES: u64 = 3;

/// Which of [`SOURCES`] a device has.
pub fn which(device: u64) -> usize {
    crate::index(device % 2)
}

/// Runs devices, each on a thread of its own, while `driver` does what it does. Then the flag is
/// raised that they watch, and what they returned comes beside what the driver did. A panic on
/// either side goes on here.
pub fn beside<T: Send, R>(
    device: impl Fn(u64, &AtomicBool) -> T + Sync,
    driver: impl FnOnce() -> R,
) -> (R, Vec<T>) {
    let stop = AtomicBool::new(false);
    // On a busy machine the driver could be done before they begin.
    let begun = Barrier::new(crate::index(DEVICES) + 1);
    thread::scope(|scope| {
        let (device, stop, begun) = (&device, &stop, &begun);
        let threads: Vec<_> = (0..DEVICES)
            .map(|number| {
                scope.spawn(move || {
                    begun.wait();
                    device(number, stop)
                })
            })
            .collect();
        begun.wait();
        let result = catch_unwind(AssertUnwindSafe(driver));
        stop.store(true, Ordering::Relaxed);
        let devices: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        let result = result.unwrap_or_else(|panic| resume_unwind(panic));
        let devices = devices
            .into_iter()
            .map(|device| device.unwrap_or_else(|panic| resume_unwind(panic)));
        (result, devices.collect())
    })
}

/// When a driver is to end, and after how many steps: by time, unless the user has said how many.
pub fn limits(period: Duration) -> (Instant, u64) {
    let most = crate::steps(u64::MAX);
    let period = if most == u64::MAX {
        period
    } else {
        Duration::from_secs(3600)
    };
    (Instant::now() + period, most)
}
