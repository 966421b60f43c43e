//! `cargo xtask kvm-tests`: nido's own tests of what it does with KVM, in level 1, where KVM is
//! whole and the same everywhere.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::agent::init::Request;
use lab::agent::unit_tests::PROGRAM;
use lab::protocol::AgentLine;
use lab::scenario::BOOT;

use crate::build::{self, Extras, Stage, cargo_here, is_compiled};
use crate::lab_command::Tally;
use crate::level0::{self, Machine};
use crate::paths;
use crate::process::{Logged, last, seconds};

/// The modules whose tests are run.
const MODULES: [&str; 3] = ["kvm::", "memory::dirty::", "vcpu::"];
/// For all of them.
const LIMIT: Duration = Duration::from_secs(300);

/// The command.
pub(crate) fn run() -> Result<bool> {
    let tally = run_tests()?;
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(tally.failed == 0)
}

/// Runs them, and prints a line for all.
pub(crate) fn run_tests() -> Result<Tally> {
    let stage = build::stage(Extras::default())?;
    stage.strip(&build_tests()?, PROGRAM)?;
    level0::install()?;
    let output = paths::logs()?.join("kvm-tests");
    let request = Request {
        mode: "tests".to_owned(),
        scenario: BOOT.name.to_owned(),
        arguments: MODULES.map(str::to_owned).to_vec(),
        show_guest: false,
    };
    println!("kvm-tests");
    let start = Instant::now();
    let mut failures = Vec::new();
    let mut tally = Tally::default();
    run_in_level1(&stage, &output, &request, &mut |line| match line {
        AgentLine::Failure(reason) => failures.push(reason),
        AgentLine::Done { passed, .. } => tally.passed = passed,
        _ => {}
    })?;
    if tally.passed == 0 && failures.is_empty() {
        failures.push("no test was run".to_owned());
    }
    tally.failed = usize::from(!failures.is_empty());
    println!(
        "{} kvm-tests  {}, {} passed",
        if failures.is_empty() { "ok  " } else { "FAIL" },
        seconds(start.elapsed()),
        tally.passed
    );
    for reason in &failures {
        println!("     {reason}");
    }
    if !failures.is_empty() {
        println!("     logs: {}", output.display());
    }
    Ok(tally)
}

fn run_in_level1(
    stage: &Stage,
    output: &Path,
    request: &Request,
    report: &mut dyn FnMut(AgentLine),
) -> Result<()> {
    let machine = Machine::with(&BOOT.host);
    level0::run(stage, output, request, &machine, LIMIT, report)
}

/// Builds the test program of nido, and says where it is.
fn build_tests() -> Result<PathBuf> {
    let log = paths::logs()?.join("kvm-tests-build.log");
    let step = Logged {
        title: "building nido's tests",
        log: &log,
        limit: Duration::from_secs(3600),
        count: Some((is_compiled, "crates")),
    };
    let mut cargo = cargo_here()?;
    cargo.args(["test", "--package", "nido", "--bin", "nido", "--no-run"]);
    let outcome = step.outcome(&mut cargo)?;
    if !outcome.passed {
        for line in last(&outcome.lines, 40) {
            println!("     {line}");
        }
        bail!("nido's tests cannot be built; log: {}", log.display());
    }
    let found = outcome.lines.iter().find_map(|line| executable(line));
    let path = found.context("cargo does not say where nido's tests are")?;
    Ok(paths::root().join(path))
}

/// The path in cargo's line about a test program.
fn executable(line: &str) -> Option<&str> {
    let (_, path) = line
        .trim_start()
        .strip_prefix("Executable ")?
        .rsplit_once(" (")?;
    path.strip_suffix(')')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_tells_where_the_program_is() {
        let line = "  Executable unittests src/main.rs (target/x86_64/debug/deps/nido-0123)";
        assert_eq!(executable(line), Some("target/x86_64/debug/deps/nido-0123"));
        assert_eq!(executable("   Compiling nido v0.1.0 (/nido/vmm)"), None);
    }
}
