//! The ioctls of a VFIO device, with safe signatures. Layouts are `linux/vfio.h`'s.
//!
//! This is the only file of the assigned device that may contain `unsafe`: the kernel interfaces below take pointers.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DEVICE_ATTACH_PASID, VFIO_DEVICE_DETACH_PASID, VFIO_DEVICE_FLAGS_RESET,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE, vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd,
    vfio_device_detach_iommufd_pt, vfio_device_info, vfio_irq_info, vfio_region_info,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr};
use vmm_sys_util::ioctl_io_nr;
use zerocopy::IntoBytes;

/// `VFIO_TYPE`.
const VFIO: libc::c_uint = b';' as libc::c_uint;

ioctl_io_nr!(VFIO_DEVICE_GET_INFO, VFIO, VFIO_BASE + 7);
ioctl_io_nr!(VFIO_DEVICE_GET_REGION_INFO, VFIO, VFIO_BASE + 8);
ioctl_io_nr!(VFIO_DEVICE_GET_IRQ_INFO, VFIO, VFIO_BASE + 9);
ioctl_io_nr!(VFIO_DEVICE_SET_IRQS, VFIO, VFIO_BASE + 10);
ioctl_io_nr!(VFIO_DEVICE_RESET, VFIO, VFIO_BASE + 11);
ioctl_io_nr!(VFIO_DEVICE_BIND_IOMMUFD, VFIO, VFIO_BASE + 18);
ioctl_io_nr!(VFIO_DEVICE_ATTACH_IOMMUFD_PT, VFIO, VFIO_BASE + 19);
ioctl_io_nr!(VFIO_DEVICE_DETACH_IOMMUFD_PT, VFIO, VFIO_BASE + 20);

/// Bytes of `struct vfio_region_info`.
const REGION_INFO_SIZE: usize = size_of::<vfio_region_info>();
/// More than any list of region capabilities needs.
const REGION_INFO_LIMIT: usize = 1 << 16;

/// `argsz` of a structure.
const fn size_of_u32<T>() -> u32 {
    #[allow(clippy::cast_possible_truncation)] // The structures here have a few dozen bytes.
    {
        size_of::<T>() as u32
    }
}

/// `VFIO_DEVICE_BIND_IOMMUFD`: returns the device's id in the iommufd.
pub(super) fn bind(device: &File, iommufd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bind = vfio_device_bind_iommufd {
        argsz: size_of_u32::<vfio_device_bind_iommufd>(),
        iommufd: iommufd.as_raw_fd(),
        ..Default::default()
    };
    // SAFETY: the kernel reads and writes `argsz` bytes at most, which is the size of `bind`; it keeps no pointer to it.
    check(unsafe { ioctl_with_mut_ref(device, VFIO_DEVICE_BIND_IOMMUFD(), &mut bind) })?;
    Ok(bind.out_devid)
}

/// What [`attach`] is told: requests with `pasid`, or those without, go behind `table`. (Kernels before Linux 6.15 do not know
/// the flag, and do not read beyond `pt_id`.)
pub(super) fn attachment(pasid: Option<u32>, table: u32) -> vfio_device_attach_iommufd_pt {
    vfio_device_attach_iommufd_pt {
        argsz: size_of_u32::<vfio_device_attach_iommufd_pt>(),
        flags: pasid.map_or(0, |_| VFIO_DEVICE_ATTACH_PASID),
        pt_id: table,
        pasid: pasid.unwrap_or(0),
    }
}

/// What [`detach`] is told, as for [`attachment`].
pub(super) fn detachment(pasid: Option<u32>) -> vfio_device_detach_iommufd_pt {
    vfio_device_detach_iommufd_pt {
        argsz: size_of_u32::<vfio_device_detach_iommufd_pt>(),
        flags: pasid.map_or(0, |_| VFIO_DEVICE_DETACH_PASID),
        pasid: pasid.unwrap_or(0),
    }
}

/// `VFIO_DEVICE_ATTACH_IOMMUFD_PT`.
pub(super) fn attach(device: &File, mut attach: vfio_device_attach_iommufd_pt) -> io::Result<()> {
    // SAFETY: as in `bind`.
    check(unsafe { ioctl_with_mut_ref(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT(), &mut attach) })
        .map(drop)
}

/// `VFIO_DEVICE_DETACH_IOMMUFD_PT`.
pub(super) fn detach(device: &File, mut detach: vfio_device_detach_iommufd_pt) -> io::Result<()> {
    // SAFETY: as in `bind`.
    check(unsafe { ioctl_with_mut_ref(device, VFIO_DEVICE_DETACH_IOMMUFD_PT(), &mut detach) })
        .map(drop)
}

/// `VFIO_DEVICE_GET_INFO`: whether the device can be reset.
pub(super) fn can_reset(device: &File) -> io::Result<bool> {
    let mut info = vfio_device_info {
        argsz: size_of_u32::<vfio_device_info>(),
        ..Default::default()
    };
    // SAFETY: as in `bind`.
    check(unsafe { ioctl_with_mut_ref(device, VFIO_DEVICE_GET_INFO(), &mut info) })?;
    Ok(info.flags & VFIO_DEVICE_FLAGS_RESET != 0)
}

/// `VFIO_DEVICE_GET_REGION_INFO`: the structure, followed by its capabilities, as bytes.
pub(super) fn region_info(device: &File, index: u32) -> io::Result<Vec<u8>> {
    let mut size = REGION_INFO_SIZE;
    loop {
        // 64-bit words, for the structure's alignment.
        let mut buffer = vec![0_u64; size.div_ceil(8)];
        let bytes = buffer.as_mut_bytes();
        let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        put(bytes, std::mem::offset_of!(vfio_region_info, argsz), length);
        put(bytes, std::mem::offset_of!(vfio_region_info, index), index);
        // SAFETY: the kernel reads and writes at most `argsz` bytes, which is the buffer's length, at the pointer to the
        // buffer, which is borrowed mutably for the call; it keeps no pointer to it.
        check(unsafe {
            ioctl_with_mut_ptr(device, VFIO_DEVICE_GET_REGION_INFO(), bytes.as_mut_ptr())
        })?;
        let needed = bytes
            .first_chunk()
            .and_then(|bytes| usize::try_from(u32::from_le_bytes(*bytes)).ok())
            .ok_or(io::ErrorKind::InvalidData)?;
        if needed <= bytes.len() {
            return Ok(bytes.to_vec());
        }
        if needed > REGION_INFO_LIMIT || needed <= size {
            return Err(io::ErrorKind::InvalidData.into());
        }
        size = needed;
    }
}

fn put(bytes: &mut [u8], offset: usize, value: u32) {
    bytes
        .iter_mut()
        .skip(offset)
        .zip(value.to_ne_bytes())
        .for_each(|(byte, value)| *byte = value);
}

/// `VFIO_DEVICE_GET_IRQ_INFO`: flags and count.
pub(super) fn irq_info(device: &File, index: u32) -> io::Result<(u32, u32)> {
    let mut info = vfio_irq_info {
        argsz: size_of_u32::<vfio_irq_info>(),
        index,
        ..Default::default()
    };
    // SAFETY: as in `bind`.
    check(unsafe { ioctl_with_mut_ref(device, VFIO_DEVICE_GET_IRQ_INFO(), &mut info) })?;
    Ok((info.flags, info.count))
}

/// `VFIO_DEVICE_SET_IRQS`: signals `events` for the interrupts from `start` on; `None` stops one. Returns a positive number
/// when nothing was done because the host has only that many vectors for the device.
pub(super) fn set_triggers(
    device: &File,
    index: u32,
    start: u32,
    events: &[Option<&EventFd>],
) -> io::Result<u32> {
    let fds = events
        .iter()
        .map(|event| event.map_or(-1, AsRawFd::as_raw_fd));
    let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    set_irqs(device, flags, index, start, events.len(), fds)
}

/// `VFIO_DEVICE_SET_IRQS`: turns all interrupts of `index` off.
pub(super) fn disable_irqs(device: &File, index: u32) -> io::Result<()> {
    let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
    set_irqs(device, flags, index, 0, 0, std::iter::empty()).map(drop)
}

/// `VFIO_DEVICE_SET_IRQS`: lets the first interrupt of `index` come again.
pub(super) fn unmask_irq(device: &File, index: u32) -> io::Result<()> {
    let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK;
    set_irqs(device, flags, index, 0, 1, std::iter::empty()).map(drop)
}

fn set_irqs(
    device: &File,
    flags: u32,
    index: u32,
    start: u32,
    count: usize,
    fds: impl Iterator<Item = i32>,
) -> io::Result<u32> {
    let count = u32::try_from(count).map_err(|_| io::ErrorKind::InvalidInput)?;
    // struct vfio_irq_set: argsz, flags, index, start, count, and an array of descriptors.
    let mut words = vec![0, flags, index, start, count];
    words.extend(fds.map(i32::cast_unsigned));
    let size = u32::try_from(words.len() * 4).map_err(|_| io::ErrorKind::InvalidInput)?;
    if let Some(argsz) = words.first_mut() {
        *argsz = size;
    }
    // SAFETY: the kernel only reads, at most `argsz` bytes at the pointer, which is the length of `words`.
    let available =
        check(unsafe { ioctl_with_ptr(device, VFIO_DEVICE_SET_IRQS(), words.as_ptr()) })?;
    Ok(available)
}

/// `VFIO_DEVICE_RESET`.
pub(super) fn reset(device: &File) -> io::Result<()> {
    // SAFETY: VFIO_DEVICE_RESET takes no argument.
    check(unsafe { ioctl(device, VFIO_DEVICE_RESET()) }).map(drop)
}

/// Whether `event` was signalled and nobody has taken that yet. It stays signalled.
pub(super) fn is_signalled(event: &EventFd) -> bool {
    let mut poll = libc::pollfd {
        fd: event.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: the pointer is to one `pollfd`, as the count says, borrowed mutably for the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1 && poll.revents & libc::POLLIN != 0
}

/// The convention of system calls: negative means that errno says why.
fn check(result: libc::c_int) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}
