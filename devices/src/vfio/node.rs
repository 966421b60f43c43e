//! A node of `/dev/vfio/devices`: a device of the host that is open, but not bound to an iommufd
//! yet.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;

use intel_vtd_host::{HostDeviceId, HostGroupId};
use thiserror::Error;
use vfio_ioctls::{VfioDevice, VfioError, VfioIommufd};

use super::address::HostAddress;
use super::bind::{BindError, bind_error, io_error};
use super::cdev::{VfioCdev, device_name};
use super::sysfs::{OpenError, Sysfs};

/// A file is not a VFIO device.
#[derive(Debug, Error)]
pub enum FileError {
    /// It is no character device.
    #[error("the file descriptor is not of a node in /dev/vfio/devices")]
    NotADevice,
    /// Its attributes cannot be read.
    #[error("cannot examine the file descriptor of a VFIO device: {0}")]
    Io(#[from] io::Error),
}

/// An open VFIO device that cannot do anything but be [bound](Self::bind). KVM is told of it
/// before: it is asked once, when the device is bound.
#[derive(Debug)]
pub struct VfioNode {
    file: File,
    address: Option<HostAddress>,
    group: Option<HostGroupId>,
}

impl VfioNode {
    /// Opens the device at `address` of the host.
    ///
    /// # Errors
    /// When there is no such device, it is not bound to vfio-pci, shares its IOMMU group with
    /// devices in use, or its node cannot be opened.
    pub fn open(address: HostAddress) -> Result<Self, OpenError> {
        let sysfs = Sysfs::default();
        let path = sysfs.node(address)?;
        let opened = VfioDevice::open_cdev(&sysfs.device(address));
        let file = opened.map_err(|error| OpenError::Node {
            address,
            path,
            source: io_error(error),
        })?;
        Ok(Self {
            file,
            address: Some(address),
            group: sysfs.group(address).map(HostGroupId),
        })
    }

    /// Takes a device that somebody else opened, so that this process needs no access to the node.
    ///
    /// # Errors
    /// When the file is no character device. That it is a VFIO device is found out by
    /// [`bind`](Self::bind).
    pub fn from_file(file: File) -> Result<Self, FileError> {
        let metadata = file.metadata()?;
        if !metadata.file_type().is_char_device() {
            return Err(FileError::NotADevice);
        }
        let number = metadata.rdev();
        let (major, minor) = (libc::major(number), libc::minor(number));
        let sysfs = Sysfs::default();
        Ok(Self {
            file,
            address: sysfs.address_of(major, minor),
            group: sysfs.group_of(major, minor).map(HostGroupId),
        })
    }

    /// The device's address on the host; `None` if it came as a file and sysfs does not tell.
    #[must_use]
    pub const fn address(&self) -> Option<HostAddress> {
        self.address
    }

    /// The device's IOMMU group; `None` if sysfs does not tell.
    #[must_use]
    pub const fn group(&self) -> Option<HostGroupId> {
        self.group
    }

    /// Binds the device to an iommufd, and tells its number there. Its DMA is blocked until it is
    /// attached.
    ///
    /// # Errors
    /// See [`BindError`]. The device is closed then.
    pub fn bind(self, iommufd: &Arc<VfioIommufd>) -> Result<(VfioCdev, HostDeviceId), BindError> {
        let Self { file, address, .. } = self;
        let device = device_name(address);
        let other = |source| BindError::Other {
            device: device.clone(),
            source,
        };
        // For what the crate does not do, or without errors.
        let second = file.try_clone().map_err(other)?;
        let bound = VfioDevice::new_from_fd(file, Arc::clone(iommufd), false);
        let bound = bound.map_err(|error| match error {
            VfioError::VfioDeviceBindIommufd(_) => {
                bind_error(device.clone(), address, io_error(error), &Sysfs::default())
            }
            error => other(io_error(error)),
        })?;
        let id = bound.iommufd_dev_id().map(HostDeviceId);
        let cdev = VfioCdev::new(bound, second, address);
        if let Some(region) = cdev.misplaced_region() {
            return Err(BindError::Layout { device, region });
        }
        let id = id.ok_or_else(|| other(io::ErrorKind::InvalidData.into()))?;
        Ok((cdev, id))
    }
}

impl AsFd for VfioNode {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod node_test;
