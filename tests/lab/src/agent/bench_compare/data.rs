//! What a guest measures of its devices.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::running::Running;
use crate::agent::bench::Candidate;
use crate::protocol::GuestLine;

/// Longest guest.
const LIMIT: Duration = Duration::from_secs(90);
/// Bytes of its disk, which is in level 1's memory.
const DISK: usize = 128 << 20;

/// A disk, no part of which is a hole.
pub(super) fn make_disk(path: &Path) -> Result<()> {
    let mut file = File::create(path).with_context(|| path.display().to_string())?;
    let chunk = vec![0xA5; 1 << 20];
    for _ in 0..DISK / chunk.len() {
        file.write_all(&chunk)?;
    }
    Ok(())
}

/// What the guest's checks have measured, as `key=value` words.
pub(super) fn measure(candidate: &Candidate, log: &Path) -> Result<String> {
    let mut running = Running::start(candidate, log, LIMIT)?;
    let mut measured = Vec::new();
    loop {
        match GuestLine::parse(&running.next()?.text) {
            Some(GuestLine::Report {
                check,
                passed: false,
                detail,
                ..
            }) => bail!("{check}: {detail}"),
            Some(GuestLine::Report { detail, .. }) if detail.contains('=') => measured.push(detail),
            Some(GuestLine::End(_)) => return Ok(measured.join(" ")),
            _ => {}
        }
    }
}
