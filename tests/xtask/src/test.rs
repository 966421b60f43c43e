//! `cargo xtask test`: everything that can fail, in the order in which it is cheap to learn.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use lab::scenario;

use crate::build::cargo_here;
use crate::lab_command::{self, Manner, Tally};
use crate::process::{Logged, Outcome, last, seconds};
use crate::{Where, fuzz, paths};

struct Step {
    name: &'static str,
    arguments: &'static [&'static str],
}

const STEPS: &[Step] = &[
    Step {
        name: "format",
        arguments: &["fmt", "--all", "--check"],
    },
    Step {
        name: "clippy",
        arguments: &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ],
    },
    Step {
        name: "unit tests",
        arguments: &["test", "--workspace", "--no-fail-fast"],
    },
];

/// For each fuzz target.
const FUZZ_TIME: Duration = Duration::from_secs(10);

/// The command.
pub(crate) fn run(wanted: Where) -> Result<bool> {
    let start = Instant::now();
    let logs = paths::logs()?;
    fs::create_dir_all(&logs)?;
    let mut tally = Tally::default();
    for step in STEPS {
        tally += run_step(step.name, cargo_here()?.args(step.arguments))?;
    }
    if has_cargo_deny() {
        tally += run_step(
            "cargo deny",
            cargo_here()?.args(["deny", "--offline", "check"]),
        )?;
    }
    tally += run_fuzzers()?;
    println!("scenarios:");
    let scenarios: Vec<_> = scenario::all().collect();
    let manner = Manner {
        place: wanted,
        verbose: false,
        repeat: 1,
        jobs: None,
    };
    match lab_command::run_all(manner, &scenarios) {
        Ok(part) => tally += part,
        Err(error) if lab::sys::interrupted() => return Err(error),
        Err(error) => {
            println!("FAIL scenarios: {error:#}");
            tally.failed += 1;
        }
    }
    println!("all steps took {}", seconds(start.elapsed()));
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(tally.failed == 0)
}

/// A short run of each fuzz target; what takes longer is for `cargo xtask fuzz`.
fn run_fuzzers() -> Result<Tally> {
    println!("fuzz");
    let mut tally = Tally::default();
    let fuzzers = match fuzz::build(None) {
        Ok(fuzzers) => fuzzers,
        Err(error) if lab::sys::interrupted() => return Err(error),
        Err(error) => {
            println!("FAIL fuzz: {error:#}");
            tally.failed += 1;
            return Ok(tally);
        }
    };
    for fuzzer in fuzzers {
        tally.count(fuzzer.report(FUZZ_TIME)?.passed);
    }
    Ok(tally)
}

fn has_cargo_deny() -> bool {
    let configured = paths::root().join("deny.toml").exists();
    configured
        && Command::new("cargo-deny")
            .arg("--version")
            .output()
            .is_ok_and(|output| output.status.success())
}

fn is_progress(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("Compiling") || line.starts_with("Checking") || line.starts_with("test ")
}

/// Whether a line of cargo's output says what failed.
fn is_telling(line: &str) -> bool {
    ["error", "warning:", "Diff in "]
        .iter()
        .any(|start| line.starts_with(start))
        || [" FAILED", "panicked at", "minimal failing input"]
            .iter()
            .any(|part| line.contains(part))
}

fn run_step(name: &str, command: &mut Command) -> Result<Tally> {
    let log = paths::logs()?.join(format!("{}.log", name.replace(' ', "-")));
    let start = Instant::now();
    let step = Logged {
        title: name,
        log: &log,
        limit: Duration::from_secs(3600),
        count: Some((is_progress, "crates and tests")),
    };
    println!("{name}");
    let outcome = step.outcome(command)?;
    let tally = tally(&outcome);
    println!(
        "{} {name}  {}, {} passed, {} failed",
        if outcome.passed { "ok  " } else { "FAIL" },
        seconds(start.elapsed()),
        tally.passed,
        tally.failed
    );
    if !outcome.passed {
        let telling: Vec<String> = outcome
            .lines
            .iter()
            .filter(|line| is_telling(line))
            .cloned()
            .collect();
        let shown = if telling.is_empty() {
            &outcome.lines
        } else {
            &telling
        };
        for line in last(shown, 40) {
            println!("     {line}");
        }
        println!("     log: {}", log.display());
    }
    Ok(tally)
}

/// Counts tests from the closing lines of cargo's test programs; a step without tests counts as one.
fn tally(outcome: &Outcome) -> Tally {
    let mut tally = Tally::default();
    for line in outcome
        .lines
        .iter()
        .filter_map(|line| line.strip_prefix("test result:"))
    {
        let count = |what: &str| -> usize {
            let words: Vec<&str> = line
                .split([' ', ';', '.'])
                .filter(|word| !word.is_empty())
                .collect();
            let found = words.windows(2).find_map(|pair| match pair {
                [number, word] if *word == what => number.parse().ok(),
                _ => None,
            });
            found.unwrap_or(0)
        };
        tally.passed += count("passed");
        tally.failed += count("failed");
    }
    match (outcome.passed, tally.passed, tally.failed) {
        (true, 0, 0) => tally.passed = 1,
        (false, _, 0) => tally.failed = 1,
        _ => {}
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(passed: bool, lines: &[&str]) -> Outcome {
        Outcome {
            passed,
            lines: lines.iter().map(|line| (*line).to_owned()).collect(),
        }
    }

    #[test]
    fn tests_are_counted_over_all_programs() {
        let tally = tally(&outcome(
            false,
            &[
                "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
                "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            ],
        ));
        assert_eq!((tally.passed, tally.failed), (15, 2));
    }

    #[test]
    fn a_step_without_tests_counts_once() {
        assert_eq!(tally(&outcome(true, &[])).passed, 1);
        assert_eq!(tally(&outcome(false, &["error"])).failed, 1);
    }
}
