//! The network device with two queue pairs and a control queue, with sockets in the place of the
//! tap's queues.

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::control::Control;
use super::net_test::{MAC, Wire, packet};
use super::steering::Steering;
use super::{Net, NetOptions, Pairs};
use crate::virtio::testing::{BASE_FEATURES, Driver, Ring, SOON, eventually};

const CTRL_VQ: u64 = 1 << 17;
const MQ: u64 = 1 << 22;
/// Where commands and answers are.
const COMMAND: u64 = 0x8_0000;
const ANSWER: u64 = 0x8_1000;
const BUFFER: u64 = 0x9_0000;

/// The numbers of pairs that it was asked for; fails on demand.
#[derive(Clone, Default)]
pub(super) struct Steps(Arc<Mutex<(Vec<u16>, bool)>>);

impl Steering for Steps {
    fn steer(&mut self, pairs: u16) -> std::io::Result<()> {
        let mut steps = self.0.lock().unwrap();
        steps.0.push(pairs);
        match steps.1 {
            true => Err(std::io::Error::from_raw_os_error(libc::EPERM)),
            false => Ok(()),
        }
    }
}

impl Steps {
    /// Has it fail from here on.
    pub(super) fn refuse(&self) {
        self.0.lock().unwrap().1 = true;
    }

    pub(super) fn taken(&self) -> Vec<u16> {
        self.0.lock().unwrap().0.clone()
    }
}

struct Card {
    driver: Driver,
    peers: Vec<UnixDatagram>,
    steps: Steps,
}

impl Card {
    fn new() -> Self {
        let steps = Steps::default();
        let control = Control::new(Box::new(steps.clone()), 2);
        let (first, second) = (Wire::pair(), Wire::pair());
        let mut peers = Vec::new();
        let mut backend = |(wire, peer): (Wire, UnixDatagram)| {
            peer.set_read_timeout(Some(SOON)).unwrap();
            peers.push(peer);
            Box::new(wire) as _
        };
        let (first, others) = (backend(first), vec![backend(second)]);
        let driver = Driver::new(Box::new(Net::new(first, others, Some(control), MAC)));
        Self {
            driver,
            peers,
            steps,
        }
    }

    /// Sends a command of these bytes; returns the answer.
    fn command(&self, ring: &Ring, bytes: &[u8]) -> u8 {
        let memory = &self.driver.memory;
        memory.write_slice(bytes, GuestAddress(COMMAND)).unwrap();
        memory.write_obj(0xaa_u8, GuestAddress(ANSWER)).unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        ring.add(&self.driver, &[(COMMAND, length, false), (ANSWER, 1, true)]);
        self.driver.kick(ring);
        assert_eq!(ring.used(&self.driver).1, 1);
        memory.read_obj(GuestAddress(ANSWER)).unwrap()
    }

    /// Sends a packet by `tx`, which arrives at the other end of `pair`.
    fn send(&self, tx: &Ring, pair: usize) {
        tx.add(&self.driver, &[(BUFFER, 72, false)]);
        self.driver.kick(tx);
        tx.used(&self.driver);
        let length = self.peers[pair].recv(&mut [0; 100]).unwrap();
        assert_eq!(length, 72);
    }

    /// Has a packet of the other end of `pair` arrive in `rx`.
    fn receive(&self, rx: &Ring, pair: usize) {
        rx.add(&self.driver, &[(BUFFER, 2000, true)]);
        self.driver.kick(rx);
        self.peers[pair].send(&packet(60)).unwrap();
        assert_eq!(rx.used(&self.driver).1, 72);
    }
}

/// VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
fn pairs(number: u16) -> [u8; 4] {
    let [low, high] = number.to_le_bytes();
    [4, 0, low, high]
}

#[test]
fn the_number_of_pairs_is_in_the_configuration_and_needs_a_control_queue() {
    let card = Card::new();
    assert_eq!(
        card.driver.read::<10>(0x200),
        [2, 0, 0, 1, 2, 3, 1, 0, 2, 0]
    );
    assert_eq!(card.driver.offered() & (CTRL_VQ | MQ), CTRL_VQ | MQ);
    // Queues: two pairs and the control queue.
    assert_eq!(card.driver.read::<2>(18), [5, 0]);
    assert!(!card.driver.negotiate(BASE_FEATURES | MQ));
    assert!(card.driver.negotiate(BASE_FEATURES | MQ | CTRL_VQ));
}

#[test]
fn each_pair_has_its_own_queue_of_the_tap_and_its_own_interrupts() {
    let card = Card::new();
    let rings = card.driver.start(CTRL_VQ | MQ, 5);
    assert_eq!(card.command(&rings[4], &pairs(2)), 0);
    assert_eq!(card.steps.taken(), [2]);
    for pair in [1, 0] {
        let (rx, tx) = (2 * pair, 2 * pair + 1);
        card.receive(&rings[rx], pair);
        card.send(&rings[tx], pair);
        for queue in [rx, tx] {
            let vector = u32::try_from(queue).unwrap() + 1;
            eventually("an interrupt", || card.driver.interrupts(vector) == 1);
        }
    }
    eventually("an interrupt", || card.driver.interrupts(5) == 1);
    assert_eq!(card.driver.status(), 15);
}

#[test]
fn a_command_that_is_not_known_or_not_possible_is_refused_and_changes_nothing() {
    let card = Card::new();
    let rings = card.driver.start(CTRL_VQ | MQ, 5);
    let impossible = [0, 3, 0x102, 0x8000, 0xffff].map(|number| pairs(number).to_vec());
    let unknown = [
        // Another class, another command.
        vec![0, 0, 1, 0],
        vec![0xff, 0, 2, 0],
        vec![4, 1, 2, 0],
        vec![4, 0xff, 2, 0],
        // Too short, too long.
        vec![4],
        vec![4, 0, 2],
        vec![4, 0, 2, 0, 0],
        vec![0xff; 4000],
    ];
    for command in impossible.iter().chain(&unknown) {
        assert_eq!(
            card.command(&rings[4], command),
            1,
            "{:?}",
            command.get(..5)
        );
    }
    assert_eq!(card.steps.taken(), [0_u16; 0]);
    assert_eq!(card.command(&rings[4], &pairs(2)), 0);
    assert_eq!(card.driver.status(), 15);
}

#[test]
fn commands_are_as_they_are_cut() {
    let card = Card::new();
    let control = &card.driver.start(CTRL_VQ | MQ, 5)[4];
    let memory = &card.driver.memory;
    memory
        .write_slice(&pairs(2), GuestAddress(COMMAND))
        .unwrap();
    let buffers = [0, 1, 2, 3].map(|at| (COMMAND + at, 1, false));
    let answer = [(ANSWER, 0x1000, true), (ANSWER + 0x1000, 1, true)];
    control.add(&card.driver, &[&buffers[..], &answer[..]].concat());
    card.driver.kick(control);
    assert_eq!(control.used(&card.driver).1, 1);
    assert_eq!(card.steps.taken(), [2]);
}

#[test]
fn a_command_without_room_for_an_answer_breaks_the_device_until_it_is_reset() {
    for buffers in [
        vec![(COMMAND, 4, false)],
        // Not memory.
        vec![(COMMAND, 4, false), (0xffff_0000_0000, 1, true)],
        vec![(0xffff_0000_0000, 4, false), (ANSWER, 1, true)],
    ] {
        let card = Card::new();
        let rings = card.driver.start(CTRL_VQ | MQ, 5);
        rings[4].add(&card.driver, &buffers);
        card.driver.kick(&rings[4]);
        card.driver.expect_needs_reset();
        let rings = card.driver.start(CTRL_VQ | MQ, 5);
        assert_eq!(card.command(&rings[4], &pairs(2)), 0);
        card.send(&rings[3], 1);
    }
}

#[test]
fn a_driver_that_knows_one_pair_has_its_control_queue_behind_that() {
    let card = Card::new();
    let rings = card.driver.start(CTRL_VQ, 3);
    assert_eq!(card.command(&rings[2], &pairs(1)), 1);
    assert_eq!(card.command(&rings[2], &pairs(2)), 1);
    card.receive(&rings[0], 0);
    card.send(&rings[1], 0);
    assert_eq!(card.steps.taken(), [0_u16; 0]);
}

#[test]
fn a_driver_that_does_not_know_of_pairs_is_served_as_ever() {
    let card = Card::new();
    // More queues than it can know of: nobody serves them.
    let rings = card.driver.start(0, 5);
    for index in [2, 3, 4] {
        rings[index].add(&card.driver, &[(0xffff_0000_0000, 4, index == 2)]);
        card.driver.kick(&rings[index]);
    }
    card.receive(&rings[0], 0);
    card.send(&rings[1], 0);
    assert_eq!(card.driver.status(), 15);
    assert!((2..5).all(|index| rings[index].try_used(&card.driver).is_none()));
}

#[test]
fn a_reset_ends_the_use_of_the_other_pairs() {
    let card = Card::new();
    let rings = card.driver.start(CTRL_VQ | MQ, 5);
    assert_eq!(card.command(&rings[4], &pairs(2)), 0);
    card.driver.set_status(0);
    eventually("reset completes", || card.driver.status() == 0);
    assert_eq!(card.steps.taken(), [2, 1]);
    let rings = card.driver.start(CTRL_VQ | MQ, 5);
    assert_eq!(card.command(&rings[4], &pairs(1)), 0);
    assert_eq!(card.steps.taken(), [2, 1]);
}

#[test]
fn a_change_that_the_host_refuses_is_told_and_tried_again() {
    let card = Card::new();
    let rings = card.driver.start(CTRL_VQ | MQ, 5);
    card.steps.0.lock().unwrap().1 = true;
    assert_eq!(card.command(&rings[4], &pairs(2)), 1);
    card.steps.0.lock().unwrap().1 = false;
    assert_eq!(card.command(&rings[4], &pairs(1)), 0);
    assert_eq!(card.steps.taken(), [2, 1]);
}

#[test]
fn a_driver_cannot_have_the_host_change_queues_all_the_time() {
    let card = Card::new();
    let rings = card.driver.start(CTRL_VQ | MQ, 5);
    let started = Instant::now();
    for number in [2, 1, 2, 2, 2, 1, 1] {
        assert_eq!(card.command(&rings[4], &pairs(number)), 0);
    }
    // Four changes, three of them after another.
    assert_eq!(card.steps.taken(), [2, 1, 2, 1]);
    assert!(started.elapsed() >= Duration::from_millis(150));
    // A driver that is waiting can be reset.
    rings[4].add(&card.driver, &[(COMMAND, 4, false), (ANSWER, 1, true)]);
    card.driver.kick(&rings[4]);
    card.driver.set_status(0);
    eventually("reset completes", || card.driver.status() == 0);
}

#[test]
fn broken_rings_of_one_pair_stop_all_until_a_reset() {
    let card = Card::new();
    let rings = card.driver.start(CTRL_VQ | MQ, 5);
    rings[3].add(&card.driver, &[(0xffff_0000_0000, 72, false)]);
    card.driver.kick(&rings[3]);
    card.driver.expect_needs_reset();
    rings[1].add(&card.driver, &[(BUFFER, 72, false)]);
    card.driver.kick(&rings[1]);
    let rings = card.driver.start(CTRL_VQ | MQ, 5);
    assert_eq!(rings[1].try_used(&card.driver), None);
    card.send(&rings[1], 0);
    card.send(&rings[3], 1);
}

/// With a real tap, as root: `ip tuntap add dev nidotest1 mode tap multi_queue && cargo test -p devices
/// -- --ignored tap`.
#[test]
#[ignore = "needs the tap nidotest1, with several queues"]
fn the_queues_of_a_real_tap_are_in_use_as_the_driver_says() {
    let options = NetOptions {
        tap: "nidotest1".to_owned(),
        mac: Some(MAC),
        pairs: Pairs::Exactly(3),
    };
    let in_use = || {
        let queues = std::fs::read_dir("/sys/class/net/nidotest1/queues").unwrap();
        let names = queues.map(|queue| queue.unwrap().file_name());
        names
            .filter(|name| name.to_string_lossy().starts_with("tx-"))
            .count()
    };
    let driver = Driver::new(Box::new(Net::open(&options).unwrap()));
    assert_eq!(in_use(), 1);
    let rings = driver.start(CTRL_VQ | MQ, 7);
    for number in [3, 2, 3, 1, 2] {
        let memory = &driver.memory;
        let command = pairs(number);
        memory.write_slice(&command, GuestAddress(COMMAND)).unwrap();
        rings[6].add(&driver, &[(COMMAND, 4, false), (ANSWER, 1, true)]);
        driver.kick(&rings[6]);
        rings[6].used(&driver);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(ANSWER)).unwrap(), 0);
        assert_eq!(in_use(), usize::from(number));
    }
    driver.set_status(0);
    eventually("reset completes", || driver.status() == 0);
    assert_eq!(in_use(), 1);
}
