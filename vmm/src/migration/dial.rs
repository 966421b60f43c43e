//! How the two sides come to a connection: one waits at an [`Endpoint`], the other connects to it.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::connection::Connection;
use crate::endpoint::Endpoint;
use crate::socket::{Place, Socket};

impl Endpoint {
    /// Connects to whoever listens there, for `limit` at most.
    ///
    /// # Errors
    /// Nobody listens there, or takes the connection in that time; or the name has no address.
    pub(crate) fn connect(&self, limit: Duration) -> io::Result<Connection> {
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

    fn dial(&self) -> io::Result<Connection> {
        match self {
            Self::Unix(path) => UnixStream::connect(path).map(Connection::Unix),
            Self::Tcp(place) => TcpStream::connect(place.as_str()).map(Connection::Tcp),
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
                let socket = Socket::bind(path).map_err(io::Error::other)?;
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
    Unix(Socket),
    /// A port.
    Tcp(TcpListener),
}

impl Listener {
    /// The next connection, if there is one before `limit` has passed. Calling it again and again, with
    /// a short limit, lets a thread see in between whether it is to end.
    ///
    /// # Errors
    /// The host refuses, which it will do again.
    pub(crate) fn accept(&self, limit: Duration) -> io::Result<Option<Connection>> {
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
                accepted.map(|(stream, _)| Connection::Unix(stream))
            }
            Self::Tcp(listener) => listener.accept().map(|(stream, _)| Connection::Tcp(stream)),
        };
        match accepted {
            Ok(connection) => Ok(Some(connection)),
            // The client has gone since.
            Err(error) if is_passing(error.kind()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The file to remove, for who ends the process without dropping this.
    pub(crate) fn place(&self) -> Option<&Place> {
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
mod dial_test;
