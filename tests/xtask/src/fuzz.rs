//! `cargo xtask fuzz`: libFuzzer on the targets of `tests/fuzz`.
//!
//! The stable compiler instruments for it: what libFuzzer needs are passes of LLVM, which code
//! generation options reach.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::build::cargo_here;
use crate::process::{Logged, last, seconds};
use crate::{apt, paths};

/// Names of the targets, as `fuzz::TARGETS` has them.
pub(crate) const TARGETS: &[&str] = &["unit", "queue", "irte", "state"];
/// Coverage of edges, with counters and with the operands of comparisons.
const FLAGS: &[&str] = &[
    "passes=sancov-module",
    "llvm-args=-sanitizer-coverage-level=4",
    "llvm-args=-sanitizer-coverage-inline-8bit-counters",
    "llvm-args=-sanitizer-coverage-pc-table",
    "llvm-args=-sanitizer-coverage-trace-compares",
];
/// Longest input in bytes.
const LONGEST: u32 = 2048;
/// Seconds after which one input counts as a hang.
const HANG: u32 = 10;
const MEMORY_MIB: u32 = 1024;

/// A target that has been built.
pub(crate) struct Fuzzer {
    name: &'static str,
    program: PathBuf,
}

/// How a target fared.
pub(crate) struct Verdict {
    pub(crate) passed: bool,
    /// Inputs that were tried.
    executions: u64,
    /// Inputs that are kept, as each reached something new.
    corpus: usize,
    /// Ends of the output of a target that failed.
    telling: Vec<String>,
}

/// The command: one target, or all, for `time` each.
pub(crate) fn run(wanted: Option<&str>, time: Duration) -> Result<bool> {
    let mut passed = true;
    for fuzzer in build(wanted)? {
        passed &= fuzzer.report(time)?.passed;
    }
    Ok(passed)
}

/// Builds the programs.
pub(crate) fn build(wanted: Option<&str>) -> Result<Vec<Fuzzer>> {
    let names: Vec<&str> = TARGETS
        .iter()
        .copied()
        .filter(|name| wanted.is_none_or(|wanted| wanted == *name))
        .collect();
    if names.is_empty() {
        bail!(
            "there is no fuzz target {}: choose one of {}",
            wanted.unwrap_or_default(),
            TARGETS.join(", ")
        );
    }
    apt::install(&["g++"], "build libFuzzer")?;
    // Apart from other builds, whose flags differ.
    let target = paths::target()?.join("fuzz");
    fs::create_dir_all(&target)?;
    let flags: Vec<String> = FLAGS.iter().map(|flag| format!("-C{flag}")).collect();
    let log = target.join("build.log");
    let step = Logged {
        title: "building fuzz targets",
        log: &log,
        limit: Duration::from_secs(1800),
        count: Some((|line| line.trim_start().starts_with("Compiling"), "crates")),
    };
    let mut command = cargo_here()?;
    command
        .env("CARGO_TARGET_DIR", &target)
        // Replaces the checkout's flags: libFuzzer's C++ library is not linked statically.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args(["build", "--package", "fuzz", "--features", "libfuzzer"])
        .args(["--profile", "fuzz"]);
    for name in &names {
        command.args(["--bin", &format!("fuzz-{name}")]);
    }
    step.run(&mut command)?;
    let directory = target.join(paths::TRIPLE).join("fuzz");
    Ok(names
        .into_iter()
        .map(|name| Fuzzer {
            name,
            program: directory.join(format!("fuzz-{name}")),
        })
        .collect())
}

impl Fuzzer {
    /// Runs the target for `time`, and prints a line about it.
    pub(crate) fn report(&self, time: Duration) -> Result<Verdict> {
        let verdict = self.run(time)?;
        let rate = verdict.executions.checked_div(time.as_secs()).unwrap_or(0);
        println!(
            "{} fuzz {:6}  {}, {} inputs, {rate} a second, {} kept",
            if verdict.passed { "ok  " } else { "FAIL" },
            self.name,
            seconds(time),
            verdict.executions,
            verdict.corpus
        );
        for line in &verdict.telling {
            println!("     {line}");
        }
        Ok(verdict)
    }

    fn run(&self, time: Duration) -> Result<Verdict> {
        let directory = paths::cache()?.join("fuzz").join(self.name);
        let (corpus, seeds) = (directory.join("corpus"), directory.join("seeds"));
        let found = directory.join("found");
        for part in [&corpus, &seeds, &found] {
            fs::create_dir_all(part).with_context(|| part.display().to_string())?;
        }
        self.unpack_seeds(&seeds)?;
        let log = directory.join("log");
        let step = Logged {
            title: &format!("fuzz {}", self.name),
            log: &log,
            limit: time + Duration::from_secs(60),
            count: Some((|line| line.contains(" NEW "), "inputs that reached more")),
        };
        let mut command = Command::new(&self.program);
        command
            .args([&corpus, &seeds])
            .arg(format!("-max_total_time={}", time.as_secs().max(1)))
            .arg(format!("-max_len={LONGEST}"))
            .arg(format!("-timeout={HANG}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .arg(format!("-artifact_prefix={}/", found.display()))
            .arg("-print_final_stats=1");
        let outcome = step.outcome(&mut command)?;
        let executions = outcome
            .lines
            .iter()
            .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
            .and_then(|number| number.trim().parse().ok())
            .unwrap_or(0);
        let telling = if outcome.passed {
            Vec::new()
        } else {
            let lines: Vec<String> = outcome
                .lines
                .iter()
                .filter(|line| is_telling(line))
                .cloned()
                .collect();
            let mut telling: Vec<String> = last(&lines, 12).into_iter().cloned().collect();
            telling.push(format!("log: {}", log.display()));
            telling
        };
        Ok(Verdict {
            passed: outcome.passed && executions > 0,
            executions,
            corpus: fs::read_dir(&corpus)?.count(),
            telling,
        })
    }

    /// Writes the seeds of the checkout, a line of hexadecimal digits each, as files.
    fn unpack_seeds(&self, directory: &Path) -> Result<()> {
        let source = paths::root().join(format!("tests/fuzz/seeds/{}.hex", self.name));
        let text = fs::read_to_string(&source).with_context(|| source.display().to_string())?;
        for (index, line) in text.lines().enumerate() {
            let bytes = bytes(line).with_context(|| {
                format!("{}:{}: no hexadecimal digits", source.display(), index + 1)
            })?;
            fs::write(directory.join(format!("{index:03}")), bytes)?;
        }
        Ok(())
    }
}

fn bytes(line: &str) -> Option<Vec<u8>> {
    (0..line.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(line.get(at..at + 2)?, 16).ok())
        .collect()
}

/// Whether a line of libFuzzer's output says what failed and how to see it again.
fn is_telling(line: &str) -> bool {
    [
        "panicked",
        "assertion",
        "  left",
        " right",
        "ERROR",
        "SUMMARY",
        "Test unit written",
    ]
    .iter()
    .any(|part| line.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_seeds_are_hexadecimal() {
        assert_eq!(bytes("00ff7a"), Some(vec![0x00, 0xFF, 0x7A]));
        assert_eq!(bytes(""), Some(Vec::new()));
        for bad in ["0", "0g", "é0"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
