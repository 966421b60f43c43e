//! The servers for guests, over AF_VSOCK.

use std::io::{self, Read as _};
use std::thread;

use crate::sys::vsock::{VsockListener, VsockStream};

/// Longest wait for one piece of data of a guest that was called, in seconds.
const PATIENCE: i64 = 20;

/// Their ports.
pub(super) struct Servers {
    /// Sends back what it receives.
    pub(super) echo: u32,
    /// Receives the number of a port, connects to that of the guest, and sends back what it
    /// receives there.
    pub(super) call: u32,
}

/// Serves guests until the process ends.
pub(super) fn serve() -> io::Result<Servers> {
    let echo = listen(|stream, _| super::echo::echo(stream.0))?;
    let call = listen(|stream, cid| {
        if let Err(error) = call_back(stream, cid) {
            eprintln!("cannot call the guest at {cid}: {error}");
        }
    })?;
    Ok(Servers { echo, call })
}

/// Has `serve` serve each connection, given with the address of who made it; returns the port.
fn listen(serve: fn(VsockStream, u32)) -> io::Result<u32> {
    let (listener, port) = VsockListener::bind()?;
    thread::spawn(move || {
        while let Ok((stream, cid)) = listener.accept() {
            thread::spawn(move || serve(stream, cid));
        }
    });
    Ok(port)
}

fn call_back(mut stream: VsockStream, cid: u32) -> io::Result<()> {
    let mut port = [0; 4];
    stream.0.read_exact(&mut port)?;
    let call = VsockStream::connect(cid, u32::from_le_bytes(port), PATIENCE)?;
    super::echo::echo(call.0);
    Ok(())
}
