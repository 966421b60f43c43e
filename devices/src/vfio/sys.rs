//! The ioctls of a VFIO device that vfio-ioctls lacks, or whose outcome it does not report. Layouts
//! are `linux/vfio.h`'s.
//!
//! This is the only file of the assigned device that may contain `unsafe`: the kernel interfaces
//! below take pointers.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD,
    vfio_device_info,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ptr};
use vmm_sys_util::ioctl_io_nr;

/// `VFIO_TYPE`.
const VFIO: libc::c_uint = b';' as libc::c_uint;

ioctl_io_nr!(VFIO_DEVICE_GET_INFO, VFIO, VFIO_BASE + 7);
ioctl_io_nr!(VFIO_DEVICE_SET_IRQS, VFIO, VFIO_BASE + 10);
ioctl_io_nr!(VFIO_DEVICE_RESET, VFIO, VFIO_BASE + 11);

/// `VFIO_DEVICE_GET_INFO`: whether the device can be reset. (The crate keeps the flags to itself.)
pub(super) fn can_reset(device: &File) -> io::Result<bool> {
    #[allow(clippy::cast_possible_truncation)] // It has a few dozen bytes.
    let mut info = vfio_device_info {
        argsz: size_of::<vfio_device_info>() as u32,
        ..Default::default()
    };
    // SAFETY: the kernel reads and writes `argsz` bytes at most, which is the size of `info`; it
    // keeps no pointer to it.
    check(unsafe { ioctl_with_mut_ref(device, VFIO_DEVICE_GET_INFO(), &mut info) })?;
    Ok(info.flags & VFIO_DEVICE_FLAGS_RESET != 0)
}

/// `VFIO_DEVICE_SET_IRQS`: signals `events` for the interrupts from `start` on; `None` stops one.
/// Returns a positive number when nothing was done because the host has only that many vectors for
/// the device. (The crate's `enable_irq` begins at the first, stops none, and takes that number for
/// success.)
pub(super) fn set_triggers(
    device: &File,
    index: u32,
    start: u32,
    events: &[Option<&EventFd>],
) -> io::Result<u32> {
    let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    let count = u32::try_from(events.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // struct vfio_irq_set: argsz, flags, index, start, count, and an array of descriptors.
    let mut words = vec![0, flags, index, start, count];
    let fds = events
        .iter()
        .map(|event| event.map_or(-1, AsRawFd::as_raw_fd));
    words.extend(fds.map(i32::cast_unsigned));
    let size = u32::try_from(words.len() * 4).map_err(|_| io::ErrorKind::InvalidInput)?;
    if let Some(argsz) = words.first_mut() {
        *argsz = size;
    }
    // SAFETY: the kernel only reads, at most `argsz` bytes at the pointer, which is the length of
    // `words`.
    check(unsafe { ioctl_with_ptr(device, VFIO_DEVICE_SET_IRQS(), words.as_ptr()) })
}

/// `VFIO_DEVICE_RESET`. (The crate's `reset` tells no error.)
pub(super) fn reset(device: &File) -> io::Result<()> {
    // SAFETY: VFIO_DEVICE_RESET takes no argument.
    check(unsafe { ioctl(device, VFIO_DEVICE_RESET()) }).map(drop)
}

/// The convention of system calls: negative means that errno says why.
fn check(result: libc::c_int) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}
