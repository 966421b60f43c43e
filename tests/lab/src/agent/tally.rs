//! Counters of nido and KVM for a guest: exits, waits of its remapping unit, ioctls of iommufd.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::control;

/// Where KVM counts, in a directory for each machine.
const KVM: &str = "/sys/kernel/debug/kvm";
/// All exits, and kinds of them: accesses to registers and ports, halts, interrupts of the host,
/// first accesses to memory.
const EXITS: [&str; 6] = [
    "exits",
    "mmio_exits",
    "io_exits",
    "halt_exits",
    "irq_exits",
    "pf_fixed",
];

/// Counts since the start.
pub(super) struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    /// The counts of the nido that is this process and has this control socket.
    pub(super) fn take(process: u32, socket: &Path) -> Result<Self> {
        let mut counts = BTreeMap::new();
        let directory = machine(process)?;
        for name in EXITS {
            let path = directory.join(name);
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            counts.insert(name, text.trim().parse().context(name)?);
        }
        let statistics = control::request(socket, "stats")?;
        // A machine without a unit has no statistics of it.
        if let Some(waits) = value(&statistics, "waits") {
            counts.insert("waits", waits);
        }
        counts.insert("ioctls", ioctls(&control::request(socket, "assigned")?));
        Ok(Self(counts))
    }

    /// What has been added since `before`, as ` name=value` words.
    pub(super) fn since(&self, before: &Self) -> String {
        let differences = self.0.iter().map(|(name, count)| {
            let before = before.0.get(name).copied().unwrap_or(0);
            format!(" {name}={}", count.saturating_sub(before))
        });
        differences.collect()
    }
}

/// Where KVM counts for the machine of a process: the directory's name is the id of the thread that
/// has made the machine, `-` and a number.
pub(super) fn machine(process: u32) -> Result<PathBuf> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).context("threads")?;
    let threads = threads.flatten().map(|entry| entry.file_name());
    let prefixes: Vec<String> = threads
        .map(|thread| format!("{}-", thread.to_string_lossy()))
        .collect();
    let names = fs::read_dir(KVM).context(KVM)?.flatten();
    let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let found = names.find(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)));
    let found = found.with_context(|| format!("KVM has no machine of process {process}"))?;
    Ok(Path::new(KVM).join(found))
}

fn value(answer: &str, name: &str) -> Option<u64> {
    let mut lines = answer.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))?;
    value.parse().ok()
}

/// All ioctls of all iommufds: indented lines below those that name an iommufd. What failed is
/// counted as its kind too.
fn ioctls(answer: &str) -> u64 {
    let mut total = 0;
    let mut inside = false;
    for line in answer.lines() {
        match line.strip_prefix("  ") {
            None => inside = line.starts_with("iommufd "),
            Some(line) if inside && !line.starts_with("failed: ") => {
                let count = line
                    .split_once(": ")
                    .and_then(|(_, count)| count.parse().ok());
                total += count.unwrap_or(0);
            }
            Some(_) => {}
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ioctls_of_all_iommufds_are_added_up() {
        let answer = "00:01.0 vfio: nested\n  host: 48 bits\nmaps: 7\niommufd a:\n  IOAS_MAP: 3\n  HWPT_INVALIDATE: 40\n\
            \u{20} failed: 1\niommufd b:\n  DESTROY: 500\n  failed: 0\n";
        assert_eq!(ioctls(answer), 543);
        assert_eq!(value(answer, "maps"), Some(7));
        assert_eq!(value("error: no unit\n", "waits"), None);
    }

    #[test]
    fn only_what_was_added_is_shown() {
        let before = Tally([("exits", 5), ("waits", 1)].into());
        let after = Tally([("exits", 12), ("ioctls", 4), ("waits", 1)].into());
        assert_eq!(after.since(&before), " exits=7 ioctls=4 waits=0");
    }
}
