//! Memory that a device reads or writes.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Anonymous memory, locked, page-aligned, zeroed; the target of DMA.
#[derive(Debug)]
pub struct Buffer {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory belongs to the value alone.
unsafe impl Send for Buffer {}

impl Buffer {
    /// `length` bytes, all of them present.
    pub fn new(length: usize) -> io::Result<Self> {
        Self::map(length, libc::MAP_POPULATE | libc::MAP_LOCKED)
    }

    /// `length` bytes, none of them present until someone touches it.
    pub fn absent(length: usize) -> io::Result<Self> {
        Self::map(length, libc::MAP_NORESERVE)
    }

    fn map(length: usize, flags: i32) -> io::Result<Self> {
        let base = map(length, flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
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

    /// The address of `length` bytes at `offset`, which must be inside.
    fn at(&self, offset: usize, length: usize) -> *mut u8 {
        let end = offset.checked_add(length);
        assert!(
            end.is_some_and(|end| end <= self.length),
            "{length} bytes at {offset:#x} are not inside the buffer"
        );
        // SAFETY: the offset is inside the mapping, or one past its end.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// Gives the pages back to the kernel: they read as zeros, and are absent until they are
    /// touched.
    pub fn discard(&mut self) -> io::Result<()> {
        // SAFETY: the mapping belongs to the value, and no reference to it exists.
        let result =
            unsafe { libc::madvise(self.base.as_ptr().cast(), self.length, libc::MADV_DONTNEED) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Copies `data` in.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let target = self.at(offset, data.len());
        // SAFETY: at() checked that all of the bytes are inside the mapping, and no reference to it
        // exists.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) };
        // The device must find the bytes when it is told of them.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }

    /// Copies `length` bytes out.
    pub fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        // What the device wrote before it said so must be what is read.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let source = self.at(offset, length);
        let mut data = vec![0; length];
        // SAFETY: at() checked that all of the bytes are inside the mapping; no reference to it
        // exists, and the device that writes to it is not at work while the caller reads.
        unsafe { std::ptr::copy_nonoverlapping(source, data.as_mut_ptr(), length) };
        data
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to the value, and nothing borrowed from it can be left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// Maps `length` bytes, of `file` from its start or of nothing, to be read and written.
fn map(length: usize, flags: i32, file: i32) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses touches no existing memory.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, file, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned address 0"))
}

/// Registers of a device, mapped into this process.
#[derive(Debug)]
pub struct Window {
    base: NonNull<u8>,
    length: usize,
}

impl Window {
    /// Maps `length` bytes of `file`, from its start.
    pub fn map(file: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        let base = map(length, libc::MAP_SHARED, file.as_raw_fd())?;
        Ok(Self { base, length })
    }

    fn at<T>(&self, offset: u64) -> *mut T {
        let size = size_of::<T>();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        assert!(
            offset.is_multiple_of(size)
                && offset
                    .checked_add(size)
                    .is_some_and(|end| end <= self.length),
            "{size} bytes at {offset:#x} are not inside the window"
        );
        // SAFETY: the offset is inside the mapping.
        unsafe { self.base.as_ptr().add(offset).cast() }
    }

    /// Reads a 32-bit register.
    pub fn read_u32(&self, offset: u64) -> u32 {
        // SAFETY: at() checked that the register is inside the mapping and aligned.
        unsafe { self.at::<u32>(offset).read_volatile() }
    }

    /// Writes a 32-bit register.
    pub fn write_u32(&self, offset: u64, value: u32) {
        // SAFETY: as in read_u32.
        unsafe { self.at::<u32>(offset).write_volatile(value) };
    }

    /// Reads a 64-bit register.
    pub fn read_u64(&self, offset: u64) -> u64 {
        // SAFETY: as in read_u32.
        unsafe { self.at::<u64>(offset).read_volatile() }
    }

    /// Writes a 64-bit register.
    pub fn write_u64(&self, offset: u64, value: u64) {
        // SAFETY: as in read_u32.
        unsafe { self.at::<u64>(offset).write_volatile(value) };
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to the value.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// A new memfd of so many bytes.
pub fn file(name: &str, length: u64) -> io::Result<File> {
    let file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?);
    file.set_len(length)?;
    Ok(file)
}

/// A new eventfd with counter 0.
pub fn eventfd() -> io::Result<OwnedFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?.into())
}

/// Takes ownership of a descriptor that an ioctl returned.
pub fn adopt(descriptor: i32) -> io::Result<OwnedFd> {
    if descriptor < 3 {
        return Err(io::Error::other(format!(
            "{descriptor} is no new descriptor"
        )));
    }
    // SAFETY: the only caller passes what VFIO_GROUP_GET_DEVICE_FD has just returned, which nobody
    // else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Waits until `file` is readable, at most `milliseconds`.
pub fn wait_readable(file: BorrowedFd<'_>, milliseconds: i32) -> io::Result<bool> {
    let timeout = PollTimeout::try_from(milliseconds).map_err(io::Error::other)?;
    let mut files = [PollFd::new(file, PollFlags::POLLIN)];
    Ok(poll(&mut files, timeout)? > 0)
}
