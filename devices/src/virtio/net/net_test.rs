//! The network device, with a socket in the place of the tap.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::thread::sleep;

use vm_memory::{Bytes, GuestAddress};

use super::tap::Backend;
use super::{Net, NetOptions, Pairs};
use crate::virtio::testing::{
    A_WHILE, BASE_FEATURES, Driver, EVENT_IDX, INDIRECT, Ring, SOON, eventually,
};

pub(super) const MAC: [u8; 6] = [2, 0, 0, 1, 2, 3];
const MRG_RXBUF: u64 = 1 << 15;

/// One end of a pair of datagram sockets, with the calls counted.
pub(super) struct Wire {
    socket: UnixDatagram,
    receives: Arc<AtomicUsize>,
    offload: Arc<AtomicU32>,
}

impl Wire {
    /// With its other end.
    pub(super) fn pair() -> (Self, UnixDatagram) {
        let (socket, peer) = UnixDatagram::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let wire = Self {
            socket,
            receives: Arc::default(),
            offload: Arc::default(),
        };
        (wire, peer)
    }
}

impl Backend for Wire {
    fn receive(&mut self, packet: &mut [u8]) -> io::Result<usize> {
        self.receives.fetch_add(1, Ordering::Relaxed);
        self.socket.recv(packet)
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        self.socket.send(packet).map(|_| ())
    }

    fn set_offload(&mut self, flags: u32) -> io::Result<()> {
        self.offload.store(flags, Ordering::Relaxed);
        Ok(())
    }

    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

struct Card {
    driver: Driver,
    peer: UnixDatagram,
    receives: Arc<AtomicUsize>,
    offload: Arc<AtomicU32>,
}

fn card() -> Card {
    let (socket, peer) = UnixDatagram::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    peer.set_read_timeout(Some(SOON)).unwrap();
    let receives = Arc::new(AtomicUsize::new(0));
    let offload = Arc::new(AtomicU32::new(0xffff));
    let wire = Wire {
        socket,
        receives: Arc::clone(&receives),
        offload: Arc::clone(&offload),
    };
    Card {
        driver: Driver::new(Box::new(Net::new(Box::new(wire), Vec::new(), None, MAC))),
        peer,
        receives,
        offload,
    }
}

fn started(features: u64) -> (Card, Ring, Ring) {
    let card = card();
    let mut rings = card.driver.start(features, 2);
    let tx = rings.remove(1);
    (card, rings.remove(0), tx)
}

/// A packet of `length` bytes with its header, as a tap gives it.
pub(super) fn packet(length: usize) -> Vec<u8> {
    let mut packet = vec![0; 12];
    packet.extend((1..=250).cycle().take(length));
    packet
}

fn bytes(card: &Card, address: u64, length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    card.driver
        .memory
        .read_slice(&mut data, GuestAddress(address))
        .unwrap();
    data
}

#[test]
fn the_configuration_has_the_address_and_a_link() {
    let card = card();
    assert_eq!(card.driver.read::<8>(0x200), [2, 0, 0, 1, 2, 3, 1, 0]);
}

#[test]
fn a_packet_is_sent_without_regard_to_how_it_is_cut() {
    let (card, _rx, tx) = started(0);
    let sent = packet(100);
    card.driver
        .memory
        .write_slice(&sent, GuestAddress(0x40000))
        .unwrap();
    // The driver may leave rubbish in num_buffers.
    card.driver
        .memory
        .write_obj(0xffff_u16, GuestAddress(0x4000a))
        .unwrap();
    let head = tx.add(&card.driver, &[(0x40000, 5, false), (0x40005, 107, false)]);
    card.driver.kick(&tx);
    assert_eq!(tx.used(&card.driver), (u32::from(head), 0));
    let mut received = [0; 200];
    let length = card.peer.recv(&mut received).unwrap();
    assert_eq!(received[..length], sent);
}

#[test]
fn packets_too_short_or_too_long_are_dropped() {
    let (card, _rx, tx) = started(0);
    for length in [1, 12, 70000] {
        tx.add(&card.driver, &[(0x40000, length, false)]);
        card.driver.kick(&tx);
        assert_eq!(tx.used(&card.driver).1, 0);
    }
    card.peer.set_nonblocking(true).unwrap();
    assert!(card.peer.recv(&mut [0; 16]).is_err());
    assert_eq!(card.driver.status(), 15);
}

#[test]
fn a_packet_is_received_with_one_buffer() {
    let (card, rx, _tx) = started(0);
    let head = rx.add(&card.driver, &[(0x40000, 12, true), (0x50000, 2000, true)]);
    card.driver.kick(&rx);
    let sent = packet(1500);
    card.peer.send(&sent).unwrap();
    assert_eq!(rx.used(&card.driver), (u32::from(head), 1512));
    assert_eq!(
        bytes(&card, 0x40000, 12),
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    );
    assert_eq!(bytes(&card, 0x50000, 1501), [&sent[12..], &[0]].concat());
    eventually("interrupt", || card.driver.interrupts(1) == 1);
}

#[test]
fn a_packet_is_spread_over_buffers_when_they_are_merged() {
    let (card, rx, _tx) = started(MRG_RXBUF);
    for buffer in 0..4 {
        rx.add(&card.driver, &[(0x40000 + 0x1000 * buffer, 600, true)]);
    }
    card.driver.kick(&rx);
    let sent = packet(1500);
    card.peer.send(&sent).unwrap();
    assert_eq!(rx.used(&card.driver), (0, 600));
    assert_eq!(rx.used(&card.driver), (1, 600));
    assert_eq!(rx.used(&card.driver), (2, 312));
    assert_eq!(bytes(&card, 0x4000a, 2), [3, 0]);
    assert_eq!(bytes(&card, 0x41000, 600), sent[600..1200]);
    assert_eq!(bytes(&card, 0x42000, 312), sent[1200..]);
}

/// A card whose receive queue has 256 entries, none of them used.
fn with_a_full_queue(features: u64) -> (Card, Ring) {
    let card = card();
    let features = BASE_FEATURES | MRG_RXBUF | features;
    assert!(card.driver.negotiate(features));
    let rx = card.driver.queue(0, 256);
    card.driver.set_status(15);
    (card, rx)
}

#[test]
fn a_packet_may_take_every_buffer_of_the_queue() {
    let (card, rx) = with_a_full_queue(INDIRECT);
    // 256 times 128 bytes, in two pieces that all chains share.
    Ring::chain(
        &card.driver,
        0x40000,
        0,
        2,
        &[(0x50000, 100, true), (0x51000, 28, true)],
    );
    for index in 0..256 {
        Ring::descriptor(&card.driver, rx.descriptors, index, (0x40000, 32, 4, 0));
        rx.offer(&card.driver, index);
    }
    card.driver.kick(&rx);
    card.peer.send(&packet(256 * 128 - 12)).unwrap();
    for index in 0..256 {
        assert_eq!(rx.used(&card.driver), (index, 128));
    }
    assert_eq!(card.driver.status(), 15);
}

/// Each chain is a table of 255 empty buffers and one of a byte: a packet would load 65,792
/// descriptors before it is known that there is no room for it.
#[test]
fn a_packet_that_finds_no_room_in_a_thousand_descriptors_needs_a_reset() {
    let (card, rx) = with_a_full_queue(INDIRECT);
    let mut buffers = vec![(0x50000, 0, true); 255];
    buffers.push((0x50000, 1, true));
    Ring::chain(&card.driver, 0x40000, 0, 256, &buffers);
    for index in 0..256 {
        let table = (0x40000, 256 * 16, 4, 0);
        Ring::descriptor(&card.driver, rx.descriptors, index, table);
        rx.offer(&card.driver, index);
    }
    card.driver.kick(&rx);
    card.peer.send(&packet(300)).unwrap();
    card.driver.expect_needs_reset();
    assert_eq!(rx.try_used(&card.driver), None);
}

/// Linux takes a packet for lost if its later buffers are not there with the first.
#[test]
fn a_driver_sees_all_buffers_of_a_packet_or_none() {
    let (card, rx, _tx) = started(MRG_RXBUF);
    rx.add(&card.driver, &[(0x40000, 600, true)]);
    rx.add(&card.driver, &[(0x4000_0000, 600, true)]);
    card.driver.kick(&rx);
    card.peer.send(&packet(1000)).unwrap();
    card.driver.expect_needs_reset();
    assert_eq!(rx.try_used(&card.driver), None);
}

fn waits_for_room(features: u64) {
    let (card, rx, _tx) = started(features);
    // Room for half a packet.
    rx.add(&card.driver, &[(0x40000, 800, true)]);
    card.driver.kick(&rx);
    for _ in 0..3 {
        card.peer.send(&packet(1500)).unwrap();
    }
    sleep(A_WHILE);
    assert_eq!(rx.try_used(&card.driver), None);
    let receives = || card.receives.load(Ordering::Relaxed);
    let before = receives();
    sleep(A_WHILE);
    assert_eq!(
        receives(),
        before,
        "the tap is not polled while there is no room"
    );
    for buffer in 1..7 {
        rx.add(&card.driver, &[(0x40000 + 0x1000 * buffer, 800, true)]);
    }
    card.driver.kick(&rx);
    for _ in 0..3 {
        assert_eq!(rx.used(&card.driver).1, 800);
        assert_eq!(rx.used(&card.driver).1, 712);
    }
}

#[test]
fn a_packet_without_room_waits_and_the_tap_is_left_alone() {
    waits_for_room(MRG_RXBUF);
}

#[test]
fn a_packet_waits_with_event_indexes_as_well() {
    waits_for_room(MRG_RXBUF | EVENT_IDX);
}

#[test]
fn a_packet_that_no_buffer_can_hold_is_dropped() {
    let (card, rx, _tx) = started(0);
    rx.add(&card.driver, &[(0x40000, 200, true)]);
    card.driver.kick(&rx);
    card.peer.send(&packet(1500)).unwrap();
    card.peer.send(&packet(100)).unwrap();
    assert_eq!(rx.used(&card.driver), (0, 112));
}

#[test]
fn offloads_follow_the_negotiated_features() {
    let card = card();
    // GUEST_CSUM, GUEST_TSO4 and GUEST_TSO6 are TUN_F_CSUM, TUN_F_TSO4 and TUN_F_TSO6.
    card.driver.start(1 << 1 | 1 << 7 | 1 << 8, 2);
    eventually("offload", || card.offload.load(Ordering::Relaxed) == 7);
    card.driver.start(0, 2);
    eventually("no offload", || card.offload.load(Ordering::Relaxed) == 0);
}

#[test]
fn features_without_what_they_need_are_refused() {
    let card = card();
    for (feature, needed) in [(7, 1), (8, 1), (11, 0), (12, 0), (9, 7), (13, 11)] {
        assert!(
            !card.driver.negotiate(BASE_FEATURES | 1 << feature),
            "{feature}"
        );
        let all = BASE_FEATURES | 1 << feature | 1 << needed | 3;
        assert!(card.driver.negotiate(all), "{feature} with {needed}");
    }
}

#[test]
fn a_receive_buffer_that_is_not_writable_needs_a_reset() {
    let (card, rx, _tx) = started(MRG_RXBUF);
    rx.add(&card.driver, &[(0x40000, 2000, false)]);
    card.driver.kick(&rx);
    card.peer.send(&packet(100)).unwrap();
    card.driver.expect_needs_reset();
}

/// With a real tap: `unshare -rn sh -c 'ip tuntap add dev nidotest0 mode tap && ip link set
/// nidotest0 up && cargo test -p devices -- --ignored tap'`.
#[test]
#[ignore = "needs the tap nidotest0"]
fn packets_go_through_a_real_tap() {
    let options = NetOptions {
        tap: "nidotest0".to_owned(),
        mac: Some(MAC),
        pairs: Pairs::UpTo(1),
    };
    let driver = Driver::new(Box::new(Net::open(&options).unwrap()));
    assert!(
        Net::open(&options)
            .map(|_| ())
            .unwrap_err()
            .to_string()
            .contains("another process")
    );
    let mut rings = driver.start(MRG_RXBUF | 1 << 1 | 1 << 7, 2);
    let (tx, rx) = (rings.remove(1), rings.remove(0));
    for buffer in 0..16 {
        rx.add(&driver, &[(0x40000 + 0x1000 * buffer, 2000, true)]);
    }
    driver.kick(&rx);
    // The kernel announces itself on a link that comes up: IPv6 neighbour discovery and the like.
    assert!(rx.used(&driver).1 > 12 + 14);
    assert_eq!(
        driver
            .memory
            .read_obj::<u16>(GuestAddress(0x4000a))
            .unwrap(),
        1
    );

    let sent = |name: &str| {
        let path = "/proc/net/dev";
        let line = std::fs::read_to_string(path).unwrap();
        let line = line
            .lines()
            .find(|line| line.trim_start().starts_with(name))
            .unwrap()
            .to_owned();
        // Packets that the interface received: what the guest sent.
        line.split_whitespace()
            .nth(2)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let before = sent("nidotest0");
    driver
        .memory
        .write_slice(&packet(60), GuestAddress(0x60000))
        .unwrap();
    tx.add(&driver, &[(0x60000, 72, false)]);
    driver.kick(&tx);
    assert_eq!(tx.used(&driver), (0, 0));
    assert_eq!(sent("nidotest0"), before + 1);
    assert_eq!(driver.status(), 15);
}

/// An interface that was deleted: readable for ever, and nothing to read.
struct Deleted {
    wire: Wire,
    receives: Arc<AtomicUsize>,
}

impl Backend for Deleted {
    fn receive(&mut self, _packet: &mut [u8]) -> io::Result<usize> {
        self.receives.fetch_add(1, Ordering::Relaxed);
        Err(io::Error::from_raw_os_error(libc::EBADFD))
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        self.wire.send(packet)
    }

    fn set_offload(&mut self, flags: u32) -> io::Result<()> {
        self.wire.set_offload(flags)
    }

    fn fd(&self) -> RawFd {
        self.wire.fd()
    }
}

#[test]
fn a_tap_that_fails_is_not_asked_again_before_the_driver_is_heard_of() {
    let (socket, peer) = UnixDatagram::pair().unwrap();
    peer.send(b"never read").unwrap();
    let receives = Arc::new(AtomicUsize::new(0));
    let wire = Wire {
        socket,
        receives: Arc::default(),
        offload: Arc::default(),
    };
    let deleted = Deleted {
        wire,
        receives: Arc::clone(&receives),
    };
    let driver = Driver::new(Box::new(Net::new(Box::new(deleted), Vec::new(), None, MAC)));
    let rx = driver.start(0, 2).remove(0);
    rx.add(&driver, &[(0x40000, 2000, true)]);
    driver.kick(&rx);
    eventually("a packet is looked for", || {
        receives.load(Ordering::Relaxed) > 0
    });
    sleep(A_WHILE);
    // A few, as a failure may be a passing one; and one more where the kick came after the last.
    let looks = receives.load(Ordering::Relaxed);
    assert!((8..=9).contains(&looks), "{looks}");
}

#[test]
fn packets_for_an_earlier_driver_are_not_delivered_to_the_next_one() {
    // GUEST_CSUM, GUEST_TSO4: what arrives may be unfinished.
    let (card, _rx, _tx) = started(1 << 1 | 1 << 7);
    eventually("offloads are set", || {
        card.offload.load(Ordering::Relaxed) == 3
    });
    card.peer.send(&packet(600)).unwrap();
    card.driver.set_status(0);
    assert_eq!(card.offload.load(Ordering::Relaxed), 0);
    let rx = card.driver.start(0, 2).remove(0);
    rx.add(&card.driver, &[(0x40000, 2000, true)]);
    card.driver.kick(&rx);
    card.peer.send(&packet(70)).unwrap();
    assert_eq!(rx.used(&card.driver).1, 82);
}
