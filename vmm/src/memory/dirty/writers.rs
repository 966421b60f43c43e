//! Who writes to guest memory.

use std::io;
use std::sync::Arc;

use devices::virtio::vhost::WriteLog;
use intel_vtd_host::AssignedDevices;
use kvm_ioctls::VmFd;

use super::{DirtyLog, HostLog};
use crate::config::WriterKind;
use crate::memory::pages::Pages;
use crate::memory::{GuestRam, Memory};

/// All that writes to the memory of a machine.
#[derive(Clone)]
pub(crate) struct Writers {
    /// Whose vCPUs do.
    pub(crate) vm: Arc<VmFd>,
    pub(crate) memory: Memory,
    /// Devices that the kernel serves.
    pub(crate) served: Arc<WriteLog>,
    /// Devices of the host, if there can be any.
    pub(crate) assigned: Option<Arc<AssignedDevices<Memory>>>,
}

impl Writers {
    /// Follows all of them from here on. Nobody writes to memory at the moment, but for devices of the
    /// host; else what is being written may be missed.
    ///
    /// # Errors
    /// Who cannot be followed, and why.
    pub(crate) fn follow_all(&self) -> io::Result<DirtyLog> {
        let mut log = DirtyLog::start(&self.vm, &self.memory, &self.served)?;
        log.host = self.host_devices()?;
        Ok(log)
    }

    /// Whether devices of the host can be followed.
    ///
    /// # Errors
    /// The device that cannot be, and why.
    pub(crate) fn check_host_devices(&self) -> io::Result<()> {
        self.host_devices().map(drop)
    }

    /// Follows devices of the host from here on, if there can be any.
    fn host_devices(&self) -> io::Result<Option<HostLog>> {
        let assigned = self.assigned.as_ref();
        let log = assigned.map(|devices| HostLog::start(devices, &self.memory));
        log.transpose().map_err(io::Error::other)
    }
}

/// What can be followed that writes to guest memory.
pub(crate) trait Follow: Send + Sync {
    /// Whether there are devices of the host, which do not stop while the machine is paused.
    fn has_host_devices(&self) -> bool;

    /// Follows all writers from here on, or at least these. Nobody writes at the moment, but for devices of the
    /// host; else what is being written may be missed.
    ///
    /// # Errors
    /// Who cannot be followed, and why.
    fn follow(&self, of: Option<WriterKind>) -> io::Result<Box<dyn Following>>;
}

/// Follows what is written, until it is dropped.
pub(crate) trait Following: Send {
    /// What was written since the last call, or the start.
    ///
    /// # Errors
    /// It is not known, and no longer followed.
    fn take(&self) -> io::Result<Written>;
}

impl Follow for Writers {
    fn has_host_devices(&self) -> bool {
        let assigned = self.assigned.as_ref();
        assigned.is_some_and(|devices| !devices.describe().is_empty())
    }

    fn follow(&self, of: Option<WriterKind>) -> io::Result<Box<dyn Following>> {
        if of != Some(WriterKind::HostDevices) {
            return Ok(Box::new(self.follow_all()?));
        }
        let log = self.host_devices()?.ok_or_else(|| {
            io::Error::other("no device of the host can write, as there is no iommufd (`--object iommufd,id=ID`)")
        })?;
        Ok(Box::new(log))
    }
}

impl Following for DirtyLog {
    fn take(&self) -> io::Result<Written> {
        self.take_each()
    }
}

impl Following for HostLog {
    fn take(&self) -> io::Result<Written> {
        let mut written = Written::none(&self.memory);
        written.host_devices = self.pages().map_err(io::Error::other)?;
        Ok(written)
    }
}

/// Pages that were written, by who has written them.
#[derive(Debug)]
pub(crate) struct Written {
    /// vCPUs.
    pub(crate) vcpus: Pages,
    /// Devices of this process, and the remapping unit.
    pub(crate) devices: Pages,
    /// Devices that the kernel serves.
    pub(crate) vhost: Pages,
    /// Devices of the host.
    pub(crate) host_devices: Pages,
}

impl Written {
    /// No page of `memory`.
    pub(crate) fn none(memory: &GuestRam) -> Self {
        let none = Pages::none(memory);
        Self {
            vcpus: none.clone(),
            devices: none.clone(),
            vhost: none.clone(),
            host_devices: none,
        }
    }

    /// By one kind of writer.
    pub(crate) fn by(&self, kind: WriterKind) -> &Pages {
        match kind {
            WriterKind::Vcpus => &self.vcpus,
            WriterKind::Devices => &self.devices,
            WriterKind::Vhost => &self.vhost,
            WriterKind::HostDevices => &self.host_devices,
        }
    }

    /// By whomever.
    pub(crate) fn all(self) -> Pages {
        let mut pages = self.vcpus;
        for others in [&self.devices, &self.vhost, &self.host_devices] {
            pages.merge(others);
        }
        pages
    }
}
