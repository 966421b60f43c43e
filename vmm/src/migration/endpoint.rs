//! Where a target waits for a guest: `unix:PATH` or `tcp:HOST:PORT`.
//!
//! A unix socket is its owner's alone. A TCP port is open to whoever reaches it, and neither side proves
//! who it is: it is for a network that only those use who may have the guest.

use std::fmt;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::socket::Socket;
use crate::control;

/// Where a target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A name or an address, and a port: `host:4444`, `192.0.2.1:4444`, `[2001:db8::1]:4444`.
    Tcp(String),
}

/// Why a text is no endpoint.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EndpointError {
    /// Neither kind.
    #[error("`{0}` is no place for a guest: write unix:PATH or tcp:HOST:PORT")]
    Unknown(String),
    /// There is no path.
    #[error("`{0}` lacks the path of the socket: write unix:PATH")]
    NoPath(String),
    /// There is no host.
    #[error(
        "`{0}` lacks the host: write tcp:HOST:PORT (tcp:0.0.0.0:PORT waits at all addresses of this host)"
    )]
    NoHost(String),
    /// There is no port, or a number that no port has.
    #[error("`{0}` lacks a port from 0 to 65535: write tcp:HOST:PORT")]
    NoPort(String),
    /// An address of IPv6 as it is.
    #[error("`{0}`: write an address of IPv6 in brackets, as in tcp:[::1]:PORT")]
    NoBrackets(String),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let whole = || text.to_owned();
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(EndpointError::NoPath(whole()));
            }
            return Ok(Self::Unix(path.into()));
        }
        let Some(place) = text.strip_prefix("tcp:") else {
            return Err(EndpointError::Unknown(whole()));
        };
        let Some((host, port)) = place.rsplit_once(':') else {
            return Err(EndpointError::NoPort(whole()));
        };
        // A sign is not part of a port, though Rust takes it.
        let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number || port.parse::<u16>().is_err() {
            return Err(EndpointError::NoPort(whole()));
        }
        if host.is_empty() {
            return Err(EndpointError::NoHost(whole()));
        }
        if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
            return Err(EndpointError::NoBrackets(whole()));
        }
        Ok(Self::Tcp(place.to_owned()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(place) => write!(f, "tcp:{place}"),
        }
    }
}

impl Endpoint {
    /// Connects to whoever listens there, for `limit` at most.
    ///
    /// # Errors
    /// Nobody listens there, or takes the connection in that time; or the name has no address.
    pub(crate) fn connect(&self, limit: Duration) -> io::Result<Socket> {
        let (give, taken) = channel();
        let endpoint = self.clone();
        // Neither looking up a name nor connecting to a full queue can be told a limit. The thread ends
        // with whichever of them it is at.
        thread::Builder::new()
            .name("migration-dial".to_owned())
            .spawn(move || {
                // Nobody waits for it any more if it took too long; the connection is closed then.
                let _ = give.send(endpoint.dial());
            })?;
        taken.recv_timeout(limit).unwrap_or_else(|_| {
            let text = format!("nobody took the connection for {} ms", limit.as_millis());
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        })
    }

    fn dial(&self) -> io::Result<Socket> {
        match self {
            Self::Unix(path) => UnixStream::connect(path).map(Socket::Unix),
            Self::Tcp(place) => TcpStream::connect(place.as_str()).map(Socket::Tcp),
        }
    }

    /// Begins to wait for connections there.
    ///
    /// A unix socket is its owner's alone from the start (mode 0600), replaces one that a process has
    /// left behind, and is removed with the listener.
    ///
    /// # Errors
    /// Somebody else listens there, there is something else at the path, or the host refuses. The
    /// message has the remedy.
    pub(crate) fn listen(&self) -> io::Result<Listener> {
        match self {
            Self::Unix(path) => {
                let socket = control::Socket::bind(path).map_err(io::Error::other)?;
                Ok(Listener::Unix(socket))
            }
            Self::Tcp(place) => {
                let listener = TcpListener::bind(place.as_str())?;
                listener.set_nonblocking(true)?;
                Ok(Listener::Tcp(listener))
            }
        }
    }
}

/// What waits for connections. Not every one is a migration: a nido that wants the same path connects to
/// see whether anybody listens, and ports are scanned. So go on with the next when a connection ends
/// before it has said what guest there is.
pub(crate) enum Listener {
    /// A socket in the file system, which is removed when this is dropped.
    Unix(control::Socket),
    /// A port.
    Tcp(TcpListener),
}

impl Listener {
    /// The next connection, if there is one before `limit` has passed. Calling it again and again, with
    /// a short limit, lets a thread see in between whether it is to end.
    ///
    /// # Errors
    /// The host refuses, which it will do again.
    pub(crate) fn accept(&self, limit: Duration) -> io::Result<Option<Socket>> {
        let fd = match self {
            Self::Unix(socket) => socket.listener().as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        };
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(Errno::EINTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let accepted = match self {
            Self::Unix(socket) => {
                let accepted = socket.listener().accept();
                accepted.map(|(stream, _)| Socket::Unix(stream))
            }
            Self::Tcp(listener) => listener.accept().map(|(stream, _)| Socket::Tcp(stream)),
        };
        match accepted {
            Ok(socket) => Ok(Some(socket)),
            // The client has gone since.
            Err(error) if is_passing(error.kind()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The file to remove, for who ends the process without dropping this.
    pub(crate) fn place(&self) -> Option<&control::Place> {
        match self {
            Self::Unix(socket) => Some(socket.place()),
            Self::Tcp(_) => None,
        }
    }

    /// The port, if it is one: the host chooses it for port 0.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Self::Unix(_) => None,
            Self::Tcp(listener) => listener.local_addr().ok().map(|address| address.port()),
        }
    }
}

fn is_passing(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}

#[cfg(test)]
mod endpoint_test;
