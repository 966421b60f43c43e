//! What virtio devices write to guest memory is marked: all of memory is compared.

use std::sync::Arc;

use intel_vtd::{EventSink, InterruptMessage, SourceId, Unit, UnitConfig};
use pci::PciFunction as _;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::tempfile::TempFile;

use super::blk::{Block, BlockOptions};
use super::console::{Console, ConsoleInput};
use super::device::VirtioDevice;
use super::moving::Queue;
use super::rng::Rng;
use super::testing::{Buffer, Driver, EVENT_IDX, MEMORY_SIZE, PACKED};
use crate::Dma;
use crate::marks::testing::Watched;

const HEADER: u64 = 0x4_0000;
const STATUS: u64 = 0x4_1000;
/// Ends in the middle of a third page.
const DATA: u64 = 0x10_0e00;
/// Parts of the first queue: descriptors, where the used entries of packed queues are as well, and the
/// used ring or the device's event suppression.
const DESCRIPTORS: u64 = 0x1_0000;
const USED: u64 = 0x1_c000;

/// Split, packed, and with event indices.
pub(super) const KINDS: [u64; 4] = [0, PACKED, EVENT_IDX, PACKED | EVENT_IDX];

/// A driver whose device has the other mapping of its memory.
pub(super) fn watched(device: Box<dyn VirtioDevice>) -> (Driver, Watched) {
    let memory = Watched::new(MEMORY_SIZE);
    let port = Dma::direct(Arc::clone(&memory.device));
    let driver = Driver::with_memory(device, 0, Arc::clone(&memory.guest), port);
    (driver, memory)
}

/// The pages that change when the device, which is parked, uses one buffer of `queue` after `event`,
/// until it is parked again.
pub(super) fn changed(
    (driver, memory): &(Driver, Watched),
    queue: &Queue,
    event: impl FnOnce(),
) -> Vec<u64> {
    memory.changed_by(|| {
        driver.function.resume();
        event();
        queue.used(driver);
        driver.park();
    })
}

/// The pages that change when the device uses `buffers`.
pub(super) fn changed_by_use(
    watched: &(Driver, Watched),
    queue: &Queue,
    buffers: &[Buffer],
) -> Vec<u64> {
    // Otherwise it may look at the queue before the pages are.
    watched.0.park();
    queue.add(&watched.0, buffers);
    changed(watched, queue, || queue.kick(&watched.0))
}

/// That `pages` have changed, and where the device tells of used buffers; and besides these only where
/// it says when it wants to be notified, which it may do in any queue.
pub(super) fn assert_changed(changed: &[u64], pages: &[u64], features: u64) {
    let packed = features & PACKED != 0;
    let mut expected = pages.to_vec();
    expected.push(if packed { DESCRIPTORS } else { USED });
    expected.extend(
        [USED, USED + 0x1_0000]
            .iter()
            .filter(|page| packed && changed.contains(page)),
    );
    expected.sort_unstable();
    assert!(
        changed == expected,
        "features {features:#x}: {changed:x?} instead of {expected:x?}"
    );
}

/// Of a file of 64 KiB, which is not in memory for the sake of io_uring, or by preadv.
fn block(is_synchronous: bool) -> (Box<dyn VirtioDevice>, TempFile) {
    let file = TempFile::new().unwrap();
    std::fs::write(file.as_path(), [0x5a; 1 << 16]).unwrap();
    let options = BlockOptions {
        path: file.as_path().to_owned(),
        readonly: false,
        serial: None,
        queues: 1,
    };
    let mut block = Block::open(&options).unwrap();
    block.synchronous = is_synchronous;
    (Box::new(block), file)
}

/// Reads 5 KiB into three pages.
fn read_request(driver: &Driver) -> [Buffer; 3] {
    driver
        .memory
        .write_obj([0_u64; 2], GuestAddress(HEADER))
        .unwrap();
    driver
        .memory
        .write_obj(0xee_u8, GuestAddress(STATUS))
        .unwrap();
    [(HEADER, 16, false), (DATA, 0x1400, true), (STATUS, 1, true)]
}

#[test]
fn what_a_disk_reads_is_marked_by_either_engine() {
    for is_synchronous in [true, false] {
        for features in KINDS {
            let (block, _file) = block(is_synchronous);
            let watched = watched(block);
            let queue = watched.0.start_queues(features, 1).remove(0);
            let buffers = read_request(&watched.0);
            let pages = [STATUS, 0x10_0000, 0x10_1000, 0x10_2000];
            let changed = changed_by_use(&watched, &queue, &buffers);
            assert_changed(&changed, &pages, features);
            // Once more, in the place of the others.
            let data = GuestAddress(0x20_0000);
            watched.0.memory.write_obj(0_u64, data).unwrap();
            let mut buffers = read_request(&watched.0);
            buffers[1].0 = data.0;
            let changed = changed_by_use(&watched, &queue, &buffers);
            assert_changed(&changed, &[STATUS, 0x20_0000, 0x20_1000], features);
        }
    }
}

#[test]
fn what_a_disk_is_given_to_write_is_not_marked_and_its_status_is() {
    for is_synchronous in [true, false] {
        let (block, _file) = block(is_synchronous);
        let watched = watched(block);
        let queue = watched.0.start_queues(0, 1).remove(0);
        let mut buffers = read_request(&watched.0);
        let write = GuestAddress(HEADER);
        watched.0.memory.write_obj(1_u32, write).unwrap();
        buffers[1].2 = false;
        let changed = changed_by_use(&watched, &queue, &buffers);
        assert_changed(&changed, &[STATUS], 0);
    }
}

#[test]
fn random_bytes_are_marked() {
    for features in KINDS {
        let watched = watched(Box::new(Rng::new()));
        let queue = watched.0.start_queues(features, 1).remove(0);
        let buffers = [(0x10_0ffc, 64, true), (0x20_0000, 64, true)];
        let changed = changed_by_use(&watched, &queue, &buffers);
        assert_changed(&changed, &[0x10_0000, 0x10_1000, 0x20_0000], features);
    }
}

#[test]
fn what_is_typed_is_marked() {
    for features in KINDS {
        let (sender, input) = ConsoleInput::channel().unwrap();
        let watched = watched(Box::new(Console::new(input, Box::new(std::io::sink()))));
        let queue = watched.0.start_queues(features, 2).remove(0);
        queue.add(&watched.0, &[(0x10_0ffe, 16, true)]);
        queue.kick(&watched.0);
        watched.0.park();
        let changed = changed(&watched, &queue, || {
            assert_eq!(sender.send(b"hello").unwrap(), 5);
        });
        assert_changed(&changed, &[0x10_0000, 0x10_1000], features);
    }
}

#[derive(Default)]
struct Events;

impl EventSink for Events {
    fn deliver(&self, _message: InterruptMessage) {}
}

const IOVA: u64 = 0x4000_0000;

/// A unit in legacy mode that has 00:03.0 reach all 8 MiB of memory from [`IOVA`] on, by pages of 2 MiB.
/// But for those from 2 MiB on: each is where its neighbour was, of 4 KiB.
fn unit(memory: &Watched) -> Arc<Unit<crate::Memory>> {
    let config = UnitConfig::legacy(40);
    let unit = Unit::new(Arc::clone(&memory.device), &config, Arc::new(Events)).unwrap();
    let put = |at: u64, value: u64| memory.guest.write_obj(value, GuestAddress(at)).unwrap();
    put(0x70_0000, 0x70_1001);
    put(0x70_1180, 0x70_2001);
    // 48 bits, domain 1.
    put(0x70_1188, 0x102);
    put(0x70_2000, 0x70_3003);
    put(0x70_3008, 0x70_4003);
    for page in 0..4 {
        put(0x70_4000 + 8 * page, page << 21 | 0x83);
    }
    put(0x70_4008, 0x70_5003);
    for page in 0..512 {
        put(0x70_5000 + 8 * page, 0x20_0003 + (page ^ 1) * 0x1000);
    }
    unit.write(0x20, &0x70_0000_u64.to_le_bytes());
    unit.write(0x18, &0x4000_0000_u32.to_le_bytes());
    unit.write(0x18, &0x8000_0000_u32.to_le_bytes());
    unit
}

#[test]
fn behind_a_unit_it_is_memory_that_is_marked_and_not_the_address_of_the_request() {
    for is_synchronous in [true, false] {
        let (block, _file) = block(is_synchronous);
        let memory = Watched::new(MEMORY_SIZE);
        let port = unit(&memory).port(SourceId(0x18));
        let guest = Arc::clone(&memory.guest);
        let watched = (Driver::with_memory(block, IOVA, guest, port), memory);
        let queue = watched.0.start_queues(0, 1).remove(0);
        let mut buffers = read_request(&watched.0);
        buffers[1].0 = 0x20_0e00;
        let changed = changed_by_use(&watched, &queue, &buffers);
        assert_changed(&changed, &[STATUS, 0x20_0000, 0x20_1000, 0x20_3000], 0);
    }
}
