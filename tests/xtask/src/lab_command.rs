//! `cargo xtask lab`.

use std::time::Instant;

use anyhow::{Result, bail};
use lab::scenario::{self, Initramfs, Kernel, SCENARIOS, Scenario};
use lab::sys;

use crate::build::{self, Extras};
use crate::place::{self, Place};
use crate::process::seconds;
use crate::{Where, paths};

/// Prints the table.
pub(crate) fn list() {
    let width = SCENARIOS
        .iter()
        .map(|scenario| scenario.name.len())
        .max()
        .unwrap_or(0);
    for scenario in SCENARIOS {
        println!("{:width$}  {}", scenario.name, scenario.description);
    }
}

/// The named scenarios, or all.
fn select(names: &[String]) -> Result<Vec<&'static Scenario>> {
    if names.is_empty() {
        return Ok(SCENARIOS.iter().collect());
    }
    names
        .iter()
        .map(|name| match scenario::find(name) {
            Some(scenario) => Ok(scenario),
            None => bail!("there is no scenario '{name}'; `cargo xtask lab --list` names them"),
        })
        .collect()
}

/// What the scenarios need beside the usual.
fn extras(scenarios: &[&Scenario]) -> Extras {
    let has = |test: &dyn Fn(&Scenario) -> bool| scenarios.iter().any(|scenario| test(scenario));
    Extras {
        kexec: has(&|scenario| scenario.initramfs == Initramfs::Kexec),
        cloud: has(&|scenario| scenario.kernel == Kernel::Cloud),
        payload: has(&|scenario| scenario.kernel == Kernel::Payload),
        shell: false,
    }
}

/// Numbers of scenarios.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Passed.
    pub(crate) passed: usize,
    /// Failed.
    pub(crate) failed: usize,
}

/// Runs scenarios and prints a line for each.
pub(crate) fn run_all(
    wanted: Where,
    scenarios: &[&Scenario],
    verbose: bool,
    repeat: u32,
) -> Result<Tally> {
    let stage = build::stage(extras(scenarios))?;
    let place = place::choose(wanted, &stage)?;
    let width = scenarios
        .iter()
        .map(|scenario| scenario.name.len())
        .max()
        .unwrap_or(0);
    let mut tally = Tally::default();
    for round in 0..repeat {
        for scenario in scenarios {
            let name = if repeat == 1 {
                scenario.name.to_owned()
            } else {
                format!("{}.{round}", scenario.name)
            };
            let passed = run_one(place, scenario, &stage, &name, width, verbose)?;
            if passed {
                tally.passed += 1;
            } else {
                tally.failed += 1;
            }
        }
    }
    Ok(tally)
}

fn run_one(
    place: Place,
    scenario: &Scenario,
    stage: &build::Stage,
    name: &str,
    width: usize,
    verbose: bool,
) -> Result<bool> {
    let output = paths::logs()?.join(name);
    let start = Instant::now();
    let mut show = |line: &str| {
        if verbose {
            println!("  | {line}");
        }
    };
    let verdict = place.run(scenario, stage, &output, &[], &mut show)?;
    if sys::interrupted() {
        bail!("interrupted");
    }
    let passed = verdict.failures.is_empty();
    println!(
        "{} {name:width$}  {:>7}, guest {:>7}, {} checks",
        if passed { "ok  " } else { "FAIL" },
        seconds(start.elapsed()),
        seconds(verdict.guest_time),
        verdict.passed
    );
    for reason in &verdict.failures {
        println!("     {reason}");
    }
    if !passed {
        println!("     logs: {}", output.display());
    }
    Ok(passed)
}

/// The command.
pub(crate) fn run(wanted: Where, names: &[String], verbose: bool, repeat: u32) -> Result<bool> {
    let scenarios = select(names)?;
    let tally = run_all(wanted, &scenarios, verbose, repeat)?;
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(tally.failed == 0)
}
