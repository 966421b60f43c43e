//! A device behind a remapping unit in legacy mode. Tables are written with literals from the VT-d
//! specification.

use std::sync::{Arc, Mutex};

use intel_vtd::{EventSink, InterruptMessage, SourceId, Unit, UnitConfig};
use vm_memory::{Bytes, GuestAddress};

use super::blk::{Block, BlockOptions};
use super::device::VirtioDevice;
use super::rng::Rng;
use super::testing::{A_WHILE, Driver, Ring};
use crate::Memory;

const IOVA: u64 = 0x4000_0000;
/// Four 4 KiB tables and the directory.
const ROOT: u64 = 0x70_0000;
const CONTEXT: u64 = 0x70_1000;
const PML4: u64 = 0x70_2000;
const PDPT: u64 = 0x70_3000;
const PD: u64 = 0x70_4000;

#[derive(Default)]
struct Events;

impl EventSink for Events {
    fn deliver(&self, _message: InterruptMessage) {}
}

/// All 8 MiB of memory at `IOVA`, in pages of 2 MiB, for 00:03.0; translation is on.
fn machine() -> (Driver, Arc<Unit<Memory>>) {
    machine_with(Box::new(Rng::new()))
}

/// The same with `device` for the 00:03.0.
fn machine_with(device: Box<dyn VirtioDevice>) -> (Driver, Arc<Unit<Memory>>) {
    let config = UnitConfig::legacy(40);
    let made = Mutex::new(None);
    let driver = Driver::behind(device, IOVA, |memory| {
        let unit = Unit::new(Arc::clone(memory), &config, Arc::new(Events)).unwrap();
        *made.lock().unwrap() = Some(Arc::clone(&unit));
        unit.port(SourceId(0x18))
    });
    let unit = made.into_inner().unwrap().unwrap();
    let put = |at: u64, value: u64| driver.memory.write_obj(value, GuestAddress(at)).unwrap();
    put(ROOT, CONTEXT | 1);
    put(CONTEXT + 0x18 * 16, PML4 | 1);
    // 48 bits, domain 1.
    put(CONTEXT + 0x18 * 16 + 8, 0x102);
    put(PML4, PDPT | 3);
    put(PDPT + 8, PD | 3);
    for page in 0..4 {
        put(PD + 8 * page, page << 21 | 0x83);
    }
    unit.write(0x20, &ROOT.to_le_bytes());
    unit.write(0x18, &0x4000_0000_u32.to_le_bytes());
    unit.write(0x18, &0x8000_0000_u32.to_le_bytes());
    (driver, unit)
}

fn fault_pending(unit: &Unit<Memory>) -> bool {
    let mut status = [0; 4];
    unit.read(0x34, &mut status);
    status[0] & 2 != 0
}

fn request(driver: &Driver, ring: &Ring, address: u64) {
    ring.add(driver, &[(address, 16, true)]);
    driver.kick(ring);
}

#[test]
fn rings_and_buffers_are_found_through_the_tables() {
    let (driver, unit) = machine();
    let ring = driver.start(0, 1).remove(0);
    // The last bytes of one page and the first of the next.
    request(&driver, &ring, 0x20_0000 - 8);
    assert_eq!(ring.used(&driver).1, 16);
    assert_ne!(
        driver
            .memory
            .read_obj::<u64>(GuestAddress(0x20_0000))
            .unwrap(),
        0
    );
    assert!(!fault_pending(&unit));
}

#[test]
fn a_buffer_that_is_not_mapped_is_reported_by_unit_and_device() {
    let (driver, unit) = machine();
    let ring = driver.start(0, 1).remove(0);
    request(&driver, &ring, 0x100_0000);
    driver.expect_needs_reset();
    assert!(fault_pending(&unit));

    let ring = driver.start(0, 1).remove(0);
    request(&driver, &ring, 0x4_0000);
    assert_eq!(ring.used(&driver).1, 16);
}

#[test]
fn a_ring_that_is_mapped_readonly_needs_a_reset() {
    let (driver, unit) = machine();
    driver.memory.write_obj(0x81_u64, GuestAddress(PD)).unwrap();
    let ring = driver.start(0, 1).remove(0);
    request(&driver, &ring, 0x30_0000);
    driver.expect_needs_reset();
    assert!(fault_pending(&unit));
    assert_eq!(ring.try_used(&driver), None);
}

#[test]
fn a_disk_reads_into_pages_as_the_tables_permit_and_fails_the_requests_that_they_do_not() {
    let file = vmm_sys_util::tempfile::TempFile::new().unwrap();
    let bytes: Vec<u8> = (0..1_u32 << 20).map(|n| (n / 11 % 251) as u8).collect();
    std::fs::write(file.as_path(), &bytes).unwrap();
    let options = BlockOptions {
        path: file.as_path().to_owned(),
        readonly: false,
        serial: None,
        queues: 1,
    };
    let (driver, unit) = machine_with(Box::new(Block::open(&options).unwrap()));
    // The second 2 MiB behind a table: each page where its neighbour was, the last one missing.
    let table = 0x70_5000;
    for page in 0..511_u64 {
        let leaf = 0x20_0000 + (page ^ 1) * 0x1000;
        let entry = GuestAddress(table + 8 * page);
        driver.memory.write_obj(leaf | 3, entry).unwrap();
    }
    let slot = GuestAddress(PD + 8);
    driver.memory.write_obj(table | 3, slot).unwrap();
    let ring = driver.start(0, 1).remove(0);
    let read = |address: u64, length: u32| {
        let header = GuestAddress(0x4_0000);
        driver.memory.write_obj([0_u8; 16], header).unwrap();
        let buffers = [
            (0x4_0000, 16, false),
            (address, length, true),
            (0x4_1000, 1, true),
        ];
        ring.add(&driver, &buffers);
        driver.kick(&ring);
        ring.used(&driver);
        driver
            .memory
            .read_obj::<u8>(GuestAddress(0x4_1000))
            .unwrap()
    };
    assert_eq!(read(0x20_0800, 1 << 20), 0);
    let mut found = vec![0; 2 << 20];
    driver
        .memory
        .read_slice(&mut found, GuestAddress(0x20_0000))
        .unwrap();
    for (at, byte) in (0x800..).zip(&bytes) {
        assert_eq!(found[at ^ 0x1000], *byte, "{at:#x}");
    }
    assert!(!fault_pending(&unit));
    assert_eq!(read(0x3f_e000, 0x1200), 1);
    assert!(fault_pending(&unit));
    assert_eq!(read(0x20_0000, 512), 0);
    assert_eq!(driver.status(), 15);
}

#[test]
fn an_invalidation_waits_for_the_request_under_way_whose_page_it_takes_and_for_no_other() {
    let pipe = vmm_sys_util::tempfile::TempFile::new().unwrap();
    let (driver, unit) = machine_with(Box::new(Block::of_a_pipe(&pipe)));
    let ring = driver.start(0, 1).remove(0);
    let read = |place: u64, data: u64| {
        driver
            .memory
            .write_obj([0_u8; 16], GuestAddress(place))
            .unwrap();
        let buffers = [(place, 16, false), (data, 512, true), (place + 64, 1, true)];
        ring.add(&driver, &buffers);
        driver.kick(&ring);
        // Its last access before it waits is that of the pages.
        std::thread::sleep(A_WHILE);
    };
    read(0x4_0000, 0x20_0000);
    let mut extended = [0; 8];
    unit.read(0x10, &mut extended);
    let iotlb = (u64::from_le_bytes(extended) >> 8 & 0x3ff) * 16 + 8;
    // IVT, all of it.
    let flush = || unit.write(iotlb, &0x9000_0000_0000_0000_u64.to_le_bytes());
    // The pages of another request go; those of this one stay.
    driver
        .memory
        .write_obj(0_u64, GuestAddress(PD + 24))
        .unwrap();
    flush();
    // Its pages go.
    driver
        .memory
        .write_obj(0_u64, GuestAddress(PD + 8))
        .unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(flush);
        std::thread::sleep(A_WHILE);
        assert!(!waiting.is_finished());
        assert_eq!(ring.try_used(&driver), None);
        std::fs::write(pipe.as_path(), [7; 512]).unwrap();
        assert_eq!(ring.used(&driver).1, 513);
    });
    let data = driver.memory.read_obj(GuestAddress(0x20_0000));
    assert_eq!(data.ok(), Some([7_u8; 16]));
    assert!(!fault_pending(&unit));
}
