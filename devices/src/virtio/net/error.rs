//! Why a network device cannot be made, with what helps.

use std::io;

use crate::virtio::vhost::OpenError;

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
    /// More queues were asked for than the tap can have.
    #[error(
        "tap {tap:?} has one queue, and queues={queues} needs more; create it with several: ip tuntap add dev {tap} mode tap multi_queue user $USER, or leave queues out"
    )]
    OneQueue {
        /// The tap.
        tap: String,
        /// What was asked for.
        queues: u16,
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

impl NetError {
    /// A failed `TUNSETIFF`, or what follows.
    pub(super) fn attach(tap: &str, error: io::Error) -> Self {
        let remedy = match error.raw_os_error() {
            Some(libc::EBUSY) => {
                "another process is attached to it; stop that one, or use another tap"
            }
            Some(libc::EPERM) => "give it to your user: ip tuntap add dev NAME mode tap user $USER",
            Some(libc::EINVAL) => "it is not a tap; make one: ip tuntap add dev NAME mode tap",
            Some(libc::E2BIG) => {
                "others have all queues that it can have; stop them, or use another tap"
            }
            _ => "check that it is a tap: ip -d link show dev NAME",
        };
        Self::Attach {
            tap: tap.to_owned(),
            error,
            remedy,
        }
    }
}
