//! The VFIO node of a PCI device, and its driver and IOMMU group, as sysfs shows them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::address::HostAddress;

/// A device cannot be opened for assignment.
#[derive(Debug, Error)]
pub enum OpenError {
    /// There is no such device.
    #[error("PCI device {0} does not exist on this host; `lspci -D` shows those that do")]
    NoDevice(HostAddress),
    /// A driver of the host has the device.
    #[error("PCI device {address} is bound to the driver {driver}; bind it to vfio-pci with\n{}", bind_commands(*.address))]
    OtherDriver {
        /// The device.
        address: HostAddress,
        /// Its driver.
        driver: String,
    },
    /// No driver has the device.
    #[error("PCI device {0} has no driver; bind it to vfio-pci with\n{commands}", commands = bind_commands(*.0))]
    NoDriver(HostAddress),
    /// The kernel has VFIO, but not its character devices.
    #[error(
        "PCI device {0} is bound to {1}, but has no node in /dev/vfio/devices: the host's kernel needs \
         CONFIG_VFIO_DEVICE_CDEV (Linux 6.6 or later)"
    )]
    NoCdev(HostAddress, String),
    /// The host has no IOMMU, or does not use it.
    #[error(
        "PCI device {0} is in no IOMMU group; enable the IOMMU in the host's firmware and kernel (intel_iommu=on)"
    )]
    NoIommu(HostAddress),
    /// Drivers of the host have other devices of the group, which cannot be told apart from this
    /// one by the IOMMU.
    #[error(
        "PCI device {address} shares IOMMU group {group} with devices that drivers of the host use: {}; bind them to \
         vfio-pci as well, or move {address} to another slot", list(.others)
    )]
    SharedGroup {
        /// The device.
        address: HostAddress,
        /// The group's number.
        group: String,
        /// The other devices and their drivers.
        others: Vec<(String, String)>,
    },
    /// The node cannot be opened.
    #[error("cannot open {path} of PCI device {address}: {source}{}", open_hint(.source))]
    Node {
        /// The device.
        address: HostAddress,
        /// The node.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The commands that give a device to vfio-pci.
fn bind_commands(address: HostAddress) -> String {
    format!(
        "  modprobe vfio-pci\n  \
           echo vfio-pci > /sys/bus/pci/devices/{address}/driver_override\n  \
           echo {address} > /sys/bus/pci/devices/{address}/driver/unbind   # if it has a driver\n  \
           echo {address} > /sys/bus/pci/drivers_probe"
    )
}

fn list(others: &[(String, String)]) -> String {
    let others: Vec<_> = others
        .iter()
        .map(|(device, driver)| format!("{device} ({driver})"))
        .collect();
    others.join(", ")
}

fn open_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            "; give this user access to it with chown or a udev rule"
        }
        Some(libc::EBUSY) => "; another process has the device or its group open",
        _ => "",
    }
}

/// Where the kernel shows its devices, so that tests can show others.
#[derive(Clone, Debug)]
pub(super) struct Sysfs {
    /// `/sys`.
    pub(super) sys: PathBuf,
    /// `/dev`.
    pub(super) dev: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self {
            sys: PathBuf::from("/sys"),
            dev: PathBuf::from("/dev"),
        }
    }
}

impl Sysfs {
    /// The node of `address`, if nothing that sysfs knows is in the way of binding it to an
    /// iommufd.
    pub(super) fn node(&self, address: HostAddress) -> Result<PathBuf, OpenError> {
        let device = self.device(address);
        if !device.exists() {
            return Err(OpenError::NoDevice(address));
        }
        let driver = link_name(&device.join("driver"));
        let Some(name) = vfio_node(&device) else {
            return Err(match driver {
                None => OpenError::NoDriver(address),
                Some(driver) if driver.contains("vfio") => OpenError::NoCdev(address, driver),
                Some(driver) => OpenError::OtherDriver { address, driver },
            });
        };
        let Some(group) = link_name(&device.join("iommu_group")) else {
            return Err(OpenError::NoIommu(address));
        };
        let others = self.group_users(address);
        if !others.is_empty() {
            return Err(OpenError::SharedGroup {
                address,
                group,
                others,
            });
        }
        Ok(self.dev.join("vfio/devices").join(name))
    }

    /// The number of `address`'s IOMMU group.
    pub(super) fn group(&self, address: HostAddress) -> Option<u32> {
        group(&self.device(address))
    }

    /// The number of the IOMMU group of the device whose node has this number.
    pub(super) fn group_of(&self, major: u32, minor: u32) -> Option<u32> {
        group(&self.sys.join(format!("dev/char/{major}:{minor}/device")))
    }

    /// The other devices of `address`'s group.
    pub(super) fn group_members(&self, address: HostAddress) -> Vec<String> {
        let own = address.to_string();
        let mut members: Vec<_> = entries(&self.device(address).join("iommu_group/devices"))
            .filter(|name| *name != own)
            .collect();
        members.sort();
        members
    }

    /// The memory that the firmware wants mapped for `address`'s group, where it is, as long as the
    /// kernel has the devices (`direct` in `reserved_regions`). What is `direct-relaxable`, the
    /// kernel gives up for a user of the device.
    pub(super) fn firmware_mappings(&self, address: HostAddress) -> Vec<String> {
        let regions = self.device(address).join("iommu_group/reserved_regions");
        let regions = fs::read_to_string(regions).unwrap_or_default();
        let direct = regions.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let (first, last) = (words.next()?, words.next()?);
            let bound = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
            let (first, last) = (bound(first)?, bound(last)?);
            (words.next()? == "direct").then(|| format!("{first:#x} to {last:#x}"))
        });
        direct.collect()
    }

    /// Whether iommufd takes devices whose interrupts are not isolated.
    pub(super) fn allows_unsafe_interrupts(&self) -> bool {
        let parameter = "module/iommufd/parameters/allow_unsafe_interrupts";
        fs::read_to_string(self.sys.join(parameter)).is_ok_and(|value| value.trim() == "Y")
    }

    /// Those of them that drivers of the host use, and the drivers.
    pub(super) fn group_users(&self, address: HostAddress) -> Vec<(String, String)> {
        self.group_members(address)
            .into_iter()
            .filter_map(|name| {
                let device = self.sys.join("bus/pci/devices").join(&name);
                let driver = link_name(&device.join("driver"))?;
                let harmless = vfio_node(&device).is_some() || manages_no_dma(&driver);
                (!harmless).then_some((name, driver))
            })
            .collect()
    }

    /// The address of the device whose node has this number (`st_rdev`), if sysfs tells.
    pub(super) fn address_of(&self, major: u32, minor: u32) -> Option<HostAddress> {
        let node = self.sys.join(format!("dev/char/{major}:{minor}/device"));
        link_name(&node)?.parse().ok()
    }

    pub(super) fn device(&self, address: HostAddress) -> PathBuf {
        self.sys.join("bus/pci/devices").join(address.to_string())
    }
}

/// Drivers that leave the device's DMA to VFIO users of its group (`driver_managed_dma` in the
/// kernel).
fn manages_no_dma(driver: &str) -> bool {
    matches!(driver, "pci-stub" | "pcieport" | "shpchp") || driver.contains("vfio")
}

fn group(device: &Path) -> Option<u32> {
    link_name(&device.join("iommu_group"))?.parse().ok()
}

/// `vfioN` in the device's `vfio-dev` directory.
fn vfio_node(device: &Path) -> Option<String> {
    entries(&device.join("vfio-dev")).find(|name| name.starts_with("vfio"))
}

fn entries(directory: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

/// The last part of what a symbolic link leads to.
pub(super) fn link_name(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod sysfs_test;
