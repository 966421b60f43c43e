//! Guests that hang under emulation, which happens to those of other VMMs as well: a vCPU does not leave
//! the guest, and all else waits for it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What level 1 writes of the threads of a nido that does not end.
const THREADS: &str = "hang.txt";

/// Whether the logs in `directory` tell of such a guest: of nido's threads, vCPUs run and nothing else.
pub(crate) fn is_the_guests(directory: &Path) -> bool {
    fs::read_to_string(directory.join(THREADS)).is_ok_and(|threads| only_vcpus_run(&threads))
}

/// Puts the logs aside, and tells where.
pub(crate) fn keep(directory: &Path) -> Result<PathBuf> {
    let aside = directory.with_extension("hung");
    let _ = fs::remove_dir_all(&aside);
    fs::rename(directory, &aside).with_context(|| directory.display().to_string())?;
    Ok(aside)
}

/// Lines are `46 stat: 46 (vcpu0) R ...`, as /proc has it behind the colon.
fn only_vcpus_run(threads: &str) -> bool {
    let mut running = threads.lines().filter_map(|line| {
        let (_, stat) = line.split_once(" stat: ")?;
        let (name, rest) = stat.split_once('(')?.1.split_once(") ")?;
        (!rest.starts_with('S')).then_some(name)
    });
    let first = running.next();
    first.is_some_and(|name| name.starts_with("vcpu"))
        && running.all(|name| name.starts_with("vcpu"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_hangs_by_itself_if_vcpus_run_and_nothing_else() {
        let stat =
            |name: &str, state: &str| format!("4 comm: x\n4 stat: 4 ({name}) {state} 1 40\n");
        let of = |states: [&str; 3]| {
            let names = ["nido", "vcpu0", "vcpu1"].into_iter().zip(states);
            only_vcpus_run(
                &names
                    .map(|(name, state)| stat(name, state))
                    .collect::<String>(),
            )
        };
        assert!(of(["S", "R", "S"]));
        assert!(of(["S", "R", "R"]));
        // It waits for something that nido owes it, or nido is at work.
        assert!(!of(["S", "S", "S"]));
        assert!(!of(["R", "R", "S"]));
        assert!(!of(["D", "R", "S"]));
        assert!(!only_vcpus_run(""));
    }
}
