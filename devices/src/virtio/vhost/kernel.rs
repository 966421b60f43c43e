//! The kernel's devices, by the crate `vhost`.

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, RawFd};

use vhost::net::VhostNet as _;
use vhost::vhost_kern::net::Net;
use vhost::vhost_kern::vhost_binding::VHOST_BACKEND_F_IOTLB_MSG_V2;
use vhost::vhost_kern::vsock::Vsock;
use vhost::vhost_kern::{VhostKernBackend, VhostKernFeatures};
use vhost::vsock::VhostVsock as _;
use vhost::{
    VhostAccess, VhostBackend as _, VhostIotlbBackend as _, VhostIotlbMsg, VhostIotlbType,
    VhostUserMemoryRegionInfo,
};
use virtio_bindings::virtio_config::VIRTIO_F_ACCESS_PLATFORM;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, Permissions};

use super::Place;
use super::backend::{Backend, Events, Miss, Rings, Update};
use super::sys;
use crate::Memory;
use crate::virtio::feature::has;

/// Why the kernel has no such device for us.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The device node.
    #[error("cannot open {node}: {error}; {remedy}")]
    Node {
        /// Its path.
        node: &'static str,
        /// The system's reason.
        error: io::Error,
        /// What to do.
        remedy: String,
    },
    /// The kernel does not serve devices behind an IOMMU.
    #[error(
        "{node} has no IOTLB (VIRTIO_F_ACCESS_PLATFORM with IOTLB_MSG_V2), which a device behind intel-iommu needs; use Linux {since} or later"
    )]
    Iotlb {
        /// The path of the device node.
        node: &'static str,
        /// The version that has it.
        since: &'static str,
    },
    /// Packets are read after the guest may have unmapped them, and a device cannot be stopped before.
    #[error(
        "vhost_net was loaded with experimental_zcopytx={0}, with which it reads packets after invalidations of the IOMMU, and does not stop before the last is sent; reload it with experimental_zcopytx=0"
    )]
    ZeroCopy(String),
    /// Some other call.
    #[error("{node}: {what}: {error}")]
    Call {
        /// The path of the device node.
        node: &'static str,
        /// Which one.
        what: &'static str,
        /// The system's reason.
        error: io::Error,
    },
}

/// What the kinds of devices differ in.
pub(in crate::virtio) trait Engine: AsRawFd + Send + Sync {
    const NODE: &'static str;
    /// The version of Linux from which on it has an IOTLB.
    const IOTLB_SINCE: &'static str;
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
pub(in crate::virtio) struct VsockEngine(Vsock<Memory>);

impl VsockEngine {
    /// Opens `/dev/vhost-vsock`.
    pub(in crate::virtio) fn open(place: &Place) -> Result<Self, OpenError> {
        Vsock::new(place.memory().clone())
            .map(Self)
            .map_err(|error| node_error(Self::NODE, "vhost_vsock", error))
    }

    /// Takes the address `cid` for the guest, which is free again when this is dropped.
    pub(in crate::virtio) fn take_address(&self, cid: u32) -> io::Result<()> {
        self.0.set_guest_cid(cid.into()).map_err(io_error)
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

    /// All of them.
    fn start(&self, _queues: &[usize]) -> io::Result<()> {
        self.0.start().map_err(io_error)
    }

    fn stop(&self) -> io::Result<()> {
        self.0.stop().map_err(io_error)
    }
}

/// A device of the kernel's that this process owns.
pub(in crate::virtio) struct Kernel<E> {
    engine: E,
    memory: Memory,
    /// `VHOST_BACKEND_F_*`.
    backend_features: u64,
}

impl<E: Engine> Kernel<E> {
    /// Takes possession of a device. It stays without translations and queues.
    pub(in crate::virtio) fn own(engine: E, place: &Place) -> Result<Self, OpenError> {
        let mut kernel = Self {
            engine,
            memory: place.memory().clone(),
            backend_features: 0,
        };
        let call = Self::refused;
        kernel.set_owner().map_err(call("VHOST_SET_OWNER"))?;
        if place.is_translated() {
            let wanted = 1 << VHOST_BACKEND_F_IOTLB_MSG_V2;
            let features = kernel.features()?;
            let there = kernel.get_backend_features().unwrap_or(0);
            if !has(features, VIRTIO_F_ACCESS_PLATFORM) || there & wanted == 0 {
                return Err(OpenError::Iotlb {
                    node: E::NODE,
                    since: E::IOTLB_SINCE,
                });
            }
            kernel
                .set_backend_features(wanted)
                .map_err(call("VHOST_SET_BACKEND_FEATURES"))?;
        }
        // With an IOTLB it translates nothing, but the kernel checks that it is there.
        kernel
            .set_mem_table(&regions(&kernel.memory))
            .map_err(call("VHOST_SET_MEM_TABLE"))?;
        Ok(kernel)
    }

    /// The features that it has.
    pub(in crate::virtio) fn features(&self) -> Result<u64, OpenError> {
        self.get_features()
            .map_err(Self::refused("VHOST_GET_FEATURES"))
    }

    /// Makes an error of a call that the kernel refuses.
    fn refused(what: &'static str) -> impl Fn(vhost::Error) -> OpenError {
        move |error| OpenError::Call {
            node: E::NODE,
            what,
            error: io_error(error),
        }
    }

    fn send(&self, message: &VhostIotlbMsg) -> io::Result<()> {
        self.send_iotlb_msg(message).map_err(io_error)
    }
}

impl<E: Engine> AsRawFd for Kernel<E> {
    fn as_raw_fd(&self) -> RawFd {
        self.engine.as_raw_fd()
    }
}

impl<E: Engine> VhostKernBackend for Kernel<E> {
    type AS = Memory;

    fn mem(&self) -> &Memory {
        &self.memory
    }
}

impl<E: Engine> VhostKernFeatures for Kernel<E> {
    fn get_backend_features_acked(&self) -> u64 {
        self.backend_features
    }

    fn set_backend_features_acked(&mut self, features: u64) {
        self.backend_features = features;
    }
}

impl<E: Engine> Backend for Kernel<E> {
    fn set_features(&self, features: u64) -> io::Result<()> {
        vhost::VhostBackend::set_features(self, features).map_err(io_error)
    }

    fn set_queue(&self, index: usize, rings: &Rings, events: &Events<'_>) -> io::Result<()> {
        self.set_vring_num(index, rings.size).map_err(io_error)?;
        self.set_vring_base(index, 0).map_err(io_error)?;
        let number = u32::try_from(index).map_err(io::Error::other)?;
        sys::set_ring_addresses(self, number, rings)?;
        self.set_vring_call(index, events.call).map_err(io_error)?;
        self.set_vring_err(index, events.error).map_err(io_error)?;
        self.set_vring_kick(index, events.kick).map_err(io_error)
    }

    fn start(&self, queues: &[usize]) -> io::Result<()> {
        self.engine.start(queues)
    }

    fn stop(&self) -> io::Result<()> {
        self.engine.stop()
    }

    fn position(&self, index: usize) -> io::Result<u16> {
        let base = self.get_vring_base(index).map_err(io_error)?;
        u16::try_from(base).map_err(io::Error::other)
    }

    fn next_miss(&self) -> io::Result<Option<Miss>> {
        loop {
            let message = match sys::read_message(self) {
                Ok(message) => message,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if message.msg_type == VhostIotlbType::Miss {
                let access = match message.perm {
                    VhostAccess::WriteOnly => Permissions::Write,
                    VhostAccess::ReadWrite => Permissions::ReadWrite,
                    VhostAccess::No | VhostAccess::ReadOnly => Permissions::Read,
                };
                return Ok(Some(Miss {
                    address: message.iova,
                    access,
                }));
            }
        }
    }

    fn update(&self, update: &Update) -> io::Result<()> {
        self.send(&VhostIotlbMsg {
            iova: update.first,
            size: update.size,
            userspace_addr: update.host,
            perm: match update.access {
                Permissions::Write => VhostAccess::WriteOnly,
                Permissions::ReadWrite => VhostAccess::ReadWrite,
                Permissions::Read | Permissions::No => VhostAccess::ReadOnly,
            },
            msg_type: VhostIotlbType::Update,
        })
    }

    fn invalidate(&self, range: RangeInclusive<u64>) -> io::Result<()> {
        // The size of the whole space is no number, and guest memory does not reach its last byte.
        let size = (range.end() - range.start()).saturating_add(1);
        self.send(&VhostIotlbMsg {
            iova: *range.start(),
            size,
            userspace_addr: 0,
            perm: VhostAccess::No,
            msg_type: VhostIotlbType::Invalidate,
        })
    }

    fn fd(&self) -> RawFd {
        self.as_raw_fd()
    }
}

/// The table of guest memory for `VHOST_SET_MEM_TABLE`.
fn regions(memory: &Memory) -> Vec<VhostUserMemoryRegionInfo> {
    let info = |region: &vm_memory::GuestRegionMmap<()>| VhostUserMemoryRegionInfo {
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr().expose_provenance() as u64,
        mmap_offset: 0,
        mmap_handle: -1,
    };
    memory.iter().map(info).collect()
}

fn io_error(error: vhost::Error) -> io::Error {
    match error {
        vhost::Error::VhostOpen(error)
        | vhost::Error::IoctlError(error)
        | vhost::Error::IOError(error) => error,
        other => io::Error::other(other),
    }
}

fn node_error(node: &'static str, module: &str, error: vhost::Error) -> OpenError {
    let error = io_error(error);
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("give your user read and write access to it: setfacl -m u:$USER:rw {node}")
        }
        _ if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
            "raise the limit of open files: ulimit -n".to_owned()
        }
        _ if error.raw_os_error() == Some(libc::ENOMEM) => {
            "the host has no memory left for it".to_owned()
        }
        _ => format!("load the module: modprobe {module}"),
    };
    OpenError::Node {
        node,
        error,
        remedy,
    }
}

/// Where vhost_net says whether it sends without copying.
const ZERO_COPY: &str = "/sys/module/vhost_net/parameters/experimental_zcopytx";

/// By what [`ZERO_COPY`] says.
fn refuse_zero_copy(parameter: io::Result<String>) -> Result<(), OpenError> {
    match parameter {
        Ok(value) if value.trim() != "0" => Err(OpenError::ZeroCopy(value.trim().to_owned())),
        // It may not have the parameter.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_node_is_named_with_the_module_that_makes_it() {
        let missing = vhost::Error::VhostOpen(io::Error::from_raw_os_error(libc::ENOENT));
        let message = node_error("/dev/vhost-net", "vhost_net", missing).to_string();
        assert!(message.starts_with("cannot open /dev/vhost-net: No such file"));
        assert!(message.ends_with("modprobe vhost_net"), "{message}");
    }

    #[test]
    fn sending_without_copying_is_refused_with_the_remedy() {
        let parameter = |value: &str| refuse_zero_copy(Ok(value.to_owned()));
        assert!(parameter("0\n").is_ok());
        assert!(refuse_zero_copy(Err(io::ErrorKind::NotFound.into())).is_ok());
        let message = parameter("1\n").expect_err("refused").to_string();
        assert!(
            message.starts_with("vhost_net was loaded with experimental_zcopytx=1, with"),
            "{message}"
        );
        assert!(
            message.ends_with("reload it with experimental_zcopytx=0"),
            "{message}"
        );
    }

    #[test]
    fn a_node_without_permission_is_named_with_how_to_get_it() {
        let denied = vhost::Error::VhostOpen(io::Error::from_raw_os_error(libc::EACCES));
        let message = node_error("/dev/vhost-net", "vhost_net", denied).to_string();
        assert!(
            message.ends_with("setfacl -m u:$USER:rw /dev/vhost-net"),
            "{message}"
        );
    }
}
