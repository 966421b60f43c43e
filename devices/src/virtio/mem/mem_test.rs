//! The memory device, in front of a host that writes down what it gets back.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;

use parking_lot::Mutex;
use vm_memory::{Bytes as _, GuestAddress};

use super::{Mem, MemControl, MemOptions, Plug};
use crate::virtio::balloon::Reclaim;
use crate::virtio::testing::{A_WHILE, Driver, Ring, eventually};

/// The region: 100 blocks of 2 MiB from 4 GiB on.
pub(super) const REGION: u64 = 0x1_0000_0000;
pub(super) const BLOCK: u64 = 0x20_0000;
const BLOCKS: u64 = 100;
const REQUEST: u64 = 0x10_0000;
const RESPONSE: u64 = 0x10_1000;

const ACK: u16 = 0;
const NACK: u16 = 1;
const BUSY: u16 = 2;
const ERROR: u16 = 3;
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

#[derive(Default)]
pub(super) struct Host {
    given: Mutex<Vec<(u64, u64)>>,
    /// Blocks that devices of the host reach, by their addresses.
    pub(super) held: Mutex<std::collections::BTreeSet<u64>>,
    refuses_to_hold: AtomicBool,
    refuses: AtomicBool,
}

impl Reclaim for Host {
    fn reclaim(&self, start: GuestAddress, length: u64) -> io::Result<u64> {
        self.given.lock().push((start.0, length));
        let end = start.0 + length;
        let held = self.held.lock().range(start.0..end).count();
        assert_eq!(held, 0, "a device reaches it still");
        match self.refuses.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::OutOfMemory.into()),
            false => Ok(length),
        }
    }
}

impl Plug for Host {
    fn hold(&self, start: GuestAddress, length: u64, block: u64) -> io::Result<()> {
        if self.refuses_to_hold.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let mut held = self.held.lock();
        for at in (0..length / block).map(|number| start.0 + number * block) {
            assert!(held.insert(at), "{at:#x} is held");
        }
        Ok(())
    }

    fn release(&self, start: GuestAddress, length: u64) -> io::Result<()> {
        let end = start.0 + length;
        self.held.lock().retain(|at| *at < start.0 || end <= *at);
        Ok(())
    }
}

pub(super) struct Bench {
    pub(super) driver: Driver,
    pub(super) control: MemControl,
    pub(super) host: Arc<Host>,
}

pub(super) fn device(host: &Arc<Host>) -> Mem {
    let options = MemOptions {
        address: REGION,
        size: BLOCKS * BLOCK,
        block: BLOCK,
        requested: 50 * BLOCK,
    };
    Mem::new(&options, Arc::clone(host) as _).unwrap()
}

pub(super) fn bench() -> Bench {
    let host = Arc::<Host>::default();
    let device = device(&host);
    let control = device.control();
    let driver = Driver::new(Box::new(device));
    Bench {
        driver,
        control,
        host,
    }
}

impl Bench {
    /// With a driver at work.
    pub(super) fn start(&self) -> Ring {
        self.driver.start(2, 1).remove(0)
    }

    /// Type and state of the answer to a request.
    fn ask(&self, ring: &Ring, kind: u16, address: u64, count: u16) -> (u16, u16) {
        let mut request = [0; 24];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&address.to_le_bytes());
        request[16..18].copy_from_slice(&count.to_le_bytes());
        let memory = &self.driver.memory;
        memory.write_slice(&request, GuestAddress(REQUEST)).unwrap();
        memory
            .write_slice(&[0xee; 16], GuestAddress(RESPONSE))
            .unwrap();
        ring.add(&self.driver, &[(REQUEST, 24, false), (RESPONSE, 16, true)]);
        self.driver.kick(ring);
        assert_eq!(ring.used(&self.driver).1, 10);
        let mut response = [0; 16];
        memory
            .read_slice(&mut response, GuestAddress(RESPONSE))
            .unwrap();
        assert_eq!(response[10..], [0xee; 6], "no more is written");
        assert_eq!(response[2..8], [0; 6]);
        let short = |at: usize| u16::from_le_bytes([response[at], response[at + 1]]);
        (short(0), short(8))
    }

    /// The answer to a request for blocks of the region.
    pub(super) fn blocks(&self, ring: &Ring, kind: u16, first: u64, count: u16) -> u16 {
        self.ask(ring, kind, REGION + first * BLOCK, count).0
    }

    pub(super) fn plug(&self, ring: &Ring, first: u64, count: u16) -> u16 {
        self.blocks(ring, PLUG, first, count)
    }

    pub(super) fn state(&self, ring: &Ring, first: u64, count: u16) -> u16 {
        let (answer, state) = self.ask(ring, STATE, REGION + first * BLOCK, count);
        assert_eq!(answer, ACK);
        state
    }

    fn given(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut *self.host.given.lock())
    }

    fn held(&self) -> Vec<u64> {
        self.host.held.lock().iter().copied().collect()
    }

    fn field(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.driver.read(0x200 + at))
    }
}

#[test]
fn the_configuration_says_where_the_region_is_and_what_is_asked_for() {
    let bench = bench();
    assert_eq!(bench.driver.offered() & 0xff_ffff, 2);
    let fields = [0, 8, 16, 24, 32, 40, 48, 56].map(|at| bench.field(at));
    assert_eq!(
        fields,
        [
            0x20_0000,
            0,
            0x1_0000_0000,
            0xc80_0000,
            0xc80_0000,
            0,
            0x640_0000,
            0
        ]
    );
    // It cannot be written.
    bench.driver.write(0x200 + 48, &[0xff; 8]);
    assert_eq!(bench.field(48), 0x640_0000);
}

#[test]
fn blocks_are_plugged_and_unplugged_and_those_that_are_not_go_back_to_the_host() {
    let bench = bench();
    let ring = bench.start();
    assert_eq!(bench.state(&ring, 0, 100), 1);
    assert_eq!(bench.plug(&ring, 10, 5), ACK);
    assert_eq!(bench.given(), []);
    assert_eq!(bench.field(40), 5 * BLOCK);
    assert_eq!(bench.state(&ring, 10, 5), 0);
    assert_eq!(bench.state(&ring, 9, 2), 2);
    assert_eq!(bench.state(&ring, 14, 2), 2);
    assert_eq!(bench.state(&ring, 15, 85), 1);
    assert_eq!(bench.blocks(&ring, UNPLUG, 11, 2), ACK);
    assert_eq!(bench.given(), [(REGION + 11 * BLOCK, 2 * BLOCK)]);
    let held = [10, 13, 14].map(|number| REGION + number * BLOCK);
    assert_eq!(bench.held(), held);
    assert_eq!(bench.state(&ring, 10, 5), 2);
    assert_eq!(bench.control.figures().unwrap().plugged, 3 * BLOCK);
    assert_eq!(bench.ask(&ring, UNPLUG_ALL, 1, 0).0, ACK);
    assert_eq!(bench.state(&ring, 0, 100), 1);
    let given: u64 = bench.given().iter().map(|(_, length)| length).sum();
    assert_eq!(given, 100 * BLOCK);
    assert_eq!(bench.field(40), 0);
}

#[test]
fn no_more_is_plugged_than_is_asked_for() {
    let bench = bench();
    let ring = bench.start();
    assert_eq!(bench.plug(&ring, 0, 51), NACK);
    assert_eq!(bench.plug(&ring, 0, 50), ACK);
    assert_eq!(bench.plug(&ring, 99, 1), NACK);
    assert!(bench.control.request(51 * BLOCK));
    assert_eq!(bench.plug(&ring, 99, 1), ACK);
    // It may be asked for less than there is: nothing is taken away.
    assert!(bench.control.request(0));
    assert_eq!(bench.plug(&ring, 98, 1), NACK);
    assert_eq!(bench.state(&ring, 0, 50), 0);
}

#[test]
fn what_is_not_in_the_region_or_not_as_it_should_be_is_an_error_and_changes_nothing() {
    let bench = bench();
    let ring = bench.start();
    assert_eq!(bench.plug(&ring, 4, 2), ACK);
    for kind in [PLUG, UNPLUG, STATE] {
        for (address, count) in [
            (REGION, 0),
            (REGION + 1, 1),
            (REGION + 0x1000, 1),
            (REGION - BLOCK, 1),
            (REGION + 100 * BLOCK, 1),
            (REGION + 99 * BLOCK, 2),
            (REGION, 101),
            (REGION, u16::MAX),
            (0, 1),
            (u64::MAX, u16::MAX),
            (0u64.wrapping_sub(BLOCK), 1),
        ] {
            let answer = bench.ask(&ring, kind, address, count).0;
            assert_eq!(answer, ERROR, "{kind} {address:#x} {count}");
        }
    }
    assert_eq!(bench.plug(&ring, 3, 2), ERROR, "one is plugged");
    assert_eq!(bench.blocks(&ring, UNPLUG, 5, 2), ERROR, "one is not");
    assert_eq!(bench.ask(&ring, 4, REGION, 1).0, ERROR);
    assert_eq!(bench.ask(&ring, 0xffff, REGION, 1).0, ERROR);
    assert_eq!(bench.given(), []);
    assert_eq!(bench.control.figures().unwrap().plugged, 2 * BLOCK);
}

#[test]
fn a_request_that_is_too_short_needs_a_reset() {
    for (readable, writable) in [(23, 10), (24, 9)] {
        let bench = bench();
        let ring = bench.start();
        let buffers = [(REQUEST, readable, false), (RESPONSE, writable, true)];
        ring.add(&bench.driver, &buffers);
        bench.driver.kick(&ring);
        bench.driver.expect_needs_reset();
    }
}

#[test]
fn a_host_that_refuses_has_blocks_stay_plugged() {
    let bench = bench();
    let ring = bench.start();
    assert_eq!(bench.plug(&ring, 0, 2), ACK);
    bench.host.refuses.store(true, Ordering::Relaxed);
    assert_eq!(bench.blocks(&ring, UNPLUG, 0, 1), BUSY);
    assert_eq!(bench.ask(&ring, UNPLUG_ALL, 0, 0).0, BUSY);
    assert_eq!(bench.state(&ring, 0, 2), 0);
    assert_eq!(bench.held(), [REGION, REGION + BLOCK]);
    bench.host.refuses.store(false, Ordering::Relaxed);
    assert_eq!(bench.blocks(&ring, UNPLUG, 0, 2), ACK);
}

#[test]
fn blocks_that_devices_cannot_reach_are_not_plugged() {
    let bench = bench();
    let ring = bench.start();
    bench.host.refuses_to_hold.store(true, Ordering::Relaxed);
    assert_eq!(bench.plug(&ring, 0, 2), BUSY);
    assert_eq!(bench.state(&ring, 0, 2), 1);
    bench.host.refuses_to_hold.store(false, Ordering::Relaxed);
    assert_eq!(bench.plug(&ring, 0, 2), ACK);
    assert_eq!(bench.held(), [REGION, REGION + BLOCK]);
}

#[test]
fn a_new_size_is_told_and_one_that_cannot_be_is_refused() {
    let bench = bench();
    let _ring = bench.start();
    sleep(A_WHILE);
    assert_eq!(bench.driver.interrupts(0), 0, "it knows the first");
    for bytes in [BLOCK + 1, 101 * BLOCK, u64::MAX] {
        assert!(!bench.control.request(bytes), "{bytes:#x}");
    }
    assert!(bench.control.request(100 * BLOCK));
    eventually("told", || bench.driver.interrupts(0) == 1);
    assert_eq!(bench.field(48), 100 * BLOCK);
    let figures = bench.control.figures().unwrap();
    assert!(figures.has_driver);
    assert_eq!(
        (figures.requested, figures.size),
        (100 * BLOCK, 100 * BLOCK)
    );
}

#[test]
fn a_reset_leaves_blocks_as_they_are() {
    let bench = bench();
    let ring = bench.start();
    assert_eq!(bench.plug(&ring, 7, 3), ACK);
    bench.driver.set_status(0);
    eventually("reset completes", || bench.driver.status() == 0);
    assert!(!bench.control.figures().unwrap().has_driver);
    assert_eq!(bench.field(40), 3 * BLOCK);
    let ring = bench.start();
    assert_eq!(bench.state(&ring, 7, 3), 0);
    assert_eq!(bench.given(), []);
}

#[test]
fn a_device_that_is_gone_cannot_be_asked() {
    let bench = bench();
    drop(bench.driver);
    assert!(!bench.control.request(0));
    assert_eq!(bench.control.figures(), None);
}
