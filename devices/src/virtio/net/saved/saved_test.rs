use std::os::unix::net::UnixDatagram;

use pci::PciFunction as _;
use serde_json::{Value, json};
use state::{RestoreError, Section};
use vm_memory::{Bytes, GuestAddress};

use crate::virtio::moving::Queue;
use crate::virtio::net::Net;
use crate::virtio::net::control::Control;
use crate::virtio::net::multi_queue_test::Steps;
use crate::virtio::net::net_test::{MAC, Wire, packet};
use crate::virtio::testing::{A_WHILE, Driver, PACKED, SOON, eventually};

const BUFFER: u64 = 0x9_0000;
const COMMAND: u64 = 0x8_0000;
const CTRL_VQ: u64 = 1 << 17;
const MQ: u64 = 1 << 22;

/// A card on a wire with this end.
fn card() -> (Box<Net>, UnixDatagram) {
    let (wire, peer) = Wire::pair();
    peer.set_read_timeout(Some(SOON)).unwrap();
    let net = Net::new(Box::new(wire), Vec::new(), None, MAC);
    (Box::new(net), peer)
}

/// One with two pairs.
fn pairs() -> (Box<Net>, Steps, Vec<UnixDatagram>) {
    let steps = Steps::default();
    let control = Control::new(Box::new(steps.clone()), 2);
    let (first, one) = Wire::pair();
    let (second, two) = Wire::pair();
    let others = vec![Box::new(second) as _];
    let net = Net::new(Box::new(first), others, Some(control), MAC);
    (Box::new(net), steps, vec![one, two])
}

fn send(driver: &Driver, queue: &Queue, peer: &UnixDatagram, length: usize) {
    let sent = packet(length);
    driver
        .memory
        .write_slice(&sent, GuestAddress(BUFFER))
        .unwrap();
    let all = u32::try_from(sent.len()).unwrap();
    queue.add(driver, &[(BUFFER, all, false)]);
    queue.kick(driver);
    queue.used(driver);
    let mut received = [0; 2000];
    let length = peer.recv(&mut received).unwrap();
    assert_eq!(received[..length], sent);
}

fn receive(driver: &Driver, queue: &Queue, length: usize) {
    assert_eq!(queue.used(driver), u32::try_from(12 + length).unwrap());
    let mut received = vec![0; 12 + length];
    driver
        .memory
        .read_slice(&mut received, GuestAddress(BUFFER + 0x1000))
        .unwrap();
    assert_eq!(received[12..], packet(length)[12..]);
}

fn offer(driver: &Driver, queue: &Queue) {
    queue.add(driver, &[(BUFFER + 0x1000, 2000, true)]);
    queue.kick(driver);
}

#[test]
fn packets_come_and_go_wherever_the_card_is() {
    for features in [0, PACKED] {
        let (net, mut peer) = card();
        let mut driver = Driver::new(net);
        let queues = driver.start_queues(features, 2);
        for round in 1..30 {
            send(&driver, &queues[1], &peer, round);
            offer(&driver, &queues[0]);
            let (net, next) = card();
            driver.move_to(net);
            peer = next;
            peer.send(&packet(round)).unwrap();
            receive(&driver, &queues[0], round);
        }
    }
}

#[test]
fn a_packet_that_waits_for_room_is_delivered_elsewhere_and_before_others() {
    for features in [0, PACKED] {
        let (net, peer) = card();
        let mut driver = Driver::new(net);
        let queues = driver.start_queues(features, 2);
        offer(&driver, &queues[0]);
        peer.send(&packet(10)).unwrap();
        receive(&driver, &queues[0], 10);
        // No room: it is taken, and kept.
        peer.send(&packet(20)).unwrap();
        eventually("it is taken", || {
            let state = serde_json::to_value(driver.saved()).unwrap();
            driver.function.resume();
            let waiting = &state["state"]["device"]["parts"][0]["state"]["waiting"];
            waiting.as_str().unwrap().len() == 2 * 32
        });
        let (net, peer) = card();
        driver.move_to(net);
        peer.send(&packet(30)).unwrap();
        std::thread::sleep(A_WHILE / 4);
        assert_eq!(queues[0].try_used(&driver), None);
        offer(&driver, &queues[0]);
        receive(&driver, &queues[0], 20);
        offer(&driver, &queues[0]);
        receive(&driver, &queues[0], 30);
    }
}

#[test]
fn nothing_that_waited_for_one_driver_comes_to_the_next() {
    let (net, peer) = card();
    let mut driver = Driver::new(net);
    let queues = driver.start_queues(0, 2);
    queues[0].kick(&driver);
    peer.send(&packet(20)).unwrap();
    std::thread::sleep(A_WHILE);
    driver.set_status(0);
    eventually("a reset completes", || driver.status() == 0);
    let (net, peer) = card();
    driver.move_to(net);
    let queues = driver.start_queues(0, 2);
    peer.send(&packet(30)).unwrap();
    offer(&driver, &queues[0]);
    receive(&driver, &queues[0], 30);
}

/// A driver that has told a card with two pairs to use both.
fn two_pairs() -> (Driver, Vec<Queue>) {
    let (net, ..) = pairs();
    let driver = Driver::new(net);
    let queues = driver.start_queues(CTRL_VQ | MQ, 5);
    driver
        .memory
        .write_slice(&[4, 0, 2, 0], GuestAddress(COMMAND))
        .unwrap();
    queues[4].add(&driver, &[(COMMAND, 4, false), (COMMAND + 16, 1, true)]);
    queues[4].kick(&driver);
    assert_eq!(queues[4].used(&driver), 1);
    (driver, queues)
}

#[test]
fn as_many_pairs_as_before_are_in_use_before_the_driver_goes_on() {
    let (mut driver, queues) = two_pairs();
    let (net, steps, peers) = pairs();
    driver.move_to(net);
    assert_eq!(steps.taken(), [2]);
    send(&driver, &queues[3], &peers[1], 5);
    offer(&driver, &queues[2]);
    peers[1].send(&packet(6)).unwrap();
    receive(&driver, &queues[2], 6);
    driver.set_status(0);
    eventually("a reset completes", || driver.status() == 0);
    assert_eq!(steps.taken(), [2, 1]);
}

#[test]
fn a_tap_that_does_not_have_as_many_queues_is_told() {
    let (driver, _queues) = two_pairs();
    let section = driver.saved();
    let (net, steps, _peers) = pairs();
    steps.refuse();
    let error = driver
        .restored(net, &section)
        .map(|_| ())
        .expect_err("refused");
    let text =
        "the queue pairs in use: the tap does not let its queues be used; a warning says why";
    assert_eq!(error.to_string(), text);
    let (net, _peer) = card();
    let error = driver
        .restored(net, &section)
        .map(|_| ())
        .expect_err("one pair");
    assert!(matches!(error, RestoreError::Differs { .. }), "{error}");
}

#[test]
fn another_address_and_odd_packets_are_refused_with_the_reason() {
    let (net, _peer) = card();
    let driver = Driver::new(net);
    driver.start_queues(0, 2);
    let json = serde_json::to_value(driver.saved()).unwrap();
    let refusal = |path: &str, value: Value| {
        let mut json = json.clone();
        *json.pointer_mut(path).expect("a field") = value;
        let section: Section = serde_json::from_value(json).unwrap();
        let (net, _peer) = card();
        driver
            .restored(net, &section)
            .map(|_| ())
            .expect_err("refused")
            .to_string()
    };
    let part = "/state/device/parts/0/state";
    let cases = [
        (
            "/state/device_config".to_owned(),
            json!("0200000102040100"),
            "its address is 02:00:00:01:02:04 in the saved machine and 02:00:00:01:02:03 here",
        ),
        (
            format!("{part}/waiting"),
            json!("00"),
            "the packet that waits cannot be: none has 1 bytes",
        ),
        (
            format!("{part}/waiting"),
            json!("00".repeat(70_000)),
            "the packet that waits cannot be: none has 70000 bytes",
        ),
        (
            format!("{part}/pairs"),
            json!(2),
            "the queue pairs in use cannot be: 2 of one",
        ),
    ];
    for (path, value, expected) in cases {
        assert_eq!(refusal(&path, value), expected);
    }
}
