//! Whether the memory of a guest with devices of the host is in huge pages: where nido maps it, and
//! in the page table of the host's IOMMU.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::host;

/// KiB of a huge page.
const HUGE: u64 = 2048;
/// KiB that are mapped by small pages in some corner, and leaves of the IOMMU's table for what is
/// not aligned.
const SLACK: u64 = 4096;
const LEAVES: u64 = 64;

/// Memory of a process, in KiB.
#[derive(Debug, PartialEq, Eq)]
struct Memory {
    size: u64,
    resident: u64,
    huge: u64,
}

/// Of a nido whose guest's device at `address` reaches all memory, if there is an `address`.
pub(super) fn check(process: u32, address: &str) -> Result<()> {
    let path = format!("/proc/{process}/smaps");
    let maps = fs::read_to_string(&path).context(path)?;
    let memory = guest_memory(&maps).context("no guest memory in a file")?;
    let allocated = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let allocated = kib(&allocated, "ShmemHugePages:").context("no count of huge pages")?;
    ensure!(
        allocated >= memory.size,
        "{allocated} KiB are allocated in huge pages: {memory:?}"
    );
    ensure!(
        memory.huge > 0 && memory.resident <= memory.huge + SLACK,
        "small pages are mapped: {memory:?}"
    );
    if !address.is_empty() {
        let leaves = u64::try_from(host::reached(address)?)?;
        ensure!(
            leaves > 0 && leaves <= memory.size / HUGE + LEAVES,
            "{address} reaches {} KiB by {leaves} pages",
            memory.size
        );
    }
    Ok(())
}

/// Of all mappings of nido's memory files together.
fn guest_memory(maps: &str) -> Option<Memory> {
    let mut memory = None;
    let mut is_ours = false;
    for line in maps.lines() {
        let first = line.split_whitespace().next()?;
        if !first.ends_with(':') {
            is_ours = line.contains("memfd:guest-ram");
        }
        if is_ours {
            let memory = memory.get_or_insert(Memory {
                size: 0,
                resident: 0,
                huge: 0,
            });
            memory.size += kib(line, "Size:").unwrap_or(0);
            memory.resident += kib(line, "Rss:").unwrap_or(0);
            memory.huge += kib(line, "ShmemPmdMapped:").unwrap_or(0);
        }
    }
    memory
}

/// The number behind `name` at the beginning of a line.
fn kib(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_guest_memory_are_added_up_and_others_are_not() {
        let maps = "\
7f0000000000-7f0020000000 rw-s 00000000 00:01 7 /memfd:guest-ram (deleted)
Size:             524288 kB
KernelPageSize:        4 kB
Rss:               98304 kB
ShmemPmdMapped:    98300 kB
VmFlags: rd wr sh
7f0040000000-7f0040001000 rw-p 00000000 00:00 0
Size:                  4 kB
Rss:                   4 kB
ShmemPmdMapped:        0 kB
7f0060000000-7f0060200000 rw-s 20000000 00:01 7 /memfd:guest-ram (deleted)
Size:               2048 kB
Rss:                   0 kB
ShmemPmdMapped:        0 kB
";
        let expected = Memory {
            size: 526_336,
            resident: 98_304,
            huge: 98_300,
        };
        assert_eq!(guest_memory(maps), Some(expected));
        assert_eq!(guest_memory("1-2 rw-p 0 00:00 0\nSize: 4 kB\n"), None);
    }
}
