//! The system calls that neither std nor vmm-sys-util wraps, with safe signatures: tap ioctls and random bytes.
//!
//! This is the only file of the virtio devices that may contain `unsafe`: the kernel interfaces below take pointers.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::ioctl_iow_nr;

// <linux/if_tun.h>
ioctl_iow_nr!(TUNSETIFF, TUN, 202, libc::c_int);
ioctl_iow_nr!(TUNSETOFFLOAD, TUN, 208, libc::c_uint);
ioctl_iow_nr!(TUNSETVNETHDRSZ, TUN, 216, libc::c_int);

/// Type byte of the tun ioctls.
const TUN: libc::c_uint = b'T' as libc::c_uint;

/// Length of an interface name with its terminating zero.
pub(super) const IF_NAME_SIZE: usize = 16;

/// `struct ifreq` as `TUNSETIFF` uses it: a name and 16 bits of flags in a union of 24 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; IF_NAME_SIZE],
    flags: u16,
    rest: [u8; 22],
}

/// Makes `tun`, an open `/dev/net/tun`, the tap `name` (zero-terminated) with virtio headers and without packet information.
pub(super) fn set_tap_interface(tun: &File, name: [u8; IF_NAME_SIZE]) -> io::Result<()> {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let flags = u16::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut request = InterfaceRequest {
        name,
        flags,
        rest: [0; 22],
    };
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, 40 bytes on every 64-bit Linux, which is the size of
    // `request`; it is borrowed mutably for the call and the kernel keeps no pointer to it.
    check(unsafe { ioctl_with_mut_ref(tun, TUNSETIFF(), &mut request) })
}

/// Whether this network namespace has an interface of that (zero-terminated) name. (What /sys/class/net shows may belong to
/// another namespace.)
pub(super) fn interface_exists(name: &[u8; IF_NAME_SIZE]) -> bool {
    let Ok(name) = CStr::from_bytes_until_nul(name) else {
        return false;
    };
    // SAFETY: the pointer is to a zero-terminated string that lives through the call, and is only read.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

/// Sets the length of the header before each packet.
pub(super) fn set_tap_header_size(tun: &File, size: usize) -> io::Result<()> {
    let size = libc::c_int::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: TUNSETVNETHDRSZ reads one `int` through the pointer, which `size` is.
    check(unsafe { ioctl_with_ref(tun, TUNSETVNETHDRSZ(), &size) })
}

/// Sets which packets the tap may leave unfinished (`TUN_F_*`).
pub(super) fn set_tap_offload(tun: &File, flags: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value; no memory is involved.
    check(unsafe { ioctl_with_val(tun, TUNSETOFFLOAD(), libc::c_ulong::from(flags)) })
}

/// Fills `data` from the kernel's random number generator.
pub(super) fn random(data: &mut [u8]) -> io::Result<()> {
    let mut rest = data;
    while !rest.is_empty() {
        // SAFETY: the pointer and the length describe `rest`, which is borrowed mutably for the call.
        let count = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(count) {
            Ok(count) => rest = rest.get_mut(count..).unwrap_or_default(),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// The convention of system calls: negative means that errno says why.
fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Deallocates `offset..offset + length`, which reads as zeroes afterwards. The file keeps its size.
pub(super) fn punch_hole(file: &File, offset: u64, length: u64) -> io::Result<()> {
    allocate(
        file,
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        offset,
        length,
    )
}

/// Zeroes `offset..offset + length` and keeps it allocated.
pub(super) fn zero_range(file: &File, offset: u64, length: u64) -> io::Result<()> {
    allocate(
        file,
        libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        offset,
        length,
    )
}

fn allocate(file: &File, mode: libc::c_int, offset: u64, length: u64) -> io::Result<()> {
    let offset = libc::off64_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let length = libc::off64_t::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    loop {
        // SAFETY: fallocate takes integers only, and the descriptor is open for as long as `file` is borrowed.
        let result = check(unsafe { libc::fallocate64(file.as_raw_fd(), mode, offset, length) });
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
