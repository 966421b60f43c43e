//! The connection to a back end: the messages of vhost-user, by the crate `vhost`.
//!
//! That crate waits for an answer as long as it takes. A conversation here has a limit: after that, as
//! after any failure, the connection is cut. A back end stops when its front end has gone.

use std::io;
use std::net::Shutdown;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt::SendTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use parking_lot::Mutex;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{
    Frontend, VhostUserFrontend as _, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory::GuestMemoryBackend as _;
use vmm_sys_util::eventfd::EventFd;

use crate::Memory;
use crate::virtio::blk::MAX_QUEUES;
use crate::virtio::feature::has;
use crate::virtio::vhost::backend::{Backend, Events, Miss, Rings, Update};

/// Longest conversation with the back end before the driver has it start.
const PATIENCE: Duration = if cfg!(test) {
    Duration::from_millis(300)
} else {
    Duration::from_secs(5)
};
/// Longest time in which it is to stop: a vCPU may wait for it.
const STOP_PATIENCE: Duration = if cfg!(test) {
    Duration::from_millis(300)
} else {
    Duration::from_secs(1)
};

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// Nobody listens there.
    #[error(
        "cannot connect to the vhost-user back end at {socket:?}: {error}; start the back end first, and check the path"
    )]
    Connect {
        /// Where it was looked for.
        socket: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// It does not do what is asked.
    #[error("the vhost-user back end at {socket:?}: {what}: {error}")]
    Talk {
        /// Where it listens.
        socket: PathBuf,
        /// What was asked.
        what: &'static str,
        /// The reason.
        error: io::Error,
    },
    /// It is too old, or for another kind of device.
    #[error("the vhost-user back end at {socket:?} has no {what}, which nido needs of it")]
    Lacks {
        /// Where it listens.
        socket: PathBuf,
        /// The feature's name.
        what: &'static str,
    },
    /// It has fewer queues.
    #[error("the vhost-user back end at {socket:?} has {has} queues; write queues={has} or less")]
    Queues {
        /// Where it listens.
        socket: PathBuf,
        /// How many it has.
        has: u16,
    },
    /// It cannot map guest memory.
    #[error(
        "guest memory is private to nido, but a vhost-user back end has to map it; start nido with --memory shared=on"
    )]
    Memory,
    /// No address for a network card.
    #[error("cannot make a MAC address up: {0}; give one with mac=")]
    Random(io::Error),
    /// No eventfds.
    #[error("cannot make the events of a device: {0}; raise the limit of open files: ulimit -n")]
    Descriptors(io::Error),
}

/// A back end, and how to find it again.
pub(super) struct Connection {
    socket: PathBuf,
    memory: Memory,
    /// What it offered first.
    offered: u64,
    most: u16,
    peer: Mutex<Peer>,
}

/// What is connected.
struct Peer {
    frontend: Frontend,
    /// The same socket, to look at and to cut.
    stream: UnixStream,
    offered: u64,
    /// How many queues it has.
    most: u16,
    /// The queues that are to run, each with the driver's notifications.
    prepared: Vec<(usize, EventFd)>,
    /// Where each queue was stopped, since it was prepared.
    positions: Vec<(usize, u16)>,
}

impl Connection {
    /// Connects to the back end at `socket` of a device in `memory`.
    pub(super) fn open(socket: &Path, memory: Memory) -> Result<Self, UserError> {
        if memory.iter().any(|region| region.file_offset().is_none()) {
            return Err(UserError::Memory);
        }
        let peer = Peer::open(socket, &memory)?;
        Ok(Self {
            socket: socket.to_owned(),
            memory,
            offered: peer.offered,
            most: peer.most,
            peer: Mutex::new(peer),
        })
    }

    /// The features that the back end has, those of vhost-user itself left out.
    pub(super) fn offered(&self) -> u64 {
        self.offered & !VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    /// How many queues it has.
    pub(super) fn most(&self) -> u16 {
        self.most
    }

    /// The first `size` bytes of the device's configuration.
    pub(super) fn config(&self, size: usize) -> Result<Vec<u8>, UserError> {
        let length = u32::try_from(size).unwrap_or(u32::MAX);
        let answer = self.peer.lock().talk(PATIENCE, |frontend| {
            let flags = VhostUserConfigFlags::empty();
            frontend.get_config(0, length, flags, &vec![0; size])
        });
        let (_, config) = answer.map_err(|error| UserError::Talk {
            socket: self.socket.clone(),
            what: "VHOST_USER_GET_CONFIG",
            error,
        })?;
        Ok(config)
    }

    /// Connects again if the back end has gone.
    fn revive(&self, peer: &mut Peer) -> io::Result<()> {
        if !peer.is_gone() {
            return Ok(());
        }
        let next = Peer::open(&self.socket, &self.memory).map_err(io::Error::other)?;
        if self.offered & !next.offered != 0 || next.most < self.most {
            return Err(io::Error::other(
                "the back end that listens by now offers less than the one before",
            ));
        }
        *peer = next;
        Ok(())
    }
}

impl Peer {
    fn open(socket: &Path, memory: &Memory) -> Result<Self, UserError> {
        let failed = |error| UserError::Connect {
            socket: socket.to_owned(),
            error,
        };
        let talk = |what| {
            move |error| UserError::Talk {
                socket: socket.to_owned(),
                what,
                error,
            }
        };
        let lacks = |what| UserError::Lacks {
            socket: socket.to_owned(),
            what,
        };
        let stream = connect_within(PATIENCE, socket).map_err(failed)?;
        let own = stream.try_clone().map_err(failed)?;
        let mut peer = Self {
            frontend: Frontend::from_stream(own, u64::from(MAX_QUEUES)),
            stream,
            offered: 0,
            most: 1,
            prepared: Vec::new(),
            positions: Vec::new(),
        };
        peer.offered = peer
            .talk(PATIENCE, |frontend| {
                frontend.set_owner()?;
                frontend.get_features()
            })
            .map_err(talk("VHOST_USER_GET_FEATURES"))?;
        if !has(peer.offered, VIRTIO_F_VERSION_1) {
            return Err(lacks("VIRTIO_F_VERSION_1"));
        }
        if peer.offered & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            return Err(lacks("VHOST_USER_F_PROTOCOL_FEATURES"));
        }
        peer.negotiate()
            .map_err(talk("VHOST_USER_SET_PROTOCOL_FEATURES"))?;
        peer.give_memory(memory)
            .map_err(talk("VHOST_USER_SET_MEM_TABLE"))?;
        Ok(peer)
    }

    /// Chooses the features of the protocol.
    fn negotiate(&mut self) -> io::Result<()> {
        let wanted = VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ;
        let most = self.talk(PATIENCE, |frontend| {
            let common = frontend.get_protocol_features()? & wanted;
            frontend.set_protocol_features(common)?;
            if common.contains(VhostUserProtocolFeatures::REPLY_ACK) {
                // Each message is carried out when its call returns.
                frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            }
            if common.contains(VhostUserProtocolFeatures::MQ) {
                frontend.get_queue_num()
            } else {
                Ok(1)
            }
        })?;
        self.most = u16::try_from(most).unwrap_or(MAX_QUEUES).min(MAX_QUEUES);
        Ok(())
    }

    fn give_memory(&mut self, memory: &Memory) -> io::Result<()> {
        let regions = memory
            .iter()
            .map(VhostUserMemoryRegionInfo::from_guest_region)
            .collect::<Result<Vec<_>, _>>()
            .map_err(io::Error::other)?;
        self.talk(PATIENCE, |frontend| frontend.set_mem_table(&regions))?;
        Ok(())
    }

    /// Has a conversation of `limit` at the most. The connection is cut when it fails: nobody knows what
    /// comes next on it.
    fn talk<T>(
        &mut self,
        limit: Duration,
        conversation: impl FnOnce(&mut Frontend) -> Result<T, vhost::Error>,
    ) -> io::Result<T> {
        let outcome = self.talk_within(limit, conversation);
        if outcome.is_err() {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        outcome
    }

    fn talk_within<T>(
        &mut self,
        limit: Duration,
        conversation: impl FnOnce(&mut Frontend) -> Result<T, vhost::Error>,
    ) -> io::Result<T> {
        let stream = self.stream.try_clone()?;
        let (done, waiting) = channel::<()>();
        let (outcome, late) = thread::scope(|scope| {
            let watch = thread::Builder::new()
                .name("vhost-user-limit".to_owned())
                .spawn_scoped(scope, move || {
                    let late = waiting.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
                    if late {
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                    late
                })?;
            let outcome = conversation(&mut self.frontend);
            drop(done);
            io::Result::Ok((outcome, watch.join().unwrap_or(false)))
        })?;
        match outcome {
            Ok(value) => Ok(value),
            Err(_) if late => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer for {limit:?}; the connection is cut"),
            )),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Whether the back end has closed the connection, or it was cut, or it says what nobody has asked
    /// for. No conversation is under way: whoever has one has the lock.
    fn is_gone(&self) -> bool {
        let mut ends = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut ends, PollTimeout::ZERO);
        ends.iter().any(|end| end.any().unwrap_or(true))
    }
}

/// Connects to who listens at `path`, and accepts before long.
fn connect_within(limit: Duration, path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let stream: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let limit = i64::try_from(limit.as_millis()).unwrap_or(i64::MAX);
    setsockopt(&stream, SendTimeout, &TimeVal::milliseconds(limit))?;
    connect(stream.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(stream))
}

impl Backend for Connection {
    fn set_features(&self, features: u64) -> io::Result<()> {
        let mut peer = self.peer.lock();
        self.revive(&mut peer)?;
        peer.prepared.clear();
        peer.positions.clear();
        let own = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        peer.talk(PATIENCE, |frontend| frontend.set_features(features | own))
    }

    fn set_queue(&self, index: usize, rings: &Rings, events: &Events<'_>) -> io::Result<()> {
        let mut peer = self.peer.lock();
        let kick = events.kick.try_clone()?;
        peer.talk(PATIENCE, |frontend| {
            frontend.set_vring_num(index, rings.size)?;
            frontend.set_vring_base(index, rings.next)?;
            frontend.set_vring_addr(
                index,
                &VringConfigData {
                    queue_max_size: rings.size,
                    queue_size: rings.size,
                    flags: 0,
                    desc_table_addr: rings.descriptors,
                    used_ring_addr: rings.used,
                    avail_ring_addr: rings.available,
                    log_addr: None,
                },
            )?;
            frontend.set_vring_call(index, events.call)?;
            frontend.set_vring_err(index, events.error)
        })?;
        peer.prepared.push((index, kick));
        Ok(())
    }

    /// A queue runs from its `VHOST_USER_SET_VRING_KICK` on, for back ends that know no better.
    fn start(&self, _: &[usize]) -> io::Result<()> {
        let mut peer = self.peer.lock();
        let Peer { prepared, .. } = &mut *peer;
        let prepared = std::mem::take(prepared);
        let outcome = peer.talk(PATIENCE, |frontend| {
            prepared.iter().try_for_each(|(index, kick)| {
                frontend.set_vring_kick(*index, kick)?;
                frontend.set_vring_enable(*index, true)
            })
        });
        // Those of them that run are to be stopped.
        peer.prepared = prepared;
        outcome
    }

    /// The answer to `VHOST_USER_GET_VRING_BASE` comes when the queue has stopped.
    fn stop(&self) -> io::Result<()> {
        let mut peer = self.peer.lock();
        let prepared = std::mem::take(&mut peer.prepared);
        if peer.is_gone() {
            return Ok(());
        }
        let positions = peer.talk(STOP_PATIENCE, |frontend| {
            let stop = |(index, _): &(usize, EventFd)| {
                frontend.set_vring_enable(*index, false)?;
                Ok((*index, frontend.get_vring_base(*index)?))
            };
            prepared.iter().map(stop).collect::<Result<Vec<_>, _>>()
        })?;
        let short = |(index, position)| Some((index, u16::try_from(position).ok()?));
        peer.positions = positions.into_iter().filter_map(short).collect();
        Ok(())
    }

    fn position(&self, index: usize) -> io::Result<u16> {
        let peer = self.peer.lock();
        let position = peer.positions.iter().find(|(other, _)| *other == index);
        position
            .map(|(_, position)| *position)
            .ok_or_else(|| io::Error::other("the back end has not told it"))
    }

    fn next_miss(&self) -> io::Result<Option<Miss>> {
        Ok(None)
    }

    fn update(&self, _: &Update) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn invalidate(&self, _: RangeInclusive<u64>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn fd(&self) -> RawFd {
        self.peer.lock().stream.as_raw_fd()
    }

    fn may_go(&self) -> bool {
        true
    }

    fn is_gone(&self) -> bool {
        self.peer.lock().is_gone()
    }
}
