//! The check `net-bench`: a TCP stream to level 1, one from it, and single bytes that it answers.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Guest, network};
use crate::agent::speed_server::{ANSWER, GIVE, PIECE, TAKE};

/// How long each is measured.
const TIME: Duration = Duration::from_millis(1500);
/// Longest wait for one piece of data.
const PATIENCE: Duration = Duration::from_secs(20);

fn connect(server: SocketAddrV4, wanted: u8) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&server.into(), PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&[wanted])?;
    Ok(stream)
}

/// KiB a second that the server has taken.
fn send(server: SocketAddrV4) -> Result<f64> {
    let mut stream = connect(server, TAKE)?;
    let piece = vec![0x5A; PIECE];
    let (mut total, started) = (0_u64, Instant::now());
    while started.elapsed() < TIME {
        stream.write_all(&piece)?;
        total += piece.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut taken = [0; 8];
    stream.read_exact(&mut taken)?;
    let time = started.elapsed();
    ensure!(
        u64::from_le_bytes(taken) == total,
        "the server has not taken all"
    );
    Ok(rate(total, time))
}

/// KiB a second that have arrived.
fn receive(server: SocketAddrV4) -> Result<f64> {
    let mut stream = connect(server, GIVE)?;
    let mut piece = vec![0; PIECE];
    let (mut total, started) = (0_u64, Instant::now());
    while started.elapsed() < TIME {
        let length = stream.read(&mut piece)?;
        ensure!(length > 0, "the server has left");
        total += length as u64;
    }
    Ok(rate(total, started.elapsed()))
}

/// Microseconds for a byte and its answer.
fn ask(server: SocketAddrV4) -> Result<f64> {
    let mut stream = connect(server, ANSWER)?;
    let mut byte = [0];
    let (mut count, started) = (0_u32, Instant::now());
    while started.elapsed() < TIME {
        stream.write_all(&[1])?;
        stream.read_exact(&mut byte)?;
        count += 1;
    }
    Ok(started.elapsed().as_secs_f64() * 1e6 / f64::from(count))
}

#[expect(clippy::cast_precision_loss, reason = "a rate of four digits")]
fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1024.0 / time.as_secs_f64()
}

/// `send_kib_s=`, `receive_kib_s=`, `answer_us=`.
pub(super) fn check(guest: &Guest, _argument: &str) -> Result<String> {
    let text = guest.parameter("lab.net").context("lab.net= is missing")?;
    let (address, server) = network::parse(text)?;
    network::configure(&address)?;
    let answer = ask(server).context("answers")?;
    let send = send(server).context("sending")?;
    let receive = receive(server).context("receiving")?;
    Ok(format!(
        "send_kib_s={send:.0} receive_kib_s={receive:.0} answer_us={answer:.1}"
    ))
}
