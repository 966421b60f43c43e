//! Power states of assigned devices (PCI Power Management 1.2, 5.4): into D3hot and back.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Guest;
use crate::pci;

/// Offset of the capabilities pointer.
const CAPABILITIES: u64 = 0x34;
/// The capability's id.
const POWER: u8 = 1;
/// Power Management Control and Status, within the capability.
const CONTROL: u64 = 4;
const STATE: u16 = 3;
const D3_HOT: u16 = 3;
/// How long a function takes from one state to another (5.6.1: 10 ms).
const SETTLE: Duration = Duration::from_millis(20);

/// Takes each function that one of the named drivers has, as in `nvme/e1000e`, from its driver, into
/// D3hot, back to D0, and gives it back. What it can is for other checks to find.
pub(super) fn check(_guest: &Guest, argument: &str) -> Result<String> {
    let mut done = Vec::new();
    for driver in argument.split('/') {
        for address in driven_by(driver)? {
            sleep_and_wake(&address, driver).with_context(|| address.clone())?;
            done.push(address);
        }
    }
    ensure!(!done.is_empty(), "no function has such a driver");
    Ok(done.join(" "))
}

/// Addresses of what `driver` has.
fn driven_by(driver: &str) -> Result<Vec<String>> {
    let directory = format!("/sys/bus/pci/drivers/{driver}");
    let mut found = Vec::new();
    for entry in fs::read_dir(&directory).context(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if pci::directory(&name).exists() {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

fn sleep_and_wake(address: &str, driver: &str) -> Result<()> {
    let config = pci::directory(address).join("config");
    let config = OpenOptions::new().read(true).write(true).open(config)?;
    let control = find(&config)? + CONTROL;
    pci::unbind(address)?;
    set_state(&config, control, D3_HOT)?;
    set_state(&config, control, 0)?;
    fs::write(format!("/sys/bus/pci/drivers/{driver}/bind"), address).context("bind")
}

/// Where the power management capability is.
fn find(config: &File) -> Result<u64> {
    let byte = |offset: u64| -> Result<u8> {
        let mut value = [0];
        config.read_exact_at(&mut value, offset)?;
        Ok(value[0])
    };
    let mut at = byte(CAPABILITIES)?;
    for _ in 0..48 {
        if at == 0 {
            break;
        }
        if byte(at.into())? == POWER {
            return Ok(at.into());
        }
        at = byte(u64::from(at) + 1)?;
    }
    anyhow::bail!("it has no power management capability")
}

fn set_state(config: &File, control: u64, state: u16) -> Result<()> {
    let read = || -> Result<u16> {
        let mut value = [0; 2];
        config.read_exact_at(&mut value, control)?;
        Ok(u16::from_le_bytes(value))
    };
    let value = read()? & !STATE | state;
    config.write_all_at(&value.to_le_bytes(), control)?;
    thread::sleep(SETTLE);
    let found = read()? & STATE;
    ensure!(found == state, "it is in D{found} instead of D{state}");
    Ok(())
}
