//! Pauses while devices are at work.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::agent::Agent;
use super::{Guest, assigned_edu, disk, edu, network, sva, vsock};
use crate::kernel_log;

/// Words of the kernel when it takes time that has passed for a fault.
const ALARMS: &[&str] = &[
    "soft lockup",
    "detected stalls",
    "self-detected stall",
    "hung_task",
    "NETDEV WATCHDOG",
];

/// How long the work goes on before the guest is moved.
const BETWEEN: Duration = Duration::from_millis(500);

/// What can be at work meanwhile.
#[derive(Clone, Copy)]
enum Load {
    /// Again and again.
    Check(fn(&Guest, &str) -> Result<String>),
    /// Until that is over. It tells how often.
    Steady(fn(&AtomicBool) -> Result<u32>),
}

const LOADS: &[(&str, Load)] = &[
    ("disk", Load::Check(disk::check)),
    ("net", Load::Check(network::check)),
    ("edu", Load::Check(edu::dma_and_msi)),
    ("edu-steady", Load::Steady(assigned_edu::steady)),
    ("vsock", Load::Check(vsock::check)),
    ("vsock-ends", Load::Check(vsock::ends)),
    ("memory", Load::Check(memory)),
    ("sva", Load::Check(sva::check)),
];

/// Words of memory that are written in turn, a page apart.
const PAGES: usize = 4096;
const WORDS: usize = 512;
/// How often they are in one round of work.
const PASSES: u64 = 20;

/// `ROUNDS:LOAD+LOAD...`: the guest is paused so often while these are at work. Nothing that is under
/// way fails, and nobody raises an alarm.
pub(super) fn check(guest: &Guest, argument: &str) -> Result<String> {
    let (times, loads) = argument.split_once(':').context("pauses=ROUNDS:LOADS")?;
    at_work(guest, loads, |agent| {
        agent.request(&format!("pauses {times}"))
    })
}

/// `TIMES[/live][/twice]:LOAD+LOAD...`: the guest goes on in another process so often. If it is saved
/// while it runs (`live`), what it did since then is forgotten: no load may be one that anybody else
/// remembers. Nor may it be if the agent has the guest go on a second time (`twice`), at its end.
pub(super) fn moves(guest: &Guest, argument: &str) -> Result<String> {
    let (manner, loads) = argument.split_once(':').context("moves=TIMES:LOADS")?;
    let mut manner = manner.split('/');
    let times = manner.next().and_then(|times| times.parse::<u32>().ok());
    let request = manner.fold("move".to_owned(), |request, word| request + " " + word);
    at_work(guest, loads, |agent| {
        for _ in 0..times.context("moves=TIMES:LOADS")? {
            thread::sleep(BETWEEN);
            agent.request(&request)?;
        }
        Ok(())
    })
}

/// Writes words in turn, and finds each as the turn before has left it: all of memory is of one
/// moment.
fn memory(_guest: &Guest, _argument: &str) -> Result<String> {
    let words: Vec<AtomicU64> = (0..PAGES * WORDS).map(|_| AtomicU64::new(0)).collect();
    for pass in 0..PASSES {
        for word in words.iter().step_by(WORDS) {
            let found = word.swap(pass + 1, Ordering::SeqCst);
            ensure!(found == pass, "a page has {found} in pass {pass}");
        }
    }
    Ok(String::new())
}

/// Has the agent do something while `loads`, joined by `+`, are at work.
pub(super) fn at_work(
    guest: &Guest,
    loads: &str,
    ask: impl FnOnce(&mut Agent) -> Result<()>,
) -> Result<String> {
    let mut chosen = Vec::new();
    for name in loads.split('+') {
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
        let asked = ask(&mut agent);
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
    let check = match load {
        Load::Check(check) => check,
        Load::Steady(load) => return load(over),
    };
    let mut rounds = 0;
    while rounds == 0 || !over.load(Ordering::Acquire) {
        check(guest, "")?;
        rounds += 1;
    }
    Ok(rounds)
}
