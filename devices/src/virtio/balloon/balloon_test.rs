//! The balloon, in front of a host that writes down what it gets back.

use std::io;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vm_memory::{Bytes as _, GuestAddress};

use super::{Balloon, BalloonControl, BalloonOptions, Reclaim};
use crate::virtio::testing::{A_WHILE, Driver, Ring, SOON, eventually};

const VERSION_1: u64 = 1 << 32;
pub(super) const STATS: u64 = 1 << 1;
const ON_OOM: u64 = 1 << 2;
const POISON: u64 = 1 << 4;
const REPORTING: u64 = 1 << 5;
/// Where buffers of page numbers and statistics are.
const BUFFER: u64 = 0x10_0000;
/// The device-specific configuration in the BAR.
const CONFIG: u64 = 0x200;

#[derive(Default)]
pub(super) struct Host {
    pub(super) given: Mutex<Vec<(u64, u64)>>,
    refuses: bool,
    is_followed: bool,
    /// What happens when a page of the range that begins there is given back.
    then: Mutex<Option<(u64, Then)>>,
}

type Then = Box<dyn FnOnce() + Send>;

impl Reclaim for Host {
    fn is_followed(&self) -> bool {
        self.is_followed
    }

    fn reclaim(&self, start: GuestAddress, length: u64) -> io::Result<u64> {
        self.given.lock().push((start.0, length));
        let mut then = self.then.lock();
        if let Some((_, then)) = then.take_if(|(at, _)| *at == start.0) {
            then();
        }
        match self.refuses {
            true => Err(io::ErrorKind::OutOfMemory.into()),
            false => Ok(length),
        }
    }
}

/// A guest, its balloon, and the host.
pub(super) struct Bench {
    pub(super) driver: Driver,
    pub(super) control: BalloonControl,
    pub(super) host: Arc<Host>,
}

pub(super) fn balloon(host: &Arc<Host>) -> Balloon {
    let options = BalloonOptions {
        deflate_on_oom: true,
        free_page_reporting: true,
    };
    Balloon::new(options, Arc::clone(host) as _).unwrap()
}

fn bench_with(host: Host) -> Bench {
    let host = Arc::new(host);
    let balloon = balloon(&host);
    let control = balloon.control();
    let driver = Driver::new(Box::new(balloon));
    Bench {
        driver,
        control,
        host,
    }
}

pub(super) fn bench() -> Bench {
    bench_with(Host::default())
}

impl Bench {
    pub(super) fn start(&self, features: u64) -> Vec<Ring> {
        assert!(self.driver.negotiate(VERSION_1 | features));
        let rings = (0..5).map(|index| self.driver.queue(index, 16)).collect();
        self.driver.set_status(15);
        rings
    }

    /// Gives numbers of pages by `ring`, and waits until they are used.
    fn give(&self, ring: &Ring, numbers: &[u32]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|one| one.to_le_bytes()).collect();
        self.give_bytes(ring, &bytes);
    }

    fn give_bytes(&self, ring: &Ring, bytes: &[u8]) {
        let buffer = GuestAddress(BUFFER);
        self.driver.memory.write_slice(bytes, buffer).unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        ring.add(&self.driver, &[(BUFFER, length, false)]);
        self.driver.kick(ring);
        assert_eq!(ring.used(&self.driver).1, 0);
    }

    fn given(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut *self.host.given.lock())
    }

    fn field(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.driver.read(CONFIG + at))
    }

    fn figures(&self) -> super::BalloonFigures {
        self.control.figures().unwrap()
    }
}

#[test]
fn a_driver_of_linux_which_knows_physical_addresses_only_is_taken() {
    let bench = bench();
    assert_eq!(bench.driver.offered() & (1 << 33), 0);
    assert_eq!(
        bench.driver.offered() & 0xff_ffff,
        STATS | ON_OOM | POISON | REPORTING
    );
    assert!(!bench.driver.negotiate(STATS));
    assert!(bench.driver.negotiate(VERSION_1));
}

#[test]
fn what_is_not_asked_for_is_not_offered() {
    let host = Arc::<Host>::default();
    let balloon = Balloon::new(BalloonOptions::default(), host).unwrap();
    let driver = Driver::new(Box::new(balloon));
    assert_eq!(driver.offered() & 0xff_ffff, STATS);
}

#[test]
fn pages_of_the_balloon_go_back_in_runs_before_the_buffer_is_used() {
    let bench = bench();
    let rings = bench.start(0);
    bench.give(&rings[0], &[0x203, 0x201, 0x202, 0x400]);
    assert_eq!(bench.given(), [(0x20_1000, 0x3000), (0x40_0000, 0x1000)]);
    assert_eq!(bench.figures().inflated, 0x4000);
    eventually("interrupt", || bench.driver.interrupts(1) == 1);
    // Half of a number is none.
    bench.give_bytes(&rings[0], &[5, 0, 0, 0, 9, 0]);
    assert_eq!(bench.given(), [(0x5000, 0x1000)]);
}

#[test]
fn pages_that_the_guest_takes_back_are_acknowledged_and_nothing_else() {
    let bench = bench();
    let rings = bench.start(0);
    bench.give(&rings[1], &[0x203, 0xffff_ffff]);
    assert_eq!(bench.given(), []);
}

#[test]
fn a_host_that_refuses_does_not_stop_the_balloon() {
    let bench = bench_with(Host {
        refuses: true,
        ..Host::default()
    });
    let rings = bench.start(0);
    bench.give(&rings[0], &[1]);
    bench.give(&rings[0], &[2]);
    assert_eq!(bench.given(), [(0x1000, 0x1000), (0x2000, 0x1000)]);
    assert_eq!(bench.figures().inflated, 0);
}

#[test]
fn as_many_numbers_as_are_taken_at_a_time_are_taken_and_one_more_needs_a_reset() {
    let bench = bench();
    let rings = bench.start(0);
    let numbers: Vec<u32> = (0..16 << 10).collect();
    bench.give(&rings[0], &numbers);
    let pieces: Vec<_> = (0..16).map(|piece| (piece << 22, 4 << 20)).collect();
    assert_eq!(bench.given(), pieces);
    rings[0].add(&bench.driver, &[(BUFFER, 0x1_0004, false)]);
    bench.driver.kick(&rings[0]);
    bench.driver.expect_needs_reset();
    assert_eq!(bench.given(), []);
}

#[test]
fn a_list_that_the_same_memory_makes_gibibytes_long_needs_a_reset() {
    let bench = bench();
    let rings = bench.start(0);
    let buffers = [(0, 8 << 20, false); 15];
    rings[0].add(&bench.driver, &buffers);
    bench.driver.kick(&rings[0]);
    bench.driver.expect_needs_reset();
    assert_eq!(bench.given(), []);
}

#[test]
fn a_list_outside_of_memory_needs_a_reset() {
    let bench = bench();
    let rings = bench.start(0);
    rings[0].add(&bench.driver, &[(0xffff_ffff_0000, 64, false)]);
    bench.driver.kick(&rings[0]);
    bench.driver.expect_needs_reset();
    assert_eq!(bench.given(), []);
}

#[test]
fn a_buffer_that_is_to_be_written_names_no_pages() {
    let bench = bench();
    let rings = bench.start(0);
    let zeros = GuestAddress(BUFFER);
    bench.driver.memory.write_slice(&[7; 64], zeros).unwrap();
    rings[0].add(&bench.driver, &[(BUFFER, 64, true)]);
    bench.driver.kick(&rings[0]);
    assert_eq!(rings[0].used(&bench.driver).1, 0);
    assert_eq!(bench.given(), []);
}

#[test]
fn free_pages_are_reported_by_whichever_queue_the_driver_takes_for_that() {
    for (features, queue) in [(STATS, 3), (STATS, 4), (0, 2)] {
        let bench = bench();
        let rings = bench.start(features | REPORTING);
        let ring = &rings[queue];
        let buffers = [(0x20_0000, 2 << 20, true), (0x60_0000, 4 << 20, true)];
        ring.add(&bench.driver, &buffers);
        bench.driver.kick(ring);
        assert_eq!(ring.used(&bench.driver).1, 0);
        assert_eq!(bench.given(), [(0x20_0000, 2 << 20), (0x60_0000, 4 << 20)]);
        assert_eq!(bench.figures().reported, 6 << 20);
        assert!(bench.figures().reports);
    }
}

#[test]
fn of_what_is_reported_whole_pages_go_back_and_much_in_pieces() {
    let bench = bench();
    let rings = bench.start(STATS | REPORTING);
    let buffers = [
        (0x1001, 0x1fff, true),
        (0x5800, 0x1000, true),
        (0x10_0800, 0x80_0000, true),
    ];
    rings[4].add(&bench.driver, &buffers);
    bench.driver.kick(&rings[4]);
    rings[4].used(&bench.driver);
    assert_eq!(
        bench.given(),
        [
            (0x2000, 0x1000),
            (0x10_1000, 0x40_0000),
            (0x50_1000, 0x3f_f000)
        ]
    );
}

#[test]
fn nothing_goes_back_that_a_driver_reports_without_having_said_so() {
    let bench = bench();
    let rings = bench.start(STATS);
    rings[4].add(&bench.driver, &[(0x20_0000, 2 << 20, true)]);
    bench.driver.kick(&rings[4]);
    sleep(A_WHILE);
    assert_eq!(rings[4].try_used(&bench.driver), None);
    assert_eq!(bench.given(), []);
}

#[test]
fn free_pages_that_are_to_hold_something_stay_as_they_are() {
    for (features, poison, goes) in [(POISON, 0xaa, false), (POISON, 0, true), (0, 0xaa, true)] {
        let bench = bench();
        let driver = &bench.driver;
        assert!(driver.negotiate(VERSION_1 | REPORTING | features));
        let ring = driver.queue(4, 16);
        driver.write(CONFIG + 12, &u32::to_le_bytes(poison));
        driver.set_status(15);
        ring.add(driver, &[(0x20_0000, 2 << 20, true)]);
        driver.kick(&ring);
        ring.used(driver);
        assert_eq!(!bench.given().is_empty(), goes, "{features:#x} {poison:#x}");
    }
}

#[test]
fn a_chain_is_left_for_a_pause_and_taken_once_more_after_it() {
    for queue in [0, 4] {
        let bench = bench();
        let rings = bench.start(STATS | REPORTING);
        let function = Arc::clone(&bench.driver.function);
        let park: Then = Box::new(move || pci::PciFunction::park(&*function));
        *bench.host.then.lock() = Some((0x80_0000, park));
        let numbers: Vec<u8> = (0..0x1000_u32).flat_map(u32::to_le_bytes).collect();
        let buffer = GuestAddress(BUFFER);
        bench.driver.memory.write_slice(&numbers, buffer).unwrap();
        let buffers = match queue {
            0 => [(BUFFER, 0x4000, false)],
            _ => [(0, 16 << 20, true)],
        };
        rings[queue].add(&bench.driver, &buffers);
        bench.driver.kick(&rings[queue]);
        eventually("it is half done", || bench.host.then.lock().is_none());
        bench.driver.park();
        let pieces = |count| (0..count).map(|piece| (piece << 22, 4 << 20));
        assert_eq!(bench.given(), pieces(3).collect::<Vec<_>>());
        assert_eq!(rings[queue].try_used(&bench.driver), None);
        pci::PciFunction::resume(&*bench.driver.function);
        rings[queue].used(&bench.driver);
        assert_eq!(bench.given(), pieces(4).collect::<Vec<_>>());
    }
}

#[test]
fn without_bus_mastering_no_more_goes_back() {
    let bench = bench();
    let rings = bench.start(STATS | REPORTING);
    let function = Arc::clone(&bench.driver.function);
    let disable: Then = Box::new(move || {
        pci::PciFunction::write_config(&*function, 4, &2_u16.to_le_bytes());
    });
    *bench.host.then.lock() = Some((0x40_0000, disable));
    rings[4].add(&bench.driver, &[(0, 16 << 20, true)]);
    bench.driver.kick(&rings[4]);
    bench.driver.expect_needs_reset();
    assert_eq!(bench.given(), [(0, 4 << 20), (4 << 20, 4 << 20)]);
}

#[test]
fn while_somebody_follows_memory_the_balloon_grows_and_reports_are_acknowledged() {
    let bench = bench_with(Host {
        is_followed: true,
        ..Host::default()
    });
    let rings = bench.start(STATS | REPORTING);
    rings[4].add(&bench.driver, &[(0x20_0000, 2 << 20, true)]);
    bench.driver.kick(&rings[4]);
    rings[4].used(&bench.driver);
    assert_eq!(bench.given(), []);
    bench.give(&rings[0], &[1]);
    assert_eq!(bench.given(), [(0x1000, 0x1000)]);
}

#[test]
fn a_new_target_is_told_and_the_driver_says_how_far_it_is() {
    let bench = bench();
    bench.start(ON_OOM);
    assert_eq!(bench.field(0), 0);
    let generation: [u8; 1] = bench.driver.read(21);
    assert!(bench.control.set_target(0x123_4567));
    eventually("configuration interrupt", || {
        bench.driver.interrupts(0) == 1
    });
    assert_ne!(bench.driver.read(21), generation);
    assert_eq!(bench.field(0), 0x1235);
    bench.driver.write(CONFIG + 4, &0x1000_u32.to_le_bytes());
    // A byte, and what cannot be written.
    bench.driver.write(CONFIG + 5, &[0x11]);
    bench.driver.write(CONFIG, &[0xff; 4]);
    bench.driver.write(CONFIG + 8, &[0xff; 4]);
    bench.driver.write(CONFIG + 16, &[0xff; 4]);
    assert_eq!(bench.field(0), 0x1235);
    assert_eq!(bench.field(4), 0x1100);
    assert_eq!(bench.field(8), 0);
    assert_eq!(bench.field(12), 0);
    assert_eq!(bench.field(16), 0);
    let figures = bench.figures();
    assert_eq!((figures.target, figures.actual), (0x123_5000, 0x110_0000));
    assert!(figures.has_driver && figures.deflates_on_oom && !figures.reports);
    // The same once more is nothing new.
    assert!(bench.control.set_target(0x123_4567));
    sleep(A_WHILE);
    assert_eq!(bench.driver.interrupts(0), 1);
    // Another one in between is.
    bench.driver.park();
    assert!(bench.control.set_target(0));
    assert!(bench.control.set_target(0x123_4567));
    pci::PciFunction::resume(&*bench.driver.function);
    eventually("told", || bench.driver.interrupts(0) == 2);
}

#[test]
fn a_target_from_before_the_driver_is_told_when_it_is_there_and_a_reset_empties_the_balloon() {
    let bench = bench();
    assert!(bench.control.set_target(1 << 20));
    assert_eq!(bench.field(0), 0x100);
    bench.start(0);
    eventually("configuration interrupt", || {
        bench.driver.interrupts(0) == 1
    });
    bench.driver.write(CONFIG + 4, &0x100_u32.to_le_bytes());
    bench.driver.set_status(0);
    eventually("reset completes", || bench.driver.status() == 0);
    let figures = bench.figures();
    assert_eq!((figures.target, figures.actual), (1 << 20, 0));
    assert!(!figures.has_driver);
    bench.start(0);
    eventually("told again", || bench.driver.interrupts(0) == 2);
}

/// An entry of the statistics.
pub(super) fn entry(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

impl Bench {
    /// Gives a buffer of statistics.
    pub(super) fn give_statistics(&self, ring: &Ring, free: u64) {
        let bytes = [entry(4, free), entry(9999, 1)].concat();
        let buffer = GuestAddress(BUFFER);
        self.driver.memory.write_slice(&bytes, buffer).unwrap();
        ring.add(&self.driver, &[(BUFFER, 20, false)]);
        self.driver.kick(ring);
    }

    /// The statistics that the driver gives when it is asked, and has `free` bytes then.
    pub(super) fn statistics(&self, ring: &Ring, free: u64) -> Vec<(&'static str, u64)> {
        let control = self.control.clone();
        std::thread::scope(|scope| {
            let asking = scope.spawn(move || control.statistics(SOON));
            ring.used(&self.driver);
            self.give_statistics(ring, free);
            let statistics = asking.join().unwrap().unwrap();
            statistics.entries().collect()
        })
    }
}

#[test]
fn statistics_are_had_when_they_are_asked_for() {
    let bench = bench();
    let rings = bench.start(STATS);
    bench.give_statistics(&rings[2], 0x1000);
    sleep(A_WHILE);
    assert_eq!(
        rings[2].try_used(&bench.driver),
        None,
        "the device keeps it"
    );
    assert_eq!(bench.statistics(&rings[2], 0x2000), [("free", 0x2000)]);
    assert_eq!(bench.statistics(&rings[2], 0x3000), [("free", 0x3000)]);
}

#[test]
fn a_guest_that_gives_no_statistics_is_waited_for_no_longer_than_is_said() {
    let bench = bench();
    assert_eq!(bench.control.statistics(SOON), None, "no driver");
    let rings = bench.start(STATS);
    let began = Instant::now();
    assert_eq!(bench.control.statistics(Duration::from_millis(50)), None);
    assert!(began.elapsed() < SOON);
    // What it gives late is what is known then.
    bench.give_statistics(&rings[2], 0x1000);
    let late = || bench.control.statistics(Duration::from_millis(1));
    eventually("known", || late().is_some());
    // It is asked for others, and gives none.
    rings[2].used(&bench.driver);
    let known: Vec<_> = late().unwrap().entries().collect();
    assert_eq!(known, [("free", 0x1000)]);
}

#[test]
fn a_driver_that_gives_two_buffers_of_statistics_has_the_second_kept_in_the_queue() {
    let bench = bench();
    let rings = bench.start(STATS);
    bench.give_statistics(&rings[2], 0x1000);
    bench.give_statistics(&rings[2], 0x1000);
    sleep(A_WHILE);
    assert_eq!(rings[2].try_used(&bench.driver), None);
    assert!(bench.control.statistics(SOON).is_some());
    rings[2].used(&bench.driver);
    assert_eq!(rings[2].try_used(&bench.driver), None);
}

#[test]
fn a_device_that_is_gone_has_no_balloon() {
    let bench = bench();
    drop(bench.driver);
    assert!(!bench.control.set_target(0));
    assert_eq!(bench.control.figures(), None);
    assert_eq!(bench.control.statistics(SOON), None);
}
