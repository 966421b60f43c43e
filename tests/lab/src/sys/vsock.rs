//! AF_VSOCK: streams between a guest and its host.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc::{VMADDR_CID_ANY, VMADDR_PORT_ANY};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, VsockAddr, accept4, bind, connect,
    getpeername, getsockname, listen, setsockopt, shutdown, socket, sockopt,
};
use nix::sys::time::TimeVal;

/// The host's address (VMADDR_CID_HOST).
pub const HOST: u32 = 2;

/// One end of a connection, for reads and writes.
#[derive(Debug)]
pub struct VsockStream(pub File);

impl VsockStream {
    /// Connects to `port` of the machine at `cid`. Reads and writes that take longer than `seconds`
    /// fail.
    pub fn connect(cid: u32, port: u32, seconds: i64) -> io::Result<Self> {
        let stream = Self(new()?.into());
        stream.limit(seconds)?;
        connect(stream.0.as_raw_fd(), &VsockAddr::new(cid, port))?;
        Ok(stream)
    }

    /// Reads and writes that take longer than `seconds` fail from here on.
    pub fn limit(&self, seconds: i64) -> io::Result<()> {
        let limit = TimeVal::new(seconds, 0);
        setsockopt(&self.0, sockopt::ReceiveTimeout, &limit)?;
        setsockopt(&self.0, sockopt::SendTimeout, &limit)?;
        Ok(())
    }

    /// Nothing more is sent; the other end reads to the end.
    pub fn finish(&self) -> io::Result<()> {
        Ok(shutdown(self.0.as_raw_fd(), Shutdown::Write)?)
    }
}

/// A socket that others connect to.
#[derive(Debug)]
pub struct VsockListener(OwnedFd);

impl VsockListener {
    /// Listens on some free port, which is the second part.
    pub fn bind() -> io::Result<(Self, u32)> {
        let socket = new()?;
        let anyone = VsockAddr::new(VMADDR_CID_ANY, VMADDR_PORT_ANY);
        bind(socket.as_raw_fd(), &anyone)?;
        listen(&socket, Backlog::new(16)?)?;
        let own: VsockAddr = getsockname(socket.as_raw_fd())?;
        Ok((Self(socket), own.port()))
    }

    /// Waits for the next connection; returns it, and the address of who has made it.
    pub fn accept(&self) -> io::Result<(VsockStream, u32)> {
        let socket = accept4(&self.0, SockFlag::SOCK_CLOEXEC)?;
        let peer: VsockAddr = getpeername(socket.as_raw_fd())?;
        Ok((VsockStream(socket.into()), peer.cid()))
    }
}

fn new() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}
