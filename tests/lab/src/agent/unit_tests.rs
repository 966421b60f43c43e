//! nido's own tests on level 1's KVM.
//!
//! A machine may have no KVM, or one that is not all of one: there such tests pass over what they
//! cannot do. Here none may.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use super::{Report, Task};
use crate::protocol::AgentLine;

/// The test program.
pub const PROGRAM: &str = "nido-tests";

/// Runs those tests whose names contain one of the task's further arguments.
pub fn run(task: &Task, report: &mut Report<'_>) -> Result<()> {
    let start = Instant::now();
    let log = task.output.join("tests.log");
    let mut child = Command::new(task.files.join(PROGRAM))
        .args(["--test-threads=1", "--show-output"])
        .args(&task.extra)
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::piped())
        .spawn()
        .context(PROGRAM)?;
    let output = BufReader::new(child.stdout.take().context("no output")?);
    let mut lines = Vec::new();
    for line in output.lines() {
        lines.push(line?);
    }
    fs::write(&log, lines.join("\n")).with_context(|| log.display().to_string())?;
    let status = child.wait()?;
    let failures = failures(&lines);
    if failures.is_empty() && !status.success() {
        report(AgentLine::Failure(format!("{PROGRAM} ended with {status}")));
    }
    for failure in failures {
        report(AgentLine::Failure(failure.to_owned()));
    }
    report(AgentLine::Done {
        milliseconds: u64::try_from(start.elapsed().as_millis())?,
        passed: lines.iter().filter(|line| has_passed(line)).count(),
    });
    Ok(())
}

/// What speaks against the tests: those that failed and where, and what was passed over.
fn failures(lines: &[String]) -> Vec<&str> {
    let lines = lines.iter().map(String::as_str);
    lines
        .filter(|line| {
            let failed = line.starts_with("test ") && line.ends_with(" FAILED");
            failed || line.contains("panicked at") || line.starts_with("skipped: ")
        })
        .collect()
}

fn has_passed(line: &str) -> bool {
    line.starts_with("test ") && line.ends_with(" ... ok")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_tests_and_those_that_were_passed_over_are_told() {
        let text = "\
running 3 tests
test a::b ... ok
test a::c ... FAILED
test a::d ... ok

successes:

---- a::d stdout ----
skipped: this host has no usable /dev/kvm

failures:

---- a::c stdout ----
thread 'a::c' (12) panicked at vmm/src/a.rs:1:2:
no

test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let expected = [
            "test a::c ... FAILED",
            "skipped: this host has no usable /dev/kvm",
            "thread 'a::c' (12) panicked at vmm/src/a.rs:1:2:",
        ];
        assert_eq!(failures(&lines), expected);
        assert_eq!(lines.iter().filter(|line| has_passed(line)).count(), 2);
    }
}
