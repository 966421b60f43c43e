//! Network card (section 5.1) on a tap interface, with its packets moved by vhost-net.

mod saved;

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use log::warn;
use state::{RestoreError, SaveError, Section};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vmm_sys_util::eventfd::EventFd;

use super::attached::Attached;
use super::control::Control;
use super::feature::{consistent, offloads};
use super::pairs::Pair;
use super::tap::{Backend as _, QueueFile, Tap};
use super::{MAX_PACKET, NetError, NetOptions, config, drop_stale, mac_of};
use crate::virtio::device::{DeviceKind, Halt, VirtioDevice};
use crate::virtio::error::QueueError;
use crate::virtio::feature::{SPLIT_RINGS, mask};
use crate::virtio::session::{Progress, Session};
use crate::virtio::vhost::{Kernel, NetEngine, Place, Queues, Shared, Writer};

/// What the kernel has to know of the driver's choice. The rest is between driver and tap.
const KERNEL_FEATURES: u64 = SPLIT_RINGS | mask(&[VIRTIO_NET_F_MRG_RXBUF, VIRTIO_F_VERSION_1]);

/// A network device whose queues the kernel serves, or the part of one that has a queue pair. Each
/// pair is a device of the kernel's.
pub struct VhostNet {
    pair: Pair,
    /// For the control queue, which the first part of several has.
    control: Option<Control>,
    /// The other parts, which the first has until they are taken.
    others: Vec<VhostNet>,
    tap: Tap,
    queues: Queues,
    /// What accesses guest memory for any of the parts.
    all: Arc<All>,
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
    pub fn open(options: &NetOptions, place: &Place) -> Result<Self, NetError> {
        Self::on(options, place, Attached::open(options)?)
    }

    /// Of the open queues of the tap, as [`Net::of`](super::Net::of).
    ///
    /// # Errors
    /// vhost-net cannot serve it.
    pub fn of(options: &NetOptions, place: &Place, queues: Vec<File>) -> Result<Self, NetError> {
        Self::on(options, place, Attached::of(options, queues)?)
    }

    /// The queues of the tap, in their order.
    #[must_use]
    pub fn files(&self) -> Vec<QueueFile> {
        let parts = std::iter::once(self).chain(&self.others);
        parts.map(|part| part.tap.queue()).collect()
    }

    fn on(options: &NetOptions, place: &Place, attached: Attached) -> Result<Self, NetError> {
        let mac = mac_of(options.mac).map_err(NetError::Mac)?;
        let Attached {
            first: tap,
            others,
            control,
        } = attached;
        let (pair, pairs) = Pair::all(others.len());
        let part = |(pair, tap)| Self::part(pair, tap, mac, place);
        let mut first = part((pair, tap))?;
        let mut others = pairs
            .zip(others)
            .map(part)
            .collect::<Result<Vec<_>, NetError>>()?;
        let all = std::iter::once(&first).chain(&others);
        let all = Arc::new(All(all
            .map(|part| Arc::clone(part.queues.shared()))
            .collect()));
        for part in &mut others {
            part.all = Arc::clone(&all);
        }
        first.all = all;
        first.control = control;
        first.others = others;
        Ok(first)
    }

    /// For whoever follows what is written to guest memory.
    pub fn writers(&self) -> Vec<Writer> {
        let parts = std::iter::once(self).chain(&self.others);
        parts.map(|part| part.queues.writer()).collect()
    }

    fn part(pair: Pair, tap: Tap, mac: [u8; 6], place: &Place) -> Result<Self, NetError> {
        let engine = NetEngine::open(place, tap.file().map_err(NetError::Descriptors)?)?;
        let kernel = Kernel::own(engine, place)?;
        let kernel_features = kernel.features()?;
        let range = pair.receive()..pair.receive() + 2;
        let queues = Queues::new(kernel, place.clone(), range).map_err(NetError::Descriptors)?;
        Ok(Self {
            pair,
            control: None,
            others: Vec::new(),
            tap,
            queues,
            all: Arc::default(),
            mac,
            // What the kernel is not to know of is not for it to refuse.
            features: pair.features() & (kernel_features | !KERNEL_FEATURES),
            accepted: 0,
            dropped: vec![0; MAX_PACKET],
        })
    }
}

/// What accesses guest memory for a device of several pairs.
#[derive(Default)]
struct All(Vec<Arc<Shared>>);

impl Halt for All {
    fn halt(&self) -> bool {
        let mut any = false;
        for shared in &self.0 {
            any |= shared.halt();
        }
        any
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

    fn halt(&self) -> Option<Arc<dyn Halt>> {
        Some(Arc::clone(&self.all) as _)
    }

    fn calls(&self) -> io::Result<Vec<(usize, EventFd)>> {
        let mut calls = self.queues.calls()?;
        for part in &self.others {
            calls.extend(part.queues.calls()?);
        }
        Ok(calls)
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
        self.accepted = features;
        if let Some(control) = &mut self.control {
            control.begin(self.pair.control(features));
        }
        // It is the tap's, whatever its queues.
        match self.pair.is_first() {
            true => self.tap.set_offload(offloads(features)),
            false => Ok(()),
        }
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

    fn queue_ready(&mut self, index: usize, session: &mut Session) -> Result<Progress, QueueError> {
        match &mut self.control {
            Some(control) => control.turn(index, session),
            None => Ok(Progress::Idle),
        }
    }

    fn source_ready(&mut self, source: usize, session: &mut Session) -> Result<(), QueueError> {
        self.queues.source_ready(source, session)
    }

    fn suspend(&mut self, session: &mut Session) -> Result<(), QueueError> {
        self.queues.suspend(session)
    }

    fn go_on(&mut self, session: &mut Session) -> Result<(), QueueError> {
        self.queues.go_on(session)
    }

    /// As of a device without vhost. A part that cannot go on ends them all.
    fn deactivate(&mut self) {
        self.all.halt();
        self.queues.take_back();
        if self.pair.is_first()
            && let Err(error) = self.tap.set_offload(0)
        {
            warn!("virtio-net: cannot reset offloads on the tap: {error}");
        }
        if let Some(control) = &mut self.control {
            control.reset();
        }
        // The kernel puts back what it has taken and not delivered, whether or not the queue of the
        // tap is in use any more.
        drop_stale(&mut self.tap, &mut self.dropped);
    }
}
