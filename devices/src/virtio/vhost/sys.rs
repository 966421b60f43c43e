//! What of <linux/vhost.h> the crate `vhost` does not wrap.
#![allow(unsafe_code)] // An ioctl and a read that take pointers.

use std::io;
use std::os::fd::AsRawFd;

use vhost::vhost_kern::vhost_binding::{
    VHOST_SET_VRING_ADDR, VHOST_VRING_F_LOG, vhost_msg_v2, vhost_vring_addr,
};
use vhost::{VhostIotlbMsg, VhostIotlbMsgParser};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::backend::Rings;

/// `VHOST_SET_VRING_ADDR`. The crate's own takes guest-physical addresses only, and not those of an
/// IOTLB.
///
/// What is written to the used ring is logged if `logged`.
pub(super) fn set_ring_addresses(
    device: &impl AsRawFd,
    index: u32,
    rings: &Rings,
    logged: bool,
) -> io::Result<()> {
    let addresses = vhost_vring_addr {
        index,
        flags: u32::from(logged) << VHOST_VRING_F_LOG,
        desc_user_addr: rings.descriptors,
        used_user_addr: rings.used,
        avail_user_addr: rings.available,
        log_guest_addr: if logged { rings.used_in_guest } else { 0 },
    };
    // SAFETY: VHOST_SET_VRING_ADDR reads one `struct vhost_vring_addr`, which `addresses` is, and
    // keeps no pointer to it. What the kernel writes to later are addresses of guest memory, which
    // is shared with the guest and held by volatile accesses only.
    let result = unsafe { ioctl_with_ref(device, VHOST_SET_VRING_ADDR(), &addresses) };
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reads one message of the IOTLB. `WouldBlock` if there is none.
pub(super) fn read_message(device: &impl AsRawFd) -> io::Result<VhostIotlbMsg> {
    let mut raw = vhost_msg_v2::default();
    let size = size_of::<vhost_msg_v2>();
    // SAFETY: `raw` is `size` bytes long, borrowed for the call only, and any bytes are a value of
    // it: it consists of integers.
    let read = unsafe { libc::read(device.as_raw_fd(), (&raw mut raw).cast(), size) };
    if read < 0 {
        return Err(io::Error::last_os_error());
    }
    if usize::try_from(read) != Ok(size) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut message = VhostIotlbMsg::default();
    raw.parse(&mut message).map_err(io::Error::other)?;
    Ok(message)
}
