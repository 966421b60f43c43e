//! Disks and network cards that another process serves: the front end of vhost-user.
//!
//! The back end maps guest memory, all of it, so guest memory has to be in a file, and no unit can be
//! in between: who makes devices asks for none behind a unit.
//!
//! A back end that does not stop when it is told to is cut off, after a second; what it does until it
//! notices is its own affair, and the log says so.
//!
//! A back end that ends leaves the device in need of a reset. It is connected to again when the driver
//! starts the device anew, and has to offer what it did before.

mod connection;
#[cfg(test)]
mod user_test;

use std::io;
use std::mem::offset_of;
use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES, virtio_blk_config,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS};
use vmm_sys_util::eventfd::EventFd;

use super::{Place, Queues};
use crate::Memory;
use crate::virtio::blk::MAX_QUEUES;
use crate::virtio::device::{DeviceKind, Halt, VirtioDevice};
use crate::virtio::error::QueueError;
use crate::virtio::feature::{SPLIT_RINGS, has, mask};
use crate::virtio::net;
use crate::virtio::session::{Progress, Session};
use connection::Connection;
pub use connection::UserError;

/// Entries of a queue.
const QUEUE_SIZE: u16 = 256;
/// Of as many queues as a device has.
static QUEUE_SIZES: [u16; MAX_QUEUES as usize] = [QUEUE_SIZE; MAX_QUEUES as usize];
/// The queues of a network card: one pair.
const NET_QUEUES: usize = 2;
/// Of a network card, what the back end has no part in.
const OURS: u64 = mask(&[VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS]);
/// Of a disk, what the back end may offer to the guest.
const BLOCK: u64 = mask(&[
    VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_WRITE_ZEROES,
]);

/// A disk that another process serves.
#[derive(Clone, Debug)]
pub struct UserBlockOptions {
    /// Where its back end listens.
    pub socket: PathBuf,
    /// As many of these queues as the back end has.
    pub queues: RangeInclusive<u16>,
}

/// A network card that another process serves.
#[derive(Clone, Debug)]
pub struct UserNetOptions {
    /// Where its back end listens.
    pub socket: PathBuf,
    /// The guest's address; a locally administered one is made up if absent.
    pub mac: Option<[u8; 6]>,
}

/// A device whose queues another process serves.
pub struct VhostUser {
    kind: DeviceKind,
    queues: Queues,
    features: u64,
    ring_features: u64,
    queue_sizes: &'static [u16],
    config: Vec<u8>,
    /// Negotiated.
    accepted: u64,
}

impl VhostUser {
    /// Connects to the back end of a disk. `memory` is what it is to map.
    ///
    /// # Errors
    /// When there is no back end, or it lacks what it needs, or `memory` is in no file; the message
    /// says what to do.
    pub fn block(options: &UserBlockOptions, memory: Memory) -> Result<Self, UserError> {
        let connection = Connection::open(&options.socket, Arc::clone(&memory))?;
        let most = if has(connection.offered(), VIRTIO_BLK_F_MQ) {
            connection.most()
        } else {
            1
        };
        let queues = most.clamp(1, *options.queues.end());
        if queues < *options.queues.start() {
            return Err(UserError::Queues {
                socket: options.socket.clone(),
                has: most,
            });
        }
        // What came later into the structure is not asked for: a back end has what it knows.
        let mut config =
            connection.config(offset_of!(virtio_blk_config, max_secure_erase_sectors))?;
        let several = if queues > 1 {
            mask(&[VIRTIO_BLK_F_MQ])
        } else {
            0
        };
        let place = offset_of!(virtio_blk_config, num_queues);
        if let Some(number) = config.get_mut(place..place + 2) {
            number.copy_from_slice(&queues.to_le_bytes());
        }
        let features = BLOCK & connection.offered() | several;
        let kind = DeviceKind::Block;
        Self::new(kind, connection, memory, features, queues.into(), config)
    }

    /// Connects to the back end of a network card of one queue pair. `memory` is what it is to map.
    ///
    /// # Errors
    /// As of [`block`](Self::block).
    pub fn net(options: &UserNetOptions, memory: Memory) -> Result<Self, UserError> {
        let mac = net::mac_of(options.mac).map_err(UserError::Random)?;
        let connection = Connection::open(&options.socket, Arc::clone(&memory))?;
        let features = net::FEATURES & (connection.offered() | OURS);
        let config = net::config(mac, None);
        let kind = DeviceKind::Net;
        Self::new(kind, connection, memory, features, NET_QUEUES, config)
    }

    fn new(
        kind: DeviceKind,
        connection: Connection,
        memory: Memory,
        features: u64,
        queues: usize,
        config: Vec<u8>,
    ) -> Result<Self, UserError> {
        let queue_sizes = QUEUE_SIZES.get(..queues).unwrap_or_default();
        let ring_features = connection.offered() & SPLIT_RINGS;
        let queues = Queues::new(connection, Place::Direct(memory), 0..queue_sizes.len());
        Ok(Self {
            kind,
            queues: queues.map_err(UserError::Descriptors)?,
            features,
            ring_features,
            queue_sizes,
            config,
            accepted: 0,
        })
    }
}

impl VirtioDevice for VhostUser {
    fn kind(&self) -> DeviceKind {
        self.kind
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn check_features(&self, accepted: u64) -> bool {
        self.kind != DeviceKind::Net || net::consistent(accepted)
    }

    fn ring_features(&self) -> u64 {
        self.ring_features
    }

    fn queue_sizes(&self) -> &'static [u16] {
        self.queue_sizes
    }

    fn config(&self) -> Vec<u8> {
        self.config.clone()
    }

    fn unstoppable(&self) -> Option<&'static str> {
        Some("another process serves it by vhost-user, and would go on with guest memory")
    }

    fn halt(&self) -> Option<Arc<dyn Halt>> {
        Some(Arc::clone(self.queues.shared()) as _)
    }

    fn calls(&self) -> io::Result<Vec<(usize, EventFd)>> {
        self.queues.calls()
    }

    fn unsavable(&self) -> Option<&'static str> {
        Some(
            "another process serves it, whose state cannot be saved yet: start the machine without vhost-user",
        )
    }

    fn activate(&mut self, features: u64) -> io::Result<()> {
        self.accepted = features;
        Ok(())
    }

    fn hand_over(
        &mut self,
        session: &mut Session,
        kicks: &[(usize, EventFd)],
    ) -> Result<(), QueueError> {
        let ours = match self.kind {
            DeviceKind::Net => OURS,
            _ => 0,
        };
        let its = (self.features | self.ring_features) & !ours | mask(&[VIRTIO_F_VERSION_1]);
        self.queues.hand_over(self.accepted & its, session, kicks)
    }

    fn serves(&self, index: usize) -> bool {
        !self.queues.has(index)
    }

    fn sources(&self) -> Vec<RawFd> {
        self.queues.sources()
    }

    fn queue_ready(&mut self, _: usize, _: &mut Session) -> Result<Progress, QueueError> {
        Ok(Progress::Idle)
    }

    fn source_ready(&mut self, source: usize, session: &mut Session) -> Result<(), QueueError> {
        self.queues.source_ready(source, session)
    }

    fn deactivate(&mut self) {
        self.queues.take_back();
    }
}
