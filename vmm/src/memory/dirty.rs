//! Which pages of guest memory are written to while the guest runs: by vCPUs, which KVM logs, by
//! devices and the unit, which mark what they write, by devices that the kernel serves, which logs it, and
//! by devices of the host, of which its IOMMU tells.

mod host;
mod writers;

use std::io;
use std::sync::Arc;

use devices::marks::Marks;
use devices::virtio::vhost::WriteLog;
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _, MmapRegion};

use super::pages::Pages;
use super::{GuestRam, Memory};
use crate::kvm;
use host::HostLog;
pub(crate) use writers::{Follow, Following, Writers, Written};

/// Follows what is written, until it is dropped.
pub(crate) struct DirtyLog {
    vm: Arc<VmFd>,
    memory: Memory,
    writers: Arc<WriteLog>,
    /// If devices of the host can be assigned.
    host: Option<HostLog>,
}

impl DirtyLog {
    /// Begins with what is written from here on, but for devices of the host. `memory` is all RAM of `vm`,
    /// `writers` are the devices that the kernel serves, and nobody writes to it at the moment: the machine
    /// is paused, or has not run.
    ///
    /// # Errors
    /// KVM cannot log, or one of these devices.
    pub(crate) fn start(
        vm: &Arc<VmFd>,
        memory: &Memory,
        writers: &Arc<WriteLog>,
    ) -> io::Result<Self> {
        // Its drop ends what has begun if the rest fails.
        let log = Self {
            vm: Arc::clone(vm),
            memory: Arc::clone(memory),
            writers: Arc::clone(writers),
            host: None,
        };
        kvm::dirty::log(vm, memory, true)?;
        marks(memory).for_each(Marks::begin);
        writers.begin(memory)?;
        Ok(log)
    }

    /// What was written since the last call, or the start. The guest may run. What is written meanwhile
    /// is in this or in the next; what a page holds is to be looked at after this. All of it is told
    /// once the machine is paused.
    ///
    /// # Errors
    /// KVM does not tell. What it has told before of other pieces of memory is lost then, so the log is
    /// of no more use.
    pub(crate) fn take(&self) -> io::Result<Pages> {
        Ok(self.take_each()?.all())
    }

    /// The same by who has written it.
    ///
    /// # Errors
    /// As for [`take`](Self::take).
    pub(crate) fn take_each(&self) -> io::Result<Written> {
        let mut written = Written::none(&self.memory);
        let marked = marks(&self.memory).map(Marks::take);
        for (number, (logged, marked)) in kvm::dirty::logged(&self.vm, &self.memory)
            .zip(marked)
            .enumerate()
        {
            written.vcpus.insert(number, &logged?);
            written.devices.insert(number, &marked);
        }
        for (number, region) in self.memory.iter().enumerate() {
            let count = region.size().div_ceil(Marks::PAGE);
            let logged = self.writers.take(region.start_addr(), count);
            written.vhost.insert(number, &logged);
        }
        if let Some(host) = &self.host {
            written.host_devices = host.pages().map_err(io::Error::other)?;
        }
        Ok(written)
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        marks(&self.memory).for_each(Marks::end);
        self.writers.end();
        if let Err(error) = kvm::dirty::log(&self.vm, &self.memory, false) {
            log::warn!("KVM goes on to log what the guest writes, which slows it down: {error}");
        }
    }
}

/// Of each region.
fn marks(memory: &GuestRam) -> impl Iterator<Item = &Marks> {
    memory.iter().map(|region| MmapRegion::bitmap(region))
}

#[cfg(test)]
mod dirty_test;
