//! guest-init as a service of a distribution's systemd (systemd.service(5)), instead of as PID 1.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Console, Guest};

/// Has guest-init be a service.
pub(super) const ARGUMENT: &str = "checks";

/// Carries out the plan, and has systemd power the machine off.
pub(super) fn main() {
    let mut console = Console::open();
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let mut guest = Guest {
        command_line,
        boot: 0,
    };
    super::carry_out(&mut guest, &mut console);
    if let Err(error) = output("systemctl", &["--no-block", "poweroff"]) {
        console.line(&format!("{error:#}"));
    }
}

/// systemd is PID 1, the root file system is an ext4 that can be written, on a virtio disk, and no
/// unit has failed.
pub(super) fn systemd(_guest: &Guest, _argument: &str) -> Result<String> {
    let first = fs::read_to_string("/proc/1/comm").context("/proc/1/comm")?;
    ensure!(first.trim() == "systemd", "PID 1 is {}", first.trim());
    let mounts = fs::read_to_string("/proc/self/mounts").context("mounts")?;
    let root = mounts
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|words| words.get(1) == Some(&"/"))
        .context("no root")?;
    let &[device, _, kind, options, ..] = root.as_slice() else {
        anyhow::bail!("a line of mounts with {} words", root.len());
    };
    let writable = options.split(',').any(|option| option == "rw");
    ensure!(
        device.starts_with("/dev/vd") && kind == "ext4" && writable,
        "the root is {}",
        root.join(" ")
    );
    let failed = output("systemctl", &["--failed", "--plain", "--no-legend"])?;
    ensure!(failed.trim().is_empty(), "failed: {}", failed.trim());
    let version = output("systemctl", &["--version"])?;
    let version = version.lines().next().unwrap_or_default();
    Ok(format!("{version}; root {}", root.join(" ")))
}

/// What a program prints that succeeds.
pub(super) fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    let output = command.args(arguments).output();
    let output = output.with_context(|| format!("cannot start {program}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "{program}, {}: {} {}",
        output.status,
        text(&output.stdout).trim(),
        text(&output.stderr).trim()
    );
    Ok(text(&output.stdout))
}
