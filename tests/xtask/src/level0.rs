//! Level 0: QEMU's software emulation of a machine with SVM and VT-d, in which level 1 runs nido.

mod machine;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::agent::init::{FILES, OUTPUT, REQUEST, Request};
use lab::protocol::AgentLine;
use lab::scenario::{Host, Model};
use lab::sys;

use crate::apt;
use crate::build::Stage;
use crate::process::{Supervised, read_lines};

pub(crate) use machine::{Emulator, Machine, Time};

/// Under emulation Linux measures the frequency of the time-stamp counter twice, and the first
/// result can be 0.2 % off. KVM keeps the first for its guests; when the second differs by more
/// than this tolerance (by default 250 ppm), it gives them a counter that stands still for its own
/// purposes, so that every timer of a guest fires later and later.
const TSC: &str = "kvm.tsc_tolerance_ppm=100000";
/// QEMU changes the word in which a CPU's interrupts are requested without a lock at each exit of a
/// nested guest, so that now and then a timer or an IPI of level 1 is lost until the next
/// interrupt. Periodic ticks bound that to one tick; with a single CPU there are no IPIs at all,
/// and the second core is free for another scenario. With two CPUs, nested or shadow paging, about
/// one guest in ten took level 1 down.
const PROCESSORS: &str = "1";
const TICKS: &str = "nohz=off highres=off";
/// Early on, Linux measures whether the timer's interrupts arrive within some ticks, and panics if
/// they do not. On a machine that is busy otherwise QEMU may get no processor for that long.
const TIMER: &str = "no_timer_check";
/// Environment variable with further parameters for level 1's kernel.
const EXTRA_PARAMETERS: &str = "NIDO_LEVEL1_PARAMETERS";
/// Memory of level 1, of which a guest takes a part.
const MEMORY: &str = "2G";
/// Time that level 1 may take before and after the guest.
const MARGIN: Duration = Duration::from_secs(90);

/// Installs QEMU unless it is there.
pub(crate) fn install() -> Result<()> {
    apt::install(
        &["qemu-system-x86"],
        "emulate a machine with hardware virtualization",
    )
}

/// The devices that level 1 gives its guests, each behind a root port: that gives it a group of its
/// own, and a reset.
struct Devices {
    arguments: Vec<String>,
    disks: Vec<PathBuf>,
}

impl Devices {
    /// Disks are files in `output`, which hold no bytes until they are written, for as long as the
    /// value lives.
    fn create(host: &Host, output: &Path) -> Result<Self> {
        let mut devices = Self {
            arguments: Vec::new(),
            disks: Vec::new(),
        };
        for (index, model) in host.devices.iter().enumerate() {
            let port = format!("port{index}");
            if *model == Model::BareEdu {
                devices.device("edu,bus=pcie.0");
                continue;
            }
            devices.device(&format!(
                "pcie-root-port,id={port},chassis={0},slot={0}",
                index + 1
            ));
            match model {
                Model::Nvme => devices.disk(index, &port, output)?,
                Model::E1000e => devices.link(index, &port),
                Model::BareEdu => {}
                Model::Edu => devices.device(&format!("edu,bus={port}")),
                Model::Pair | Model::EduPair => {
                    let kind = if *model == Model::Pair {
                        "pci-testdev"
                    } else {
                        "edu"
                    };
                    let bridge = format!("bridge{index}");
                    devices.device(&format!("pcie-pci-bridge,id={bridge},bus={port}"));
                    for place in [1, 2] {
                        devices.device(&format!("{kind},bus={bridge},addr={place}"));
                    }
                }
            }
        }
        Ok(devices)
    }

    fn device(&mut self, text: &str) {
        self.arguments
            .extend(["-device".to_owned(), text.to_owned()]);
    }

    fn disk(&mut self, index: usize, port: &str, output: &Path) -> Result<()> {
        let path = output.join(format!("disk{index}.raw"));
        let file = fs::File::create(&path).with_context(|| path.display().to_string())?;
        self.disks.push(path.clone());
        file.set_len(Model::DISK_SIZE)?;
        self.arguments.extend([
            "-drive".to_owned(),
            format!(
                "if=none,id=disk{index},format=raw,cache=unsafe,file={}",
                escaped(&path)
            ),
        ]);
        self.device(&format!(
            "nvme,serial=lab{index},drive=disk{index},bus={port}"
        ));
        Ok(())
    }

    /// The interface behind the port, and one that level 1 keeps, on a hub.
    fn link(&mut self, index: usize, port: &str) {
        for (end, place) in [
            ("e1000e", format!(",bus={port}")),
            ("virtio-net-pci", String::new()),
        ] {
            self.arguments.extend([
                "-netdev".to_owned(),
                format!("hubport,id={end}{index},hubid={index}"),
            ]);
            self.device(&format!("{end},netdev={end}{index},romfile={place}"));
        }
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        for disk in &self.disks {
            let _ = fs::remove_file(disk);
        }
    }
}

/// A path as part of an option of QEMU.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn qemu(stage: &Stage, output: &Path, machine: &Machine<'_>, devices: &Devices) -> Command {
    let share = |tag: &str, path: &Path, options: &str| {
        format!(
            "local,path={},mount_tag={tag},security_model=none{options}",
            escaped(path)
        )
    };
    let extra = std::env::var(EXTRA_PARAMETERS).unwrap_or_default();
    let parameters = format!("console=ttyS0 panic=-1 {TSC} {TICKS} {TIMER} {extra}");
    let emulator = &machine.emulator;
    let unit = emulator.unit(machine.host.unit);
    let mut command = emulator.command();
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-machine", "q35,kernel-irqchip=split"])
        .args(machine.time.arguments())
        .args(["-cpu", emulator.processor()])
        .args(["-smp", PROCESSORS, "-m", MEMORY])
        .args(["-device", &format!("intel-iommu,{unit}")])
        .args(&devices.arguments)
        .arg("-kernel")
        .arg(stage.directory.join("bzImage"))
        .arg("-initrd")
        .arg(stage.directory.join("level1.cpio"))
        .args(["-append", &parameters])
        .arg("-serial")
        .arg(format!("file:{}", output.join("level1.log").display()))
        // A triple fault of level 1 leaves its registers there.
        .args(["-d", "cpu_reset", "-D"])
        .arg(output.join("qemu-cpus.log"))
        .args(["-virtfs", &share(FILES.0, &stage.directory, ",readonly=on")])
        .args(["-virtfs", &share(OUTPUT.0, output, "")])
        .args([
            "-chardev",
            // Every key reaches the guest: QEMU's own escapes and signals are off.
            "stdio,id=agent,signal=off",
            "-device",
            "virtio-serial-pci",
            "-device",
            "virtconsole,chardev=agent",
        ]);
    if let Some(disk) = &machine.disk {
        let drive = "if=none,id=disk,format=raw,cache=unsafe,snapshot=on,discard=unmap,file=";
        command.args(["-drive", &format!("{drive}{}", escaped(disk))]);
        command.args(["-device", "virtio-blk-pci,drive=disk"]);
    }
    command
}

fn write_request(output: &Path, request: &Request) -> Result<()> {
    fs::create_dir_all(output).with_context(|| output.display().to_string())?;
    fs::write(output.join(REQUEST), request.to_text())?;
    Ok(())
}

/// Has level 1 carry out `request`, whose guest may take `limit`; logs go to `output`.
pub(crate) fn run(
    stage: &Stage,
    output: &Path,
    request: &Request,
    machine: &Machine<'_>,
    limit: Duration,
    report: &mut dyn FnMut(AgentLine),
) -> Result<()> {
    write_request(output, request)?;
    let messages = fs::File::create(output.join("qemu.log"))?;
    let devices = Devices::create(machine.host, output)?;
    let mut command = qemu(stage, output, machine, &devices);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(messages);
    let start = Instant::now();
    let mut qemu = Supervised::start(&mut command)?;
    let (sender, lines) = mpsc::channel();
    read_lines(qemu.0.stdout.take().context("no stdout")?, sender);
    let mut done = false;
    loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                if let Some(line) = AgentLine::parse(&line) {
                    done |= matches!(line, AgentLine::Done { .. });
                    report(line);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if sys::interrupted() {
            bail!("interrupted");
        }
        if start.elapsed() > limit + MARGIN {
            report(AgentLine::Failure(format!(
                "level 1 did not end within {} s",
                (limit + MARGIN).as_secs()
            )));
            return Ok(());
        }
    }
    match qemu.wait(Duration::from_secs(10))? {
        Some(status) if status.success() => {}
        Some(status) => report(AgentLine::Failure(format!("QEMU ended with {status}"))),
        None => report(AgentLine::Failure("QEMU did not end".to_owned())),
    }
    let console = fs::read(output.join("level1.log")).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    for line in console
        .lines()
        .filter(|line| lab::judge::is_fatal_line(line))
        .take(3)
    {
        report(AgentLine::Failure(format!("level 1: {}", line.trim())));
    }
    if !done {
        let last = console
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("nothing")
            .trim()
            .to_owned();
        report(AgentLine::Failure(format!(
            "level 1 ended without a result; its last line: {last}"
        )));
    }
    Ok(())
}

/// Gives this terminal to nido in level 1 until it ends.
pub(crate) fn interact(stage: &Stage, output: &Path, request: &Request, host: &Host) -> Result<()> {
    write_request(output, request)?;
    let devices = Devices::create(host, output)?;
    let mut command = qemu(stage, output, &Machine::with(host), &devices);
    command.stderr(fs::File::create(output.join("qemu.log"))?);
    sys::die_with_parent(&mut command);
    let terminal = sys::terminal::Saved::of_stdin();
    let result = command.status().context("cannot start qemu-system-x86_64");
    drop(terminal);
    result?;
    Ok(())
}
