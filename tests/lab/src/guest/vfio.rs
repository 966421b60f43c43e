//! A PCI function driven from user space through VFIO: with iommufd where there is a remapping
//! unit, else no-iommu.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::pci;
use crate::sys::ioctl::{self, ioctl, ioctl_value};
use crate::sys::memory::{self, Buffer};

/// VFIO_PCI_CONFIG_REGION_INDEX.
const CONFIG_REGION: u32 = 7;
/// Longest time until the kernel shows what it has been asked for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// VFIO_PCI_INTX_IRQ_INDEX.
const INTX_INDEX: u32 = 0;
/// VFIO_PCI_MSI_IRQ_INDEX.
const MSI_INDEX: u32 = 1;
/// VFIO_NOIOMMU_IOMMU.
const NO_IOMMU: u64 = 8;
/// PCI command register: memory space and bus master.
const COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u16 = 6;

/// An open function.
pub(super) struct Function {
    /// `0000:00:03.0`.
    pub(super) address: String,
    device: OwnedFd,
    /// Its id in the iommufd, if there is a unit.
    id: u32,
    /// With a remapping unit: the addresses that the function is attached to.
    space: Option<Rc<Space>>,
    /// Without one: the group and its container, which must stay open as long as the device.
    _group: Option<(File, File)>,
}

/// Addresses for DMA: an IOAS, which several functions can be attached to.
pub(super) struct Space {
    iommu: Rc<File>,
    id: u32,
}

/// A page table of a [`Space`].
pub(super) struct Table {
    space: Rc<Space>,
    id: u32,
}

/// What a function may do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Read.
    Read,
    /// Read and write.
    ReadWrite,
}

impl Space {
    /// A new one, which maps nothing.
    pub(super) fn new() -> Result<Self> {
        Self::of(Rc::new(open_node(Path::new("/dev/iommu"))?))
    }

    /// Another one of the same iommufd.
    pub(super) fn sibling(&self) -> Result<Self> {
        Self::of(Rc::clone(&self.iommu))
    }

    fn of(iommu: Rc<File>) -> Result<Self> {
        let mut space = ioctl::IoasAlloc {
            size: 12,
            ..Default::default()
        };
        ioctl(&*iommu, &ioctl::IOAS_ALLOC, &mut space).context("IOMMU_IOAS_ALLOC")?;
        Ok(Self {
            iommu,
            id: space.out_ioas_id,
        })
    }

    /// Maps `buffer` at `iova`. It must stay alive until [`Self::unmap`] or the end of `self`.
    pub(super) fn map(&self, buffer: &Buffer, iova: u64, access: Access) -> Result<()> {
        let rights = match access {
            Access::Read => 4,
            Access::ReadWrite => 2 | 4,
        };
        let mut map = ioctl::IoasMap {
            size: 40,
            flags: 1 | rights,
            ioas_id: self.id,
            reserved: 0,
            user_va: buffer.address(),
            length: buffer.len() as u64,
            iova,
        };
        ioctl(&*self.iommu, &ioctl::IOAS_MAP, &mut map).context("IOMMU_IOAS_MAP")?;
        Ok(())
    }

    /// Maps `length` bytes of a memfd from `start` on at `iova`.
    pub(super) fn map_file(&self, file: &File, start: u64, length: u64, iova: u64) -> Result<()> {
        let mut map = ioctl::IoasMapFile {
            size: 40,
            flags: 7,
            ioas_id: self.id,
            fd: file.as_raw_fd(),
            start,
            length,
            iova,
        };
        ioctl(&*self.iommu, &ioctl::IOAS_MAP_FILE, &mut map).context("IOMMU_IOAS_MAP_FILE")?;
        Ok(())
    }

    /// Maps at `iova` what `source` of the same iommufd has at `address`.
    pub(super) fn copy(&self, source: &Self, address: u64, length: u64, iova: u64) -> Result<()> {
        let mut copy = ioctl::IoasCopy {
            size: 40,
            flags: 7,
            dst_ioas_id: self.id,
            src_ioas_id: source.id,
            length,
            dst_iova: iova,
            src_iova: address,
        };
        ioctl(&*self.iommu, &ioctl::IOAS_COPY, &mut copy).context("IOMMU_IOAS_COPY")?;
        Ok(())
    }

    /// Removes what was mapped as one.
    pub(super) fn unmap(&self, iova: u64, length: u64) -> Result<()> {
        let mut unmap = ioctl::IoasUnmap {
            size: 24,
            ioas_id: self.id,
            iova,
            length,
        };
        ioctl(&*self.iommu, &ioctl::IOAS_UNMAP, &mut unmap).context("IOMMU_IOAS_UNMAP")?;
        Ok(())
    }
}

/// Registers of a BAR, accessed by the kernel for us.
///
/// They are not mapped on purpose. The first access to a mapping is a page fault, and QEMU 7.2's
/// emulation of SVM leaves the type of a delivered exception in the VMCB; KVM in level 1 then
/// refuses to emulate the access that follows, since it seems to happen while an event is being
/// delivered.
pub(super) struct Bar {
    file: File,
    offset: u64,
}

impl Bar {
    pub(super) fn read_u32(&self, register: u64) -> Result<u32> {
        let mut value = [0; 4];
        self.file
            .read_exact_at(&mut value, self.offset + register)
            .with_context(|| format!("read register {register:#x}"))?;
        Ok(u32::from_le_bytes(value))
    }

    pub(super) fn read_u64(&self, register: u64) -> Result<u64> {
        let mut value = [0; 8];
        self.file
            .read_exact_at(&mut value, self.offset + register)
            .with_context(|| format!("read register {register:#x}"))?;
        Ok(u64::from_le_bytes(value))
    }

    fn write(&self, register: u64, value: &[u8]) -> Result<()> {
        self.file
            .write_all_at(value, self.offset + register)
            .with_context(|| format!("write register {register:#x}"))
    }

    pub(super) fn write_u32(&self, register: u64, value: u32) -> Result<()> {
        self.write(register, &value.to_le_bytes())
    }

    pub(super) fn write_u64(&self, register: u64, value: u64) -> Result<()> {
        self.write(register, &value.to_le_bytes())
    }
}

/// The one entry of a directory in sysfs. Waits for it: a function that has just been plugged in may be
/// bound by the kernel's own thread, a moment after it was asked for.
pub(super) fn single_entry(directory: &Path) -> Option<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let entry = fs::read_dir(directory).ok().and_then(|mut all| all.next());
        match entry {
            Some(entry) => return Some(entry.ok()?.file_name().to_string_lossy().into_owned()),
            None if Instant::now() > deadline => return None,
            None => std::thread::sleep(PAUSE),
        }
    }
}

/// Waits for devtmpfs to show `path`.
pub(super) fn open_node(path: &Path) -> Result<File> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => return Ok(file),
            Err(error) if Instant::now() > deadline => {
                return Err(error).context(path.display().to_string());
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

impl Function {
    /// Binds the function to vfio-pci, opens it, with addresses of its own where there is a unit,
    /// and makes it a bus master.
    pub(super) fn open(address: &str) -> Result<Self> {
        Self::open_in(address, None)
    }

    /// The same, with the addresses of `space` if one is given, which takes a unit.
    pub(super) fn open_in(address: &str, space: Option<Rc<Space>>) -> Result<Self> {
        let directory = pci::directory(address);
        pci::bind(address, "vfio-pci")?;
        let group = fs::read_link(directory.join("iommu_group")).context("no iommu_group")?;
        let group = group
            .file_name()
            .context("unnamed group")?
            .to_string_lossy()
            .into_owned();
        let no_iommu = PathBuf::from(format!("/dev/vfio/noiommu-{group}"));
        let function = if no_iommu.exists() {
            Self::open_without_unit(address, &no_iommu)?
        } else {
            let space = space.map_or_else(|| Space::new().map(Rc::new), Ok)?;
            Self::open_cdev(address, &directory, space)?
        };
        let mut command = [0; 2];
        let config = function.region(CONFIG_REGION)?;
        let file = File::from(function.device.try_clone()?);
        file.read_exact_at(&mut command, config.offset + COMMAND)
            .context("command register")?;
        let command = u16::from_le_bytes(command) | MEMORY_AND_MASTER;
        file.write_all_at(&command.to_le_bytes(), config.offset + COMMAND)
            .context("command register")?;
        Ok(function)
    }

    fn open_cdev(address: &str, directory: &Path, space: Rc<Space>) -> Result<Self> {
        let name =
            single_entry(&directory.join("vfio-dev")).context("vfio-pci made no vfio-dev")?;
        let device = OwnedFd::from(open_node(&Path::new("/dev/vfio/devices").join(name))?);
        let mut bind = ioctl::BindIommufd {
            argsz: 24,
            iommufd: space.iommu.as_raw_fd(),
            ..Default::default()
        };
        ioctl(&device, &ioctl::VFIO_BIND_IOMMUFD, &mut bind).context("VFIO_DEVICE_BIND_IOMMUFD")?;
        let mut function = Self {
            address: address.to_owned(),
            device,
            id: bind.out_devid,
            space: None,
            _group: None,
        };
        function.attach(space)?;
        Ok(function)
    }

    /// Gives the function the addresses of `space`, of the same iommufd, in place of those that it
    /// has.
    pub(super) fn attach(&mut self, space: Rc<Space>) -> Result<()> {
        self.attach_to(space.id, None)?;
        self.space = Some(space);
        Ok(())
    }

    fn attach_to(&self, table: u32, pasid: Option<u32>) -> Result<()> {
        let mut attach = ioctl::AttachIommufd {
            argsz: 16,
            flags: pasid.is_some().into(),
            pt_id: table,
            pasid: pasid.unwrap_or(0),
        };
        ioctl(&self.device, &ioctl::VFIO_ATTACH_IOMMUFD, &mut attach)
            .context("VFIO_DEVICE_ATTACH_IOMMUFD_PT")?;
        Ok(())
    }

    /// A page table that PASIDs of the function can be given, as can its requests without.
    pub(super) fn table(&self, space: &Rc<Space>) -> Result<Table> {
        const ALLOC_PASID: u32 = 8;
        self.table_of_kind(space, ALLOC_PASID)
    }

    /// A page table, one of the second stage as far as the kernel has a choice.
    pub(super) fn second_stage_table(&self, space: &Rc<Space>) -> Result<Table> {
        const DIRTY_TRACKING: u32 = 2;
        self.table_of_kind(space, DIRTY_TRACKING)
            .or_else(|_| self.table_of_kind(space, 0))
    }

    fn table_of_kind(&self, space: &Rc<Space>, flags: u32) -> Result<Table> {
        let mut table = ioctl::PageTableAlloc {
            size: 48,
            flags,
            dev_id: self.id,
            pt_id: space.id,
            ..Default::default()
        };
        ioctl(&*space.iommu, &ioctl::PAGE_TABLE_ALLOC, &mut table).context("IOMMU_HWPT_ALLOC")?;
        Ok(Table {
            space: Rc::clone(space),
            id: table.out_hwpt_id,
        })
    }

    /// Gives requests without PASID the addresses of `table`.
    pub(super) fn attach_table(&mut self, table: &Table) -> Result<()> {
        self.attach_to(table.id, None)?;
        self.space = Some(Rc::clone(&table.space));
        Ok(())
    }

    /// Gives requests with `pasid` the addresses of `table`, in place of those that they have.
    pub(super) fn attach_pasid(&self, pasid: u32, table: &Table) -> Result<()> {
        self.attach_to(table.id, Some(pasid))
            .with_context(|| format!("PASID {pasid:#x}"))
    }

    /// Takes all addresses from requests with `pasid`.
    pub(super) fn detach_pasid(&self, pasid: u32) -> Result<()> {
        let mut detach = ioctl::DetachIommufd {
            argsz: 12,
            flags: 1,
            pasid,
        };
        ioctl(&self.device, &ioctl::VFIO_DETACH_IOMMUFD, &mut detach)
            .with_context(|| format!("VFIO_DEVICE_DETACH_IOMMUFD_PT of PASID {pasid:#x}"))?;
        Ok(())
    }

    fn open_without_unit(address: &str, group: &Path) -> Result<Self> {
        let group = open_node(group)?;
        let container = open_node(Path::new("/dev/vfio/vfio"))?;
        let mut descriptor = container.as_raw_fd();
        ioctl(&group, &ioctl::VFIO_SET_CONTAINER, &mut descriptor)
            .context("VFIO_GROUP_SET_CONTAINER")?;
        ioctl_value(&container, &ioctl::VFIO_SET_IOMMU, NO_IOMMU).context("VFIO_SET_IOMMU")?;
        let mut name: ioctl::DeviceName = [0; 16];
        name.get_mut(..address.len())
            .context("address too long")?
            .copy_from_slice(address.as_bytes());
        let device =
            ioctl(&group, &ioctl::VFIO_DEVICE_FD, &mut name).context("VFIO_GROUP_GET_DEVICE_FD")?;
        let device = memory::adopt(device)?;
        Ok(Self {
            address: address.to_owned(),
            device,
            id: 0,
            space: None,
            _group: Some((group, container)),
        })
    }

    /// Whether DMA is translated.
    pub(super) fn translated(&self) -> bool {
        self.space.is_some()
    }

    fn region(&self, index: u32) -> Result<ioctl::RegionInfo> {
        let mut info = ioctl::RegionInfo {
            argsz: 32,
            index,
            ..Default::default()
        };
        ioctl(&self.device, &ioctl::VFIO_REGION_INFO, &mut info)
            .with_context(|| format!("region {index}"))?;
        Ok(info)
    }

    /// A BAR's registers.
    pub(super) fn bar(&self, index: u32) -> Result<Bar> {
        let info = self.region(index)?;
        Ok(Bar {
            file: File::from(self.device.try_clone()?),
            offset: info.offset,
        })
    }

    /// Lets the function's first MSI signal the eventfd that is returned.
    pub(super) fn msi(&self) -> Result<OwnedFd> {
        let [event] = self.signal(MSI_INDEX)?;
        Ok(event)
    }

    /// Lets each of the function's first MSIs signal an eventfd of its own.
    pub(super) fn msis<const VECTORS: usize>(&self) -> Result<[OwnedFd; VECTORS]> {
        self.signal(MSI_INDEX)
    }

    /// Lets the function's INTx signal the eventfd that is returned. The kernel masks it each time.
    pub(super) fn intx(&self) -> Result<OwnedFd> {
        let [event] = self.signal(INTX_INDEX)?;
        Ok(event)
    }

    /// Lets INTx signal again, at once if the function still asserts it.
    pub(super) fn unmask_intx(&self) -> Result<()> {
        let mut action = ioctl::IrqAction {
            argsz: 20,
            flags: 1 | 16,
            index: INTX_INDEX,
            start: 0,
            count: 1,
        };
        ioctl(&self.device, &ioctl::VFIO_IRQ_ACTION, &mut action).context("unmask INTx")?;
        Ok(())
    }

    /// Lets the first vectors of a kind signal the eventfds that are returned.
    fn signal<const VECTORS: usize>(&self, index: u32) -> Result<[OwnedFd; VECTORS]> {
        let mut events = Vec::new();
        for _ in 0..VECTORS {
            events.push(memory::eventfd()?);
        }
        let events: [OwnedFd; VECTORS] = events.try_into().ok().context("eventfds")?;
        let count = u32::try_from(VECTORS)?;
        let mut set = ioctl::IrqSet {
            argsz: 20 + 4 * count,
            flags: 4 | 32,
            index,
            start: 0,
            count,
            eventfds: events.each_ref().map(AsRawFd::as_raw_fd),
        };
        ioctl(&self.device, &ioctl::vfio_set_irqs(), &mut set).context("VFIO_DEVICE_SET_IRQS")?;
        Ok(events)
    }

    /// Its addresses.
    pub(super) fn space(&self) -> Result<&Rc<Space>> {
        self.space.as_ref().context("no remapping unit")
    }
}

/// The guest-physical address of the page at `address` of this process (/proc/self/pagemap).
pub(super) fn physical(address: u64) -> Result<u64> {
    let pagemap = File::open("/proc/self/pagemap").context("/proc/self/pagemap")?;
    let mut entry = [0; 8];
    pagemap.read_exact_at(&mut entry, address / 4096 * 8)?;
    let entry = u64::from_le_bytes(entry);
    let frame = entry & ((1 << 55) - 1);
    ensure!(
        entry >> 63 == 1 && frame != 0,
        "the page at {address:#x} is not present"
    );
    Ok(frame * 4096 + address % 4096)
}
