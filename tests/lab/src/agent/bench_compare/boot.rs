//! A boot: from the start of a VMM to the first line of the guest's init.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::running::Running;
use super::{counters, first, memory};
use crate::agent::bench::Candidate;
use crate::protocol::GuestLine;
use crate::sys;

/// Longest boot.
const LIMIT: Duration = Duration::from_secs(60);

/// One boot, as `key=value` words: its time, what of it has passed by the guest's own clock, the
/// VMM's processor time (the guest's included), its memory beyond the guest's, and what KVM has
/// counted.
pub(super) fn measure(candidate: &Candidate, log: &Path) -> Result<String> {
    let mut running = Running::start(candidate, log, LIMIT)?;
    loop {
        let line = running.next()?;
        if GuestLine::parse(&line.text) != Some(GuestLine::Begin(0)) {
            continue;
        }
        // Nothing is added to what it has used while that is read.
        sys::stop(running.id());
        let time = line.at.saturating_sub(running.started);
        let guest = guest_clock(&line.text).context("the guest's lines have no time")?;
        let processor = sys::processor_time_ns(running.id())?;
        let counts = counters::read(running.id())?;
        let memory = memory::beyond_guest(running.id())?;
        let counts: String = counts
            .iter()
            .map(|(name, count)| format!(" {name}={count}"))
            .collect();
        return Ok(format!(
            "boot_ns={time} guest_ns={guest} cpu_ns={processor} memory_kib={memory}{counts}"
        ));
    }
}

/// From the start of a VMM to the first instructions of its guest, which is one of [`first`].
pub(super) fn measure_first(candidate: &Candidate, log: &Path) -> Result<String> {
    let mut running = Running::start(candidate, log, LIMIT)?;
    loop {
        let line = running.next()?;
        // Firmware may have written to the same line before.
        if line.text.ends_with(first::LINE) {
            let time = line.at.saturating_sub(running.started);
            return Ok(format!("first_ns={time}"));
        }
    }
}

/// Nanoseconds of the time that Linux puts before a line, as in `[    1.234567] text`.
fn guest_clock(line: &str) -> Option<u64> {
    let (before, _) = line.split_once(']')?;
    let (_, time) = before.split_once('[')?;
    let (seconds, microseconds) = time.trim().split_once('.')?;
    let (seconds, microseconds): (u64, u64) = (seconds.parse().ok()?, microseconds.parse().ok()?);
    Some(seconds * 1_000_000_000 + microseconds * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_before_a_line_is_the_guest_s() {
        assert_eq!(
            guest_clock("[    1.234567] @nido begin 0"),
            Some(1_234_567_000)
        );
        assert_eq!(guest_clock("@nido begin 0"), None);
    }
}
