//! ioctls, each a [`Request`] that ties a number to the type of its argument.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};

/// An ioctl number and the type its argument points to; made in this module only.
pub struct Request<T>(u64, PhantomData<fn(&mut T)>);

impl<T> Request<T> {
    const fn new(number: u64) -> Self {
        Self(number, PhantomData)
    }
}

/// An ioctl whose argument is a number, not a pointer; made in this module only.
pub struct ValueRequest(u64);

/// Issues `request` with a pointer to `argument`; the kernel may change it.
pub fn ioctl<T>(file: impl AsFd, request: &Request<T>, argument: &mut T) -> io::Result<i32> {
    let file = file.as_fd();
    // SAFETY: a Request is made only in this module, which pairs each number with the structure
    // that the kernel reads and writes for it, so `argument` is large enough; the exclusive
    // reference keeps it valid for the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request.0, std::ptr::from_mut(argument)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Issues `request` with a number as argument.
pub fn ioctl_value(file: impl AsFd, request: &ValueRequest, value: u64) -> io::Result<i32> {
    let file = file.as_fd();
    // SAFETY: a ValueRequest is made only in this module, from numbers whose argument is no
    // pointer.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request.0, value) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

// linux/if_tun.h, linux/sockios.h

/// `struct ifreq` with an address or flags in its union.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct InterfaceRequest {
    /// Interface name, NUL-padded.
    pub name: [u8; 16],
    /// The union.
    pub payload: [u8; 24],
}

impl InterfaceRequest {
    /// A request about interface `name` with a zero payload.
    pub fn new(name: &str) -> io::Result<Self> {
        let mut request = Self {
            name: [0; 16],
            payload: [0; 24],
        };
        let target = request
            .name
            .get_mut(..name.len())
            .filter(|part| part.len() < 16);
        let Some(target) = target else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("interface name '{name}' is too long"),
            ));
        };
        target.copy_from_slice(name.as_bytes());
        Ok(request)
    }
}

/// Has interface `name` send frames in one piece, or in pieces: ETHTOOL_SSG by SIOCETHTOOL.
pub fn set_scatter_gather(socket: impl AsFd, name: &str, on: bool) -> io::Result<()> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_SSG: u32 = 0x19;
    // struct ethtool_value.
    let mut value = [ETHTOOL_SSG, u32::from(on)];
    let mut request = InterfaceRequest::new(name)?;
    let address = value.as_mut_ptr().expose_provenance();
    request.payload[..size_of::<usize>()].copy_from_slice(&address.to_ne_bytes());
    let socket = socket.as_fd();
    let pointer = std::ptr::from_mut(&mut request);
    // SAFETY: for SIOCETHTOOL the kernel reads a struct ifreq whose union is a pointer, here to
    // `value`, which is as large as the struct ethtool_value that ETHTOOL_SSG takes; both live
    // until the call has returned.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, pointer) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// TUNSETIFF.
pub const TUN_SET_INTERFACE: Request<InterfaceRequest> = Request::new(0x4004_54CA);
/// TUNSETPERSIST.
pub const TUN_SET_PERSIST: ValueRequest = ValueRequest(0x4004_54CB);
/// SIOCSIFADDR.
pub const SET_ADDRESS: Request<InterfaceRequest> = Request::new(0x8916);
/// SIOCSIFNETMASK.
pub const SET_NETMASK: Request<InterfaceRequest> = Request::new(0x891C);
/// SIOCGIFFLAGS.
pub const GET_FLAGS: Request<InterfaceRequest> = Request::new(0x8913);
/// SIOCSIFFLAGS.
pub const SET_FLAGS: Request<InterfaceRequest> = Request::new(0x8914);

/// SIOCGIFINDEX.
pub const GET_INDEX: Request<InterfaceRequest> = Request::new(0x8933);
/// SIOCBRADDBR: a name.
pub const BRIDGE_ADD: Request<[u8; 16]> = Request::new(0x89A0);
/// SIOCBRDELBR: a name.
pub const BRIDGE_REMOVE: Request<[u8; 16]> = Request::new(0x89A1);
/// SIOCBRADDIF: the bridge's name, the port's index.
pub const BRIDGE_ADD_PORT: Request<InterfaceRequest> = Request::new(0x89A2);

// linux/fs.h

/// BLKDISCARD: start and length in bytes.
pub const BLOCK_DISCARD: Request<[u64; 2]> = Request::new(0x1277);
/// BLKFLSBUF.
pub const BLOCK_FLUSH_BUFFERS: ValueRequest = ValueRequest(0x1261);

// linux/iommufd.h

/// `struct iommu_ioas_alloc`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct IoasAlloc {
    /// Size of the structure.
    pub size: u32,
    /// 0.
    pub flags: u32,
    /// Id of the new IOAS.
    pub out_ioas_id: u32,
}

/// `struct iommu_ioas_map`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct IoasMap {
    /// Size of the structure.
    pub size: u32,
    /// FIXED_IOVA 1, WRITEABLE 2, READABLE 4.
    pub flags: u32,
    /// IOAS.
    pub ioas_id: u32,
    /// 0.
    pub reserved: u32,
    /// Address in the caller.
    pub user_va: u64,
    /// Bytes.
    pub length: u64,
    /// I/O virtual address.
    pub iova: u64,
}

/// `struct iommu_ioas_copy`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct IoasCopy {
    /// Size of the structure.
    pub size: u32,
    /// FIXED_IOVA 1, WRITEABLE 2, READABLE 4.
    pub flags: u32,
    /// IOAS that gets the mapping.
    pub dst_ioas_id: u32,
    /// IOAS that has it.
    pub src_ioas_id: u32,
    /// Bytes.
    pub length: u64,
    /// I/O virtual address in the one.
    pub dst_iova: u64,
    /// I/O virtual address in the other.
    pub src_iova: u64,
}

/// `struct iommu_ioas_map_file`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct IoasMapFile {
    /// Size of the structure.
    pub size: u32,
    /// FIXED_IOVA 1, WRITEABLE 2, READABLE 4.
    pub flags: u32,
    /// IOAS.
    pub ioas_id: u32,
    /// Descriptor of a memfd.
    pub fd: i32,
    /// Offset in the file.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// I/O virtual address.
    pub iova: u64,
}

/// `struct iommu_ioas_unmap`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct IoasUnmap {
    /// Size of the structure.
    pub size: u32,
    /// IOAS.
    pub ioas_id: u32,
    /// I/O virtual address.
    pub iova: u64,
    /// Bytes; the kernel writes how many it unmapped.
    pub length: u64,
}

/// `struct iommu_hwpt_alloc` without data.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct PageTableAlloc {
    /// Size of the structure.
    pub size: u32,
    /// NEST_PARENT 1, DIRTY_TRACKING 2, ALLOC_PASID 8.
    pub flags: u32,
    /// Device.
    pub dev_id: u32,
    /// IOAS.
    pub pt_id: u32,
    /// Id of the new page table.
    pub out_hwpt_id: u32,
    /// 0.
    pub reserved: u32,
    /// 0: none.
    pub data_type: u32,
    /// 0.
    pub data_len: u32,
    /// 0.
    pub data_uptr: u64,
    /// 0.
    pub fault_id: u32,
    /// 0.
    pub reserved2: u32,
}

/// IOMMU_IOAS_ALLOC.
pub const IOAS_ALLOC: Request<IoasAlloc> = Request::new(0x3B81);
/// IOMMU_IOAS_COPY.
pub const IOAS_COPY: Request<IoasCopy> = Request::new(0x3B83);
/// IOMMU_IOAS_MAP_FILE.
pub const IOAS_MAP_FILE: Request<IoasMapFile> = Request::new(0x3B8F);
/// IOMMU_IOAS_MAP.
pub const IOAS_MAP: Request<IoasMap> = Request::new(0x3B85);
/// IOMMU_IOAS_UNMAP.
pub const IOAS_UNMAP: Request<IoasUnmap> = Request::new(0x3B86);
/// IOMMU_HWPT_ALLOC.
pub const PAGE_TABLE_ALLOC: Request<PageTableAlloc> = Request::new(0x3B89);

// linux/vfio.h

/// `struct vfio_device_bind_iommufd`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct BindIommufd {
    /// Size of the structure.
    pub argsz: u32,
    /// 0.
    pub flags: u32,
    /// Descriptor of /dev/iommu.
    pub iommufd: i32,
    /// Id of the device.
    pub out_devid: u32,
    /// 0: no token.
    pub token_uuid_ptr: u64,
}

/// `struct vfio_device_attach_iommufd_pt`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct AttachIommufd {
    /// Size of the structure.
    pub argsz: u32,
    /// PASID 1: for requests with `pasid`.
    pub flags: u32,
    /// IOAS or page table; the kernel writes the page table.
    pub pt_id: u32,
    /// PASID.
    pub pasid: u32,
}

/// `struct vfio_device_detach_iommufd_pt`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct DetachIommufd {
    /// Size of the structure.
    pub argsz: u32,
    /// PASID 1: for requests with `pasid`.
    pub flags: u32,
    /// PASID.
    pub pasid: u32,
}

/// `struct vfio_region_info`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct RegionInfo {
    /// Size of the structure.
    pub argsz: u32,
    /// READ 1, WRITE 2, MMAP 4.
    pub flags: u32,
    /// Region.
    pub index: u32,
    /// 0.
    pub cap_offset: u32,
    /// Bytes.
    pub size: u64,
    /// Offset in the device's descriptor.
    pub offset: u64,
}

/// `struct vfio_irq_set` with an eventfd for each of some vectors.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IrqSet<const VECTORS: usize> {
    /// Size of the structure.
    pub argsz: u32,
    /// DATA_EVENTFD 4 | ACTION_TRIGGER 32.
    pub flags: u32,
    /// INTx 0, MSI 1, MSI-X 2.
    pub index: u32,
    /// First vector.
    pub start: u32,
    /// Number of vectors.
    pub count: u32,
    /// Descriptors of their eventfds.
    pub eventfds: [i32; VECTORS],
}

/// `struct vfio_irq_set` without data.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct IrqAction {
    /// Size of the structure.
    pub argsz: u32,
    /// DATA_NONE 1 | ACTION_UNMASK 16.
    pub flags: u32,
    /// INTx 0, MSI 1, MSI-X 2.
    pub index: u32,
    /// First vector.
    pub start: u32,
    /// Number of vectors.
    pub count: u32,
}

/// VFIO_DEVICE_BIND_IOMMUFD.
pub const VFIO_BIND_IOMMUFD: Request<BindIommufd> = Request::new(0x3B76);
/// VFIO_DEVICE_ATTACH_IOMMUFD_PT.
pub const VFIO_ATTACH_IOMMUFD: Request<AttachIommufd> = Request::new(0x3B77);
/// VFIO_DEVICE_DETACH_IOMMUFD_PT.
pub const VFIO_DETACH_IOMMUFD: Request<DetachIommufd> = Request::new(0x3B78);
/// VFIO_DEVICE_GET_REGION_INFO.
pub const VFIO_REGION_INFO: Request<RegionInfo> = Request::new(0x3B6C);
/// VFIO_DEVICE_SET_IRQS.
pub const fn vfio_set_irqs<const VECTORS: usize>() -> Request<IrqSet<VECTORS>> {
    Request::new(0x3B6E)
}

/// The same request, for an action without data.
pub const VFIO_IRQ_ACTION: Request<IrqAction> = Request::new(0x3B6E);
/// VFIO_GROUP_SET_CONTAINER: pointer to the container's descriptor.
pub const VFIO_SET_CONTAINER: Request<i32> = Request::new(0x3B68);
/// VFIO_SET_IOMMU: the type of the container.
pub const VFIO_SET_IOMMU: ValueRequest = ValueRequest(0x3B66);

/// A NUL-terminated PCI address, argument of [`VFIO_DEVICE_FD`].
pub type DeviceName = [u8; 16];
/// VFIO_GROUP_GET_DEVICE_FD: returns a descriptor. The name must end in a NUL byte.
pub const VFIO_DEVICE_FD: Request<DeviceName> = Request::new(0x3B6A);

// linux/map_benchmark.h

/// `struct map_benchmark`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MapBenchmark {
    /// Average time of a mapping, in 100 ns.
    pub average_map: u64,
    /// Its standard deviation.
    pub map_deviation: u64,
    /// Average time of an unmapping, in 100 ns.
    pub average_unmap: u64,
    /// Its standard deviation.
    pub unmap_deviation: u64,
    /// Threads that map at the same time.
    pub threads: u32,
    /// Duration.
    pub seconds: u32,
    /// NUMA node, or -1.
    pub node: i32,
    /// Address bits of the device.
    pub dma_bits: u32,
    /// Both directions 0, to the device 1, from the device 2.
    pub dma_dir: u32,
    /// Pause between mapping and unmapping, in ns.
    pub dma_trans_ns: u32,
    /// Pages of a mapping.
    pub granule: u32,
    /// 0 and unused bytes.
    pub rest: [u8; 76],
}

impl Default for MapBenchmark {
    fn default() -> Self {
        Self {
            average_map: 0,
            map_deviation: 0,
            average_unmap: 0,
            unmap_deviation: 0,
            threads: 0,
            seconds: 0,
            node: 0,
            dma_bits: 0,
            dma_dir: 0,
            dma_trans_ns: 0,
            granule: 0,
            rest: [0; 76],
        }
    }
}

/// DMA_MAP_BENCHMARK.
pub const MAP_BENCHMARK: Request<MapBenchmark> = Request::new(0xC088_6401);
// The number holds the structure's size.
const _: () = assert!(size_of::<MapBenchmark>() == 0x88);
