//! Pauses while devices are at work.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

use super::agent::Agent;
use super::{Guest, disk, edu, network, vsock};
use crate::kernel_log;

/// Words of the kernel when it takes time that has passed for a fault.
const ALARMS: &[&str] = &[
    "soft lockup",
    "detected stalls",
    "self-detected stall",
    "hung_task",
    "NETDEV WATCHDOG",
];

/// What can be at work meanwhile.
type Load = fn(&Guest, &str) -> Result<String>;
const LOADS: &[(&str, Load)] = &[
    ("disk", disk::check),
    ("net", network::check),
    ("edu", edu::dma_and_msi),
    ("vsock", vsock::check),
];

/// `ROUNDS:LOAD+LOAD...`: the guest is paused so often while these are at work. Nothing that is under
/// way fails, and nobody raises an alarm.
pub(super) fn check(guest: &Guest, argument: &str) -> Result<String> {
    let (times, names) = argument.split_once(':').context("pauses=ROUNDS:LOADS")?;
    let mut chosen = Vec::new();
    for name in names.split('+') {
        let load = LOADS.iter().find(|(known, _)| *known == name);
        chosen.push(load.with_context(|| format!("{name} is no load"))?);
    }
    let mut agent = Agent::open()?;
    let over = AtomicBool::new(false);
    let rounds = thread::scope(|scope| {
        let loads: Vec<_> = chosen
            .into_iter()
            .map(|(name, load)| (name, scope.spawn(|| work(guest, *load, &over))))
            .collect();
        let asked = agent.request(&format!("pauses {times}"));
        over.store(true, Ordering::Release);
        let mut said = Vec::new();
        for (name, load) in loads {
            let rounds = load.join().map_err(|_| anyhow!("a thread panicked"))?;
            said.push(format!("{name} {}", rounds.context(*name)?));
        }
        asked?;
        Ok::<_, anyhow::Error>(said.join(", "))
    })?;
    let log = kernel_log::read()?;
    let alarm = log
        .iter()
        .find(|line| ALARMS.iter().any(|alarm| line.contains(alarm)));
    ensure!(alarm.is_none(), "{}", alarm.map_or("", String::as_str));
    Ok(format!("rounds of work meanwhile: {rounds}"))
}

/// Works until that is `over`, and once at least. Returns how often.
fn work(guest: &Guest, load: Load, over: &AtomicBool) -> Result<u32> {
    let mut rounds = 0;
    while rounds == 0 || !over.load(Ordering::Acquire) {
        load(guest, "")?;
        rounds += 1;
    }
    Ok(rounds)
}
