//! Binding a VFIO device to an iommufd (`VFIO_DEVICE_BIND_IOMMUFD`), and what prevents it.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use iommufd_ioctls::{IommuFd, IommufdError};
use thiserror::Error;
use vfio_ioctls::{VfioError, VfioIommufd};

use super::address::HostAddress;
use super::sysfs::Sysfs;

/// A device cannot be bound to an iommufd (`VFIO_DEVICE_BIND_IOMMUFD`).
#[derive(Debug, Error)]
pub enum BindError {
    /// The IOMMU does not keep the device's messages apart from others'.
    #[error(
        "the host does not isolate the interrupts of {device}: its IOMMU has no interrupt remapping, or it is switched off; \
         enable it (intel_iommu=on intremap=on, and in the firmware), or accept that the guest can send any interrupt to the \
         host with the kernel option iommufd.allow_unsafe_interrupts=1"
    )]
    UnsafeInterrupts {
        /// The device.
        device: String,
    },
    /// Drivers of the host have other devices of its IOMMU group.
    #[error(
        "{device} shares its IOMMU group with devices that drivers of the host use: {}; bind them to vfio-pci as well", 
        .others.join(", ")
    )]
    SharedGroup {
        /// The device.
        device: String,
        /// The others, with their drivers.
        others: Vec<String>,
    },
    /// Somebody else has devices of its IOMMU group.
    #[error(
        "{device} cannot be bound: its IOMMU group belongs to another process or to another iommufd{}; give all devices of \
         a group to one iommufd (or the host does not isolate the group's interrupts: see intel_iommu=on intremap=on)",
        among(.others)
    )]
    GroupOwned {
        /// The device.
        device: String,
        /// The other devices of the group.
        others: Vec<String>,
    },
    /// Somebody else uses the device.
    #[error(
        "{device} is in use: its IOMMU group is open through /dev/vfio/<group> or bound to another iommufd; end the \
         process that has it (fuser -v /dev/vfio/*)"
    )]
    Busy {
        /// The device.
        device: String,
    },
    /// The firmware wants a mapping of its own for the device (RMRR of VT-d, 8.4; IVMD of AMD), so
    /// the kernel gives it, and all of its group, to nobody.
    #[error(
        "{device} cannot be assigned: the firmware reserves memory for {} to use by its host-physical address \
         (RMRR or IVMD: {}), and the kernel never takes that from it; switch the function that needs it off in the firmware's \
         settings (remote management, legacy USB, shared storage cache) or update the firmware, or assign a device that has \
         none (`grep 'direct$' /sys/kernel/iommu_groups/*/reserved_regions` lists those that have)",
        whose(.others), .regions.join(", ")
    )]
    FirmwareMapping {
        /// The device.
        device: String,
        /// The other devices of its group, which has the regions in common.
        others: Vec<String>,
        /// What the firmware reserves: first and last address.
        regions: Vec<String>,
    },
    /// The file was bound already, or the IOMMU cannot enforce cache coherency.
    #[error(
        "{device} cannot be bound to an iommufd: the file was bound before, is not of /dev/vfio/devices, or the host's IOMMU \
         cannot keep its DMA coherent with the caches"
    )]
    Refused {
        /// The device.
        device: String,
    },
    /// Its driver does not lay out the device's file as vfio-pci does.
    #[error(
        "{device}: the host does not describe VFIO region {region} as vfio-pci does, so it is no PCI device, or does not work"
    )]
    Layout {
        /// The device.
        device: String,
        /// The number of the region.
        region: u32,
    },
    /// Anything else.
    #[error("{device} cannot be bound to the iommufd: {source}")]
    Other {
        /// The device.
        device: String,
        /// Why.
        source: io::Error,
    },
}

fn among(others: &[String]) -> String {
    if others.is_empty() {
        return String::new();
    }
    format!(", with {}", others.join(", "))
}

/// Whom regions are for that a group has in common.
fn whose(others: &[String]) -> String {
    match others {
        [] => "it".to_owned(),
        others => format!(
            "it or for others of its IOMMU group ({})",
            others.join(", ")
        ),
    }
}

/// Shares `iommufd` with the devices that will be bound to it. It costs a descriptor and an IOAS
/// that stays empty, which [`VfioIommufd`] always has; both are given back when the value and all
/// of its devices are dropped.
///
/// # Errors
/// When there are no more descriptors, or the file is no iommufd.
pub fn share_iommufd(iommufd: BorrowedFd<'_>) -> io::Result<Arc<VfioIommufd>> {
    let file = File::from(iommufd.try_clone_to_owned()?);
    let iommufd = Arc::new(IommuFd::new_from_fd(file));
    // KVM hears of devices from the machine, not from the crate, which panics where KVM cannot be
    // made to forget one.
    let shared = VfioIommufd::new(iommufd, None, None).map_err(io_error)?;
    Ok(Arc::new(shared))
}

/// What the kernel meant. It says EPERM for interrupts that are not isolated and for a group that
/// somebody else owns.
pub(super) fn bind_error(
    device: String,
    address: Option<HostAddress>,
    source: io::Error,
    sysfs: &Sysfs,
) -> BindError {
    match source.raw_os_error() {
        Some(libc::EPERM) => {
            let used = address.map(|address| sysfs.group_users(address));
            let used = used.unwrap_or_default();
            let others = address.map(|address| sysfs.group_members(address));
            let others = others.unwrap_or_default();
            if !used.is_empty() {
                let others = used
                    .into_iter()
                    .map(|(device, driver)| format!("{device} ({driver})"))
                    .collect();
                BindError::SharedGroup { device, others }
            } else if !others.is_empty() || sysfs.allows_unsafe_interrupts() {
                BindError::GroupOwned { device, others }
            } else {
                BindError::UnsafeInterrupts { device }
            }
        }
        Some(libc::EBUSY) => BindError::Busy { device },
        Some(libc::EINVAL) => {
            let regions = address.map(|address| sysfs.firmware_mappings(address));
            match regions {
                Some(regions) if !regions.is_empty() => BindError::FirmwareMapping {
                    device,
                    others: address.map_or_else(Vec::new, |address| sysfs.group_members(address)),
                    regions,
                },
                _ => BindError::Refused { device },
            }
        }
        Some(libc::ENOTTY) => BindError::Refused { device },
        _ => BindError::Other { device, source },
    }
}

/// What the kernel said, as far as the crate keeps it.
pub(super) fn io_error(error: VfioError) -> io::Error {
    match error {
        VfioError::VfioDeviceBindIommufd(error)
        | VfioError::VfioDeviceAttachIommufdPt(error)
        | VfioError::VfioDeviceDetachIommufdPt(error)
        | VfioError::VfioDeviceGetInfo(error)
        | VfioError::VfioDeviceFeature(error)
        | VfioError::NewVfioIommufd(IommufdError::IommuIoasAlloc(error)) => error.into(),
        VfioError::OpenDeviceCdev(error) | VfioError::VfioMigrationDataIo(error) => error,
        error => io::Error::other(error),
    }
}

#[cfg(test)]
mod bind_test;
