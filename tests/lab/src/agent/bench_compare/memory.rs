//! Memory that a VMM takes beyond its guest's.

use std::fs;

use anyhow::{Context, Result};

use crate::agent::bench::MEMORY_MIB;

/// Resident KiB of a process without the mappings of guest memory: those of a memfd, and one of the
/// guest's whole size.
pub(super) fn beyond_guest(process: u32) -> Result<u64> {
    let path = format!("/proc/{process}/smaps");
    let text = fs::read_to_string(&path).context(path)?;
    Ok(resident(&text, u64::from(MEMORY_MIB) * 1024))
}

fn resident(smaps: &str, guest_kib: u64) -> u64 {
    let mut total = 0;
    let mut guest = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let value = || {
            line.split_whitespace()
                .nth(1)
                .and_then(|value| value.parse::<u64>().ok())
                .unwrap_or(0)
        };
        match first {
            "Size:" => guest |= value() == guest_kib,
            "Rss:" if !guest => total += value(),
            _ if first.contains('-') && !first.ends_with(':') => guest = line.contains("/memfd:"),
            _ => {}
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_does_not_count() {
        let smaps = "00400000-00500000 r-xp 00000000 00:02 7 /nido\nSize: 1024 kB\nRss: 700 kB\n\
            7f0000000000-7f0020000000 rw-s 00000000 00:01 9 /memfd:guest (deleted)\nSize: 100 kB\nRss: 90 kB\n\
            7f1000000000-7f1020000000 rw-p 00000000 00:00 0\nSize: 524288 kB\nRss: 90000 kB\n\
            7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]\nSize: 132 kB\nRss: 20 kB\n";
        assert_eq!(resident(smaps, 524_288), 720);
    }
}
