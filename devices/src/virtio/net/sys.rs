//! The ioctls of tap interfaces (<linux/if_tun.h>), with safe signatures.
#![allow(unsafe_code)] // They take pointers, and no crate among the dependencies wraps them.

use std::fs::File;
use std::io;

use libc::{IFNAMSIZ, TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

/// `struct ifreq` as `TUNSETIFF` uses it: a name and 16 bits of flags in a union of 24 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

/// Makes `tun`, an open `/dev/net/tun`, the tap `name` (zero-terminated) with virtio headers and
/// without packet information.
pub(super) fn set_tap_interface(tun: &File, name: [u8; IFNAMSIZ]) -> io::Result<()> {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let flags = u16::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut request = InterfaceRequest {
        name,
        flags,
        rest: [0; 22],
    };
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, 40 bytes on every 64-bit Linux, which
    // is the size of `request`; it is borrowed mutably for the call and the kernel keeps no pointer
    // to it.
    check(unsafe { ioctl_with_mut_ref(tun, TUNSETIFF, &mut request) })
}

/// Sets the length of the header before each packet.
pub(super) fn set_tap_header_size(tun: &File, size: usize) -> io::Result<()> {
    let size = libc::c_int::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: TUNSETVNETHDRSZ reads one `int` through the pointer, which `size` is.
    check(unsafe { ioctl_with_ref(tun, TUNSETVNETHDRSZ, &size) })
}

/// Sets which packets the tap may leave unfinished (`TUN_F_*`).
pub(super) fn set_tap_offload(tun: &File, flags: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value; no memory is involved.
    check(unsafe { ioctl_with_val(tun, TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}

/// The convention of system calls: negative means that errno says why.
fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
