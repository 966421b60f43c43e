//! Network card (section 5.1) on a tap interface.
//!
//! One thread serves both directions. A received packet that finds no room is kept, and the tap is
//! not polled until the driver adds buffers; the tap's own queue holds what comes meanwhile.

mod buffers;
mod feature;
#[cfg(test)]
mod net_test;
mod sys;
mod tap;
mod vhost;

use std::io;
use std::os::fd::RawFd;

use log::warn;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_S_LINK_UP};

use super::chain::Chain;
use super::device::{DeviceKind, VirtioDevice};
use super::error::QueueError;
use super::feature::has;
use super::random;
use super::session::{Progress, Session};
use crate::limit::LogLimit;
use buffers::{Buffers, Room};
use feature::{FEATURES, consistent, offloads};
use tap::{Backend, HEADER, NUM_BUFFERS, Tap};

pub use tap::NetError;
pub use vhost::VhostNet;

/// Queue indexes (section 5.1.2).
const RX: usize = 0;
const TX: usize = 1;
/// Size of both queues.
const QUEUE_SIZE: u16 = 256;
/// Largest packet: header, Ethernet header with VLAN tag, 64 KiB.
const MAX_PACKET: usize = HEADER + 18 + 65536;
/// Packets received per turn.
const RX_BURST: usize = 64;
/// Failures to receive in a row after which the tap is left alone.
const FAILURES: u32 = 8;
/// Most packets of an earlier driver that are dropped: a tap's queue holds 500 (1000 with an old
/// kernel).
const STALE: usize = 1024;

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct NetOptions {
    /// Name of an existing tap.
    pub tap: String,
    /// The guest's address; a locally administered one is made up if absent.
    pub mac: Option<[u8; 6]>,
}

/// A network device.
pub struct Net {
    backend: Box<dyn Backend>,
    mac: [u8; 6],
    merge: bool,
    /// Whether the driver has given a receive queue with room, as far as known.
    room: bool,
    received: Vec<u8>,
    /// Bytes in `received` that wait for room.
    waiting: usize,
    /// Failures to receive in a row.
    failures: u32,
    sent: Vec<u8>,
    buffers: Buffers,
    chain: Chain,
    limit: LogLimit,
}

impl Net {
    /// Attaches to the tap.
    ///
    /// # Errors
    /// When there is no such tap, or it cannot be used; the message says what to do.
    pub fn open(options: &NetOptions) -> Result<Self, NetError> {
        let mac = mac_of(options)?;
        Ok(Self::new(Box::new(Tap::open(&options.tap)?), mac))
    }

    fn new(backend: Box<dyn Backend>, mac: [u8; 6]) -> Self {
        Self {
            backend,
            mac,
            merge: false,
            room: false,
            received: vec![0; MAX_PACKET],
            waiting: 0,
            failures: 0,
            sent: vec![0; MAX_PACKET],
            buffers: Buffers::default(),
            chain: Chain::default(),
            limit: LogLimit::default(),
        }
    }

    /// Moves packets from the tap to the guest until one of them has no more.
    fn receive(&mut self, session: &mut Session) -> Result<(), QueueError> {
        for _ in 0..RX_BURST {
            if session.stopping() {
                return Ok(());
            }
            if self.waiting == 0 {
                match self.backend.receive(&mut self.received) {
                    Ok(length) => {
                        self.failures = 0;
                        if length < HEADER {
                            continue;
                        }
                        self.waiting = length;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(error) => {
                        self.report("receive", &error);
                        self.failures = self.failures.saturating_add(1);
                        // A tap that was deleted is readable for ever. Look again when the driver
                        // adds buffers.
                        self.room &= self.failures < FAILURES;
                        return Ok(());
                    }
                }
            }
            if !self.deliver(session)? {
                self.room = false;
                return Ok(());
            }
            self.waiting = 0;
        }
        Ok(())
    }

    /// Puts the waiting packet into buffers of the guest; `false` if there are not enough. A packet
    /// that no number of them can hold is lost.
    fn deliver(&mut self, session: &mut Session) -> Result<bool, QueueError> {
        let Self {
            received,
            waiting,
            buffers,
            merge,
            ..
        } = self;
        let packet = received.get_mut(..*waiting).unwrap_or_default();
        let most = if *merge { session.queue_size(RX) } else { 1 };
        match buffers.gather(RX, session, packet.len(), most)? {
            Room::Chains(count) => buffers.fill(RX, session, count, packet)?,
            Room::Never => {}
            Room::NotYet => return Ok(false),
        }
        Ok(true)
    }

    /// Sends one packet of the guest; `false` if there is none.
    fn transmit(&mut self, session: &mut Session) -> Result<bool, QueueError> {
        if !session.pop(TX, &mut self.chain)? {
            return Ok(false);
        }
        let length = usize::try_from(self.chain.readable()).unwrap_or(usize::MAX);
        // Too short or too long for a packet: dropped.
        if let Some(packet) = self
            .sent
            .get_mut(..length)
            .filter(|packet| packet.len() > HEADER)
        {
            session.read(&self.chain, 0, packet)?;
            // Not for the driver to set on transmission.
            packet
                .get_mut(NUM_BUFFERS..HEADER)
                .unwrap_or_default()
                .fill(0);
            match self.backend.send(packet) {
                Ok(()) => {}
                // The tap's queue is full, the interface is down, or the header is nonsense: a wire
                // drops packets, too.
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EAGAIN | libc::EIO | libc::EINVAL)
                    ) => {}
                Err(error) => self.report("send", &error),
            }
        }
        session.complete(TX, &self.chain, 0)?;
        Ok(true)
    }

    fn report(&mut self, what: &str, error: &io::Error) {
        if let Some(held_back) = self.limit.pass() {
            warn!("virtio-net: cannot {what} on the tap: {error} ({held_back} messages held back)");
        }
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn check_features(&self, accepted: u64) -> bool {
        consistent(accepted)
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn config(&self) -> Vec<u8> {
        config(self.mac)
    }

    fn activate(&mut self, features: u64) -> io::Result<()> {
        self.merge = has(features, VIRTIO_NET_F_MRG_RXBUF);
        self.room = false;
        self.waiting = 0;
        self.backend.set_offload(offloads(features))
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.backend.fd()]
    }

    fn wants(&self, _source: usize) -> bool {
        self.room
    }

    fn queue_ready(&mut self, index: usize, session: &mut Session) -> Result<Progress, QueueError> {
        if index == RX {
            self.room = true;
            self.receive(session)?;
            return Ok(Progress::Idle);
        }
        session.turn(TX, |session| self.transmit(session))
    }

    fn source_ready(&mut self, _source: usize, session: &mut Session) -> Result<(), QueueError> {
        self.receive(session)
    }

    /// What waits in the tap may be unfinished in a way that the next driver does not accept: it is
    /// dropped, and what comes from here on is complete.
    fn deactivate(&mut self) {
        if let Err(error) = self.backend.set_offload(0) {
            self.report("reset offloads", &error);
        }
        drop_stale(&mut *self.backend, &mut self.received);
    }
}

/// Drops what an earlier driver has left in the tap, which may not suit the next one.
fn drop_stale(backend: &mut dyn Backend, buffer: &mut [u8]) {
    for _ in 0..STALE {
        if backend.receive(buffer).is_err() {
            break;
        }
    }
}

/// `struct virtio_net_config` (section 5.1.4): address, and status with the link up.
fn config(mac: [u8; 6]) -> Vec<u8> {
    let mut config = mac.to_vec();
    // The status is 16 bits wide.
    let [low, high, ..] = VIRTIO_NET_S_LINK_UP.to_le_bytes();
    config.extend([low, high]);
    config
}

/// The address that was asked for, or a new one.
fn mac_of(options: &NetOptions) -> Result<[u8; 6], NetError> {
    match options.mac {
        Some(mac) => Ok(mac),
        None => random_mac().map_err(NetError::Mac),
    }
}

/// A locally administered unicast address.
fn random_mac() -> io::Result<[u8; 6]> {
    let mut mac = [0; 6];
    random::fill(&mut mac)?;
    let [first, ..] = &mut mac;
    *first = *first & 0xfc | 0x02;
    Ok(mac)
}
