//! The kernel's devices, by the crate `vhost`.

mod logging;

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use parking_lot::Mutex;
use vhost::vhost_kern::vhost_binding::VHOST_BACKEND_F_IOTLB_MSG_V2;
use vhost::vhost_kern::{VhostKernBackend, VhostKernFeatures};
use vhost::{
    VhostAccess, VhostBackend as _, VhostIotlbBackend as _, VhostIotlbMsg, VhostIotlbType,
    VhostUserMemoryRegionInfo,
};
use virtio_bindings::virtio_config::VIRTIO_F_ACCESS_PLATFORM;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, Permissions};

use super::Place;
use super::backend::{Backend, Events, Miss, Rings, Update};
use super::engine::Engine;
use super::error::{OpenError, io_error};
use super::log::Bits;
use super::sys;
use crate::Memory;
use crate::marks::Marks;
use crate::virtio::feature::has;
use logging::Logging;

/// A device of the kernel's that this process owns.
pub(in crate::virtio) struct Kernel<E> {
    engine: E,
    memory: Memory,
    /// `VHOST_BACKEND_F_*`.
    backend_features: u64,
    /// Held while the kernel is told of what is in it. Dropped after `engine`, which writes to the log.
    logging: Mutex<Logging>,
}

impl<E: Engine> Kernel<E> {
    /// Takes possession of a device. It stays without translations and queues.
    pub(in crate::virtio) fn own(engine: E, place: &Place) -> Result<Self, OpenError> {
        let mut kernel = Self {
            engine,
            memory: place.memory().clone(),
            backend_features: 0,
            logging: Mutex::default(),
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
        let mut logging = self.logging.lock();
        logging.features = Some(features);
        logging.queues.clear();
        self.choose(&logging)
    }

    fn set_queue(&self, index: usize, rings: &Rings, events: &Events<'_>) -> io::Result<()> {
        self.set_vring_num(index, rings.size).map_err(io_error)?;
        self.set_vring_base(index, rings.next).map_err(io_error)?;
        let number = u32::try_from(index).map_err(io::Error::other)?;
        {
            let mut logging = self.logging.lock();
            sys::set_ring_addresses(self, number, rings, logging.log.is_some())?;
            logging.queues.push((number, *rings));
        }
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

    fn can_log(&self) -> bool {
        E::LOGS
    }

    fn set_log(&self, log: Option<&Arc<Bits>>) -> io::Result<()> {
        self.log_to(log)
    }

    fn fd(&self) -> RawFd {
        self.as_raw_fd()
    }
}

/// The table of guest memory for `VHOST_SET_MEM_TABLE`.
fn regions(memory: &Memory) -> Vec<VhostUserMemoryRegionInfo> {
    let info = |region: &vm_memory::GuestRegionMmap<Marks>| VhostUserMemoryRegionInfo {
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr().expose_provenance() as u64,
        mmap_offset: 0,
        mmap_handle: -1,
    };
    memory.iter().map(info).collect()
}
