//! Memory that a device reads or writes.
//!
//! All accesses are volatile, since the other side changes the memory behind the compiler's back.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// Anonymous memory, locked, page-aligned, zeroed; the target of DMA.
#[derive(Debug)]
pub struct Buffer {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory belongs to the value, and is reached through volatile accesses only.
unsafe impl Send for Buffer {}

impl Buffer {
    /// `length` bytes, all of them present.
    pub fn new(length: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE | libc::MAP_LOCKED;
        // SAFETY: a new mapping at an address that the kernel chooses touches no existing memory.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base =
            NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned address 0"))?;
        Ok(Self { base, length })
    }

    /// Address in this process.
    pub fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn at(&self, offset: usize) -> *mut u8 {
        assert!(
            offset < self.length,
            "offset {offset:#x} is outside the mapping"
        );
        // SAFETY: the offset is inside the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// Copies `data` in.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (index, byte) in data.iter().enumerate() {
            // SAFETY: at() checked the range.
            unsafe { self.at(offset + index).write_volatile(*byte) }
        }
    }

    /// Copies `length` bytes out.
    pub fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        // SAFETY: at() checked the range.
        (0..length)
            .map(|index| unsafe { self.at(offset + index).read_volatile() })
            .collect()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to the value, and nothing borrowed from it can be left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// A new eventfd with counter 0.
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Takes ownership of a descriptor that an ioctl returned.
pub fn adopt(descriptor: i32) -> io::Result<OwnedFd> {
    if descriptor < 3 {
        return Err(io::Error::other(format!(
            "{descriptor} is no new descriptor"
        )));
    }
    // SAFETY: the only caller passes what VFIO_GROUP_GET_DEVICE_FD has just returned, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Waits until `file` is readable, at most `milliseconds`.
pub fn wait_readable(file: BorrowedFd<'_>, milliseconds: i32) -> io::Result<bool> {
    let mut poll = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: poll is one valid structure.
    let ready = unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
    if ready < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ready > 0)
    }
}
