//! A tap interface of the host.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem::offset_of;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Weak};

use libc::IFNAMSIZ;
use log::info;
use nix::net::if_::if_nametoindex;
use virtio_bindings::virtio_net::virtio_net_hdr_v1;

use super::error::NetError;
use super::pairs::Pairs;
use super::sys;

/// Size of the header before each packet (section 5.1.6).
pub(super) const HEADER: usize = size_of::<virtio_net_hdr_v1>();
/// Offset of `num_buffers` in it.
pub(super) const NUM_BUFFERS: usize = offset_of!(virtio_net_hdr_v1, num_buffers);

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

/// A queue of a tap that we are attached to.
pub(super) struct Tap(Arc<File>);

/// A queue of a tap that a device has, for as long as it is there.
#[derive(Clone, Debug)]
pub struct QueueFile(Weak<File>);

impl QueueFile {
    /// Whether the device is there no more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }

    /// The open file, if the device is there.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn file(&self) -> io::Result<Option<File>> {
        self.0.upgrade().map(|file| file.try_clone()).transpose()
    }
}

impl Tap {
    /// Attaches to as many queues as there are to be of the tap `name`, which must exist: one that
    /// we created ourselves would disappear with us, and nothing would be configured to talk to it.
    /// All of them get packets, the first and the others.
    pub(super) fn open(name: &str, pairs: Pairs) -> Result<(Self, Vec<Self>), NetError> {
        let zero_terminated =
            interface_name(name).ok_or_else(|| NetError::Name(name.to_owned()))?;
        // What /sys/class/net shows may belong to another network namespace.
        if if_nametoindex(name).is_err() {
            return Err(NetError::Missing(name.to_owned()));
        }
        let attach = |error| NetError::attach(name, error);
        let first = tun(name)?;
        let several = match sys::set_tap_interface(&first, zero_terminated, true) {
            // It was made for one queue; or it is no tap, and this fails as well.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                sys::set_tap_interface(&first, zero_terminated, false).map_err(attach)?;
                false
            }
            outcome => outcome.map(|()| true).map_err(attach)?,
        };
        let count = if several {
            pairs.most()
        } else {
            one(name, pairs)?
        };
        sys::set_tap_header_size(&first, HEADER).map_err(attach)?;
        sys::set_tap_offload(&first, 0).map_err(attach)?;
        let other = |_| {
            let other = tun(name)?;
            sys::set_tap_interface(&other, zero_terminated, true).map_err(attach)?;
            Ok::<_, NetError>(Self::of(other))
        };
        Ok((
            Self::of(first),
            (1..count).map(other).collect::<Result<_, _>>()?,
        ))
    }

    /// A queue that is attached, and as this device wants it.
    pub(super) fn of(queue: File) -> Self {
        Self(Arc::new(queue))
    }

    /// The tap for whoever else moves its packets.
    pub(super) fn file(&self) -> io::Result<File> {
        self.0.try_clone()
    }

    /// The same for whoever is not to keep it.
    pub(super) fn queue(&self) -> QueueFile {
        QueueFile(Arc::downgrade(&self.0))
    }
}

impl Backend for Tap {
    fn receive(&mut self, packet: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(packet)
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        // One write is one packet.
        (&*self.0).write(packet).map(|_| ())
    }

    fn set_offload(&mut self, flags: u32) -> io::Result<()> {
        sys::set_tap_offload(&self.0, flags)
    }

    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The tun driver, for one queue of the tap `name`.
fn tun(name: &str) -> Result<File, NetError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(|error| NetError::Driver {
            tap: name.to_owned(),
            error,
        })
}

/// How many queues of the tap `name`, which has one, are used.
fn one(name: &str, pairs: Pairs) -> Result<u16, NetError> {
    match pairs {
        Pairs::Exactly(queues) if queues > 1 => Err(NetError::OneQueue {
            tap: name.to_owned(),
            queues,
        }),
        Pairs::UpTo(most) if most > 1 => {
            info!(
                "tap {name:?} has one queue, so the network device has one pair; for {most}, create it with multi_queue"
            );
            Ok(1)
        }
        _ => Ok(1),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tap_is_named_together_with_the_remedy() {
        let message = Tap::open("nido-none-0", Pairs::UpTo(4))
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
    fn a_tap_with_one_queue_does_for_a_default_and_not_for_what_was_asked() {
        assert_eq!(one("t", Pairs::UpTo(4)).unwrap(), 1);
        assert_eq!(one("t", Pairs::Exactly(1)).unwrap(), 1);
        let message = one("t", Pairs::Exactly(2))
            .expect_err("refused")
            .to_string();
        assert!(
            message.starts_with("tap \"t\" has one queue, and queues=2 needs more; create it"),
            "{message}"
        );
        assert!(
            message.contains("ip tuntap add dev t mode tap multi_queue"),
            "{message}"
        );
    }

    #[test]
    fn a_name_that_no_interface_can_have_is_refused() {
        for name in ["", "../x", "much-too-long-name", "a b", ".."] {
            assert!(
                matches!(Tap::open(name, Pairs::Exactly(1)), Err(NetError::Name(_))),
                "{name:?}"
            );
        }
    }
}
