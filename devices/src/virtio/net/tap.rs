//! A tap interface of the host.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem::offset_of;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::IFNAMSIZ;
use nix::net::if_::if_nametoindex;
use virtio_bindings::virtio_net::virtio_net_hdr_v1;

use super::sys;
use crate::virtio::vhost::OpenError;

/// Size of the header before each packet (section 5.1.6).
pub(super) const HEADER: usize = size_of::<virtio_net_hdr_v1>();
/// Offset of `num_buffers` in it.
pub(super) const NUM_BUFFERS: usize = offset_of!(virtio_net_hdr_v1, num_buffers);

/// Why a network device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Not the name of an interface.
    #[error("tap {0:?} is not an interface name; use 1 to 15 characters without '/' and spaces")]
    Name(String),
    /// There is no such interface.
    #[error(
        "tap {0:?} does not exist; create it: ip tuntap add dev {0} mode tap user $USER && ip link set {0} up"
    )]
    Missing(String),
    /// The tun driver is not there.
    #[error(
        "cannot open /dev/net/tun for tap {tap:?}: {error}; load the tun module, and check the permissions of the file"
    )]
    Driver {
        /// The tap.
        tap: String,
        /// The system's reason.
        error: io::Error,
    },
    /// The interface cannot be attached to.
    #[error("cannot attach to tap {tap:?}: {error}; {remedy}")]
    Attach {
        /// The tap.
        tap: String,
        /// The system's reason.
        error: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The kernel does not serve it.
    #[error(transparent)]
    Vhost(#[from] OpenError),
    /// The host gives no descriptors.
    #[error("the host has no descriptors for it: {0}; raise the limit `ulimit -n`")]
    Descriptors(io::Error),
    /// The host gives no random bytes for an address.
    #[error("cannot choose a MAC address: {0}; give one with mac=")]
    Mac(io::Error),
}

/// What a network device sends to and receives from: packets with a header before each.
pub(super) trait Backend: Send {
    /// Receives one packet; `WouldBlock` if there is none.
    fn receive(&mut self, packet: &mut [u8]) -> io::Result<usize>;
    /// Sends one packet.
    fn send(&mut self, packet: &[u8]) -> io::Result<()>;
    /// Which packets may be received unfinished: `TUN_F_*` of <linux/if_tun.h>.
    fn set_offload(&mut self, flags: u32) -> io::Result<()>;
    /// Readable when there is a packet.
    fn fd(&self) -> RawFd;
}

/// An attached tap.
pub(super) struct Tap(File);

impl Tap {
    /// Attaches to the tap `name`, which must exist: one that we created ourselves would disappear
    /// with us, and nothing would be configured to talk to it.
    pub(super) fn open(name: &str) -> Result<Self, NetError> {
        let zero_terminated =
            interface_name(name).ok_or_else(|| NetError::Name(name.to_owned()))?;
        // What /sys/class/net shows may belong to another network namespace.
        if if_nametoindex(name).is_err() {
            return Err(NetError::Missing(name.to_owned()));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(|error| NetError::Driver {
                tap: name.to_owned(),
                error,
            })?;
        let attach = |error: io::Error| {
            let remedy = remedy(&error);
            NetError::Attach {
                tap: name.to_owned(),
                error,
                remedy,
            }
        };
        sys::set_tap_interface(&file, zero_terminated).map_err(attach)?;
        sys::set_tap_header_size(&file, HEADER).map_err(attach)?;
        let tap = Self(file);
        sys::set_tap_offload(&tap.0, 0).map_err(attach)?;
        Ok(tap)
    }

    /// The tap for whoever else moves its packets.
    pub(super) fn file(&self) -> io::Result<File> {
        self.0.try_clone()
    }
}

impl Backend for Tap {
    fn receive(&mut self, packet: &mut [u8]) -> io::Result<usize> {
        self.0.read(packet)
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        // One write is one packet.
        self.0.write(packet).map(|_| ())
    }

    fn set_offload(&mut self, flags: u32) -> io::Result<()> {
        sys::set_tap_offload(&self.0, flags)
    }

    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// `name` with its terminating zero, if it can be an interface's.
fn interface_name(name: &str) -> Option<[u8; IFNAMSIZ]> {
    let bytes = name.as_bytes();
    let plain = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%');
    if bytes.is_empty()
        || bytes.len() >= IFNAMSIZ
        || !bytes.iter().all(plain)
        || name == "."
        || name == ".."
    {
        return None;
    }
    let mut zero_terminated = [0; IFNAMSIZ];
    zero_terminated
        .get_mut(..bytes.len())?
        .copy_from_slice(bytes);
    Some(zero_terminated)
}

/// What helps against a failed `TUNSETIFF`.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "another process is attached to it; stop that one, or use another tap",
        Some(libc::EPERM) => "give it to your user: ip tuntap add dev NAME mode tap user $USER",
        Some(libc::EINVAL) => {
            "it is not a tap, or was made with multi_queue; make one: ip tuntap add dev NAME mode tap"
        }
        _ => "check that it is a tap: ip -d link show dev NAME",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tap_is_named_together_with_the_remedy() {
        let message = Tap::open("nido-none-0")
            .map(|_| ())
            .expect_err("no such tap")
            .to_string();
        assert!(
            message.contains("\"nido-none-0\" does not exist"),
            "{message}"
        );
        assert!(
            message.contains("ip tuntap add dev nido-none-0 mode tap"),
            "{message}"
        );
    }

    #[test]
    fn a_name_that_no_interface_can_have_is_refused() {
        for name in ["", "../x", "much-too-long-name", "a b", ".."] {
            assert!(
                matches!(Tap::open(name), Err(NetError::Name(_))),
                "{name:?}"
            );
        }
    }
}
