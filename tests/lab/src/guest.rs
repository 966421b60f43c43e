//! guest-init: PID 1 of a Linux guest. Mounts, carries out its boot's step of the plan, reports,
//! and leaves.

mod agent;
mod asleep;
mod assigned_edu;
mod balloon;
pub(crate) mod checks;
mod console;
mod dirty_pages;
pub(crate) mod disk;
mod disk_bench;
mod disk_queues;
mod disk_speed;
mod edu;
mod edu_group;
mod edu_msi;
mod fio;
mod hot_plug;
mod hot_plug_levels;
mod huge_pages;
mod interrupts;
pub(crate) mod ioas_speed;
mod iommu;
mod level3;
mod map_benchmark;
mod moves_unplug;
mod net_bench;
mod net_queues;
mod network;
mod nvme;
mod pasid;
mod pauses;
mod plugged;
mod power;
mod random;
mod restart;
mod service;
mod sva;
mod taken;
mod tally;
mod vfio;
mod vsock;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::plan::{self, End};
use crate::protocol::GuestLine;
use crate::sys;

/// What a check can use.
pub struct Guest {
    /// The kernel's command line.
    pub command_line: String,
    /// Number of this boot, from 0.
    pub boot: u32,
}

impl Guest {
    /// The value of `name=` on the command line; the last one counts.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.command_line
            .split_whitespace()
            .rev()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }
}

/// Where lines go: the kernel log, so that they reach the console whole.
struct Console(Option<File>);

impl Console {
    fn open() -> Self {
        Self(OpenOptions::new().write(true).open("/dev/kmsg").ok())
    }

    fn line(&mut self, text: &str) {
        // One record of the log holds about 1000 bytes. The level shows even under `quiet`. Without
        // its newline a record stays open, and unprinted, until the next one begins.
        let text: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(900)
            .collect();
        let written = self
            .0
            .as_mut()
            .is_some_and(|kmsg| kmsg.write_all(format!("<2>{text}\n").as_bytes()).is_ok());
        if !written {
            println!("{text}");
        }
    }
}

/// The life of guest-init. Never returns unless it is not PID 1.
pub fn main() {
    if std::env::args().nth(1).as_deref() == Some(service::ARGUMENT) {
        return service::main();
    }
    if std::process::id() != 1 {
        eprintln!(
            "guest-init is the first process of a guest of the lab; see `cargo xtask lab --help`"
        );
        std::process::exit(2);
    }
    for (source, target, fstype) in [
        ("proc", "/proc", "proc"),
        ("sys", "/sys", "sysfs"),
        ("dev", "/dev", "devtmpfs"),
        ("tmp", "/tmp", "tmpfs"),
    ] {
        let _ = fs::create_dir_all(target);
        // A kernel with DEVTMPFS_MOUNT has done /dev; what is missing shows in the checks that need
        // it.
        let _ = sys::mount(source, target, fstype, "");
    }
    let _ = sys::mount("debugfs", "/sys/kernel/debug", "debugfs", "");
    let mut console = Console::open();
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let mut guest = Guest {
        command_line,
        boot: 0,
    };
    if let Err(error) = load_modules() {
        console.line(&format!("modules: {error:#}"));
    }
    if guest.parameter("lab.shell").is_some() {
        shell(&mut console);
    }
    carry_out(&mut guest, &mut console);
    let error = sys::reboot(sys::Leave::PowerOff);
    console.line(&format!("power-off failed: {error}"));
    loop {
        std::thread::park();
    }
}

/// Carries out the plan, and reports what keeps it from being carried out.
fn carry_out(guest: &mut Guest, console: &mut Console) {
    if let Err(error) = run(guest, console) {
        let report = GuestLine::Report {
            boot: guest.boot,
            check: "plan".into(),
            passed: false,
            detail: format!("{error:#}"),
        };
        console.line(&report.to_string());
    }
}

fn run(guest: &mut Guest, console: &mut Console) -> Result<()> {
    let text = guest
        .parameter("lab.plan")
        .unwrap_or(">poweroff")
        .to_owned();
    let steps = plan::parse(&text)?;
    if steps.len() > 1 {
        guest.boot = restart::count_boot()?;
    }
    let index = usize::try_from(guest.boot)?;
    let step = steps
        .get(index)
        .with_context(|| format!("boot {index} is beyond the plan's {} steps", steps.len()))?;
    console.line(&GuestLine::Begin(guest.boot).to_string());
    for check in &step.checks {
        let result = checks::run(guest, check);
        let passed = result.is_ok();
        let detail = result.unwrap_or_else(|error| format!("{error:#}"));
        console.line(
            &GuestLine::Report {
                boot: guest.boot,
                check: check.to_string(),
                passed,
                detail,
            }
            .to_string(),
        );
    }
    console.line(&GuestLine::End(guest.boot).to_string());
    match &step.end {
        End::PowerOff => Ok(()),
        End::Restart => Err(sys::reboot(sys::Leave::Restart)).context("restart"),
        // The kernel panics when its first process ends.
        End::Crash => std::process::exit(1),
        End::Kdump => {
            restart::load_crash_kernel(guest)?;
            std::process::exit(1)
        }
        End::Kexec(parameter) => restart::kexec(guest, parameter),
        End::Stay => loop {
            std::thread::park();
        },
    }
}

/// Loads what `/modules/order` lists, for a kernel whose drivers are modules.
fn load_modules() -> Result<()> {
    let Ok(order) = fs::read_to_string("/modules/order") else {
        return Ok(());
    };
    for name in order.lines() {
        let path = Path::new("/modules").join(name);
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        sys::load_module(std::os::fd::AsFd::as_fd(&file))
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Runs `/bin/sh` on the console until it ends, then powers off.
fn shell(console: &mut Console) {
    let _ = Command::new("/bin/busybox")
        .args(["--install", "-s", "/bin"])
        .status();
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if let Some(address) = network::first_address(&command_line)
        && let Err(error) = network::configure(&address)
    {
        console.line(&format!("network: {error:#}"));
    }
    let terminal = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/console")
    };
    let result = (|| -> std::io::Result<()> {
        let mut command = Command::new("/bin/sh");
        command
            .arg0("-sh")
            .env("HOME", "/")
            .env("TERM", "linux")
            .env("PATH", "/bin")
            .env("PS1", "guest# ");
        let serial = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/ttyS0")
            .or_else(|_| terminal())?;
        command
            .stdin(serial.try_clone()?)
            .stdout(serial.try_clone()?)
            .stderr(serial);
        sys::own_terminal(&mut command);
        let mut child = command.spawn()?;
        loop {
            if child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    })();
    if let Err(error) = result {
        console.line(&format!("no shell: {error}"));
    }
    sys::reboot(sys::Leave::PowerOff);
}
