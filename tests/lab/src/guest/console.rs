//! Consoles, both ways: the guest asks for a word on its output, and the agent types it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Guest;
use crate::protocol::GuestLine;
use crate::sys::{self, memory};

/// Longest wait for the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time for the kernel's log to reach the serial port.
const QUIET: Duration = Duration::from_secs(2);

/// The virtio console carries lines out and in.
pub(super) fn virtio(_guest: &Guest, _argument: &str) -> Result<String> {
    exchange("/dev/hvc0")
}

/// The serial port carries lines out and in.
pub(super) fn serial(_guest: &Guest, _argument: &str) -> Result<String> {
    exchange("/dev/ttyS0")
}

fn exchange(path: &str) -> Result<String> {
    let mut console = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(path)
        .with_context(|| path.to_owned())?;
    // Both consoles come out of nido in one stream. What is typed is not repeated there, and
    // reports that are still on their way through the kernel's log are let out first, or the
    // lines would run into each other.
    sys::terminal::without_echo(console.as_fd()).with_context(|| path.to_owned())?;
    std::thread::sleep(QUIET);
    let word = format!(
        "{:016x}",
        sys::monotonic_ns().wrapping_mul(0x9E37_79B9_7F4A_7C15)
    );
    let question = format!("{}\n", GuestLine::Ask(word.clone()));
    console
        .write_all(question.as_bytes())
        .with_context(|| format!("write to {path}"))?;
    let answer = read_line(&mut console, PATIENCE).with_context(|| format!("read from {path}"))?;
    ensure!(
        answer == word,
        "{path}: '{answer}' came in instead of '{word}'"
    );
    Ok(format!(
        "{path}: {} bytes out, {} bytes in",
        question.len(),
        answer.len() + 1
    ))
}

/// A line that is typed within `patience`.
pub(super) fn read_line(console: &mut File, patience: Duration) -> Result<String> {
    let deadline = Instant::now() + patience;
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = memory::wait_readable(console.as_fd(), i32::try_from(left.as_millis())?)?;
        ensure!(
            ready,
            "no answer within {} s, only '{}'",
            patience.as_secs(),
            String::from_utf8_lossy(&line)
        );
        let mut byte = [0];
        console.read_exact(&mut byte)?;
        line.extend(byte);
    }
    Ok(String::from_utf8_lossy(&line).trim().to_owned())
}
