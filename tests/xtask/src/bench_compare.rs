//! `cargo xtask bench compare`: nido beside other VMMs, with and without a remapping unit.
//!
//! Each guest has a level 1 of its own, one after the other, and level 1 has one processor: on it are
//! all threads of the VMM, whichever it is, and those of its guest.

mod peers;
mod table;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use lab::agent::bench_compare::{Part, Subject, Vmm};
use lab::agent::init::Request;
use lab::protocol::AgentLine;
use lab::scenario::BOOT;
use lab::sys;

use crate::bench_samples::Samples;
use crate::build::{self, Extras, Stage};
use crate::level0::{self, Emulator, Machine, Time};
use crate::paths;
use crate::process::seconds;

pub(crate) use peers::Given;

/// Time of a guest, in a level 1 that has to start before.
const LIMIT: Duration = Duration::from_secs(120);

/// What is asked for.
pub(crate) struct Wanted {
    /// Guests of each, of those whose boots are measured.
    pub(crate) rounds: u32,
    /// One part only.
    pub(crate) only: Option<Part>,
    /// What level 1's time is.
    pub(crate) time: Time,
    /// Programs that no registry has.
    pub(crate) given: Given,
}

/// The benchmark. Whether nothing of nido has failed: of the others it is told.
pub(crate) fn run(wanted: &Wanted) -> Result<bool> {
    let stage = build::stage(Extras::default())?;
    let peers = peers::provide(&stage, &wanted.given)?;
    println!(
        "one vCPU, 512 MiB, the same kernel (ELF, PVH) and initramfs for all, a new level 1 for each guest"
    );
    println!(
        "level 0: QEMU {}, emulation; {}",
        peers.qemu.version,
        peers.titles.join(", ")
    );
    let directory = paths::logs()?.join("bench-compare");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)?;
    let mut run = Run {
        stage: &stage,
        directory: &directory,
        machine: Machine {
            time: wanted.time,
            emulator: Emulator::Newer(peers.qemu.directory.clone()),
            ..Machine::with(&BOOT.host)
        },
        samples: Samples::default(),
        failed: BTreeSet::new(),
        failures: Vec::new(),
        begun: Instant::now(),
        done: 0,
        planned: 0,
    };
    let parts: Vec<Part> = Part::ALL
        .into_iter()
        .filter(|part| match wanted.only {
            // They are in one table.
            Some(Part::Boot) => matches!(part, Part::First | Part::Boot),
            only => only.is_none_or(|only| only == *part),
        })
        .collect();
    let rounds = |part: Part| part.rounds(wanted.rounds);
    for part in &parts {
        run.planned += rounds(*part) as usize * peers.subjects(*part).len();
    }
    for part in parts {
        let subjects = peers.subjects(part);
        for round in 0..rounds(part) {
            for subject in &subjects {
                run.measure(*subject, part, round)?;
            }
        }
        if let Some(tables) = table::markdown(part, &subjects, &run.samples) {
            print!("\n{tables}");
        }
    }
    println!("\nit took {}", seconds(run.begun.elapsed()));
    for (_, failure) in &run.failures {
        println!("FAIL {failure}");
    }
    println!("logs: {}", directory.display());
    Ok(!run.failures.iter().any(|(vmm, _)| *vmm == Vmm::Nido))
}

struct Run<'a> {
    stage: &'a Stage,
    directory: &'a Path,
    machine: Machine<'static>,
    samples: Samples,
    /// Who is not measured any more.
    failed: BTreeSet<(Subject, &'static str)>,
    failures: Vec<(Vmm, String)>,
    begun: Instant,
    done: usize,
    planned: usize,
}

impl Run<'_> {
    /// One guest in a level 1 of its own.
    fn measure(&mut self, subject: Subject, part: Part, round: u32) -> Result<()> {
        self.done += 1;
        if self.failed.contains(&(subject, part.name())) {
            return Ok(());
        }
        let name = format!(
            "{}-{}-{round}",
            part.name(),
            subject.name().replace('/', "-")
        );
        let request = Request {
            mode: "compare".to_owned(),
            scenario: BOOT.name.to_owned(),
            arguments: vec![subject.name(), part.name().to_owned()],
            show_guest: false,
        };
        let limit = self.machine.time.stretch(LIMIT);
        let output = self.directory.join(&name);
        let mut failures = Vec::new();
        let samples = &mut self.samples;
        let mut measured = String::new();
        level0::run(
            self.stage,
            &output,
            &request,
            &self.machine,
            limit,
            &mut |line| match line {
                AgentLine::Measure(text) => {
                    samples.add(&text);
                    measured = text;
                }
                AgentLine::Failure(reason) => failures.push(reason),
                AgentLine::Note(_) | AgentLine::Guest(_) | AgentLine::Done { .. } => {}
            },
        )?;
        if sys::interrupted() {
            bail!("interrupted");
        }
        let progress = format!(
            "{}/{} {}",
            self.done,
            self.planned,
            seconds(self.begun.elapsed())
        );
        println!("  {progress} {} {measured}", part.name());
        if !failures.is_empty() {
            // A round more would take as long to fail.
            self.failed.insert((subject, part.name()));
        }
        for reason in failures {
            println!("  {name}: {reason}");
            self.failures
                .push((subject.vmm, format!("{name}: {reason}")));
        }
        Ok(())
    }
}
