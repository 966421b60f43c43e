//! The socket device: data echoed by level 1 over AF_VSOCK, on connections of either side's making.
//!
//! `lab.vsock=ECHO,CALL` on the command line names the ports of level 1's servers.

use std::io::{ErrorKind, Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};

use super::{Guest, network};
use crate::sys::vsock::{HOST, VsockListener, VsockStream};

/// Bytes exchanged on each connection.
const STREAM: usize = 2 << 20;
/// Longest wait for one piece of data, in seconds.
const PATIENCE: i64 = 20;
/// Longest wait for what need not come, in seconds.
const SHORT: i64 = 5;

/// A long stream comes back as it was sent, on a connection to the host and on one from it.
pub(super) fn check(guest: &Guest, _argument: &str) -> Result<String> {
    let ports = guest.parameter("lab.vsock");
    let ports = ports.context("lab.vsock= is missing on the command line")?;
    let (echo, call) = ports.split_once(',').context("lab.vsock= has one port")?;

    let started = Instant::now();
    let stream = VsockStream::connect(HOST, echo.parse()?, PATIENCE).context("connecting")?;
    exchange(&stream).context("to the host")?;
    let to = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let (listener, port) = VsockListener::bind()?;
    let caller = VsockStream::connect(HOST, call.parse()?, PATIENCE).context("connecting")?;
    (&caller.0).write_all(&port.to_le_bytes())?;
    let (stream, cid) = listener.accept()?;
    anyhow::ensure!(cid == HOST, "a connection from {cid}");
    stream.limit(PATIENCE)?;
    exchange(&stream).context("from the host")?;
    let from = started.elapsed().as_secs_f64();
    Ok(format!(
        "{} KiB of stream both ways, to the host in {to:.1} s, from it in {from:.1} s",
        STREAM / 1024
    ))
}

/// A connection on which nobody says anything more ends when the guest is moved, and no other way.
pub(super) fn ends(guest: &Guest, _argument: &str) -> Result<String> {
    /// Whether one has.
    static SEEN: AtomicBool = AtomicBool::new(false);
    let ports = guest.parameter("lab.vsock");
    let ports = ports.context("lab.vsock= is missing on the command line")?;
    let (echo, _) = ports.split_once(',').context("lab.vsock= has one port")?;
    let stream = match VsockStream::connect(HOST, echo.parse()?, PATIENCE) {
        // The answer was on its way when the guest was moved: what is not connected yet is not told of that.
        Err(error) if error.kind() == ErrorKind::TimedOut => return Ok(String::new()),
        stream => stream.context("connecting")?,
    };
    let mut byte = [7];
    (&stream.0).write_all(&byte)?;
    match (&stream.0).read_exact(&mut byte) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        outcome => outcome.context("the echo")?,
    }
    // The guest may have been moved for the last time.
    let seen = SEEN.load(Ordering::Relaxed);
    stream.limit(if seen { SHORT } else { PATIENCE })?;
    match (&stream.0).read(&mut byte) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {
            SEEN.store(true, Ordering::Relaxed);
            Ok(String::new())
        }
        Err(error) if seen && error.kind() == ErrorKind::WouldBlock => Ok(String::new()),
        Err(error) => Err(error).context("a connection that is to end"),
        Ok(count) => anyhow::bail!("{count} bytes of a connection that is to end"),
    }
}

/// Sends, and sees all of it come back.
fn exchange(stream: &VsockStream) -> Result<()> {
    let sender = VsockStream(stream.0.try_clone()?);
    network::echoed(&stream.0, STREAM, move |data| {
        (&sender.0).write_all(data)?;
        sender.finish()
    })
}
