//! A guest of the guest, which gets this guest's devices.

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::Write;

use anyhow::{Context, Result, bail};

use super::agent::Agent;
use super::{Console, Guest};
use crate::agent::level3::{self, Verdict};
use crate::scenario::{self, Scenario};

/// Parameters that level 2 hands on, since level 3 has its disks and its network.
const PARAMETERS: &[&str] = &["lab.disk", "lab.net"];
/// Its output costs less than that of the serial port.
const LOG: &str = "/dev/hvc0";

/// Runs the scenario of level 3 that the argument names.
pub(super) fn check(guest: &Guest, argument: &str) -> Result<String> {
    let scenario = scenario::third(argument).context("no such scenario of level 3")?;
    let verdict = run(guest, scenario, &RefCell::new(Agent::open()?))?;
    Ok(format!(
        "{} checks of level 3 in {:.1} s",
        verdict.passed, verdict.seconds
    ))
}

/// Measures the guests of [`scenario::MEASURED`] in turn, as many rounds as the argument says.
pub(super) fn measure(guest: &Guest, argument: &str) -> Result<String> {
    let rounds: u32 = argument.parse().context("level3-bench=ROUNDS")?;
    let agent = RefCell::new(Agent::open()?);
    for round in 0..rounds {
        for scenario in scenario::MEASURED {
            let verdict = run(guest, scenario, &agent)
                .with_context(|| format!("{} round {round}", scenario.name))?;
            for measure in verdict.measures {
                let name = scenario.name;
                let request = format!("{} vmm={name} {measure}", level3::MEASURED);
                agent.borrow_mut().request(&request)?;
            }
        }
    }
    Ok(format!("{rounds} rounds"))
}

/// Runs the scenario; what speaks against it is an error.
fn run(guest: &Guest, scenario: &Scenario, agent: &RefCell<Agent>) -> Result<Verdict> {
    let mut console = Console::open();
    let mut parameters = String::new();
    for name in PARAMETERS {
        let value = guest.parameter(name).with_context(|| format!("{name}="))?;
        parameters.push_str(&format!(" {name}={value}"));
    }
    let cpus = guest.parameter(level3::CPUS);
    let extra = cpus.map(|cpus| ["--cpus".to_owned(), cpus.to_owned()]);
    let verdict = level3::run(
        scenario,
        extra.into_iter().flatten().collect(),
        &parameters,
        &|request| agent.borrow_mut().request(request),
        &mut |line| console.line(&level3::unmarked(line)),
    );
    keep_logs().context("logs")?;
    let verdict = verdict?;
    if !verdict.failures.is_empty() {
        bail!("{}", verdict.failures.join("; "));
    }
    Ok(verdict)
}

/// Sends the logs down.
fn keep_logs() -> Result<()> {
    let mut console = OpenOptions::new().write(true).open(LOG).context(LOG)?;
    console.write_all(b"\n")?;
    for line in level3::logs()? {
        console.write_all(format!("{line}\n").as_bytes())?;
    }
    Ok(())
}

/// Has the agents of all levels below look at what this guest has set up, or at what the argument
/// names.
pub(super) fn look(_guest: &Guest, argument: &str) -> Result<String> {
    Agent::open()?.request(format!("look {argument}").trim())?;
    Ok("as expected".to_owned())
}
