//! Where nido runs: on this machine, or in level 1 under QEMU.
//!
//! That there is a /dev/kvm does not tell whether Linux runs in it (it may be emulated itself), so
//! it is tried.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use lab::agent::Task;
use lab::agent::init::Request;
use lab::protocol::AgentLine;
use lab::scenario::{self, Kernel, Scenario};

use crate::build::Stage;
use crate::level0;
use crate::{Where, paths};

/// A guest of a machine whose KVM works needs less than a second.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// The choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// This machine's KVM.
    Host,
    /// Level 1.
    Level1,
}

/// Chooses, and says why.
pub(crate) fn choose(wanted: Where, stage: &Stage) -> Result<Place> {
    let (place, reason) = match wanted {
        Where::Host => (Place::Host, "as asked for".to_owned()),
        Where::Level1 => (Place::Level1, "as asked for".to_owned()),
        Where::Auto => match remembered_probe(stage)? {
            Ok(()) => (Place::Host, "this machine's KVM boots Linux".to_owned()),
            Err(reason) => (Place::Level1, reason),
        },
    };
    match place {
        Place::Host => println!("nido runs on this machine: {reason}"),
        Place::Level1 => {
            println!("nido runs in level 1, a machine that QEMU emulates: {reason}");
            level0::install()?;
        }
    }
    Ok(place)
}

/// The outcome of [`probe`], remembered until the machine or nido is another one.
fn remembered_probe(stage: &Stage) -> Result<Result<(), String>> {
    let nido = fs::read(stage.directory.join("nido"))?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let key = format!("{} {}", boot.trim(), lab::hash::sha256(&nido));
    let path = paths::logs()?.join("probe.txt");
    let known = fs::read_to_string(&path).unwrap_or_default();
    if let Some((known_key, reason)) = known.split_once('\n')
        && known_key == key
    {
        return Ok(if reason.is_empty() {
            Ok(())
        } else {
            Err(reason.to_owned())
        });
    }
    let outcome = probe(stage)?;
    let reason = outcome.as_ref().err().map_or("", String::as_str);
    fs::write(&path, format!("{key}\n{reason}"))?;
    Ok(outcome)
}

/// Boots the guest kernel in nido on this machine; the error is why nido must run elsewhere.
fn probe(stage: &Stage) -> Result<Result<(), String>> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(Err("this machine has no /dev/kvm".to_owned()));
    }
    if !lab::sys::is_root() {
        return Ok(Err(
            "on this machine only root can make the guest's network".to_owned(),
        ));
    }
    if fs::metadata("/dev/net/tun")
        .map(|node| node.permissions().mode())
        .is_err()
    {
        return Ok(Err("this machine has no /dev/net/tun".to_owned()));
    }
    let output = paths::logs()?.join("probe");
    let mut task = task(scenario::PROBE, stage, &output)?;
    task.scenario.limit = PROBE_LIMIT;
    let mut failure = None;
    let ran = lab::agent::run(&task, &mut |line| {
        if let AgentLine::Failure(reason) = line {
            failure.get_or_insert(reason);
        }
    });
    if lab::sys::interrupted() {
        bail!("interrupted");
    }
    Ok(match (ran, failure) {
        (Err(error), _) => Err(format!(
            "a guest cannot be tried on this machine's KVM ({error:#})"
        )),
        (Ok(()), Some(reason)) => {
            let messages = fs::read_to_string(output.join("nido.log")).unwrap_or_default();
            let error = messages
                .lines()
                .find_map(|line| line.strip_prefix("nido: error: "));
            let said = error.unwrap_or(&reason);
            Err(format!(
                "a Linux guest does not get far on this machine's KVM ({said})"
            ))
        }
        (Ok(()), None) => Ok(()),
    })
}

fn task(scenario: Scenario, stage: &Stage, output: &Path) -> Result<Task> {
    Ok(Task {
        scenario,
        files: stage.directory.clone(),
        output: output.to_owned(),
        scratch: paths::logs()?.join("scratch"),
        extra: Vec::new(),
        show_guest: false,
    })
}

/// What a run of a scenario has brought.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Reasons against it.
    pub(crate) failures: Vec<String>,
    /// Checks that passed.
    pub(crate) passed: usize,
    /// Time from the start of nido to its end.
    pub(crate) guest_time: Duration,
}

impl Place {
    /// Where a scenario runs: one that needs level 0's devices always in level 1.
    pub(crate) fn of(self, scenario: &Scenario) -> Result<Self> {
        if scenario.host.devices.is_empty() || self == Self::Level1 {
            return Ok(self);
        }
        level0::install()?;
        Ok(Self::Level1)
    }

    /// Runs a scenario here; logs go to `output`, which is emptied.
    pub(crate) fn run(
        self,
        scenario: &Scenario,
        stage: &Stage,
        output: &Path,
        extra: &[String],
        show: &mut dyn FnMut(&str),
    ) -> Result<Verdict> {
        let _ = fs::remove_dir_all(output);
        fs::create_dir_all(output)?;
        let mut verdict = Verdict::default();
        let mut done = false;
        let mut report = |line: AgentLine| match line {
            AgentLine::Failure(reason) => verdict.failures.push(reason),
            AgentLine::Guest(line) | AgentLine::Note(line) => show(&line),
            AgentLine::Done {
                milliseconds,
                passed,
            } => {
                verdict.guest_time = Duration::from_millis(milliseconds);
                verdict.passed = passed;
                done = true;
            }
            AgentLine::Measure(_) => {}
        };
        match self {
            Self::Host => {
                let mut task = task(*scenario, stage, output)?;
                task.extra = extra.to_vec();
                task.show_guest = true;
                lab::agent::run(&task, &mut report)?;
            }
            Self::Level1 => {
                let request = Request {
                    mode: "scenario".to_owned(),
                    scenario: scenario.name.to_owned(),
                    arguments: extra.to_vec(),
                    show_guest: true,
                };
                let disk = scenario.kernel == Kernel::Debian;
                let machine = level0::Machine {
                    disk: disk.then(|| stage.root_disk()),
                    ..level0::Machine::with(&scenario.host)
                };
                level0::run(
                    stage,
                    output,
                    &request,
                    &machine,
                    scenario.limit,
                    &mut report,
                )?;
            }
        }
        if !done && verdict.failures.is_empty() {
            verdict.failures.push("no result".to_owned());
        }
        Ok(verdict)
    }

    /// Runs the guest of `cargo xtask boot` with a shell on this terminal.
    pub(crate) fn interact(self, stage: &Stage, output: &Path, extra: &[String]) -> Result<()> {
        fs::create_dir_all(output)?;
        match self {
            Self::Host => {
                let mut task = task(scenario::BOOT, stage, output)?;
                task.scenario.initramfs = scenario::Initramfs::Shell;
                task.extra = extra.to_vec();
                lab::agent::interact(&task, None)?;
                Ok(())
            }
            Self::Level1 => {
                let request = Request {
                    mode: "shell".to_owned(),
                    scenario: scenario::BOOT.name.to_owned(),
                    arguments: extra.to_vec(),
                    show_guest: false,
                };
                level0::interact(stage, output, &request, &scenario::BOOT.host)
            }
        }
    }
}
