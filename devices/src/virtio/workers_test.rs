//! Devices whose queues are served by several threads.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use pci::PciFunction;
use state::{RestoreError, SaveError, Section};
use vm_memory::{Bytes, GuestAddress};

use super::chain::Chain;
use super::device::{DeviceKind, VirtioDevice};
use super::error::QueueError;
use super::session::{Progress, Session};
use super::testing::{A_WHILE, Driver, Ring, SOON, eventually};

/// What the parts of the device note.
#[derive(Default)]
struct Notes {
    /// By queue, whenever one is served.
    threads: Mutex<Vec<(usize, ThreadId)>>,
    /// Queues of parts, when these are activated.
    activated: Mutex<Vec<Vec<usize>>>,
}

/// A device of as many parts as there are lists of queues. It fills each buffer with the number of
/// the queue, once it is let go.
struct Parted {
    queues: Vec<usize>,
    others: Vec<Vec<usize>>,
    notes: Arc<Notes>,
    started: Sender<usize>,
    /// Of queue 1, which waits for it each time.
    gate: Arc<Mutex<Receiver<()>>>,
    chain: Chain,
}

impl VirtioDevice for Parted {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[16; 4]
    }

    fn queues(&self, _features: u64) -> Vec<usize> {
        self.queues.clone()
    }

    fn take_parts(&mut self) -> Vec<Box<dyn VirtioDevice>> {
        let part = |queues| {
            Box::new(Self {
                queues,
                others: Vec::new(),
                notes: Arc::clone(&self.notes),
                started: self.started.clone(),
                gate: Arc::clone(&self.gate),
                chain: Chain::default(),
            }) as _
        };
        self.others.drain(..).map(part).collect()
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn activate(&mut self, _features: u64) -> io::Result<()> {
        self.notes
            .activated
            .lock()
            .unwrap()
            .push(self.queues.clone());
        Ok(())
    }

    fn unsavable(&self) -> Option<&'static str> {
        None
    }

    fn save(&mut self) -> Result<Section, SaveError> {
        Section::new("part", 1, &self.queues)
    }

    fn restore(&mut self, state: &Section) -> Result<(), RestoreError> {
        assert_eq!(state.read("part", 1), Ok(self.queues.clone()));
        Ok(())
    }

    fn queue_ready(&mut self, index: usize, session: &mut Session) -> Result<Progress, QueueError> {
        session.turn(index, |session| {
            if !session.pop(index, &mut self.chain)? {
                return Ok(false);
            }
            let thread = std::thread::current().id();
            self.notes.threads.lock().unwrap().push((index, thread));
            if index == 1 {
                let _ = self.started.send(index);
                let _ = self.gate.lock().unwrap().recv();
            }
            let number = u8::try_from(index).unwrap();
            session.give(index, &self.chain, &[number; 4])?;
            Ok(true)
        })
    }
}

struct Bench {
    driver: Driver,
    notes: Arc<Notes>,
    started: Receiver<usize>,
    release: Sender<()>,
}

fn parted(notes: &Arc<Notes>, started: Sender<usize>, gate: Receiver<()>) -> Box<Parted> {
    Box::new(Parted {
        queues: vec![0, 3],
        others: vec![vec![1], vec![2]],
        notes: Arc::clone(notes),
        started,
        gate: Arc::new(Mutex::new(gate)),
        chain: Chain::default(),
    })
}

/// Queues 0 and 3 are served by one thread, 1 and 2 by one each.
fn bench() -> Bench {
    let (started, is_started) = channel();
    let (release, released) = channel();
    let notes = Arc::new(Notes::default());
    let driver = Driver::new(parted(&notes, started, released));
    Bench {
        driver,
        notes,
        started: is_started,
        release,
    }
}

const BUFFER: u64 = 0x8_0000;

impl Bench {
    fn ask(&self, ring: &Ring) {
        let buffer = BUFFER + 16 * u64::from(ring.index);
        ring.add(&self.driver, &[(buffer, 4, true)]);
        self.driver.kick(ring);
    }

    fn answer(&self, ring: &Ring) -> u8 {
        let (_, length) = ring.used(&self.driver);
        assert_eq!(length, 4);
        let buffer = BUFFER + 16 * u64::from(ring.index);
        self.driver.memory.read_obj(GuestAddress(buffer)).unwrap()
    }

    /// Has queue 1 in the middle of a request.
    fn hang(&self, ring: &Ring) {
        self.ask(ring);
        assert_eq!(self.started.recv_timeout(SOON), Ok(1));
    }
}

#[test]
fn queues_are_served_by_the_threads_of_their_parts_and_interrupt_by_their_vectors() {
    let bench = bench();
    let rings = bench.driver.start(0, 4);
    bench.release.send(()).unwrap();
    for (ring, number) in rings.iter().zip(0..) {
        bench.ask(ring);
        assert_eq!(bench.answer(ring), number);
        let vector = u32::from(number) + 1;
        eventually("the queue's interrupt", || {
            bench.driver.interrupts(vector) == 1
        });
    }
    let threads = bench.notes.threads.lock().unwrap();
    let [first, second, third, fourth] = [0, 1, 2, 3].map(|queue| {
        let of = threads.iter().find(|(index, _)| *index == queue);
        of.unwrap().1
    });
    assert_eq!(first, fourth);
    assert!(first != second && first != third && second != third);
}

#[test]
fn a_queue_in_the_middle_of_a_request_holds_no_queue_of_another_part() {
    let bench = bench();
    let rings = bench.driver.start(0, 4);
    bench.hang(&rings[1]);
    for queue in [0, 2, 3, 2, 0] {
        bench.ask(&rings[queue]);
        assert_eq!(usize::from(bench.answer(&rings[queue])), queue);
    }
    assert_eq!(rings[1].try_used(&bench.driver), None);
    bench.release.send(()).unwrap();
    assert_eq!(bench.answer(&rings[1]), 1);
}

#[test]
fn parts_without_an_enabled_queue_are_not_activated() {
    let bench = bench();
    for enabled in [1, 3] {
        let rings = bench.driver.start(0, enabled);
        bench.ask(&rings[0]);
        assert_eq!(bench.answer(&rings[0]), 0);
        // Of a queue that is not there, nothing comes of it.
        bench.driver.write(0x1000 + 4 * 3, &3_u16.to_le_bytes());
        bench.driver.set_status(0);
        eventually("reset completes", || bench.driver.status() == 0);
    }
    let mut activated = std::mem::take(&mut *bench.notes.activated.lock().unwrap());
    activated.sort();
    assert_eq!(activated, [vec![0, 3], vec![0, 3], vec![1], vec![2]]);
}

#[test]
fn a_reset_is_over_when_the_last_part_has_ended_and_is_waited_for_as_long_as_one() {
    let bench = bench();
    let rings = bench.driver.start(0, 4);
    bench.hang(&rings[1]);
    let begin = Instant::now();
    bench.driver.set_status(0);
    assert_ne!(bench.driver.status(), 0, "a part is still busy");
    bench.driver.function.reset();
    assert!(begin.elapsed() < Duration::from_millis(900));
    assert!(!bench.driver.function.is_quiet());
    // The others have ended.
    bench.ask(&rings[2]);
    std::thread::sleep(A_WHILE);
    assert_eq!(rings[2].try_used(&bench.driver), None);
    bench.release.send(()).unwrap();
    eventually("reset completes", || bench.driver.status() == 0);
    assert_eq!(rings[1].try_used(&bench.driver), None);
    // All parts are there again, in their places.
    bench.driver.enable_function();
    let rings = bench.driver.start(0, 4);
    bench.release.send(()).unwrap();
    for (ring, number) in rings.iter().zip(0..) {
        bench.ask(ring);
        assert_eq!(bench.answer(ring), number);
    }
}

#[test]
fn broken_rings_of_one_queue_stop_the_whole_device_until_it_is_reset() {
    let bench = bench();
    let rings = bench.driver.start(0, 4);
    rings[2].offer(&bench.driver, 16);
    bench.driver.kick(&rings[2]);
    bench.driver.expect_needs_reset();
    eventually("configuration interrupt", || {
        bench.driver.interrupts(0) == 1
    });
    bench.ask(&rings[0]);
    std::thread::sleep(A_WHILE);
    assert_eq!(rings[0].try_used(&bench.driver), None);
    let rings = bench.driver.start(0, 4);
    for queue in [0, 2, 3] {
        bench.ask(&rings[queue]);
        assert_eq!(usize::from(bench.answer(&rings[queue])), queue);
    }
    assert_eq!(bench.driver.interrupts(0), 1);
}

/// What of guest memory a device writes to.
fn memory_of(bench: &Bench) -> Vec<u8> {
    let mut bytes = vec![0; super::testing::MEMORY_SIZE];
    let memory = &bench.driver.memory;
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

fn park(bench: &Bench) {
    bench.driver.function.park();
    eventually("all parts stop", || bench.driver.function.parked().is_ok());
}

#[test]
fn a_parked_device_touches_nothing_and_loses_no_notification() {
    let bench = bench();
    let rings = bench.driver.start(0, 4);
    bench.release.send(()).unwrap();
    bench.ask(&rings[1]);
    assert_eq!(bench.answer(&rings[1]), 1);
    for _ in 0..20 {
        park(&bench);
        for queue in [0, 2, 3] {
            bench.ask(&rings[queue]);
        }
        let before = memory_of(&bench);
        std::thread::sleep(Duration::from_millis(5));
        assert!(memory_of(&bench) == before, "written while parked");
        bench.driver.function.resume();
        for queue in [0, 2, 3] {
            assert_eq!(usize::from(bench.answer(&rings[queue])), queue);
        }
    }
}

#[test]
fn a_part_in_the_middle_of_a_request_is_named_and_finishes_it_before_it_parks() {
    let bench = bench();
    let rings = bench.driver.start(0, 4);
    bench.hang(&rings[1]);
    bench.ask(&rings[1]);
    bench.driver.function.park();
    std::thread::sleep(A_WHILE);
    let late = bench.driver.function.parked().unwrap_err();
    assert!(late.contains("rng-00:03.0"), "{late}");
    bench.release.send(()).unwrap();
    eventually("all parts stop", || bench.driver.function.parked().is_ok());
    assert_eq!(bench.answer(&rings[1]), 1);
    // The next one waits.
    bench.release.send(()).unwrap();
    assert!(bench.started.recv_timeout(A_WHILE).is_err());
    bench.driver.function.resume();
    assert_eq!(bench.answer(&rings[1]), 1);
}

#[test]
fn a_pause_that_is_given_up_leaves_the_device_as_it_was() {
    let bench = bench();
    let rings = bench.driver.start(0, 4);
    bench.hang(&rings[1]);
    bench.driver.function.park();
    bench.driver.function.parked().unwrap_err();
    bench.driver.function.resume();
    for queue in [0, 2, 3] {
        bench.ask(&rings[queue]);
        assert_eq!(usize::from(bench.answer(&rings[queue])), queue);
    }
    bench.release.send(()).unwrap();
    assert_eq!(bench.answer(&rings[1]), 1);
}

#[test]
fn a_reset_ends_threads_that_are_parked_and_a_device_that_failed_counts_as_parked() {
    let bench = bench();
    let rings = bench.driver.start(0, 4);
    rings[2].offer(&bench.driver, 16);
    bench.driver.kick(&rings[2]);
    bench.driver.expect_needs_reset();
    park(&bench);
    bench.driver.function.resume();
    bench.driver.set_status(0);
    eventually("reset completes", || bench.driver.status() == 0);
    bench.driver.start(0, 4);
    park(&bench);
    bench.driver.function.reset();
    assert!(bench.driver.function.is_quiet());
    assert_eq!(bench.driver.function.parked(), Ok(()));
}

impl Bench {
    /// Moves what was saved into another device.
    fn move_on(self, section: &Section) -> Self {
        let (started, is_started) = channel();
        let (release, released) = channel();
        let notes = Arc::<Notes>::default();
        let device = parted(&notes, started, released);
        let driver = self.driver.restored(device, section).unwrap();
        Self {
            driver,
            notes,
            started: is_started,
            release,
        }
    }
}

#[test]
fn parts_that_were_moved_serve_their_queues_once_they_go_on_and_not_before() {
    let bench = bench();
    let rings = bench.driver.start(0, 4);
    bench.ask(&rings[2]);
    assert_eq!(bench.answer(&rings[2]), 2);
    let section = bench.driver.saved();
    let bench = bench.move_on(&section);
    for ring in &rings {
        bench.ask(ring);
    }
    std::thread::sleep(A_WHILE);
    assert!(bench.notes.threads.lock().unwrap().is_empty());
    bench.release.send(()).unwrap();
    bench.driver.function.resume();
    for (ring, number) in rings.iter().zip(0..) {
        assert_eq!(bench.answer(ring), number);
    }
    let mut activated = std::mem::take(&mut *bench.notes.activated.lock().unwrap());
    activated.sort();
    assert_eq!(activated, [vec![0, 3], vec![1], vec![2]]);
}

#[test]
fn a_device_that_fails_while_it_parks_is_saved_as_one_that_needs_a_reset() {
    let bench = bench();
    let rings = bench.driver.start(0, 4);
    rings[1].add(&bench.driver, &[(0xffff_ffff_0000, 4, true)]);
    bench.driver.kick(&rings[1]);
    assert_eq!(bench.started.recv_timeout(SOON), Ok(1));
    bench.driver.function.park();
    // The other parts stop.
    std::thread::sleep(A_WHILE);
    bench.release.send(()).unwrap();
    let section = bench.driver.saved();
    let bench = bench.move_on(&section);
    assert_eq!(bench.driver.status(), 0x4f);
    bench.driver.function.resume();
    let rings = bench.driver.start(0, 4);
    bench.ask(&rings[0]);
    assert_eq!(bench.answer(&rings[0]), 0);
}
