//! Doorbells of devices as KVM events: a guest's write wakes the device without a trip through the
//! VMM.

use std::io;
use std::sync::Arc;

use devices::Doorbells;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::kvm::io_error;

/// KVM's ioeventfds.
pub(crate) struct KvmDoorbells(pub(crate) Arc<VmFd>);

impl Doorbells for KvmDoorbells {
    fn add(&self, address: u64, fd: &EventFd) -> io::Result<()> {
        self.0
            .register_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(io_error)
    }

    fn remove(&self, address: u64, fd: &EventFd) {
        if let Err(error) =
            self.0
                .unregister_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch)
        {
            log::warn!("KVM refused to remove the doorbell at {address:#x}: {error}");
        }
    }
}
