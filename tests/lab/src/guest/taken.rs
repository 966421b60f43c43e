//! Devices that the host takes back while the guest uses them: its driver there is unbound, which
//! waits for nido.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Guest;
use super::agent::Agent;
use super::hot_plug::read_on;
use super::nvme;

/// Longest time until a disk has gone.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time in which nido hears of it.
const HEARD: Duration = Duration::from_millis(500);

/// A disk that is behind a port is taken back while it is read: nido says so, the guest is asked
/// for it, and the host has it. Then edu, which the guest cannot be asked for: nido says so, and the
/// guest goes on with it.
pub(super) fn check(_guest: &Guest, _argument: &str) -> Result<String> {
    let mut agent = Agent::open()?;
    nvme::wait_for(nvme::DISK)?;
    let over = Arc::new(AtomicBool::new(false));
    let reader = read_on(nvme::DISK, &over)?;
    agent.request("take {nvme0}")?;
    let started = Instant::now();
    while std::fs::exists(nvme::DISK)? {
        ensure!(started.elapsed() < PATIENCE, "the disk does not go");
        thread::sleep(Duration::from_millis(50));
    }
    let seconds = started.elapsed().as_secs_f64();
    over.store(true, Ordering::Relaxed);
    let reads = reader.join().ok().context("the reader failed")?;
    ensure!(reads > 0, "nothing was read");
    agent.request("wanted {nvme0}")?;
    agent.request("taken {nvme0}")?;
    agent.request("take {edu0}")?;
    thread::sleep(HEARD);
    agent.request("wanted {edu0}")?;
    Ok(format!(
        "the disk was given back within {seconds:.1} s, after {reads} reads"
    ))
}
