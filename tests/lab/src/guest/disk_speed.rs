//! The check `disk-speed`: direct I/O of a disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::agent::Agent;
use super::disk::{self, CHUNK, Chunk};
use super::{Guest, tally};

/// How long each kind of request is measured.
pub(super) const LONG: Duration = Duration::from_secs(3);
/// The same where a second holds little.
const SHORT: Duration = Duration::from_secs(2);
/// Requests of each length that are counted.
const COUNTED: [(usize, u64); 2] = [(4096, 60), (CHUNK, 30)];

/// Requests of one thread, one after the other.
struct Requests {
    file: File,
    size: u64,
    length: usize,
    write: bool,
}

impl Requests {
    /// As many as `go_on` says, which is told how many there were. Returns how many.
    fn issue(&self, chunk: &mut Chunk, go_on: impl Fn(u64) -> bool) -> Result<u64> {
        let data = chunk.slice(self.length);
        let mut count = 0;
        while go_on(count) {
            let offset = count * self.length as u64 % self.size;
            if self.write {
                self.file.write_all_at(data, offset).context("write")?;
            } else {
                self.file.read_exact_at(data, offset).context("read")?;
            }
            count += 1;
        }
        Ok(count)
    }
}

/// Writes and reads of 4 KiB and of 256 KiB by one thread, in microseconds each.
pub(super) fn measure(path: &str, time: Duration) -> Result<String> {
    let mut chunk = Chunk::new();
    let mut results = Vec::new();
    for length in [4096, CHUNK] {
        for write in [true, false] {
            let (file, size) = disk::open(path, true)?;
            let requests = Requests {
                file,
                size,
                length,
                write,
            };
            let started = Instant::now();
            let count = requests.issue(&mut chunk, |_| started.elapsed() < time)?;
            let count = u32::try_from(count).context("requests")?;
            let each = started.elapsed().as_secs_f64() * 1e6 / f64::from(count.max(1));
            let what = if write { "write" } else { "read" };
            results.push(format!("{what}_{}k_us={each:.1}", length / 1024));
        }
    }
    Ok(results.join(" "))
}

/// The same for the disk that the argument names; then what reads of each length cost below.
pub(super) fn check(_guest: &Guest, argument: &str) -> Result<String> {
    let path = format!("/dev/{argument}");
    let results = measure(&path, SHORT)?;
    let mut agent = Agent::open()?;
    let mut chunk = Chunk::new();
    for (length, times) in COUNTED {
        let (file, size) = disk::open(&path, false)?;
        let requests = Requests {
            file,
            size,
            length,
            write: false,
        };
        let what = format!("reads-of-{}k", length / 1024);
        tally::count(&mut agent, &what, || {
            requests.issue(&mut chunk, |count| count < times)
        })?;
    }
    Ok(results)
}
