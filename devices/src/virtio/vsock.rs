//! Socket device (section 5.10), with its packets moved by vhost-vsock: AF_VSOCK between the guest
//! and the host.

mod address;
mod saved;

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use state::{RestoreError, SaveError, Section};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vmm_sys_util::eventfd::EventFd;

use super::chain::Chain;
use super::device::{DeviceKind, Halt, VirtioDevice};
use super::error::QueueError;
use super::feature::{SPLIT_RINGS, mask};
use super::session::{Progress, Session};
use super::vhost::{Addressee, Kernel, OpenError, Place, Queues, VsockEngine, Writer};

pub use address::Address;

/// `VIRTIO_VSOCK_F_SEQPACKET` of <linux/virtio_vsock.h>, which virtio-bindings lacks.
const SEQPACKET: u32 = 1;
/// Receive, transmit, event.
const QUEUE_SIZES: &[u16] = &[256, 256, 16];
/// Those that the kernel serves: all of them, or it does not start.
const KERNEL_QUEUES: usize = 2;
/// The queue that tells of a migration, which the kernel does not know.
const EVENTS: usize = 2;
/// `struct virtio_vsock_event` with `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (section 5.10.6.7): all
/// connections have ended, and the driver is to read the guest's address again.
const TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();
/// What the kernel has to know of the driver's choice.
const KERNEL_FEATURES: u64 = SPLIT_RINGS | mask(&[SEQPACKET, VIRTIO_F_VERSION_1]);

/// Why a socket device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The kernel does not serve it.
    #[error(transparent)]
    Vhost(#[from] OpenError),
    /// The address cannot be had.
    #[error("cid {cid} cannot be the guest's: {error}; {remedy}")]
    Address {
        /// The address.
        cid: u32,
        /// The system's reason.
        error: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The host gives no descriptors.
    #[error("the host has no descriptors for it: {0}; raise the limit `ulimit -n`")]
    Descriptors(io::Error),
}

/// A socket device.
pub struct Vsock {
    queues: Queues,
    device: Addressee,
    cid: u32,
    features: u64,
    /// Negotiated.
    accepted: u64,
    /// There is a driver.
    active: bool,
    /// The driver's connections are another process's: it is to be told before it has new ones.
    reset_owed: bool,
    chain: Chain,
}

impl Vsock {
    /// Has vhost-vsock serve a guest whose address is to be `cid`, once that was [taken](Self::address):
    /// 3 or more, and not that of another guest.
    ///
    /// # Errors
    /// When vhost-vsock cannot be used; the message says what to do.
    pub fn open(cid: u32, place: Place) -> Result<Self, VsockError> {
        let engine = VsockEngine::open(&place)?;
        let device = engine.addressee();
        let kernel = Kernel::own(engine, &place)?;
        let kernel_features = kernel.features()?;
        let queues =
            Queues::new(kernel, place, 0..KERNEL_QUEUES).map_err(VsockError::Descriptors)?;
        let mut vsock = Self::new(queues, cid, kernel_features);
        vsock.device = device;
        Ok(vsock)
    }

    /// Its address, for whoever takes it.
    #[must_use]
    pub fn address(&self) -> Address {
        Address::new(self.device.clone(), self.cid)
    }

    /// For whoever follows what is written to guest memory.
    #[must_use]
    pub fn writer(&self) -> Writer {
        self.queues.writer()
    }

    fn new(queues: Queues, cid: u32, kernel_features: u64) -> Self {
        Self {
            queues,
            device: Addressee::default(),
            cid,
            features: kernel_features & mask(&[SEQPACKET]),
            accepted: 0,
            active: false,
            reset_owed: false,
            chain: Chain::default(),
        }
    }

    /// Tells the driver that its connections have ended, if that is so and it has given a buffer for
    /// it. One that has none gets it with the next that it gives.
    fn tell_reset(&mut self, session: &mut Session) -> Result<(), QueueError> {
        if !self.reset_owed || !session.enabled(EVENTS) || !session.pop(EVENTS, &mut self.chain)? {
            return Ok(());
        }
        if self.chain.writable() < TRANSPORT_RESET.len() as u64 {
            return Err(QueueError::Length);
        }
        session.give(EVENTS, &self.chain, &TRANSPORT_RESET)?;
        self.reset_owed = false;
        Ok(())
    }
}

/// What helps against an address that is refused.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => "another guest has it; choose another",
        Some(libc::EINVAL) => "it is reserved; choose one from 3 to 4294967294",
        _ => "choose another",
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    /// `struct virtio_vsock_config` (section 5.10.4).
    fn config(&self) -> Vec<u8> {
        u64::from(self.cid).to_le_bytes().to_vec()
    }

    fn halt(&self) -> Option<Arc<dyn Halt>> {
        Some(Arc::clone(self.queues.shared()) as _)
    }

    fn calls(&self) -> io::Result<Vec<(usize, EventFd)>> {
        self.queues.calls()
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
        self.active = true;
        self.accepted = features;
        Ok(())
    }

    fn hand_over(
        &mut self,
        session: &mut Session,
        kicks: &[(usize, EventFd)],
    ) -> Result<(), QueueError> {
        if !(0..KERNEL_QUEUES).all(|index| session.enabled(index)) {
            return Err(QueueError::Disabled);
        }
        let features = self.accepted & KERNEL_FEATURES;
        self.queues.hand_over(features, session, kicks)
    }

    fn serves(&self, index: usize) -> bool {
        !self.queues.has(index)
    }

    fn sources(&self) -> Vec<RawFd> {
        self.queues.sources()
    }

    fn queue_ready(&mut self, index: usize, session: &mut Session) -> Result<Progress, QueueError> {
        if index == EVENTS {
            self.tell_reset(session)?;
        }
        Ok(Progress::Idle)
    }

    fn source_ready(&mut self, source: usize, session: &mut Session) -> Result<(), QueueError> {
        self.queues.source_ready(source, session)
    }

    fn suspend(&mut self, session: &mut Session) -> Result<(), QueueError> {
        self.queues.suspend(session)
    }

    fn go_on(&mut self, session: &mut Session) -> Result<(), QueueError> {
        self.tell_reset(session)?;
        self.queues.go_on(session)
    }

    fn deactivate(&mut self) {
        self.active = false;
        self.reset_owed = false;
        self.queues.take_back();
    }
}

#[cfg(test)]
mod vsock_test;
