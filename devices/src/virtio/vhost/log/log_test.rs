use std::thread::sleep;

use pci::PciFunction as _;
use vm_memory::GuestMemoryMmap;

use super::*;
use crate::Memory;
use crate::virtio::testing::{A_WHILE, Driver, Ring, eventually, memory};
use crate::virtio::vhost::fake::Fake;
use crate::virtio::vhost::vhost_test::Device;
use crate::virtio::vhost::{Place, Queues};

const BUFFER: u64 = 0x8_0000;
/// Where the used ring of the first queue is.
const USED: u64 = 0x1_c000;

struct Machine {
    driver: Driver,
    kernel: Arc<Fake>,
    log: WriteLog,
}

impl Machine {
    fn new(can_log: bool) -> Self {
        let memory = memory();
        let kernel = Fake::new(&memory);
        kernel.state.lock().unwrap().can_log = can_log;
        let place = Place::Direct(Arc::clone(&memory));
        let queues = Queues::new(Arc::clone(&kernel), place, 0..2).unwrap();
        let log = WriteLog::default();
        log.add([queues.writer()]);
        let port = crate::Dma::direct(Arc::clone(&memory));
        let device = Box::new(Device(queues, false));
        let driver = Driver::with_memory(device, 0, memory, port);
        Self {
            driver,
            kernel,
            log,
        }
    }

    fn memory(&self) -> &Memory {
        &self.driver.memory
    }

    fn start(&self) -> Vec<Ring> {
        let rings = self.driver.start(0, 2);
        eventually("the kernel has started", || self.kernel.running());
        rings
    }

    fn begin(&self) {
        self.driver.park();
        self.log.begin(self.memory()).expect("it begins");
        self.driver.function.resume();
    }

    /// Has the kernel fill one buffer.
    fn serve(&self, ring: &Ring) {
        ring.add(&self.driver, &[(BUFFER + 0xffe, 0x1004, true)]);
        eventually("a used buffer", || {
            self.kernel.turn(ring.index.into(), 0x11);
            ring.try_used(&self.driver).is_some()
        });
    }

    /// The pages that were written.
    fn taken(&self) -> Vec<u64> {
        let words = self.log.take(GuestAddress(0), 8 << 8);
        let bits = (0..64 * words.len()).filter(|bit| words[bit / 64] >> (bit % 64) & 1 != 0);
        bits.map(|bit| bit as u64 * 4096).collect()
    }
}

#[test]
fn what_the_kernel_writes_is_told_once_until_the_log_ends() {
    let machine = Machine::new(true);
    let rings = machine.start();
    machine.serve(&rings[0]);
    assert!(machine.taken().is_empty(), "before it begins");
    machine.begin();
    eventually("the kernel goes on", || machine.kernel.running());
    assert!(machine.taken().is_empty());
    let written = [USED, BUFFER, BUFFER + 0x1000, BUFFER + 0x2000];
    for _ in 0..3 {
        machine.serve(&rings[0]);
        assert_eq!(machine.taken(), written);
        assert!(machine.taken().is_empty(), "told once");
    }
    // Another driver.
    let rings = machine.start();
    machine.serve(&rings[0]);
    assert_eq!(machine.taken(), written);
    machine.log.end();
    machine.serve(&rings[0]);
    assert!(machine.taken().is_empty());
    assert!(machine.kernel.state.lock().unwrap().log.is_none());
    machine.begin();
    assert!(machine.taken().is_empty(), "anew");
}

#[test]
fn a_log_does_not_begin_while_the_kernel_is_at_work() {
    for can_log in [true, false] {
        let machine = Machine::new(can_log);
        machine.start();
        let error = machine.log.begin(machine.memory()).expect_err("refused");
        assert_eq!(
            error.to_string(),
            "vhost is at work; pause the guest before"
        );
        assert!(machine.log.take(GuestAddress(0), 64).is_empty());
        assert!(machine.kernel.running());
        machine.begin();
        assert_eq!(machine.log.take(GuestAddress(0), 64), [0]);
    }
}

#[test]
fn a_device_that_cannot_log_rests_until_the_log_ends() {
    let machine = Machine::new(false);
    let mut rings = machine.start();
    machine.serve(&rings[0]);
    for round in 0..4 {
        machine.begin();
        sleep(A_WHILE);
        assert!(!machine.kernel.running(), "nobody knows what it writes");
        if round == 1 {
            // Another driver.
            rings = machine.driver.start(0, 2);
            sleep(A_WHILE);
            assert!(!machine.kernel.running());
        }
        if round == 2 {
            machine.driver.park();
        }
        machine.log.end();
        if round == 2 {
            sleep(A_WHILE);
            assert!(!machine.kernel.running(), "paused");
            machine.driver.function.resume();
        }
        eventually("the kernel goes on", || machine.kernel.running());
        machine.serve(&rings[0]);
    }
}

#[test]
fn one_that_has_no_driver_or_is_gone_needs_nothing() {
    let machine = Machine::new(false);
    machine.log.begin(machine.memory()).expect("it begins");
    machine.log.end();
    machine.start();
    let Machine { driver, log, .. } = machine;
    let memory = Arc::clone(&driver.memory);
    drop(driver);
    log.begin(&memory).expect("it begins");
    assert!(log.take(GuestAddress(0), 64).is_empty(), "no log is needed");
    log.end();
}

#[test]
fn memory_is_found_in_the_log_by_its_guest_physical_address() {
    let machine = Machine::new(true);
    let ranges = [(GuestAddress(0), 0x3000), (GuestAddress(1 << 32), 0x5_0000)];
    let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
    machine.log.begin(&memory).expect("it begins");
    let bits = machine.kernel.state.lock().unwrap().log.clone().unwrap();
    for page in [0x2000, 0x1_0000_0000, 0x1_0004_f000] {
        bits.set(page);
    }
    assert_eq!(machine.log.take(GuestAddress(0), 3), [0b100]);
    let words = [1, 1 << (0x4f - 0x40)];
    assert_eq!(machine.log.take(GuestAddress(1 << 32), 0x50), words);
    assert_eq!(machine.log.take(GuestAddress(1 << 32), 0x50), [0, 0]);
    machine.log.end();
    let odd = GuestMemoryMmap::from_ranges(&[(GuestAddress(0x1000), 0x3000)]).unwrap();
    let error = machine.log.begin(&odd).expect_err("refused").to_string();
    assert!(error.contains("begins at 0x1000"), "{error}");
}
