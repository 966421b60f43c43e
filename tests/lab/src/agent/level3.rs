//! Level 3: a guest of nido in level 2, which is itself a guest of nido and gives its own devices
//! away.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::disks::Disks;
use super::host::Devices;
pub(crate) use super::invocation::CPUS;
use super::invocation::{Invocation, Surroundings};
use super::run::session;
pub(crate) use super::session::MEASURED;
use super::session::{Ending, Outcome};
use super::{Task, tap};
use crate::plan;
use crate::protocol::{AgentLine, MARKER, RELAYED};
use crate::scenario::Scenario;

/// The check by which level 2 runs it.
pub(crate) const CHECK: &str = "level3";
/// The check of a guest that goes to another nido without its devices.
pub(crate) const MOVES: &str = "moves-unplug";
/// Where level 2 finds nido, a kernel and the initramfs for level 3.
const FILES: &str = "/level3";
/// Where level 2 leaves the logs.
const OUTPUT: &str = "/tmp/level3";

/// Says something to the agent of the level below.
pub(crate) type Below<'a> = dyn Fn(&str) -> Result<()> + 'a;

/// What has come of it.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// Reasons against it.
    pub(crate) failures: Vec<String>,
    /// What was measured: lines of `key=value` words.
    pub(crate) measures: Vec<String>,
    /// Checks that passed.
    pub(crate) passed: usize,
    /// Seconds.
    pub(crate) seconds: f64,
}

/// Runs level 3 with `scenario` and `extra` options of nido; its kernel gets `parameters` too. What level 3 says is repeated
/// to `show` as it comes; what it has looked at is looked at by `below` as well.
pub(crate) fn run(
    scenario: &Scenario,
    extra: Vec<String>,
    parameters: &str,
    below: &Below<'_>,
    show: &mut dyn FnMut(&str),
) -> Result<Verdict> {
    let task = Task {
        scenario: *scenario,
        files: PathBuf::from(FILES),
        output: PathBuf::from(OUTPUT),
        scratch: Path::new(OUTPUT).join("scratch"),
        extra,
        show_guest: true,
    };
    fs::create_dir_all(&task.scratch).with_context(|| task.scratch.display().to_string())?;
    // With its devices, or without them.
    let moves = plan::migrates(scenario.plan);
    let leaves = plan::names(scenario.plan, MOVES);
    let devices = Devices::of_level2(moves)?;
    let mut surroundings = Surroundings {
        arguments: Vec::new(),
        command_line: parameters.to_owned(),
        taps: Vec::new(),
    };
    // Those of level 2 cannot be of two of its processes.
    let disks = if moves || leaves {
        tap::set_up("lo", Ipv4Addr::LOCALHOST, 8).context("lo")?;
        let disks = Disks::create(&task.scratch)?;
        surroundings.arguments = disks.arguments();
        surroundings.command_line = format!("lab.disk={}", disks.hash);
        Some(disks)
    } else {
        None
    };
    let mut report = |line: AgentLine| match line {
        AgentLine::Guest(line) if line.contains(MARKER) => show(&line),
        _ => {}
    };
    let mut run = |plan: Option<&str>, ending| -> Result<Outcome> {
        let invocation = match plan {
            Some(plan) => Invocation::with_plan(&task, &surroundings, false, plan),
            None => Invocation::new(&task, &surroundings, false),
        };
        let mut outcome = session(
            &task,
            &devices,
            invocation,
            ending,
            Some(below),
            &mut report,
        )?;
        if let Err(error) = devices.nothing_left() {
            outcome
                .failures
                .push(format!("after nido's end: {error:#}"));
        }
        Ok(outcome)
    };
    let mut outcome = Outcome::default();
    if let Some(plan) = scenario.killed {
        outcome = run(Some(plan), Ending::Killed)?;
    }
    if outcome.failures.is_empty() {
        let last = run(None, Ending::ByItself)?;
        outcome.passed += last.passed;
        outcome.time += last.time;
        outcome.failures = last.failures;
        outcome.details = last.details;
    }
    if let Some(disks) = disks.filter(|_| outcome.failures.is_empty()) {
        outcome.failures.extend(disks.verify()?);
    }
    Ok(Verdict {
        passed: outcome.passed,
        seconds: outcome.time.as_secs_f64(),
        failures: std::mem::take(&mut outcome.failures),
        measures: outcome.measures(),
    })
}

/// The logs, each line with [`RELAYED`] and the name of its file before it, and without what marks a
/// report.
pub(crate) fn logs() -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut paths: Vec<PathBuf> = fs::read_dir(OUTPUT)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let content = fs::read(&path).with_context(|| path.display().to_string())?;
        let content = String::from_utf8_lossy(&content);
        lines.extend(
            content
                .lines()
                .map(|line| format!("{RELAYED}{name}: {}", unmarked(line))),
        );
    }
    Ok(lines)
}

/// A line of level 3 that nobody takes for one of level 2.
pub(crate) fn unmarked(line: &str) -> String {
    line.replace(MARKER, "level 3: ")
}
