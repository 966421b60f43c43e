//! Memory that comes and goes (virtio-mem), as level 1 asks for it.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Guest;
use super::balloon::used;
use super::pauses::at_work;

/// What a new block of memory becomes: nothing that stays where it is goes there, so that it can leave.
const ONLINE: &str = "/sys/devices/system/memory/auto_online_blocks";
/// MiB that the kernel takes of what is plugged, to keep account of it, and for itself.
const KEPT: u64 = 16;
/// How long it takes to put to use what was plugged.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(50);

/// `grow:FROM:TO:USED`: there are FROM MiB plugged, and then TO, with which so many can be used.
/// `shrink:FROM:TO:LOAD+LOAD`: the same with less while these are at work, as in `moves`. `has:MIB`: so many
/// are plugged, once the driver is done.
pub(super) fn check(guest: &Guest, argument: &str) -> Result<String> {
    let words: Vec<&str> = argument.split(':').collect();
    fs::write(ONLINE, "online_movable").context(ONLINE)?;
    let before = total()?;
    match words.as_slice() {
        ["has", mib] => {
            super::agent::Agent::open()?.request(&format!("given-back plugged {mib}"))?
        }
        ["grow", from, to, mib] => {
            let mut agent = super::agent::Agent::open()?;
            agent.request(&format!("given-back plugged {from}"))?;
            agent.request(&format!("given-back plug {to}"))?;
            let more = number(to)? - number(from)?;
            let least = before + more.saturating_sub(KEPT);
            eventually(before, |now| now >= least)?;
            drop(used(usize::try_from(number(mib)?)?)?);
        }
        ["shrink", from, to, loads] => {
            let less = number(from)? - number(to)?;
            at_work(guest, loads, |agent| {
                agent.request(&format!("given-back plugged {from}"))?;
                agent.request("given-back remember")?;
                agent.request(&format!("given-back plug {to}"))?;
                // What the guest had not touched of it had no memory.
                agent.request(&format!("given-back less {}", less / 3))
            })?;
            let most = (before + KEPT).saturating_sub(less);
            eventually(before, |now| now <= most)?;
        }
        _ => bail!("virtio-mem=grow:FROM:TO:USED, shrink:FROM:TO:LOADS or has:MIB"),
    }
    Ok(format!("{before} MiB, and then {}", total()?))
}

/// Waits until the kernel has so much: it is told of a block before it puts that to use.
fn eventually(before: u64, is_enough: impl Fn(u64) -> bool) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let now = total()?;
        if is_enough(now) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{before} MiB have become {now}");
        thread::sleep(LOOK);
    }
}

fn number(word: &str) -> Result<u64> {
    word.parse().with_context(|| word.to_owned())
}

/// MiB of memory that the kernel has for all.
fn total() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(number(kib.context("no MemTotal")?)? / 1024)
}
