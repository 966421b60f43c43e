//! The ioctls of tap interfaces (<linux/if_tun.h>), with safe signatures.
#![allow(unsafe_code)] // They take pointers, and no crate among the dependencies wraps them.

use std::fs::File;
use std::io;

use libc::{IFNAMSIZ, TUNSETIFF, TUNSETOFFLOAD, TUNSETQUEUE, TUNSETVNETHDRSZ};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

/// `struct ifreq` as `TUNSETIFF` and `TUNSETQUEUE` use it: a name and 16 bits of flags in a union of 24 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

impl InterfaceRequest {
    fn new(name: [u8; IFNAMSIZ], flags: libc::c_int) -> io::Result<Self> {
        let flags = u16::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(Self {
            name,
            flags,
            rest: [0; 22],
        })
    }
}

/// Makes `tun`, an open `/dev/net/tun`, the tap `name` (zero-terminated), or one of its queues, with
/// virtio headers and without packet information. `InvalidInput` if it can have several queues and
/// `several` is false, or the other way round.
pub(super) fn set_tap_interface(tun: &File, name: [u8; IFNAMSIZ], several: bool) -> io::Result<()> {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let several = if several { libc::IFF_MULTI_QUEUE } else { 0 };
    let mut request = InterfaceRequest::new(name, flags | several)?;
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, 40 bytes on every 64-bit Linux, which
    // is the size of `request`; it is borrowed mutably for the call and the kernel keeps no pointer
    // to it.
    check(unsafe { ioctl_with_mut_ref(tun, TUNSETIFF, &mut request) })
}

/// Has a queue of a tap get packets, or loses what it has and gives it no more.
pub(super) fn attach_tap_queue(queue: &File, attach: bool) -> io::Result<()> {
    let flag = match attach {
        true => libc::IFF_ATTACH_QUEUE,
        false => libc::IFF_DETACH_QUEUE,
    };
    let request = InterfaceRequest::new([0; IFNAMSIZ], flag)?;
    // SAFETY: TUNSETQUEUE reads one `struct ifreq`, as above; it is borrowed for the call and the
    // kernel keeps no pointer to it.
    check(unsafe { ioctl_with_ref(queue, TUNSETQUEUE, &request) })
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
