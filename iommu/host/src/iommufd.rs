//! The host's iommufd, through its ioctls (`include/uapi/linux/iommufd.h`).

#![allow(unsafe_code)] // The ioctls have no safe wrapper that takes typed references.

mod calls;
mod commands;
mod counts;
mod fault_queue;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use iommufd_bindings as uapi;

use crate::host_iommu::{FaultQueueId, HostMemory, HwptId, IoasId};
use commands::{Argument, size_of};
use counts::Counters;
pub use counts::{IOCTL_KINDS, IoctlCounts, IoctlKind};
pub use fault_queue::FaultQueue;

/// Where the kernel has its iommufd.
pub const IOMMUFD_PATH: &str = "/dev/iommu";

/// Invalidations that one call takes at most (`iommu_hwpt_invalidate` limits `entry_num` to 2^19).
const INVALIDATIONS_AT_ONCE: usize = 1 << 16;

/// One open iommufd. Closing it destroys all its objects, once no device is bound to it any more.
#[derive(Debug)]
pub struct Iommufd {
    file: File,
    /// Cleared when the kernel turned out not to map files.
    maps_files: AtomicBool,
    /// Its page tables have huge pages.
    huge_pages: bool,
    counters: Counters,
}

impl Iommufd {
    /// Opens the device node at `path`, which is [`IOMMUFD_PATH`] unless someone moved it.
    ///
    /// # Errors
    /// What opening it says; `ENOTTY` if it is something else than an iommufd.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Self::from_file(file)
    }

    /// Takes an iommufd that was opened beforehand.
    ///
    /// # Errors
    /// `ENOTTY` if it is something else.
    pub fn from_file(file: File) -> io::Result<Self> {
        let iommufd = Self::unchecked(file);
        // Any command would do: this one allocates nothing.
        iommufd.call(&mut uapi::iommu_option {
            size: size_of::<uapi::iommu_option>(),
            option_id: uapi::iommufd_option_IOMMU_OPTION_RLIMIT_MODE,
            op: 1, // IOMMU_OPTION_OP_GET
            ..Default::default()
        })?;
        Ok(iommufd)
    }

    fn unchecked(file: File) -> Self {
        Self {
            file,
            maps_files: AtomicBool::new(true),
            huge_pages: true,
            counters: Counters::default(),
        }
    }

    /// The same with page tables without huge pages, or with. Without, each page of 4 KiB is known by itself of
    /// which something was written, and DMA is slower.
    #[must_use]
    pub fn with_huge_pages(self, huge_pages: bool) -> Self {
        Self { huge_pages, ..self }
    }

    /// Has page tables over this space, in which nothing is mapped yet, have no huge pages.
    fn forbid_huge_pages(&self, ioas: IoasId) -> io::Result<()> {
        self.call(&mut uapi::iommu_option {
            size: size_of::<uapi::iommu_option>(),
            option_id: uapi::iommufd_option_IOMMU_OPTION_HUGE_PAGES,
            op: 0, // IOMMU_OPTION_OP_SET
            object_id: ioas.0,
            val64: 0,
            ..Default::default()
        })
    }

    /// How many ioctls of each kind were issued so far, those that failed included.
    pub fn ioctl_counts(&self) -> IoctlCounts {
        self.counters.snapshot()
    }

    /// Issues the command that takes `argument`.
    fn call<A: Argument>(&self, argument: &mut A) -> io::Result<()> {
        let given = *argument;
        loop {
            self.counters.add(A::KIND);
            // SAFETY: `Argument` promises that the command of `A::KIND` takes an `A`, whose size
            // field its makers set and which is exclusively ours during the call; every address in
            // it is of memory that they hold for as long, and that the command may use as it does
            // (each says so where it puts one in).
            let result = unsafe {
                libc::ioctl(
                    self.file.as_raw_fd(),
                    A::KIND.command(),
                    std::ptr::from_mut(argument),
                )
            };
            let error = (result < 0).then(io::Error::last_os_error);
            log::trace!(
                "iommufd {}: {argument:?} -> {}",
                A::KIND.name(),
                error
                    .as_ref()
                    .map_or_else(|| "done".to_owned(), ToString::to_string)
            );
            match error {
                None => return Ok(()),
                Some(error) if error.kind() == io::ErrorKind::Interrupted && A::REPEATABLE => {
                    *argument = given;
                }
                Some(error) => {
                    self.counters.failed();
                    return Err(error);
                }
            }
        }
    }

    fn map_file(
        &self,
        ioas: IoasId,
        address: u64,
        memory: &HostMemory<'_>,
        flags: u32,
    ) -> io::Result<()> {
        let (file, start) = memory.file;
        self.call(&mut uapi::iommu_ioas_map_file {
            size: size_of::<uapi::iommu_ioas_map_file>(),
            flags,
            ioas_id: ioas.0,
            fd: file.as_raw_fd(),
            start,
            length: memory.length,
            iova: address,
        })
    }

    fn map_address(
        &self,
        ioas: IoasId,
        address: u64,
        memory: &HostMemory<'_>,
        flags: u32,
    ) -> io::Result<()> {
        // The address is not one of Rust's objects: `HostMemory` says that the file is mapped
        // there, which others than this process change at any time, too.
        self.call(&mut uapi::iommu_ioas_map {
            size: size_of::<uapi::iommu_ioas_map>(),
            flags,
            ioas_id: ioas.0,
            user_va: memory.address,
            length: memory.length,
            iova: address,
            ..Default::default()
        })
    }

    /// A queue for page requests of devices.
    ///
    /// # Errors
    /// The kernel's; `ENOTTY` from kernels before Linux 6.11, which have none.
    pub fn allocate_fault_queue(&self) -> io::Result<FaultQueue> {
        let mut request = uapi::iommu_fault_alloc {
            size: size_of::<uapi::iommu_fault_alloc>(),
            ..Default::default()
        };
        self.call(&mut request)?;
        let fd = i32::try_from(request.out_fault_fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just opened it for this call, and nothing else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        Ok(FaultQueue::new(FaultQueueId(request.out_fault_id), file))
    }

    /// Invalidates in order what one call of the kernel takes of `entries`; returns how many it
    /// carried out. Without an error it is worth while to go on with the others.
    fn invalidate_some(
        &self,
        nested: HwptId,
        entries: &[uapi::iommu_hwpt_vtd_s1_invalidate],
    ) -> (usize, io::Result<()>) {
        let Ok(given) = u32::try_from(entries.len()) else {
            return (0, Err(io::ErrorKind::InvalidInput.into()));
        };
        let mut request = uapi::iommu_hwpt_invalidate {
            size: size_of::<uapi::iommu_hwpt_invalidate>(),
            hwpt_id: nested.0,
            // Readable, as many entries of that length as the other two fields say.
            data_uptr: address_of(entries),
            data_type: uapi::iommu_hwpt_invalidate_data_type_IOMMU_HWPT_INVALIDATE_DATA_VTD_S1,
            entry_len: size_of::<uapi::iommu_hwpt_vtd_s1_invalidate>(),
            entry_num: given,
            ..Default::default()
        };
        let outcome = self.call(&mut request);
        let carried_out = match &outcome {
            // An early error leaves the number as it was given.
            Err(_) if request.entry_num == given => 0,
            _ => usize::try_from(request.entry_num)
                .unwrap_or(0)
                .min(entries.len()),
        };
        let outcome = match outcome {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Ok(()) if carried_out == 0 => Err(io::Error::other("the kernel invalidates nothing")),
            outcome => outcome,
        };
        (carried_out, outcome)
    }

    fn allocate_table(&self, mut request: uapi::iommu_hwpt_alloc) -> io::Result<HwptId> {
        request.size = size_of::<uapi::iommu_hwpt_alloc>();
        self.call(&mut request)?;
        Ok(HwptId(request.out_hwpt_id))
    }
}

impl AsFd for Iommufd {
    /// For binding devices to it (`VFIO_DEVICE_BIND_IOMMUFD`).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A buffer that the kernel reads, as the uAPI wants it.
fn address_of<T>(buffer: &[T]) -> u64 {
    buffer.as_ptr().expose_provenance() as u64
}

/// A buffer that the kernel writes.
fn address_of_mut<T>(buffer: &mut [T]) -> u64 {
    buffer.as_mut_ptr().expose_provenance() as u64
}

#[cfg(test)]
mod iommufd_test;
