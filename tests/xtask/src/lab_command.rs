//! `cargo xtask lab`: runs and lists scenarios.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use lab::scenario::{self, Initramfs, Kernel, Scenario};
use lab::sys;

use crate::build::{self, Extras};
use crate::place::{self, Place};
use crate::process::seconds;
use crate::{Where, hang, paths};

/// Prints the table.
pub(crate) fn list() {
    let every = || scenario::all().chain(scenario::on_request());
    let names = every().map(|scenario| scenario.name.len());
    let width = names.max().unwrap_or(0);
    for scenario in every() {
        println!("{:width$}  {}", scenario.name, description(scenario));
    }
}

/// What a scenario shows, and whether it has to be asked for.
fn description(scenario: &Scenario) -> String {
    let on_request = scenario::on_request().any(|other| other.name == scenario.name);
    let end = if on_request { " (on request)" } else { "" };
    format!("{}{end}", scenario.description)
}

/// The table as docs/lab.md has it.
pub(crate) fn markdown() -> String {
    let every = scenario::all().chain(scenario::on_request());
    let rows = every.map(|scenario| {
        let description = description(scenario).replace('|', "\\|");
        format!("| `{}` | {description} |\n", scenario.name)
    });
    [
        "| scenario | what it shows |\n".to_owned(),
        "|---|---|\n".to_owned(),
    ]
    .into_iter()
    .chain(rows)
    .collect()
}

/// The named scenarios, or all that need not be asked for.
fn select(names: &[String]) -> Result<Vec<&'static Scenario>> {
    if names.is_empty() {
        return Ok(scenario::all().collect());
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
        tools: has(&|scenario| {
            matches!(scenario.initramfs, Initramfs::Tools | Initramfs::KexecTools)
        }),
        kexec: has(&|scenario| scenario.initramfs == Initramfs::Kexec),
        host: has(&|scenario| matches!(scenario.initramfs, Initramfs::Host | Initramfs::HostKexec)),
        back_ends: has(&|scenario| scenario.vhost_user),
        cloud: has(&|scenario| scenario.kernel == Kernel::Cloud),
        debian: has(&|scenario| scenario.kernel == Kernel::Debian),
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

impl Tally {
    /// Adds one.
    pub(crate) fn count(&mut self, passed: bool) {
        if passed {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// How scenarios are run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// Where.
    pub(crate) place: Where,
    /// Shows the guests' consoles.
    pub(crate) verbose: bool,
    /// How often each.
    pub(crate) repeat: u32,
    /// How many at once; as many as there are processors if None.
    pub(crate) jobs: Option<usize>,
    /// The fewest vCPUs of a guest; the scenario's if None.
    pub(crate) cpus: Option<u32>,
}

/// Runs scenarios, several at once, and prints a line for each when it is over.
pub(crate) fn run_all(manner: Manner, scenarios: &[&Scenario]) -> Result<Tally> {
    let stage = build::stage(extras(scenarios))?;
    let place = place::choose(manner.place, &stage)?;
    let mut runs = Vec::new();
    for round in 0..manner.repeat {
        for scenario in scenarios {
            let name = if manner.repeat == 1 {
                scenario.name.to_owned()
            } else {
                format!("{}.{round}", scenario.name)
            };
            runs.push((name, *scenario));
        }
    }
    let width = runs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let jobs = match place {
        // The guests would share one tap and one set of disks.
        Place::Host => 1,
        Place::Level1 => manner.jobs.unwrap_or_else(processors).min(runs.len()),
    };
    let begun = AtomicUsize::new(0);
    let next = || runs.get(begun.fetch_add(1, Ordering::Relaxed));
    let worker = || -> Result<Tally> {
        let mut tally = Tally::default();
        while let Some((name, scenario)) = next() {
            tally.count(run_one(
                place.of(scenario)?,
                scenario,
                &stage,
                name,
                width,
                manner,
            )?);
        }
        Ok(tally)
    };
    let mut tally = Tally::default();
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            tally += worker.join().map_err(|_| anyhow!("a worker panicked"))??;
        }
        Ok(())
    })?;
    Ok(tally)
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn run_one(
    place: Place,
    scenario: &Scenario,
    stage: &build::Stage,
    name: &str,
    width: usize,
    manner: Manner,
) -> Result<bool> {
    let output = paths::logs()?.join(name);
    let start = Instant::now();
    let mut show = |line: &str| {
        if manner.verbose {
            println!("  {name:width$} | {line}");
        }
    };
    let cpus = manner.cpus.filter(|cpus| *cpus > scenario.cpus);
    let extra = cpus.map(|cpus| ["--cpus".to_owned(), cpus.to_string()]);
    let extra: Vec<String> = extra.into_iter().flatten().collect();
    let mut verdict = place.run(scenario, stage, &output, &extra, &mut show)?;
    // Once more, and only once: see docs/lab.md, "Corrections to level 0".
    if place == Place::Level1 && hang::is_the_guests(&output) {
        let aside = hang::keep(&output)?;
        println!(
            "HUNG {name:width$}  once more, since the guest did not end while nido waited for it; logs: {}",
            aside.display()
        );
        verdict = place.run(scenario, stage, &output, &extra, &mut show)?;
    }
    if sys::interrupted() {
        bail!("interrupted");
    }
    let passed = verdict.failures.is_empty();
    let mut text = format!(
        "{} {name:width$}  {:>7}, guest {:>7}, {} checks",
        if passed { "ok  " } else { "FAIL" },
        seconds(start.elapsed()),
        seconds(verdict.guest_time),
        verdict.passed
    );
    for reason in &verdict.failures {
        text.push_str(&format!("\n     {reason}"));
    }
    if !passed {
        text.push_str(&format!("\n     logs: {}", output.display()));
    }
    println!("{text}");
    Ok(passed)
}

/// The command.
pub(crate) fn run(names: &[String], manner: Manner) -> Result<bool> {
    let scenarios = select(names)?;
    let tally = run_all(manner, &scenarios)?;
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(tally.failed == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_the_scenarios_that_there_are() {
        let text = include_str!("../../../docs/lab.md");
        let (_, rest) = text.split_once("<!-- scenarios -->\n").unwrap();
        let (table, _) = rest.split_once("<!-- end of scenarios -->").unwrap();
        assert!(
            table == markdown(),
            "put the output of `cargo xtask lab --list --markdown` between the marks of docs/lab.md"
        );
    }
}
