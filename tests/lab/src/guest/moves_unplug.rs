//! This guest goes to another nido while its disks are at work. It has an assigned edu before and after, and lets
//! go of it in between.

use std::rc::Rc;
use std::thread;

use anyhow::{Context, Result};

use super::Guest;
use super::agent::Agent;
use super::edu::Edu;
use super::hot_plug::SETTLE;
use super::hot_plug_levels::{edu_with_driver, use_edu};
use super::pauses::at_work;
use super::vfio::Space;

/// As often as the argument says, after an attempt that comes to nothing.
pub(super) fn check(guest: &Guest, argument: &str) -> Result<String> {
    let times: u64 = argument.parse().context("moves-unplug=TIMES")?;
    at_work(guest, "disk", |agent| {
        dma(0).context("before")?;
        go(agent, "move migrate unplug-in-vain")?;
        dma(1).context("after it has stayed")?;
        for time in 0..times {
            go(agent, "move migrate unplug")?;
            dma(2 + time).with_context(|| format!("after move {}", time + 1))?;
        }
        Ok(())
    })
}

/// The button of a slot is heard again when what was done before is over.
fn go(agent: &mut Agent, how: &str) -> Result<()> {
    thread::sleep(SETTLE);
    agent.request(how)
}

/// What edu brings back is what it took. Nobody has it afterwards, so that its driver can let go of it.
fn dma(seed: u64) -> Result<()> {
    let address = edu_with_driver()?;
    let space = Rc::new(Space::new()?);
    let edu = Edu::open_in(&address, Rc::clone(&space))?;
    use_edu(&edu, &space, seed).map(drop)
}
