//! iommufd and VFIO as the host side uses them: [`HostIommu`] is one iommufd, [`Attachment`] is how
//! a device is put behind its HWPTs.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;

use intel_vtd::Pasid;

/// Names an I/O address space (IOAS) of one iommufd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoasId(pub u32);

/// Names a hardware page table (HWPT) of one iommufd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HwptId(pub u32);

/// Names a queue for page requests of one iommufd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FaultQueueId(pub u32);

/// Names an object of one iommufd that can be destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectId {
    /// An I/O address space.
    Ioas(IoasId),
    /// A page table.
    Hwpt(HwptId),
}

impl From<IoasId> for ObjectId {
    fn from(id: IoasId) -> Self {
        Self::Ioas(id)
    }
}

impl From<HwptId> for ObjectId {
    fn from(id: HwptId) -> Self {
        Self::Hwpt(id)
    }
}

/// Names a device that was bound to one iommufd (`VFIO_DEVICE_BIND_IOMMUFD` returns it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostDeviceId(pub u32);

/// Names an IOMMU group of the host (`/sys/kernel/iommu_groups/N`): devices that its IOMMU cannot
/// keep apart. All that are bound are bound to one iommufd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostGroupId(pub u32);

/// What a device may do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Read it.
    pub read: bool,
    /// Write it.
    pub write: bool,
}

impl Rights {
    /// Read and write.
    pub const ALL: Self = Self {
        read: true,
        write: true,
    };

    /// Nothing.
    pub const NONE: Self = Self {
        read: false,
        write: false,
    };
}

/// A piece of guest memory, for mapping it into an I/O address space.
#[derive(Clone, Copy, Debug)]
pub struct HostMemory<'a> {
    /// The file that backs it, and the offset of its first byte there.
    pub file: (BorrowedFd<'a>, u64),
    /// Where it is mapped in this process, for kernels that do not map files (`IOMMU_IOAS_MAP_FILE`
    /// is Linux 6.14's).
    pub address: u64,
    /// Bytes; a multiple of the page size.
    pub length: u64,
}

/// A mapping of one I/O address space that another one is to share (`IOMMU_IOAS_COPY`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedMapping {
    /// Where it is mapped already.
    pub source: IoasId,
    /// At which address there.
    pub source_address: u64,
    /// Where it is to be mapped.
    pub target: IoasId,
    /// At which address there.
    pub target_address: u64,
    /// Bytes.
    pub length: u64,
    /// What devices behind the target may do with it.
    pub rights: Rights,
}

/// Kinds of page table over an I/O address space (`IOMMU_HWPT_ALLOC` without data).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HwptOptions {
    /// First-stage tables can be put on top of it (`IOMMU_HWPT_ALLOC_NEST_PARENT`). Takes no
    /// read-only mappings.
    pub nesting_parent: bool,
    /// It can tell which pages were written (`IOMMU_HWPT_ALLOC_DIRTY_TRACKING`). Linux before 7.1
    /// attaches it to no PASID, nor what is nested upon it.
    pub dirty_tracking: bool,
    /// It can be attached to PASIDs (`IOMMU_HWPT_ALLOC_PASID`).
    pub pasid: bool,
}

/// A first-stage table of the guest, as the host is told of it (`struct iommu_hwpt_vtd_s1`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedTable {
    /// Guest-physical address of the top table.
    pub table: u64,
    /// Bits of the addresses that it translates: 48 or 57.
    pub address_width: u8,
    /// Supervisor requests are allowed.
    pub supervisor_requests: bool,
    /// Supervisor writes need write permission, too.
    pub write_protect: bool,
    /// The extended accessed bit is maintained.
    pub extended_accessed: bool,
}

/// What a nested page table is for, besides the guest's tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NestedOptions {
    /// It can be attached to PASIDs (`IOMMU_HWPT_ALLOC_PASID`).
    pub pasid: bool,
    /// Page requests of the devices behind it go to this queue (`IOMMU_HWPT_FAULT_ID_VALID`);
    /// without, the host answers them. Linux attaches it to no device whose page requests it has
    /// not enabled.
    pub page_requests: Option<FaultQueueId>,
}

impl NestedOptions {
    /// Whether a table with these options does for a device that needs `others`.
    pub(crate) fn suit(&self, others: &Self) -> bool {
        self.page_requests == others.page_requests && (self.pasid || !others.pasid)
    }
}

/// Pages of a nested table whose translations are to be forgotten (`struct
/// iommu_hwpt_vtd_s1_invalidate`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedInvalidation {
    /// First page.
    pub address: u64,
    /// How many; `u64::MAX` with address 0 for all.
    pub pages: u64,
    /// Only leaves were changed.
    pub leaf_only: bool,
}

/// What `IOMMU_GET_HW_INFO` says about the IOMMU of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardwareInfo {
    /// Registers of an Intel unit; `None` for any other IOMMU.
    pub intel: Option<IntelInfo>,
    /// log2 of the number of PASIDs that the device can use; 0 for none.
    pub pasid_bits: u8,
    /// Its requests with PASID can be privileged (`IOMMU_HW_CAP_PCI_PASID_PRIV`).
    pub privileged_pasids: bool,
    /// Pages written by the device can be found out.
    pub dirty_tracking: bool,
    /// The device may keep translations: the host did not say that it may not
    /// (`IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED`, which kernels before Linux 7.1 never say).
    pub ats: bool,
}

/// `struct iommu_hw_info_vtd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntelInfo {
    /// CAP and ECAP.
    pub caps: intel_vtd::spec::registers::Caps,
    /// Nesting parents take no read-only mappings (`IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17`).
    pub no_read_only_parent: bool,
}

impl HardwareInfo {
    /// Whether nesting parents take no read-only mappings. Only Intel's are known, and of others it
    /// is not known that they do.
    pub(crate) fn no_read_only_parent(&self) -> bool {
        self.intel.is_none_or(|intel| intel.no_read_only_parent)
    }
}

/// One iommufd.
///
/// Errors are the kernel's (`io::Error::raw_os_error` tells the number). Objects are destroyed
/// explicitly, in an order that the kernel accepts: page tables before their parents and address
/// spaces.
pub trait HostIommu: Send + Sync {
    /// `IOMMU_IOAS_ALLOC`.
    fn allocate_ioas(&self) -> io::Result<IoasId>;

    /// `IOMMU_DESTROY`.
    fn destroy(&self, object: ObjectId) -> io::Result<()>;

    /// The addresses that `ioas` can map, and the alignment that it needs
    /// (`IOMMU_IOAS_IOVA_RANGES`).
    fn address_ranges(&self, ioas: IoasId) -> io::Result<(Vec<RangeInclusive<u64>>, u64)>;

    /// Maps guest memory at `address` (`IOMMU_IOAS_MAP_FILE`, or `IOMMU_IOAS_MAP` where the kernel
    /// does not have that).
    fn map(
        &self,
        ioas: IoasId,
        address: u64,
        memory: &HostMemory<'_>,
        rights: Rights,
    ) -> io::Result<()>;

    /// `IOMMU_IOAS_COPY`.
    fn share(&self, mapping: &SharedMapping) -> io::Result<()>;

    /// Removes whole mappings (`IOMMU_IOAS_UNMAP`); returns how many bytes were mapped.
    fn unmap(&self, ioas: IoasId, address: u64, length: u64) -> io::Result<u64>;

    /// A page table for `device` that translates by `ioas`.
    fn allocate_hwpt(
        &self,
        device: HostDeviceId,
        ioas: IoasId,
        options: HwptOptions,
    ) -> io::Result<HwptId>;

    /// A nested page table for `device` on the nesting parent `parent` (`IOMMU_HWPT_DATA_VTD_S1`).
    fn allocate_nested(
        &self,
        device: HostDeviceId,
        parent: HwptId,
        table: &NestedTable,
        options: NestedOptions,
    ) -> io::Result<HwptId>;

    /// Invalidates in order (`IOMMU_HWPT_INVALIDATE`). Returns how many were carried out, which are
    /// all unless there is an error.
    fn invalidate(
        &self,
        nested: HwptId,
        invalidations: &[NestedInvalidation],
    ) -> (usize, io::Result<()>);

    /// `IOMMU_GET_HW_INFO`.
    fn hardware_info(&self, device: HostDeviceId) -> io::Result<HardwareInfo>;

    /// `IOMMU_HWPT_SET_DIRTY_TRACKING`.
    fn set_dirty_tracking(&self, table: HwptId, on: bool) -> io::Result<()>;

    /// Which pages of `page_size` bytes were written since the last query: sets their bits in
    /// `bitmap`, bit 0 of its first word being the page at `address`
    /// (`IOMMU_HWPT_GET_DIRTY_BITMAP`).
    fn dirty_pages(
        &self,
        table: HwptId,
        address: u64,
        length: u64,
        page_size: u64,
        bitmap: &mut [u64],
    ) -> io::Result<()>;
}

/// How one assigned device is put behind page tables: VFIO's part (`VFIO_DEVICE_ATTACH_IOMMUFD_PT`
/// and `..._DETACH_...`).
///
/// Requests with each PASID are apart from those with others and from those without, which `None`
/// stands for. The kernel does not offer PASID 0: it is what it calls requests without PASID by.
/// Requests with a PASID take page tables with [`HwptOptions::pasid`] only, and so do requests
/// without while any PASID is attached, and the other way round.
///
/// Devices of one IOMMU group have one page table for each PASID: to replace it for one is to
/// replace it for all, none is attached to another one than the rest, and the hardware lets go of
/// it with the last that is detached.
pub trait Attachment: Send + Sync {
    /// Puts the device's requests with `pasid` behind `table` in place of what they were behind.
    /// After an error they may be blocked.
    ///
    /// It must not wait, as the guest's invalidation does meanwhile: the kernel's `EBUSY`, which it
    /// says while it resets the device, is to be returned. The device is blocked then, and tried
    /// again later.
    fn attach(&self, pasid: Option<Pasid>, table: HwptId) -> io::Result<()>;

    /// Blocks the device's DMA with `pasid`. Nothing happens if it is blocked already. It must not
    /// wait either; Linux does it also during a reset. After an error it is tried again a few times
    /// at once, and then later.
    fn detach(&self, pasid: Option<Pasid>) -> io::Result<()>;
}
