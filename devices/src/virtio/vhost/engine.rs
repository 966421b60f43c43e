//! What the kinds of the kernel's devices differ in: vhost-net and vhost-vsock.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Weak};

use vhost::net::VhostNet as _;
use vhost::vhost_kern::net::Net;
use vhost::vhost_kern::vsock::Vsock;
use vhost::vsock::VhostVsock as _;

use super::Place;
use super::error::{OpenError, ZERO_COPY, io_error, node_error, refuse_zero_copy};
use crate::Memory;

/// What the kinds of devices differ in.
pub(in crate::virtio) trait Engine: AsRawFd + Send + Sync {
    const NODE: &'static str;
    /// The version of Linux from which on it has an IOTLB.
    const IOTLB_SINCE: &'static str;
    /// Whether all that it writes is in its log.
    const LOGS: bool;
    /// Starts `queues`.
    fn start(&self, queues: &[usize]) -> io::Result<()>;
    /// Stops all queues.
    fn stop(&self) -> io::Result<()>;
}

/// vhost-net with its tap.
pub(in crate::virtio) struct NetEngine {
    net: Net<Memory>,
    tap: File,
}

impl NetEngine {
    /// Opens `/dev/vhost-net` for the packets of `tap`.
    pub(in crate::virtio) fn open(place: &Place, tap: File) -> Result<Self, OpenError> {
        let net = Net::new(place.memory().clone())
            .map_err(|error| node_error(Self::NODE, "vhost_net", error))?;
        refuse_zero_copy(std::fs::read_to_string(ZERO_COPY))?;
        Ok(Self { net, tap })
    }
}

impl AsRawFd for NetEngine {
    fn as_raw_fd(&self) -> RawFd {
        self.net.as_raw_fd()
    }
}

impl Engine for NetEngine {
    const NODE: &'static str = "/dev/vhost-net";
    const IOTLB_SINCE: &'static str = "4.20";
    const LOGS: bool = true;

    fn start(&self, queues: &[usize]) -> io::Result<()> {
        for queue in queues {
            self.net
                .set_backend(*queue, Some(&self.tap))
                .map_err(io_error)?;
        }
        Ok(())
    }

    fn stop(&self) -> io::Result<()> {
        let stopped = [0, 1].map(|queue| self.net.set_backend(queue, None).map_err(io_error));
        stopped.into_iter().collect()
    }
}

/// vhost-vsock with the guest's address.
pub(in crate::virtio) struct VsockEngine(Arc<Vsock<Memory>>);

impl VsockEngine {
    /// Opens `/dev/vhost-vsock`.
    pub(in crate::virtio) fn open(place: &Place) -> Result<Self, OpenError> {
        Vsock::new(place.memory().clone())
            .map(|vsock| Self(Arc::new(vsock)))
            .map_err(|error| node_error(Self::NODE, "vhost_vsock", error))
    }

    /// For whoever gives it its address.
    pub(in crate::virtio) fn addressee(&self) -> Addressee {
        Addressee(Arc::downgrade(&self.0))
    }
}

/// A device that has an address among those of the host's guests, which is free again when it is gone.
#[derive(Clone, Default)]
pub(in crate::virtio) struct Addressee(Weak<Vsock<Memory>>);

impl Addressee {
    pub(in crate::virtio) fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }

    /// Has the address `cid` be the guest's, instead of the one that it has.
    pub(in crate::virtio) fn set(&self, cid: u32) -> io::Result<()> {
        match self.0.upgrade() {
            Some(vsock) => vsock.set_guest_cid(cid.into()).map_err(io_error),
            None => Ok(()),
        }
    }
}

impl AsRawFd for VsockEngine {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Engine for VsockEngine {
    const NODE: &'static str = "/dev/vhost-vsock";
    const IOTLB_SINCE: &'static str = "5.12";
    // It takes buffers without asking where they are in guest memory: only its rings are logged.
    const LOGS: bool = false;

    /// All of them.
    fn start(&self, _queues: &[usize]) -> io::Result<()> {
        self.0.start().map_err(io_error)
    }

    fn stop(&self) -> io::Result<()> {
        self.0.stop().map_err(io_error)
    }
}
