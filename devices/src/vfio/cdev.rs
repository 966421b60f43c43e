//! A device of the host that is bound to an iommufd, through VFIO's character device
//! (`/dev/vfio/devices/vfioN`).
//!
//! vfio-ioctls carries what it can; on the same file, `sys.rs` has what it cannot do or does
//! without telling errors.

use std::fs::File;
use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use intel_vtd::Pasid;
use intel_vtd_host::{Attachment, HwptId};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_NORESIZE, VFIO_MIGRATION_P2P, VFIO_MIGRATION_STOP_COPY,
    VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};
use vfio_ioctls::{VfioDevice, VfioRegionInfoCap};
use vm_memory::{FileOffset, MmapRegion};
use vmm_sys_util::eventfd::EventFd;

use super::address::HostAddress;
use super::bind::io_error;
use super::capabilities;
use super::host::{
    Armed, CONFIG_REGION, HostDevice, IrqKind, Irqs, MigrationFeatures, MigrationState, Region,
};
use super::image::read_image;
use super::retry::{PAUSES, retry};
use super::services::HostServices;
use super::sys;
use super::sysfs::Sysfs;

/// A VFIO device that is bound to an iommufd. Dropping it detaches it and gives it back.
pub struct VfioCdev {
    /// Shared with nobody, unless it cannot be detached: see `drop`.
    device: Arc<VfioDevice>,
    /// The same file, shared with the mappings of its regions.
    file: Arc<File>,
    address: Option<HostAddress>,
}

impl VfioCdev {
    /// `file` is a duplicate of the one in `device`.
    pub(super) fn new(device: VfioDevice, file: File, address: Option<HostAddress>) -> Self {
        Self {
            device: Arc::new(device),
            file: Arc::new(file),
            address,
        }
    }

    /// The device's address on the host; `None` if it came as a file and sysfs does not tell.
    #[must_use]
    pub const fn address(&self) -> Option<HostAddress> {
        self.address
    }

    /// The bridge to conventional PCI that puts its own requester id on the device's requests;
    /// `None` for a device behind PCI Express ports only, on the root bus, or whose address is not
    /// known.
    #[must_use]
    pub fn requester(&self) -> Option<HostAddress> {
        Sysfs::default().requester(self.address?)
    }

    /// Whether the device can be reset (`VFIO_DEVICE_FLAGS_RESET`). One that cannot keeps what a
    /// guest left in it, DMA in flight included.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn has_reset(&self) -> io::Result<bool> {
        sys::can_reset(&self.file)
    }

    /// What the device has of ATS and PRI.
    ///
    /// # Errors
    /// When its configuration space cannot be read.
    pub fn services(&self) -> io::Result<HostServices> {
        Ok(capabilities::host_services(&*read_image(self)?))
    }

    /// The first region that does not lie where vfio-pci puts it. The crate leaves out regions that
    /// the kernel does not describe, and numbers those that follow anew.
    pub(super) fn misplaced_region(&self) -> Option<u32> {
        misplaced(|region| {
            let size = self.device.get_region_size(region);
            (size, self.device.get_region_offset(region))
        })
    }
}

/// The first of BARs, ROM and configuration space that is not in its place, by the size and the
/// offset of each.
fn misplaced(region: impl Fn(u32) -> (u64, u64)) -> Option<u32> {
    (0..=CONFIG_REGION).find(|&index| {
        let (size, offset) = region(index);
        let in_place = position(index, 0).is_ok_and(|start| start == offset);
        // Of a region that is not there, the offset means nothing.
        if size == 0 {
            index == CONFIG_REGION
        } else {
            !in_place
        }
    })
}

pub(super) fn device_name(address: Option<HostAddress>) -> String {
    match address {
        Some(address) => format!("PCI device {address}"),
        None => "the VFIO device given as a file descriptor".to_owned(),
    }
}

impl Drop for VfioCdev {
    /// A `VfioDevice` that is dropped detaches itself, and panics where that fails (EIO of a device
    /// that is dead). Detached already, it cannot fail; otherwise it is never dropped, and only its
    /// file is closed.
    fn drop(&mut self) {
        if let Err(error) = self.device.detach_hwpt() {
            log::warn!("{}: {error}; closing it detaches it", self.name());
            let file = self.device.as_raw_fd();
            mem::forget(Arc::clone(&self.device));
            if let Err(error) = nix::unistd::close(file) {
                log::warn!("{}: cannot be closed: {error}", self.name());
            }
        }
    }
}

impl Attachment for VfioCdev {
    fn attach(&self, pasid: Option<Pasid>, table: HwptId) -> io::Result<()> {
        let attached = match pasid {
            None => self.device.attach_hwpt(table.0),
            Some(pasid) => self.device.attach_iommufd_pt_pasid(table.0, pasid.get()),
        };
        attached.map_err(io_error)
    }

    fn detach(&self, pasid: Option<Pasid>) -> io::Result<()> {
        let detached = match pasid {
            None => self.device.detach_hwpt(),
            Some(pasid) => self.device.detach_iommufd_pt_pasid(pasid.get()),
        };
        detached.map_err(io_error)
    }
}

impl HostDevice for VfioCdev {
    fn name(&self) -> String {
        device_name(self.address)
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, position(region, offset)?)
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, position(region, offset)?)
    }

    fn region(&self, region: u32) -> io::Result<Region> {
        let size = self.device.get_region_size(region);
        let flags = self.device.get_region_flags(region);
        let capabilities = self.device.get_region_caps(region);
        Ok(Region {
            size,
            mappable: mappable(size, flags, &capabilities),
        })
    }

    fn map(&self, region: u32, part: Range<u64>) -> io::Result<Arc<MmapRegion>> {
        let start = position(region, part.start)?;
        let length = part
            .end
            .checked_sub(part.start)
            .and_then(|length| usize::try_from(length).ok())
            .ok_or(io::ErrorKind::InvalidInput)?;
        let file = FileOffset::from_arc(Arc::clone(&self.file), start);
        MmapRegion::from_file(file, length)
            .map(Arc::new)
            .map_err(io::Error::other)
    }

    fn irqs(&self, kind: IrqKind) -> io::Result<Irqs> {
        let irq = self.device.get_irq_info(kind.index());
        let irq = irq.ok_or(io::ErrorKind::NotFound)?;
        Ok(Irqs {
            count: irq.count,
            dynamic: irq.flags & VFIO_IRQ_INFO_NORESIZE == 0,
        })
    }

    fn arm(&self, kind: IrqKind, start: u32, events: &[Option<&EventFd>]) -> io::Result<Armed> {
        match sys::set_triggers(&self.file, kind.index(), start, events)? {
            0 => Ok(Armed::All),
            available => Ok(Armed::Only(available)),
        }
    }

    fn disarm(&self, kind: IrqKind) -> io::Result<()> {
        self.device.disable_irq(kind.index()).map_err(io_error)
    }

    fn unmask_intx(&self) -> io::Result<()> {
        let index = IrqKind::Intx.index();
        self.device.unmask_irq(index).map_err(io_error)
    }

    fn has_reset(&self) -> io::Result<bool> {
        Self::has_reset(self)
    }

    fn reset(&self) -> io::Result<()> {
        // EAGAIN: somebody else holds the device's lock for a moment.
        retry(PAUSES, &[libc::EAGAIN, libc::EBUSY], || {
            sys::reset(&self.file)
        })
    }

    fn migration(&self) -> io::Result<Option<MigrationFeatures>> {
        // The crate takes what older kernels and drivers without it say for none.
        let flags = self.device.query_migration_support().map_err(io_error)?;
        let has = |flags: u64, flag: u32| flags & u64::from(flag) != 0;
        Ok(flags.map(|flags| MigrationFeatures {
            stop_copy: has(flags, VFIO_MIGRATION_STOP_COPY),
            p2p: has(flags, VFIO_MIGRATION_P2P),
        }))
    }

    fn migration_state(&self) -> io::Result<MigrationState> {
        let number = self.device.get_migration_state().map_err(io_error)?;
        MigrationState::from_number(number).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn set_migration_state(&self, state: MigrationState) -> io::Result<()> {
        let outcome = self.device.set_migration_state(state.number());
        outcome.map_err(io_error)
    }

    fn read_migration(&self, data: &mut [u8]) -> io::Result<usize> {
        self.device.read_migration_data(data).map_err(io_error)
    }

    fn write_migration(&self, data: &[u8]) -> io::Result<()> {
        self.device.write_migration_data(data).map_err(io_error)
    }
}

/// Where a region starts in the file: its number in bits 40 and up (vfio-pci's layout, which is
/// checked when the device is bound).
fn position(region: u32, offset: u64) -> io::Result<u64> {
    const SHIFT: u32 = 40;
    if offset >> SHIFT != 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(u64::from(region) << SHIFT | offset)
}

/// The parts of a region that can be mapped: all of it, or the sparse areas that VFIO names.
fn mappable(size: u64, flags: u32, capabilities: &[VfioRegionInfoCap]) -> Vec<Range<u64>> {
    let all = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE | VFIO_REGION_INFO_FLAG_MMAP;
    if flags & all != all {
        return Vec::new();
    }
    let sparse = capabilities.iter().find_map(|capability| match capability {
        VfioRegionInfoCap::SparseMmap(sparse) => Some(&sparse.areas),
        _ => None,
    });
    match sparse {
        None => std::iter::once(0..size).collect(),
        Some(areas) => areas
            .iter()
            .filter_map(|area| Some(area.offset..area.offset.checked_add(area.size)?))
            .collect(),
    }
}

#[cfg(test)]
mod cdev_test;
