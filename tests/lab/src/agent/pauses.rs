//! Pauses of a guest that is at work, by nido's control socket.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::control;

/// How long the guest stays paused.
const TIME: Duration = Duration::from_millis(50);
/// How long it runs in between.
const BETWEEN: Duration = Duration::from_millis(200);

/// Pauses the guest `rounds` times, and has nido refuse what is wrong meanwhile.
pub(super) fn check(socket: &Path, rounds: u32) -> Result<()> {
    let ask = |text, begin| control::ask(socket, text, begin);
    ask("resume", "error: the guest is not paused")?;
    for round in 0..rounds {
        ask("pause", "the guest is paused")?;
        if round == 0 {
            ask("pause", "error: the guest is paused already")?;
            let status = ask("status", "vcpus: ")?;
            ensure!(status.contains("state: paused"), "{}", status.trim());
        }
        thread::sleep(TIME);
        ask("resume", "the guest goes on")?;
        thread::sleep(BETWEEN);
    }
    let status = ask("status", "vcpus: ")?;
    ensure!(status.contains("state: running"), "{}", status.trim());
    Ok(())
}
