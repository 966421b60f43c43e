//! `cargo xtask bench migrate`: a guest goes from one process to another on this machine, of nido and of
//! QEMU in turns, and is watched from outside.

mod cases;
mod clients;
mod nido;
mod qemu;
mod signs;
mod table;
mod watched;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::sys;

use crate::bench_samples::Samples;
use crate::process::seconds;
use crate::{build, level0, paths};
use cases::{CASES, Case};
use watched::Watched;

/// How long a guest may take until it runs, and until it has gone.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a guest is watched before and after.
const WATCH: Duration = Duration::from_secs(1);
/// After it has begun to write, and after it has gone on, until its pace counts.
const SETTLE: Duration = Duration::from_millis(200);

/// Where things are.
struct Place {
    nido: PathBuf,
    payload: PathBuf,
    /// Logs and sockets.
    directory: PathBuf,
}

/// What a VMM says of a guest that has gone.
struct Told {
    /// How long it stood still.
    still: Duration,
    /// What was sent.
    kibibytes: u64,
}

/// A VMM.
trait Mover {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Starts a guest.
    fn source(&self, place: &Place, case: &Case) -> Result<Watched>;

    /// Starts what waits for one.
    fn target(&self, place: &Place, case: &Case) -> Result<Watched>;

    /// Has the guest go there, which takes no longer than [`LIMIT`].
    fn go(&self, place: &Place, case: &Case) -> Result<Told>;
}

/// The benchmark: `rounds` of each case whose name contains `only`. Whether nothing failed.
pub(crate) fn run(rounds: u32, only: Option<&str>) -> Result<bool> {
    ensure!(
        Path::new("/dev/kvm").exists(),
        "this machine has no /dev/kvm; run it on one that has"
    );
    level0::install()?;
    let directory = paths::logs()?.join("bench-migrate");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)?;
    let (nido, payload) = build::bare(&directory)?;
    let place = Place {
        nido,
        payload,
        directory,
    };
    let wanted = |case: &&Case| only.is_none_or(|only| case.name.contains(only));
    let cases: Vec<&Case> = CASES.iter().filter(wanted).collect();
    if cases.is_empty() {
        let names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        bail!("--only: there are {}", names.join(", "));
    }
    let movers: [&dyn Mover; 2] = [&nido::Nido, &qemu::Qemu];
    println!(
        "two vCPUs, 512 MiB, of which {} hold something; unix sockets on this machine",
        cases::FILL
    );
    let mut samples = Samples::default();
    let mut failures = Vec::new();
    let (begun, planned) = (Instant::now(), rounds as usize * cases.len() * movers.len());
    let mut done = 0;
    for round in 0..rounds {
        for case in &cases {
            for mover in movers {
                done += 1;
                let snapshot = mover.name() == nido::NAME && case.snapshot;
                let measured = measure(mover, &place, case, snapshot);
                if sys::interrupted() {
                    bail!("interrupted");
                }
                let title = format!("{}, {}", mover.name(), case.name);
                print!("  {done}/{planned} {} {title}: ", seconds(begun.elapsed()));
                match measured {
                    Ok(lines) => {
                        println!("{}", lines.join("; "));
                        lines.iter().for_each(|line| samples.add(line));
                    }
                    Err(error) => {
                        println!("FAIL {error:#}");
                        failures.push(format!("{title}, round {round}: {error:#}"));
                    }
                }
            }
        }
    }
    print!("\n{}", table::markdown(&cases, &samples));
    for failure in &failures {
        println!("FAIL {failure}");
    }
    println!("logs: {}", place.directory.display());
    Ok(failures.is_empty())
}

/// One guest that goes once: what came of it, as `key=value` words.
fn measure(mover: &dyn Mover, place: &Place, case: &Case, snapshot: bool) -> Result<Vec<String>> {
    let source = mover.source(place, case)?;
    source
        .wait(LIMIT, |signs| signs.is_at_work(case.writes()))
        .context("the guest does not begin")?;
    thread::sleep(SETTLE + WATCH);
    // The target's start is not to be seen in its pace.
    let alone = Instant::now();
    let target = mover.target(place, case)?;
    let asked = Instant::now();
    let told = mover.go(place, case)?;
    target
        .wait(LIMIT, |signs| signs.first().is_some())
        .context("nothing is heard of the guest where it has gone")?;
    let silent_to = target.signs().first().context("no sign of the guest")?;
    let rest = silent_to + SETTLE;
    target
        .wait(LIMIT, |signs| signs.is_told_since(rest + WATCH))
        .context("the guest stops where it has gone")?;
    let (before, after) = (source.signs(), target.signs());
    let silent_from = before.last().context("no sign of the guest")?;
    ensure!(
        before.bad() + after.bad() == 0,
        "{} pages do not hold what the guest wrote to them",
        before.bad() + after.bad()
    );
    let own = after.gap().context("the guest says nothing of itself")?;
    let all = before.and(&after);
    let pace = |from: Instant, to: Instant| {
        let kibibytes = all.written(from, to)?;
        let millis = u64::try_from((to - from).as_millis()).ok()?.max(1);
        Some(kibibytes * 1000 / millis)
    };
    let pages = all.written(asked, silent_to).unwrap_or(0) / 4;
    let beyond = told.kibibytes.saturating_sub(cases::FILL * 1024) * 1024;
    let vmm = format!("vmm={}/{}", mover.name(), case.name);
    let mut line = format!(
        "{vmm} still_ns={} silent_ns={} own_ns={} total_ns={} sent_kib={}",
        told.still.as_nanos(),
        (silent_to - silent_from).as_nanos(),
        own.as_nanos(),
        (silent_to - asked).as_nanos(),
        told.kibibytes
    );
    if case.writes()
        && let Some(before) = pace(alone - WATCH, alone)
        && let Some(during) = pace(asked, silent_to)
        && let Some(after) = pace(rest, rest + WATCH)
    {
        line.push_str(&format!(
            " written_kib={} before_kib_s={before} during_kib_s={during} after_kib_s={after}",
            pages * 4
        ));
        if let Some(each) = beyond.checked_div(pages) {
            line.push_str(&format!(" page_bytes={each}"));
        }
    }
    let mut lines = vec![line];
    drop(source);
    if snapshot {
        lines.push(nido::snapshot(place, target)?);
    }
    Ok(lines)
}
