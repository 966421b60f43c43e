//! This guest goes to another nido while its disks are at work. It has an assigned edu before and after, and lets
//! go of it in between.

use std::rc::Rc;

use anyhow::{Context, Result, bail};

use super::Guest;
use super::edu::Edu;
use super::hot_plug_levels::{edu_with_driver, use_edu};
use super::pauses::at_work;
use super::vfio::Space;

const REMOVE: &str = "device-del moved";
const ADD: &str = "device-add vfio-pci,id=moved,host={edu0},iommufd=iommufd0,bus=rp0";

/// `TIMES[/in-vain][/saved]`: so often, after an attempt that comes to nothing (`in-vain`), and after it was saved
/// without its device and has gone on from there (`saved`).
pub(super) fn check(guest: &Guest, argument: &str) -> Result<String> {
    let mut words = argument.split('/');
    let times = words.next().and_then(|times| times.parse::<u64>().ok());
    let times = times.context("moves-unplug=TIMES")?;
    at_work(guest, "disk", |agent| {
        dma(0).context("before")?;
        for word in words {
            match word {
                "in-vain" => agent.request("move migrate unplug-in-vain")?,
                "saved" => {
                    agent.request(REMOVE)?;
                    agent.request("move")?;
                    agent.request(ADD)?;
                }
                other => bail!("moves-unplug=TIMES/{other}?"),
            }
            dma(1).with_context(|| format!("after {word}"))?;
        }
        for time in 0..times {
            agent.request("move migrate unplug")?;
            dma(2 + time).with_context(|| format!("after move {}", time + 1))?;
        }
        Ok(())
    })
}

/// What edu brings back is what it took. Nobody has it afterwards, so that its driver can let go of it.
fn dma(seed: u64) -> Result<()> {
    let address = edu_with_driver()?;
    let space = Rc::new(Space::new()?);
    let edu = Edu::open_in(&address, Rc::clone(&space))?;
    use_edu(&edu, &space, seed).map(drop)
}
