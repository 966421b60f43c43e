//! Memory that nido's guest gives back, as level 1 has it: what nido has of it, and the size of the
//! balloon.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::control;

/// Time for a guest to have a balloon as large as it is asked for, and to report what it does not use.
const PATIENCE: Duration = Duration::from_secs(40);
const LOOK: Duration = Duration::from_millis(100);
const MIB: u64 = 1 << 20;

/// What is known of the nido that has the guest.
#[derive(Default)]
pub(super) struct GivenBack {
    /// MiB of level 1's memory that it had at some moment.
    remembered: u64,
}

impl GivenBack {
    /// Does what the guest asks for: `remember` what nido has, see that it has at the `most` so many MiB, or
    /// that it gets so much `less` than was remembered, has the balloon go `to` so many, or has so many be
    /// `plug`ged, or sees that they are `plugged`.
    pub(super) fn see(&mut self, process: u32, socket: Option<&Path>, what: &str) -> Result<()> {
        let (word, number) = what.split_once(' ').unwrap_or((what, "0"));
        let number: u64 = number.parse().with_context(|| what.to_owned())?;
        match word {
            "remember" => self.remembered = resident(process)?,
            "most" => {
                let now = resident(process)?;
                ensure!(
                    now <= number,
                    "nido has {now} MiB, not {number} at the most"
                );
            }
            "less" => {
                let most = self.remembered.saturating_sub(number);
                eventually(|| {
                    let now = resident(process)?;
                    let before = self.remembered;
                    let why =
                        format!("nido had {before} MiB and has {now}, not {most} at the most");
                    Ok((now <= most).then_some(()).ok_or(why))
                })?;
            }
            "plug" => {
                let socket = socket.context("no control socket")?;
                let request = format!("memory size={number}M");
                control::ask(socket, &request, "the guest is asked to have")?;
                plugged(socket, number)?;
            }
            "plugged" => plugged(socket.context("no control socket")?, number)?,
            "to" => resize(socket.context("no control socket")?, number)?,
            other => bail!("{other} is nothing to see"),
        }
        Ok(())
    }
}

/// Has the guest have a balloon of so many MiB, and sees that what it has grown by has gone back.
fn resize(socket: &Path, mib: u64) -> Result<()> {
    let before = figures(socket)?;
    control::ask(
        socket,
        &format!("balloon size={mib}M"),
        "the guest is asked for a balloon",
    )?;
    let after = eventually(|| {
        let now = figures(socket)?;
        let why = format!("the balloon has {} MiB, not {mib}", now.actual / MIB);
        Ok((now.actual == mib * MIB).then_some(now).ok_or(why))
    })?;
    let grown = after.actual.saturating_sub(before.actual);
    let given = after.given_back - before.given_back;
    ensure!(
        given >= grown,
        "of {grown} bytes that are in the balloon now, {given} have gone back"
    );
    let status = control::ask(socket, "status", "vcpus: ")?;
    let line = format!("balloon: {mib} MiB, of {mib} MiB that are asked for");
    ensure!(
        status.lines().any(|other| other == line),
        "{}",
        status.trim()
    );
    Ok(())
}

/// Sees that the guest has so many MiB plugged.
fn plugged(socket: &Path, mib: u64) -> Result<()> {
    let line = format!("plugged: {mib} MiB, of {mib} MiB that are asked for");
    eventually(|| {
        let status = control::ask(socket, "status", "vcpus: ")?;
        let is_so = status.lines().any(|other| other.starts_with(&line));
        Ok(is_so.then_some(()).ok_or(status.trim().replace('\n', ", ")))
    })
}

/// Of `balloon-status`.
struct Figures {
    actual: u64,
    given_back: u64,
}

fn figures(socket: &Path) -> Result<Figures> {
    let answer = control::ask(socket, "balloon-status", "target: ")?;
    let value = |name: &str| -> Result<u64> {
        let mut lines = answer.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let value = value.with_context(|| format!("no {name}: {}", answer.trim()))?;
        value.parse().with_context(|| value.to_owned())
    };
    // The guest's own account: it has some memory, and less of it is free.
    let (total, free) = (value("guest_total")?, value("guest_free")?);
    ensure!(free > 0 && free < total, "{free} of {total} bytes are free");
    Ok(Figures {
        actual: value("actual")?,
        given_back: value("given_back_by_balloon")?,
    })
}

/// MiB of memory that a process has.
fn resident(process: u32) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let status = fs::read_to_string(&path).context(path)?;
    let kib = status.lines().find_map(|line| {
        let value = line.strip_prefix("VmRSS:")?;
        value.split_whitespace().next()?.parse::<u64>().ok()
    });
    Ok(kib.context("no VmRSS")? / 1024)
}

/// Looks until there is something, or for too long: then says why there is not.
fn eventually<T>(mut look: impl FnMut() -> Result<Result<T, String>>) -> Result<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        match look()? {
            Ok(found) => return Ok(found),
            Err(why) if Instant::now() > until => bail!("{why}"),
            Err(_) => thread::sleep(LOOK),
        }
    }
}
