//! The transport, driven as a guest does.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use pci::{BarWindow, PciFunction};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use crate::virtio::rng::Rng;
use crate::virtio::testing::{
    A_WHILE, BASE_FEATURES, Driver, EVENT_IDX, INDIRECT, PACKED, SOON, eventually,
};
use crate::virtio::{Chain, DeviceKind, Progress, QueueError, Session, VirtioDevice};

fn rng() -> Driver {
    Driver::new(Box::new(Rng::new()))
}

fn config<const N: usize>(driver: &Driver, at: u16) -> [u8; N] {
    let mut data = [0; N];
    driver.function.read_config(at, &mut data);
    data
}

/// Whether the device serves a request.
fn works(driver: &Driver) {
    let ring = driver.start(0, 1).remove(0);
    ring.add(driver, &[(0x40000, 16, true)]);
    driver.kick(&ring);
    assert_eq!(ring.used(driver).1, 16);
}

#[test]
fn the_function_is_a_modern_virtio_device() {
    let driver = rng();
    assert_eq!(config::<4>(&driver, 0), [0xf4, 0x1a, 0x44, 0x10]);
    assert_eq!(config::<1>(&driver, 8), [1]);
    assert_eq!(config::<4>(&driver, 0x2c), [0xf4, 0x1a, 0x44, 0]);
    assert_eq!(config::<1>(&driver, 0x3d), [0], "no interrupt pin");
}

#[test]
fn every_structure_has_its_capability() {
    let driver = rng();
    let find = |kind: u8| {
        let at = driver.find_capability(9, |at| driver.config_byte(at + 3) == kind);
        let word = |offset: u16| u32::from_le_bytes(config(&driver, at + offset));
        (
            driver.config_byte(at + 2),
            driver.config_byte(at + 4),
            word(8),
            word(12),
            word(16),
        )
    };
    let (size, bar, offset, length, _) = find(1);
    assert_eq!((size, bar, offset, length), (16, 0, 0, 56));
    assert_eq!(find(2), (20, 0, 0x1000, 4, 4));
    let (size, bar, offset, length, _) = find(3);
    assert_eq!((size, bar, offset, length), (16, 0, 0x100, 1));
    assert_eq!(find(5).0, 20);
}

#[test]
fn features_ok_needs_version_1_and_access_platform_and_nothing_unknown() {
    let driver = rng();
    let all = BASE_FEATURES | INDIRECT | EVENT_IDX | PACKED;
    assert_eq!(driver.offered(), all);
    assert!(!driver.negotiate(1 << 32), "without ACCESS_PLATFORM");
    assert!(!driver.negotiate(1 << 33), "without VERSION_1");
    assert!(
        !driver.negotiate(BASE_FEATURES | 1 << 35),
        "IN_ORDER is not on offer"
    );
    assert!(!driver.negotiate(BASE_FEATURES | 1));
    assert!(driver.negotiate(all));
}

#[test]
fn a_driver_that_skips_negotiation_is_not_started() {
    let driver = rng();
    driver.set_status(1);
    driver.set_status(3);
    driver.set_status(7);
    assert_eq!(driver.status(), 3);
    driver.set_status(8);
    assert_eq!(
        driver.status(),
        3,
        "bits are never cleared, and FEATURES_OK is refused"
    );
    driver.set_status(0xff);
    assert_eq!(
        driver.status(),
        0x83,
        "DEVICE_NEEDS_RESET is not the driver's to set"
    );
}

#[test]
fn features_are_fixed_once_they_are_ok() {
    let driver = rng();
    assert!(driver.negotiate(BASE_FEATURES));
    driver.write(8, &0_u32.to_le_bytes());
    driver.write(12, &u32::MAX.to_le_bytes());
    assert_eq!(driver.read::<4>(12), [0; 4]);
}

#[test]
fn a_queue_that_does_not_exist_has_size_zero() {
    let driver = rng();
    assert_eq!(driver.read::<2>(18), [1, 0]);
    assert_eq!(driver.read::<2>(24), [64, 0]);
    driver.write(22, &1_u16.to_le_bytes());
    assert_eq!(driver.read::<2>(24), [0, 0]);
    driver.write(26, &0_u16.to_le_bytes());
    assert_eq!(driver.read::<2>(26), [0xff, 0xff]);
}

#[test]
fn a_vector_beyond_the_table_reads_back_as_none() {
    let driver = rng();
    for (at, vector, expected) in [
        (16, 1_u16, 1),
        (16, 2, 0xffff),
        (26, 0, 0),
        (26, 2, 0xffff),
        (26, 0xffff, 0xffff),
    ] {
        driver.write(at, &vector.to_le_bytes());
        assert_eq!(u16::from_le_bytes(driver.read(at)), expected);
    }
}

#[test]
fn fields_can_be_accessed_at_any_width() {
    let driver = rng();
    driver.write(32, &0x1122_3344_5566_7780_u64.to_le_bytes());
    assert_eq!(driver.read::<4>(36), [0x44, 0x33, 0x22, 0x11]);
    driver.write(33, &[0xaa]);
    assert_eq!(u64::from_le_bytes(driver.read(32)), 0x1122_3344_5566_aa80);
    // Across queue_notify_off, which is read-only, into queue_desc.
    driver.write(30, &[1, 1, 2, 3]);
    assert_eq!(driver.read::<6>(30), [0, 0, 2, 3, 0x66, 0x55]);
    assert_eq!(driver.read::<8>(52), [0; 8]);
}

#[test]
fn an_enabled_queue_is_no_longer_configurable() {
    let driver = rng();
    assert!(driver.negotiate(BASE_FEATURES));
    let ring = driver.queue(0, 16);
    driver.write(24, &32_u16.to_le_bytes());
    driver.write(32, &0_u64.to_le_bytes());
    driver.write(28, &0_u16.to_le_bytes());
    assert_eq!(driver.read::<2>(24), [16, 0]);
    assert_eq!(driver.read::<2>(28), [1, 0]);
    assert_eq!(u64::from_le_bytes(driver.read(32)), ring.descriptors);
}

#[test]
fn bad_queues_need_a_reset_and_say_so_by_interrupt() {
    for (at, value) in [
        (24, 3_u64),
        (24, 0),
        (24, 128),
        (32, 8),
        (40, 1),
        (48, 2),
        (32, !0xf),
        (48, !0x3),
    ] {
        let driver = rng();
        assert!(driver.negotiate(BASE_FEATURES));
        driver.write(16, &0_u16.to_le_bytes());
        let bytes = value.to_le_bytes();
        driver.write(at, if at == 24 { &bytes[..2] } else { &bytes });
        driver.write(28, &1_u16.to_le_bytes());
        driver.set_status(15);
        assert_eq!(driver.status(), 0x4f, "{at} {value}");
        assert_eq!(driver.interrupts(0), 1);
        works(&driver);
    }
}

#[test]
fn a_queue_whose_rings_are_nowhere_needs_a_reset() {
    let driver = rng();
    assert!(driver.negotiate(BASE_FEATURES));
    driver.write(40, &0x7000_0000_0000_u64.to_le_bytes());
    driver.write(28, &1_u16.to_le_bytes());
    driver.set_status(15);
    driver.expect_needs_reset();
    works(&driver);
}

#[test]
fn dma_stops_with_bus_mastering() {
    let driver = rng();
    let ring = driver.start(0, 1).remove(0);
    driver.function.write_config(4, &2_u16.to_le_bytes());
    ring.add(&driver, &[(0x40000, 16, true)]);
    driver.kick(&ring);
    driver.expect_needs_reset();
    assert_eq!(ring.try_used(&driver), None);
    assert_eq!(
        driver
            .memory
            .read_obj::<u64>(GuestAddress(0x40000))
            .unwrap(),
        0
    );
    assert_eq!(driver.interrupts(0), 0, "no message without bus mastering");
    driver.function.write_config(4, &6_u16.to_le_bytes());
    works(&driver);
}

#[test]
fn without_msix_the_isr_status_tells_and_is_cleared_by_reading() {
    let driver = rng();
    let msix = driver.find_capability(0x11, |_| true);
    driver.function.write_config(msix + 2, &0_u16.to_le_bytes());
    works(&driver);
    eventually("queue bit", || driver.read::<1>(0x100)[0] == 1);
    assert_eq!(driver.read::<1>(0x100), [0]);
    assert_eq!(driver.interrupts(1), 0);
}

#[test]
fn function_reset_and_platform_reset_clear_everything() {
    for platform in [false, true] {
        let driver = rng();
        driver.function.assign_bar(0, 0x80_0000_0000);
        works(&driver);
        if platform {
            driver.function.reset();
        } else {
            let pcie = driver.find_capability(0x10, |_| true);
            let change = driver
                .function
                .write_config(pcie + 8, &0x8000_u16.to_le_bytes());
            assert!(change.function_reset && change.decode);
        }
        assert_eq!(driver.status(), 0);
        assert!(driver.function.windows().is_empty());
        assert_eq!(config::<2>(&driver, 4), [0, 0]);
        assert_eq!(driver.read::<4>(0x200c), [1, 0, 0, 0], "vector masked");
        driver.enable_function();
        works(&driver);
    }
}

#[test]
fn doorbells_follow_the_bar() {
    let driver = rng();
    let at = |base| BarWindow {
        bar: 0,
        base,
        size: 0x4000,
    };
    let rung = || driver.doorbells.0.lock().unwrap().clone();
    driver.function.windows_changed(&[at(0x10_0000)]);
    assert_eq!(rung(), [0x10_1000]);
    driver.function.windows_changed(&[at(0x20_0000)]);
    assert_eq!(rung(), [0x20_1000]);
    driver.function.windows_changed(&[]);
    assert!(rung().is_empty());
    // Refused: nothing to remove afterwards.
    driver.function.windows_changed(&[at(0x8000_0000)]);
    assert!(rung().is_empty());
    driver.function.windows_changed(&[at(0x20_0000)]);
    let doorbells = Arc::clone(&driver.doorbells);
    drop(driver);
    assert!(doorbells.0.lock().unwrap().is_empty());
}

#[test]
fn the_access_capability_reaches_the_bar() {
    let driver = rng();
    let cap = driver.find_capability(9, |at| driver.config_byte(at + 3) == 5);
    let set = |offset: u32, length: u32| {
        driver.function.write_config(cap + 8, &offset.to_le_bytes());
        driver
            .function
            .write_config(cap + 12, &length.to_le_bytes());
    };
    // num_queues
    set(18, 2);
    assert_eq!(config::<4>(&driver, cap + 16), [1, 0, 0, 0]);
    // device_status
    set(20, 1);
    driver.function.write_config(cap + 16, &[1]);
    assert_eq!(driver.status(), 1);
    assert_eq!(config::<1>(&driver, cap + 16), [1]);
    // Misaligned, of a length that does not exist, beyond the BAR, another BAR: nothing happens.
    driver.set_status(0);
    for (bar, offset, length) in [
        (0, 19, 2),
        (0, 20, 3),
        (0, 0x4000, 1),
        (0, 0x3ffe, 4),
        (0, 20, 0),
        (2, 20, 1),
    ] {
        driver.function.write_config(cap + 4, &[bar]);
        set(offset, length);
        driver.function.write_config(cap + 16, &[1, 1, 1, 1]);
        assert_eq!(driver.status(), 0, "{bar} {offset} {length}");
    }
}

/// A device whose work takes as long as the test wants.
struct Slow {
    started: Sender<()>,
    release: Arc<Mutex<Receiver<()>>>,
}

impl VirtioDevice for Slow {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[16]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn activate(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }

    fn queue_ready(&mut self, index: usize, session: &mut Session) -> Result<Progress, QueueError> {
        let mut chain = Chain::default();
        while session.pop(index, &mut chain)? {
            let _ = self.started.send(());
            let _ = self.release.lock().unwrap().recv();
            session.write(&chain, 0, b"late")?;
            session.complete(index, &chain, 4)?;
        }
        Ok(Progress::Idle)
    }
}

#[test]
fn a_reset_while_the_device_is_busy_ends_when_it_is_not_and_nothing_is_written_after_it() {
    let (started, is_started) = channel();
    let (release, released) = channel();
    let driver = Driver::new(Box::new(Slow {
        started,
        release: Arc::new(Mutex::new(released)),
    }));
    let ring = driver.start(0, 1).remove(0);
    ring.add(&driver, &[(0x40000, 16, true)]);
    driver.kick(&ring);
    is_started.recv_timeout(SOON).unwrap();

    let begin = Instant::now();
    driver.set_status(0);
    assert!(begin.elapsed() < SOON, "the vCPU is not held for long");
    assert_ne!(driver.status(), 0, "still busy");
    driver.set_status(1);
    driver.write(22, &7_u16.to_le_bytes());
    assert_ne!(
        driver.read::<2>(22),
        [7, 0],
        "nothing can be set up meanwhile"
    );

    release.send(()).unwrap();
    eventually("reset completes", || driver.status() == 0);
    assert_eq!(ring.try_used(&driver), None);
    assert_eq!(
        driver
            .memory
            .read_obj::<u32>(GuestAddress(0x40000))
            .unwrap(),
        0
    );

    let ring = driver.start(0, 1).remove(0);
    ring.add(&driver, &[(0x40000, 16, true)]);
    driver.kick(&ring);
    release.send(()).unwrap();
    assert_eq!(ring.used(&driver), (0, 4));
}

/// A device in the middle of work, and the way to end it.
fn busy() -> (Driver, Sender<()>) {
    let (started, is_started) = channel();
    let (release, released) = channel();
    let driver = Driver::new(Box::new(Slow {
        started,
        release: Arc::new(Mutex::new(released)),
    }));
    let ring = driver.start(0, 1).remove(0);
    ring.add(&driver, &[(0x40000, 16, true)]);
    driver.kick(&ring);
    is_started.recv_timeout(SOON).unwrap();
    (driver, release)
}

#[test]
fn a_driver_that_resets_a_busy_device_is_held_no_longer_than_ten_milliseconds() {
    let (driver, release) = busy();
    let pcie = driver.find_capability(0x10, |_| true);
    let waited = || driver.function.state.lock().waited;
    driver.set_status(0);
    assert!(waited() <= Duration::from_millis(10));
    let before = waited();
    driver.function.write_config(pcie + 9, &[0x80]);
    assert!(waited() - before <= Duration::from_millis(10));
    release.send(()).unwrap();
    eventually("reset completes", || driver.status() == 0);
}

#[test]
fn a_function_is_quiet_once_its_thread_has_ended() {
    let (driver, release) = busy();
    driver.function.reset();
    assert!(!driver.function.is_quiet(), "it is in a system call");
    release.send(()).unwrap();
    eventually("the thread ends", || driver.function.is_quiet());
    assert_eq!(driver.status(), 0);
}

#[test]
fn configuration_space_answers_while_a_function_reset_waits() {
    let (driver, release) = busy();
    thread::scope(|scope| {
        let begin = Instant::now();
        scope.spawn(|| driver.function.reset());
        let mut slowest = Duration::ZERO;
        while begin.elapsed() < Duration::from_millis(300) {
            let read = Instant::now();
            driver.function.windows();
            slowest = slowest.max(read.elapsed());
        }
        assert!(slowest < Duration::from_millis(200), "{slowest:?}");
    });
    release.send(()).unwrap();
}

#[test]
fn resets_of_a_busy_device_wait_once_between_them() {
    let (driver, release) = busy();
    let pcie = driver.find_capability(0x10, |_| true);
    let begin = Instant::now();
    for _ in 0..4 {
        driver.function.write_config(pcie + 9, &[0x80]);
        driver.function.reset();
    }
    assert!(
        begin.elapsed() < Duration::from_millis(900),
        "{:?}",
        begin.elapsed()
    );
    release.send(()).unwrap();
    eventually("reset completes", || driver.status() == 0);
}

#[test]
fn devices_that_were_told_before_are_waited_for_at_the_same_time() {
    let machines = [busy(), busy(), busy(), busy()];
    let begin = Instant::now();
    for (driver, _) in &machines {
        driver.function.quiesce();
    }
    for (driver, _) in &machines {
        driver.function.reset();
    }
    assert!(
        begin.elapsed() < Duration::from_millis(900),
        "{:?}",
        begin.elapsed()
    );
    for (_, release) in &machines {
        release.send(()).unwrap();
    }
}

/// An entropy device whose host refuses the first activation.
#[derive(Default)]
struct Reluctant {
    rng: Rng,
    refused: bool,
}

impl VirtioDevice for Reluctant {
    fn kind(&self) -> DeviceKind {
        self.rng.kind()
    }

    fn features(&self) -> u64 {
        self.rng.features()
    }

    fn queue_sizes(&self) -> &'static [u16] {
        self.rng.queue_sizes()
    }

    fn config(&self) -> Vec<u8> {
        self.rng.config()
    }

    fn activate(&mut self, features: u64) -> io::Result<()> {
        if !std::mem::replace(&mut self.refused, true) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.rng.activate(features)
    }

    fn queue_ready(&mut self, index: usize, session: &mut Session) -> Result<Progress, QueueError> {
        self.rng.queue_ready(index, session)
    }
}

#[test]
fn a_device_that_the_host_does_not_activate_needs_a_reset_and_may_start_after_it() {
    let driver = Driver::new(Box::new(Reluctant::default()));
    let ring = driver.start(0, 1).remove(0);
    driver.expect_needs_reset();
    ring.add(&driver, &[(0x40000, 16, true)]);
    driver.kick(&ring);
    thread::sleep(A_WHILE);
    assert_eq!(ring.try_used(&driver), None);
    works(&driver);
}

#[derive(Clone, Debug)]
enum Step {
    Bar(u64, Vec<u8>),
    ReadBar(u64, usize),
    Config(u16, Vec<u8>),
    Status(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let data = || prop::collection::vec(any::<u8>(), 0..9);
    let offset = prop_oneof![3 => 0..64_u64, 1 => 0..0x4000_u64, 1 => any::<u64>()];
    prop_oneof![
        4 => (offset.clone(), data()).prop_map(|(at, data)| Step::Bar(at, data)),
        1 => (offset, 0..9_usize).prop_map(|(at, length)| Step::ReadBar(at, length)),
        1 => (0..0x200_u16, data()).prop_map(|(at, data)| Step::Config(at, data)),
        2 => prop_oneof![Just(0_u8), Just(3), Just(11), Just(15), any::<u8>()].prop_map(Step::Status),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn no_sequence_of_accesses_breaks_the_device(steps in prop::collection::vec(step(), 1..60)) {
        let driver = rng();
        driver.negotiate(BASE_FEATURES);
        for step in steps {
            match step {
                Step::Bar(at, data) => driver.write(at, &data),
                Step::ReadBar(at, length) => driver.function.read_bar(0, at, &mut vec![0; length]),
                Step::Config(at, data) => {
                    driver.function.write_config(at, &data);
                }
                Step::Status(status) => driver.set_status(status),
            }
        }
        driver.function.reset();
        driver.enable_function();
        works(&driver);
    }
}
