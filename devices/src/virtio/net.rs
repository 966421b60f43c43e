//! Network card (section 5.1) on a tap interface.
//!
//! Each queue pair has a queue of the tap, and a thread that serves both directions; the first pair's
//! serves the control queue as well. A received packet that finds no room is kept, and the tap is
//! not polled until the driver adds buffers; the tap's own queue holds what comes meanwhile.

mod attached;
mod buffers;
mod control;
mod error;
mod feature;
#[cfg(test)]
mod marks_test;
#[cfg(test)]
mod multi_queue_test;
#[cfg(test)]
mod net_test;
mod pairs;
mod saved;
mod steering;
mod sys;
mod tap;
mod vhost;

use std::fs::File;
use std::io;
use std::os::fd::RawFd;

use log::warn;
use state::{RestoreError, SaveError, Section};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_S_LINK_UP};

use super::chain::Chain;
use super::device::{DeviceKind, VirtioDevice};
use super::error::QueueError;
use super::feature::has;
use super::random;
use super::session::{Progress, Session};
use crate::limit::LogLimit;
use attached::Attached;
use buffers::{Buffers, Room};
use control::Control;
use feature::offloads;
use pairs::Pair;
use tap::{Backend, HEADER, NUM_BUFFERS};

pub use error::NetError;
pub(super) use feature::{FEATURES, consistent};
pub use pairs::{MAX_PAIRS, Pairs};
pub use tap::QueueFile;
pub use vhost::VhostNet;

/// Size of each queue.
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
    /// Queue pairs.
    pub pairs: Pairs,
}

/// A network device, or the part of one that serves a queue pair.
pub struct Net {
    pair: Pair,
    /// For the control queue, which the first part of several has.
    control: Option<Control>,
    /// The other parts, which the first has until they are taken.
    others: Vec<Net>,
    /// The queues of the tap, which the first part knows.
    files: Vec<QueueFile>,
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
        Self::on(options, Attached::open(options)?)
    }

    /// Of the open queues of the tap, which another process may have as well, as [`files`](Self::files)
    /// gives them. Nothing changes for that one before this device goes on with its state.
    ///
    /// # Errors
    /// The host refuses.
    pub fn of(options: &NetOptions, queues: Vec<File>) -> Result<Self, NetError> {
        Self::on(options, Attached::of(options, queues)?)
    }

    /// The queues of the tap, in their order.
    #[must_use]
    pub fn files(&self) -> Vec<QueueFile> {
        self.files.clone()
    }

    fn on(options: &NetOptions, attached: Attached) -> Result<Self, NetError> {
        let mac = mac_of(options.mac).map_err(NetError::Mac)?;
        let files = attached.files();
        let Attached {
            first,
            others,
            control,
        } = attached;
        let others = others.into_iter().map(|tap| Box::new(tap) as _);
        let net = Self::new(Box::new(first), others.collect(), control, mac);
        Ok(Self { files, ..net })
    }

    /// Of a pair for each backend. If there are others than the first, `control` is there.
    fn new(
        backend: Box<dyn Backend>,
        others: Vec<Box<dyn Backend>>,
        control: Option<Control>,
        mac: [u8; 6],
    ) -> Self {
        let (pair, pairs) = Pair::all(others.len());
        let part = |(pair, backend)| Self::part(pair, backend, mac);
        Self {
            control,
            others: pairs.zip(others).map(part).collect(),
            ..Self::part(pair, backend, mac)
        }
    }

    fn part(pair: Pair, backend: Box<dyn Backend>, mac: [u8; 6]) -> Self {
        Self {
            pair,
            control: None,
            others: Vec::new(),
            files: Vec::new(),
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
            pair,
            received,
            waiting,
            buffers,
            merge,
            ..
        } = self;
        let packet = received.get_mut(..*waiting).unwrap_or_default();
        let queue = pair.receive();
        let most = match *merge {
            true => session.queue_size(queue),
            false => 1,
        };
        match buffers.gather(queue, session, packet.len(), most)? {
            Room::Chains(count) => buffers.fill(queue, session, count, packet)?,
            Room::Never => {}
            Room::NotYet => return Ok(false),
        }
        Ok(true)
    }

    /// Sends one packet of the guest; `false` if there is none.
    fn transmit(&mut self, session: &mut Session) -> Result<bool, QueueError> {
        let queue = self.pair.transmit();
        if !session.pop(queue, &mut self.chain)? {
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
        session.complete(queue, &self.chain, 0)?;
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
        self.pair.features()
    }

    fn check_features(&self, accepted: u64) -> bool {
        consistent(accepted)
    }

    fn queue_sizes(&self) -> &'static [u16] {
        self.pair.queue_sizes()
    }

    fn queues(&self, features: u64) -> Vec<usize> {
        self.pair.queues(features)
    }

    fn take_parts(&mut self) -> Vec<Box<dyn VirtioDevice>> {
        let others = std::mem::take(&mut self.others);
        others.into_iter().map(|part| Box::new(part) as _).collect()
    }

    fn config(&self) -> Vec<u8> {
        config(self.mac, self.pair.count())
    }

    fn unsavable(&self) -> Option<&'static str> {
        None
    }

    fn save(&mut self) -> Result<Section, SaveError> {
        self.save_part()
    }

    fn restore(&mut self, state: &Section) -> Result<(), RestoreError> {
        self.restore_part(state)
    }

    fn activate(&mut self, features: u64) -> io::Result<()> {
        self.merge = has(features, VIRTIO_NET_F_MRG_RXBUF);
        self.room = false;
        if let Some(control) = &mut self.control {
            control.begin(self.pair.control(features));
        }
        // It is the tap's, whatever its queues.
        match self.pair.is_first() {
            true => self.backend.set_offload(offloads(features)),
            false => Ok(()),
        }
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.backend.fd()]
    }

    fn wants(&self, _source: usize) -> bool {
        self.room
    }

    fn queue_ready(&mut self, index: usize, session: &mut Session) -> Result<Progress, QueueError> {
        if index == self.pair.receive() {
            self.room = true;
            self.receive(session)?;
            return Ok(Progress::Idle);
        }
        if index == self.pair.transmit() {
            return session.turn(index, |session| self.transmit(session));
        }
        match &mut self.control {
            Some(control) => control.turn(index, session),
            None => Ok(Progress::Idle),
        }
    }

    fn source_ready(&mut self, _source: usize, session: &mut Session) -> Result<(), QueueError> {
        self.receive(session)
    }

    /// What waits in the tap may be unfinished in a way that the next driver does not accept: it is
    /// dropped, and what comes from here on is complete. The other queues lose theirs when they are
    /// not used any more.
    fn deactivate(&mut self) {
        self.waiting = 0;
        if !self.pair.is_first() {
            return;
        }
        if let Err(error) = self.backend.set_offload(0) {
            self.report("reset offloads", &error);
        }
        if let Some(control) = &mut self.control {
            control.reset();
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

/// `struct virtio_net_config` (section 5.1.4): address, status with the link up, and how many queue
/// pairs there are, of several.
pub(super) fn config(mac: [u8; 6], pairs: Option<u16>) -> Vec<u8> {
    let mut config = mac.to_vec();
    // The status is 16 bits wide.
    let [low, high, ..] = VIRTIO_NET_S_LINK_UP.to_le_bytes();
    config.extend([low, high]);
    config.extend(pairs.into_iter().flat_map(u16::to_le_bytes));
    config
}

/// The address that was asked for, or a new one.
pub(super) fn mac_of(wanted: Option<[u8; 6]>) -> io::Result<[u8; 6]> {
    wanted.map_or_else(random_mac, Ok)
}

/// A locally administered unicast address.
///
/// # Errors
/// The host has no random numbers.
pub fn random_mac() -> io::Result<[u8; 6]> {
    let mut mac = [0; 6];
    random::fill(&mut mac)?;
    let [first, ..] = &mut mac;
    *first = *first & 0xfc | 0x02;
    Ok(mac)
}
