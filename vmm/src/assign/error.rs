//! Errors of assigning a device of the host, each with its remedy.

use std::io;
use std::path::PathBuf;

use devices::vfio::{BindError, FileError, HostAddress, OpenError};
use intel_vtd_host::AddError;
use thiserror::Error;

use super::remedy::Remedied;
use super::services::Hidden;
use crate::config::VfioConfig;
use crate::layout::MIB;
use crate::limits;

/// Why there are no assigned devices.
#[derive(Debug, Error)]
pub(crate) enum AssignError {
    /// An iommufd cannot be opened.
    #[error("--object iommufd,id={id}: {path} cannot be opened ({cause}); {}", open_hint(.cause))]
    Iommufd {
        /// Its name.
        id: String,
        /// Where it should be.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// An iommufd that was opened beforehand cannot be used.
    #[error("--object iommufd,id={id},fd={fd}: {}", descriptor_hint(.cause, *.fd, "/dev/iommu"))]
    Descriptor {
        /// Its name.
        id: String,
        /// Its number.
        fd: i32,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A device.
    #[error("{device}: {why}")]
    Device {
        /// The option that asks for it.
        device: String,
        /// What is in the way.
        why: Why,
    },
    /// The host's IOMMU does not take it.
    #[error(transparent)]
    Add(AddError),
    /// Guest memory cannot be locked.
    #[error(
        "{cause} (this process may lock {limit_mib} MiB, and the guest has {memory_mib} MiB: raise the limit with `ulimit -l \
         unlimited`, or LimitMEMLOCK=infinity for a service, or give nido CAP_IPC_LOCK)"
    )]
    Locked {
        /// What failed.
        cause: AddError,
        /// RLIMIT_MEMLOCK.
        limit_mib: u64,
        /// Guest memory.
        memory_mib: u64,
    },
}

/// What is in the way of a device.
#[derive(Debug, Error)]
pub(crate) enum Why {
    #[error("there is no iommufd with this id; only those from the command line can be used")]
    NoIommufd,
    #[error("{}", descriptor_hint(.1, *.0, "/dev/vfio/devices/vfioN"))]
    Descriptor(i32, io::Error),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "the host's sysfs does not tell which IOMMU group the device is in, so it is not known whether it can be kept apart from \
         others; mount sysfs at /sys for nido"
    )]
    NoGroup,
    #[error("this machine has the device already; one guest device is all it can be")]
    Taken,
    #[error("KVM does not take the device ({0}); {hint}", hint = kvm_hint(.0))]
    Kvm(io::Error),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(
        "the host cannot reset the device (VFIO_DEVICE_FLAGS_RESET is missing), so it keeps what a guest leaves in it, for this \
         guest's next start and for the next owner; write needs-reset=off to assign it nevertheless"
    )]
    NoReset,
    #[error("the host does not tell what the device and its IOMMU can do: {0}")]
    Asking(io::Error),
    #[error(
        "the device is behind the bridge {0} of the host, which puts its own requester id on its requests, and x-flts=on needs a \
         device that the host's IOMMU tells apart; write x-flts=off, or move the device to a PCI Express slot"
    )]
    Bridge(HostAddress),
    #[error(
        "the host makes no queue for page requests of devices ({0}), for which its kernel is to be Linux 6.11 or later; write pri=off"
    )]
    Pages(io::Error),
    #[error(transparent)]
    Incompatible(#[from] Remedied),
    #[error(transparent)]
    Hidden(#[from] Hidden),
}

impl AssignError {
    pub(super) fn device(config: &VfioConfig, why: Why) -> Self {
        Self::Device {
            device: config.to_string(),
            why,
        }
    }

    /// Names the limit, if that is what is in the way.
    pub(super) fn add(error: AddError, memory: u64) -> Self {
        match &error {
            AddError::Map { cause, .. } if cause.raw_os_error() == Some(libc::ENOMEM) => {
                match limits::lock_limit() {
                    Some(limit) if limit < memory => Self::Locked {
                        cause: error,
                        limit_mib: limit / MIB,
                        memory_mib: memory / MIB,
                    },
                    _ => Self::Add(error),
                }
            }
            _ => Self::Add(error),
        }
    }
}

fn open_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV) => {
            "the host's kernel needs CONFIG_IOMMUFD (`modprobe iommufd`), Linux 6.6 or later"
        }
        Some(libc::EACCES | libc::EPERM) => {
            "give this user access to it with chown or a udev rule, or pass it with fd="
        }
        Some(libc::ENOTTY) => "it is no iommufd, so write another path, or leave it out",
        _ => "see the host's log (dmesg)",
    }
}

fn kvm_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENODEV) => {
            "the host's kernel needs CONFIG_KVM_VFIO, so that KVM knows whether its DMA is coherent"
        }
        Some(libc::EINVAL) => "the file is of no VFIO device; open a node of /dev/vfio/devices",
        Some(libc::EEXIST) => "this machine has the device already; give it once",
        _ => "see the host's log (dmesg)",
    }
}

fn descriptor_hint(error: &io::Error, fd: i32, node: &str) -> String {
    match error.raw_os_error() {
        Some(libc::EBADF) => format!(
            "nido was not started with this file descriptor; open it beforehand, in a shell with `{fd}<>{node}`"
        ),
        Some(libc::ENOTTY) => format!("the file descriptor is not of {node}"),
        _ => format!("the file descriptor cannot be used ({error})"),
    }
}
