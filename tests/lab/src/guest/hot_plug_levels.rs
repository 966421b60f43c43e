//! Devices of the level below that come and go: edu, which this program drives through its own
//! iommufd, and a disk.

use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::agent::Agent;
use super::edu::{self, Edu, FROM_DEVICE, INTERNAL, INTERNAL_SIZE, IOVA, fill};
use super::hot_plug::SETTLE;
use super::vfio::{Access, Space};
use super::{Guest, nvme};
use crate::pci;
use crate::sys::memory::Buffer;

const ADD_EDU: &str = "device-add vfio-pci,id=plugged-edu,host={edu0},iommufd=iommufd0,bus=rp0";
const ADD_DISK: &str = "device-add vfio-pci,id=plugged-disk,host={disk2},iommufd=iommufd0,bus=rp1";
const DRIVER: &str = "vfio-pci";
const DISK: &str = "/dev/vdc";
const DISK_SIZE: u64 = 256 << 10;
/// Longest time until a device has come or gone.
const PATIENCE: Duration = Duration::from_secs(120);

/// As often as the argument says: both are plugged in and used, all levels are shown, and they go,
/// as the guest is asked to let go of them. Every second time it is edu alone, which goes unasked
/// in the middle of its work.
pub(super) fn check(_guest: &Guest, argument: &str) -> Result<String> {
    let rounds: u64 = argument.parse().context("hot-plug-levels=ROUNDS")?;
    let mut agent = Agent::open()?;
    let started = Instant::now();
    for round in 0..rounds {
        come_and_go(&mut agent, round).with_context(|| format!("round {round}"))?;
    }
    Ok(format!(
        "{rounds} rounds in {:.1} s",
        started.elapsed().as_secs_f64()
    ))
}

fn come_and_go(agent: &mut Agent, round: u64) -> Result<()> {
    let pull = round % 2 == 1;
    ensure!(edu::find_all()?.is_empty(), "edu is there already");
    ensure!(!fs::exists(DISK)?, "{DISK} is there already");
    if pull {
        agent.request(ADD_EDU)?;
    } else {
        agent.request(&format!("{ADD_EDU} & {ADD_DISK}"))?;
        wait("the disk does not come", || Ok(Path::new(DISK).exists()))?;
        nvme::wait_for(DISK)?;
        nvme::exercise(DISK, DISK_SIZE).context(DISK)?;
    }
    let address = edu_with_driver()?;
    let space = Rc::new(Space::new()?);
    let edu = Edu::open_in(&address, Rc::clone(&space))?;
    let buffer = use_edu(&edu, &space, round).context("edu")?;
    agent.request("look plugged")?;
    if pull {
        edu.start(INTERNAL, IOVA, INTERNAL_SIZE, FROM_DEVICE)?;
        agent.request("device-del plugged-edu,force=on")?;
        drop((edu, space, buffer));
    } else {
        // The driver lets go of a device only when no program has it.
        drop((edu, space, buffer));
        agent.request("device-del plugged-edu & device-del plugged-disk")?;
    }
    wait("the devices do not go", || {
        Ok(!pci::directory(&address).exists() && !Path::new(DISK).exists())
    })?;
    if pull {
        thread::sleep(SETTLE);
    }
    agent.request("look gone")
}

/// Waits for edu to be there, and gives it to a driver. Returns its address.
pub(super) fn edu_with_driver() -> Result<String> {
    wait("edu does not come", || Ok(!edu::find_all()?.is_empty()))?;
    let address = edu::find()?;
    // A function can be seen a moment before a driver can have it.
    wait("edu gets no driver", || {
        pci::bind(&address, DRIVER)?;
        Ok(pci::driver(&address).as_deref() == Some(DRIVER))
    })?;
    Ok(address)
}

/// DMA both ways, and what it brings back is what it took; the mapping stays.
pub(super) fn use_edu(edu: &Edu, space: &Space, round: u64) -> Result<Buffer> {
    let mut buffer = Buffer::new(4096)?;
    space.map(&buffer, IOVA, Access::ReadWrite)?;
    for seed in [round, round + 100] {
        fill(&mut buffer, seed);
        let sent = buffer.read(0, INTERNAL_SIZE);
        edu.transfer(IOVA, INTERNAL, INTERNAL_SIZE, 0)?;
        fill(&mut buffer, !seed);
        edu.transfer(INTERNAL, IOVA, INTERNAL_SIZE, FROM_DEVICE)?;
        ensure!(
            buffer.read(0, INTERNAL_SIZE) == sent,
            "what came back is not what was sent"
        );
    }
    Ok(buffer)
}

pub(super) fn wait(otherwise: &str, done: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !done()? {
        ensure!(Instant::now() < deadline, "{otherwise}");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
