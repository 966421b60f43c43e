//! A connection, of either kind.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A connection between two nidos.
#[derive(Debug)]
pub(crate) enum Connection {
    /// On one host.
    Unix(UnixStream),
    /// By a network.
    Tcp(TcpStream),
}

impl Connection {
    /// Has it block, and send each message at once. A send that makes no progress ends after `stall`.
    pub(super) fn prepare(&self, stall: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(stall))
            }
            Self::Tcp(stream) => {
                stream.set_nonblocking(false)?;
                // The guest stands still while the last, small messages go to and fro.
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(stall))
            }
        }
    }

    /// Has a read end after `limit`, which is not zero.
    pub(super) fn set_read_timeout(&self, limit: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(Some(limit)),
            Self::Tcp(stream) => stream.set_read_timeout(Some(limit)),
        }
    }

    /// Ends one direction or both, for all who hold it, also for those that wait in a call.
    pub(super) fn shutdown(&self, how: Shutdown) {
        // It fails if the connection has gone already.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(how),
            Self::Tcp(stream) => stream.shutdown(how),
        };
    }
}

impl From<UnixStream> for Connection {
    fn from(stream: UnixStream) -> Self {
        Self::Unix(stream)
    }
}

impl From<TcpStream> for Connection {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl Read for &Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Connection::Unix(stream) => (&*stream).read(buffer),
            Connection::Tcp(stream) => (&*stream).read(buffer),
        }
    }
}

impl Write for &Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Connection::Unix(stream) => (&*stream).write(bytes),
            Connection::Tcp(stream) => (&*stream).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
