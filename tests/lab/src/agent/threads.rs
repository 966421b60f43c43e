//! How often threads of nido have run: the kernel counts when a thread leaves a processor.

use std::fs;

use anyhow::{Context, Result, ensure};

/// Runs of the threads of a process whose names start alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Runs {
    threads: usize,
    switches: u64,
}

impl Runs {
    /// Of those threads of `process`, of which there is one at least.
    pub(super) fn count(process: u32, names: &str) -> Result<Self> {
        let mut runs = Self {
            threads: 0,
            switches: 0,
        };
        let tasks = format!("/proc/{process}/task");
        for task in fs::read_dir(&tasks).context(tasks)?.flatten() {
            let read = |file| fs::read_to_string(task.path().join(file));
            if read("comm").is_ok_and(|name| name.starts_with(names)) {
                runs.threads += 1;
                runs.switches += switches(&read("status")?).context("no context switches")?;
            }
        }
        ensure!(runs.threads > 0, "nido has no thread {names}");
        Ok(runs)
    }

    /// The same threads have not run since `before`.
    pub(super) fn ensure_asleep_since(self, before: Option<Self>) -> Result<()> {
        let before = before.context("no count before")?;
        ensure!(self == before, "{before:?} and later {self:?}");
        Ok(())
    }
}

/// All of a thread, by its status.
fn switches(status: &str) -> Option<u64> {
    let field = |name| {
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix(name))?;
        value.trim().parse::<u64>().ok()
    };
    Some(field("voluntary_ctxt_switches:")? + field("nonvoluntary_ctxt_switches:")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_of_both_kinds_are_added() {
        let status = "Name:\tblk\nvoluntary_ctxt_switches:\t40\nnonvoluntary_ctxt_switches:\t2\n";
        assert_eq!(switches(status), Some(42));
        assert_eq!(switches("Name:\tblk\n"), None);
    }
}
