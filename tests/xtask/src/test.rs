//! `cargo xtask test`: the steps of `cargo xtask check`, a short run of each fuzz target, nido's
//! tests on level 1's KVM, and every scenario of the lab.

use std::time::{Duration, Instant};

use anyhow::Result;
use lab::scenario;

use crate::lab_command::{self, Manner, Tally};
use crate::process::seconds;
use crate::{Where, check, fuzz, kvm_tests};

/// For each fuzz target.
const FUZZ_TIME: Duration = Duration::from_secs(10);

/// The command.
pub(crate) fn run(wanted: Where) -> Result<bool> {
    let start = Instant::now();
    let mut tally = check::run_steps()?;
    tally += run_fuzzers()?;
    tally += reported("kvm-tests", kvm_tests::run_tests())?;
    println!("scenarios:");
    let scenarios: Vec<_> = scenario::all().collect();
    let manner = Manner {
        place: wanted,
        verbose: false,
        repeat: 1,
        jobs: None,
        cpus: None,
    };
    tally += reported("scenarios", lab_command::run_all(manner, &scenarios))?;
    println!("all steps took {}", seconds(start.elapsed()));
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(tally.failed == 0)
}

/// The tests that `what` has counted, or one that failed if it could not be run.
fn reported(what: &str, ran: Result<Tally>) -> Result<Tally> {
    ran.or_else(|error| {
        if lab::sys::interrupted() {
            return Err(error);
        }
        println!("FAIL {what}: {error:#}");
        Ok(Tally {
            passed: 0,
            failed: 1,
        })
    })
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
