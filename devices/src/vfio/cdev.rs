//! A host device through VFIO's character device (`/dev/vfio/devices/vfioN`).
//!
//! The order is the kernel's: open, tell KVM (it is asked once, when the device is bound), [`bind`](VfioCdev::bind) to an
//! iommufd; only then does anything else work.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use intel_vtd::Pasid;
use intel_vtd_host::{Attachment, HostDeviceId, ObjectId};
use thiserror::Error;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_NORESIZE, VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE,
};
use vm_memory::{FileOffset, MmapRegion};
use vmm_sys_util::eventfd::EventFd;

use super::address::HostAddress;
use super::host::{Armed, HostDevice, IrqKind, Irqs, Region};
use super::region_info;
use super::sys;
use super::sysfs::{OpenError, Sysfs};

/// How long operations on a device are tried again, in 10 seconds, that the kernel refuses while a reset is going on.
const BUSY_LIMIT: Duration = Duration::from_secs(2);
/// The time between two tries.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

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
    /// The file was bound already, or the IOMMU cannot enforce cache coherency.
    #[error(
        "{device} cannot be bound to an iommufd: the file was bound before, is not of /dev/vfio/devices, or the host's IOMMU \
         cannot keep its DMA coherent with the caches"
    )]
    Refused {
        /// The device.
        device: String,
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

/// An open VFIO device.
#[derive(Debug)]
pub struct VfioCdev {
    /// Shared with the mappings of its regions.
    file: Arc<File>,
    address: Option<HostAddress>,
    /// By attaching it. Leaf lock.
    waited: Mutex<Waited>,
}

impl VfioCdev {
    /// Opens the device at `address` of the host.
    ///
    /// # Errors
    /// When there is no such device, it is not bound to vfio-pci, shares its IOMMU group with devices in use, or its node
    /// cannot be opened.
    pub fn open(address: HostAddress) -> Result<Self, OpenError> {
        let path = Sysfs::default().node(address)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|source| OpenError::Node {
                address,
                path,
                source,
            })?;
        Ok(Self {
            file: Arc::new(file),
            address: Some(address),
            waited: Mutex::new(Waited::new()),
        })
    }

    /// Takes a device that somebody else opened, so that this process needs no access to the node.
    ///
    /// # Errors
    /// When the file is no character device. That it is a VFIO device is found out by [`bind`](Self::bind).
    pub fn from_file(file: File) -> Result<Self, FileError> {
        let metadata = file.metadata()?;
        if !metadata.file_type().is_char_device() {
            return Err(FileError::NotADevice);
        }
        let number = metadata.rdev();
        let address = Sysfs::default().address_of(libc::major(number), libc::minor(number));
        Ok(Self {
            file: Arc::new(file),
            address,
            waited: Mutex::new(Waited::new()),
        })
    }

    /// The device's address on the host; `None` if it came as a file and sysfs does not tell.
    #[must_use]
    pub const fn address(&self) -> Option<HostAddress> {
        self.address
    }

    /// The bridge to conventional PCI that puts its own requester id on the device's requests; `None` for a device behind PCI
    /// Express ports only, on the root bus, or whose address is not known.
    #[must_use]
    pub fn requester(&self) -> Option<HostAddress> {
        Sysfs::default().requester(self.address?)
    }

    /// The open node, for `KVM_DEV_VFIO_FILE_ADD`, which comes before [`bind`](Self::bind).
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Binds the device to an iommufd. Its DMA is blocked until it is attached.
    ///
    /// # Errors
    /// See [`BindError`]. Nothing has changed then.
    pub fn bind(&self, iommufd: BorrowedFd<'_>) -> Result<HostDeviceId, BindError> {
        match sys::bind(&self.file, iommufd) {
            Ok(id) => Ok(HostDeviceId(id)),
            Err(error) => Err(bind_error(
                self.name(),
                self.address,
                error,
                &Sysfs::default(),
            )),
        }
    }

    /// Whether the device can be reset (`VFIO_DEVICE_FLAGS_RESET`). One that cannot keeps what a guest left in it, DMA in
    /// flight included. The device must be bound.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn has_reset(&self) -> io::Result<bool> {
        sys::can_reset(&self.file)
    }
}

/// What the kernel meant. It says EPERM for interrupts that are not isolated and for a group that somebody else owns.
fn bind_error(
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
        Some(libc::EINVAL | libc::ENOTTY) => BindError::Refused { device },
        _ => BindError::Other { device, source },
    }
}

impl AsFd for VfioCdev {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Attachment for VfioCdev {
    fn attach(&self, pasid: Option<Pasid>, table: ObjectId) -> io::Result<()> {
        let attachment = sys::attachment(pasid.map(Pasid::get), table.0);
        let may_wait = || {
            let mut waited = self.waited.lock().unwrap_or_else(PoisonError::into_inner);
            waited.may_wait()
        };
        retry(may_wait, &[libc::EBUSY], || {
            sys::attach(&self.file, attachment)
        })
    }

    fn detach(&self, pasid: Option<Pasid>) -> io::Result<()> {
        let detachment = sys::detachment(pasid.map(Pasid::get));
        let mut waited = Waited::new();
        retry(
            || waited.may_wait(),
            &[libc::EBUSY],
            || sys::detach(&self.file, detachment),
        )
    }
}

impl HostDevice for VfioCdev {
    fn name(&self) -> String {
        match self.address {
            Some(address) => format!("PCI device {address}"),
            None => "the VFIO device given as a file descriptor".to_owned(),
        }
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, position(region, offset)?)
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, position(region, offset)?)
    }

    fn region(&self, region: u32) -> io::Result<Region> {
        let info = region_info::parse(&sys::region_info(&self.file, region)?)
            .ok_or(io::ErrorKind::InvalidData)?;
        if info.size > 0 && info.offset != position(region, 0)? {
            return Err(io::Error::other(format!(
                "VFIO region {region} lies at {:#x} of the file",
                info.offset
            )));
        }
        let all =
            VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE | VFIO_REGION_INFO_FLAG_MMAP;
        let mappable = if info.flags & all == all {
            info.sparse
                .unwrap_or_else(|| std::iter::once(0..info.size).collect())
        } else {
            Vec::new()
        };
        Ok(Region {
            size: info.size,
            offset: info.offset,
            mappable,
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
        let (flags, count) = sys::irq_info(&self.file, kind.index())?;
        let dynamic = flags & VFIO_IRQ_INFO_NORESIZE == 0;
        Ok(Irqs { count, dynamic })
    }

    fn arm(&self, kind: IrqKind, start: u32, events: &[Option<&EventFd>]) -> io::Result<Armed> {
        match sys::set_triggers(&self.file, kind.index(), start, events)? {
            0 => Ok(Armed::All),
            available => Ok(Armed::Only(available)),
        }
    }

    fn disarm(&self, kind: IrqKind) -> io::Result<()> {
        sys::disable_irqs(&self.file, kind.index())
    }

    fn unmask_intx(&self) -> io::Result<()> {
        sys::unmask_irq(&self.file, IrqKind::Intx.index())
    }

    fn has_reset(&self) -> io::Result<bool> {
        Self::has_reset(self)
    }

    fn reset(&self) -> io::Result<()> {
        // EAGAIN: somebody else holds the device's lock for a moment.
        let mut waited = Waited::new();
        retry(
            || waited.may_wait(),
            &[libc::EAGAIN, libc::EBUSY],
            || sys::reset(&self.file),
        )
    }
}

/// Where a region starts in the file: its number in bits 40 and up (vfio-pci's layout, which [`VfioCdev::region`] checks).
fn position(region: u32, offset: u64) -> io::Result<u64> {
    const SHIFT: u32 = 40;
    if offset >> SHIFT != 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(u64::from(region) << SHIFT | offset)
}

/// How long operations have been waiting of late. A guest that resets a device again and again, and has it attached to one PASID after
/// the other meanwhile, is not to have each of them wait.
#[derive(Debug)]
struct Waited {
    since: Instant,
    time: Duration,
}

impl Waited {
    /// After which time it is as if nobody had waited.
    const FORGOTTEN: Duration = Duration::from_secs(10);

    fn new() -> Self {
        Self {
            since: Instant::now(),
            time: Duration::ZERO,
        }
    }

    /// Whether there may be another pause.
    fn may_wait(&mut self) -> bool {
        if self.since.elapsed() > Self::FORGOTTEN {
            *self = Self::new();
        }
        let may = self.time < BUSY_LIMIT;
        if may {
            self.time += BUSY_PAUSE;
        }
        may
    }
}

/// Tries again, as long as it may wait, while `operation` fails with one of `errors`.
fn retry<T>(
    mut may_wait: impl FnMut() -> bool,
    errors: &[i32],
    mut operation: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match operation() {
            Err(error)
                if error
                    .raw_os_error()
                    .is_some_and(|number| errors.contains(&number))
                    && may_wait() =>
            {
                thread::sleep(BUSY_PAUSE);
            }
            other => return other,
        }
    }
}

#[cfg(test)]
#[path = "cdev_test.rs"]
mod tests;
