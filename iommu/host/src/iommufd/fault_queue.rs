//! The kernel's queue of page requests (`IOMMU_FAULT_QUEUE_ALLOC`).

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use iommufd_bindings as uapi;

use crate::host_iommu::{FaultQueueId, HostDeviceId};
use crate::page_requests::{HostPageRequest, HostPageRequests};
use intel_vtd::{PageRequest, Pasid};

const RECORD: usize = size_of::<uapi::iommu_hwpt_pgfault>();
/// Records that one read makes room for at first. It takes whole groups only, so that a larger one
/// needs more.
const ROOM: usize = 1 << 10;
/// And at most. A group of that many requests is none that a device would make.
const MOST: usize = 1 << 18;

/// One of an iommufd's queues. Dropping it leaves the queue to the page tables that use it.
#[derive(Debug)]
pub struct FaultQueue {
    id: FaultQueueId,
    file: File,
    room: AtomicUsize,
}

impl FaultQueue {
    pub(super) fn new(id: FaultQueueId, file: File) -> Self {
        Self {
            id,
            file,
            room: AtomicUsize::new(ROOM),
        }
    }

    /// Names it, for page tables whose page requests are to come here.
    pub const fn id(&self) -> FaultQueueId {
        self.id
    }

    /// A second handle, for waiting until there is something to be read.
    ///
    /// # Errors
    /// There are too many open files.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    fn read(&self, room: usize) -> io::Result<Vec<HostPageRequest>> {
        let mut bytes = vec![0; room * RECORD];
        let length = (&self.file).read(&mut bytes)?;
        bytes.truncate(length);
        Ok(bytes.chunks_exact(RECORD).map(decode).collect())
    }
}

impl AsFd for FaultQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl HostPageRequests for FaultQueue {
    fn take(&self) -> io::Result<Vec<HostPageRequest>> {
        loop {
            let room = self.room.load(Ordering::Relaxed);
            let outcome = self.read(room);
            let too_small = match &outcome {
                // There is something, so the first group does not fit; kernels differ in how they
                // say it.
                Ok(requests) => requests.is_empty(),
                Err(error) => error.raw_os_error() == Some(libc::EINVAL),
            };
            match outcome {
                _ if too_small && room < MOST => self.room.store(room * 2, Ordering::Relaxed),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => {
                    if too_small {
                        // The host has emptied it meanwhile, as it does for a device that is
                        // detached.
                        self.room.store(ROOM, Ordering::Relaxed);
                    }
                    return outcome;
                }
            }
        }
    }

    fn answer(&self, cookie: u32, success: bool) -> io::Result<()> {
        let code = if success {
            uapi::iommufd_page_response_code_IOMMUFD_PAGE_RESP_SUCCESS
        } else {
            uapi::iommufd_page_response_code_IOMMUFD_PAGE_RESP_INVALID
        };
        let [a, b, c, d] = cookie.to_ne_bytes();
        let [e, f, g, h] = code.to_ne_bytes();
        // struct iommu_hwpt_page_response
        let length = (&self.file).write(&[a, b, c, d, e, f, g, h])?;
        if length == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }
}

/// `struct iommu_hwpt_pgfault`.
fn decode(record: &[u8]) -> HostPageRequest {
    let word = |at: usize| {
        let bytes = record.get(at..at + 4).and_then(|word| word.try_into().ok());
        u32::from_ne_bytes(bytes.unwrap_or_default())
    };
    let (flags, permissions) = (word(0), word(16));
    let pasid = flags & uapi::iommu_hwpt_pgfault_flags_IOMMU_PGFAULT_FLAGS_PASID_VALID != 0;
    let asks = |permission| permissions & permission != 0;
    let address = record.get(24..32).and_then(|quad| quad.try_into().ok());
    HostPageRequest {
        device: HostDeviceId(word(4)),
        request: PageRequest {
            pasid: pasid.then(|| Pasid::new(word(8))).flatten(),
            address: u64::from_ne_bytes(address.unwrap_or_default()),
            read: asks(uapi::iommu_hwpt_pgfault_perm_IOMMU_PGFAULT_PERM_READ),
            write: asks(uapi::iommu_hwpt_pgfault_perm_IOMMU_PGFAULT_PERM_WRITE),
            execute: asks(uapi::iommu_hwpt_pgfault_perm_IOMMU_PGFAULT_PERM_EXEC),
            privileged: asks(uapi::iommu_hwpt_pgfault_perm_IOMMU_PGFAULT_PERM_PRIV),
            // It has 9 bits.
            group: u16::try_from(word(12) & 0x1ff).unwrap_or_default(),
            last: flags & uapi::iommu_hwpt_pgfault_flags_IOMMU_PGFAULT_FLAGS_LAST_PAGE != 0,
        },
        cookie: word(36),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_the_uapi_has_it() {
        let mut record = [0_u8; RECORD];
        for (at, value) in [(0, 3_u32), (4, 9), (8, 0x12345), (12, 0x1fe), (16, 6)] {
            record[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        record[24..32].copy_from_slice(&0xffff_8000_0000_1000_u64.to_ne_bytes());
        record[36..40].copy_from_slice(&77_u32.to_ne_bytes());
        let expected = HostPageRequest {
            device: HostDeviceId(9),
            request: PageRequest {
                pasid: Pasid::new(0x12345),
                address: 0xffff_8000_0000_1000,
                read: false,
                write: true,
                execute: true,
                privileged: false,
                group: 0x1fe,
                last: true,
            },
            cookie: 77,
        };
        assert_eq!(decode(&record), expected);
        // Neither a PASID nor the end of a group; and a flag of the kernel's own.
        record[0] = 4;
        let HostPageRequest { request, .. } = decode(&record);
        assert_eq!((request.pasid, request.last), (None, false));
    }
}
