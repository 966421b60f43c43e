//! Network card (section 5.1) on a tap interface, with its packets moved by vhost-net.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use log::warn;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::EventFd;

use super::feature::{FEATURES, consistent, offloads};
use super::tap::{Backend as _, Tap};
use super::{MAX_PACKET, NetError, NetOptions, QUEUE_SIZE, config, drop_stale, mac_of};
use crate::virtio::device::{DeviceKind, Halt, VirtioDevice};
use crate::virtio::error::QueueError;
use crate::virtio::feature::mask;
use crate::virtio::session::{Progress, Session};
use crate::virtio::vhost::{Kernel, NetEngine, Place, Queues};

/// What the kernel has to know of the driver's choice. The rest is between driver and tap.
const KERNEL_FEATURES: u64 = mask(&[
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_F_VERSION_1,
]);

/// A network device whose queues the kernel serves.
pub struct VhostNet {
    tap: Tap,
    queues: Queues,
    mac: [u8; 6],
    features: u64,
    /// Negotiated.
    accepted: u64,
    dropped: Vec<u8>,
}

impl VhostNet {
    /// Attaches to the tap, and has vhost-net serve it.
    ///
    /// # Errors
    /// When there is no such tap, or it cannot be used, or vhost-net cannot; the message says what
    /// to do.
    pub fn open(options: &NetOptions, place: Place) -> Result<Self, NetError> {
        let mac = mac_of(options)?;
        let tap = Tap::open(&options.tap)?;
        let engine = NetEngine::open(&place, tap.file().map_err(NetError::Descriptors)?)?;
        let kernel = Kernel::own(engine, &place)?;
        let kernel_features = kernel.features()?;
        let queues = Queues::new(kernel, place, 2).map_err(NetError::Descriptors)?;
        Ok(Self {
            tap,
            queues,
            mac,
            // What the kernel is not to know of is not for it to refuse.
            features: FEATURES & (kernel_features | !KERNEL_FEATURES),
            accepted: 0,
            dropped: vec![0; MAX_PACKET],
        })
    }
}

impl VirtioDevice for VhostNet {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        self.features
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

    fn halt(&self) -> Option<Arc<dyn Halt>> {
        Some(Arc::clone(self.queues.shared()) as _)
    }

    fn activate(&mut self, features: u64) -> io::Result<()> {
        self.accepted = features;
        self.tap.set_offload(offloads(features))
    }

    fn hand_over(
        &mut self,
        session: &mut Session,
        kicks: &[(usize, EventFd)],
    ) -> Result<(), QueueError> {
        let features = self.accepted & KERNEL_FEATURES;
        self.queues.hand_over(features, session, kicks)
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

    /// As of a device without vhost.
    fn deactivate(&mut self) {
        self.queues.take_back();
        if let Err(error) = self.tap.set_offload(0) {
            warn!("virtio-net: cannot reset offloads on the tap: {error}");
        }
        drop_stale(&mut self.tap, &mut self.dropped);
    }
}
