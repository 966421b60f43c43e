//! Command lines that nido must refuse: with a message that tells what to do, and with nothing
//! changed.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Task;
use super::host::Devices;
use crate::scenario::Refusal;
use crate::{pci, sys};

/// A refusal needs no guest, and so no time.
const LIMIT: Duration = Duration::from_secs(15);

/// Tries one; returns nido's message.
pub(super) fn check(task: &Task, devices: &Devices, refusal: &Refusal) -> Result<String> {
    let address = devices.address(refusal.device)?;
    match refusal.driver {
        Some(driver) => pci::bind(address, driver)?,
        None => pci::unbind(address)?,
    }
    let log = task.output.join(format!("{}.log", refusal.name));
    let result = refused(task, devices, refusal, &log);
    let driver = pci::driver(address);
    ensure!(
        driver.as_deref() == refusal.driver,
        "afterwards {} is driven by {driver:?}",
        refusal.device
    );
    pci::bind(address, "vfio-pci")?;
    devices.nothing_left()?;
    result
}

fn refused(task: &Task, devices: &Devices, refusal: &Refusal, log: &Path) -> Result<String> {
    let mut command = Command::new(task.files.join("nido"));
    command.args(["--memory", "128M", "--cpus", "1", "--kernel"]);
    command.arg(task.kernel());
    for argument in refusal.arguments {
        command.arg(devices.substitute(argument));
    }
    let (status, said) = run(command, log)?;
    ensure!(
        status.code().is_some_and(|code| code != 0),
        "nido ended with {status}: {said}"
    );
    for words in refusal.says {
        let words = devices.substitute(words);
        ensure!(said.contains(&words), "no '{words}' in: {}", said.trim());
    }
    Ok(said.trim().to_owned())
}

/// Runs a nido that is to refuse, and returns how it ended and what it has said.
pub(super) fn run(mut command: Command, log: &Path) -> Result<(ExitStatus, String)> {
    let messages = fs::File::create(log)?;
    command
        .stdin(Stdio::null())
        .stdout(messages.try_clone()?)
        .stderr(messages);
    sys::die_with_parent(&mut command);
    let mut child = command.spawn().context("cannot start nido")?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > LIMIT {
            sys::kill(child.id());
            child.wait()?;
            bail!("nido took what it must refuse");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    Ok((status, fs::read_to_string(log)?))
}
