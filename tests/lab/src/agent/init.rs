//! lab-agent: PID 1 of level 1.
//!
//! xtask's side is the file `request` of the output share: lines `key=value` with keys `mode`
//! (`scenario`, `shell`, `bench`, `compare`, `tests`), `scenario`, `show-guest` and any number of `argument`s. What the
//! agent says goes to /dev/hvc0.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::bench_compare::{Bench, Part, Subject};
use super::{Task, bench_nested, bench_shadow, impostor, stock, unit_tests};
use crate::protocol::AgentLine;
use crate::scenario::{self, BOOT, Initramfs, Kernel, NESTED, SHADOW, SHADOW_MAPS, Scenario};
use crate::sys;

/// Mount tag of the share with the files, and where it is mounted.
pub const FILES: (&str, &str) = ("files", "/files");
/// Mount tag of the share for the logs, and where it is mounted.
pub const OUTPUT: (&str, &str) = ("output", "/output");
/// Name of the request in the output share.
pub const REQUEST: &str = "request";

/// The disk of level 1 for a guest that is to have one of its own.
const DISK: &str = "/dev/vda";

/// What xtask asks the agent for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub mode: String,
    /// Name of the scenario.
    pub scenario: String,
    /// Further arguments of nido.
    pub arguments: Vec<String>,
    /// Repeat the guest's console.
    pub show_guest: bool,
}

impl Request {
    /// As text of the file.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "mode={}\nscenario={}\nshow-guest={}\n",
            self.mode, self.scenario, self.show_guest
        );
        for argument in &self.arguments {
            text.push_str(&format!("argument={argument}\n"));
        }
        text
    }

    /// From text of the file.
    pub fn parse(text: &str) -> Result<Self> {
        let mut request = Self::default();
        for line in text.lines() {
            let (key, value) = line
                .split_once('=')
                .with_context(|| format!("'{line}' has no '='"))?;
            match key {
                "mode" => value.clone_into(&mut request.mode),
                "scenario" => value.clone_into(&mut request.scenario),
                "show-guest" => request.show_guest = value == "true",
                "argument" => request.arguments.push(value.to_owned()),
                _ => bail!("unknown key '{key}'"),
            }
        }
        Ok(request)
    }
}

/// The scenario of a name, including those that are not in the table of the lab.
pub fn scenario_of(name: &str) -> Result<Scenario> {
    let own = [BOOT, SHADOW, SHADOW_MAPS, NESTED];
    let mut own = own.iter().filter(|scenario| scenario.name == name);
    own.next()
        .or_else(|| scenario::find(name))
        .copied()
        .with_context(|| format!("no scenario '{name}'"))
}

/// The life of lab-agent.
pub fn main() {
    if let Some((path, name)) = impostor::name() {
        std::process::exit(impostor::be(&path, &name));
    }
    if std::process::id() != 1 {
        eprintln!(
            "lab-agent is the first process of level 1 of the lab; see `cargo xtask lab --help`"
        );
        std::process::exit(2);
    }
    if let Err(error) = prepare() {
        eprintln!("lab-agent: {error:#}");
    }
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/hvc0");
    let result = terminal.context("/dev/hvc0").and_then(serve);
    if let Err(error) = result {
        eprintln!("lab-agent: {error:#}");
    }
    let error = sys::reboot(sys::Leave::PowerOff);
    eprintln!("lab-agent: power-off failed: {error}");
    loop {
        std::thread::park();
    }
}

fn prepare() -> Result<()> {
    for (source, target, fstype, data) in [
        ("proc", "/proc", "proc", ""),
        ("sys", "/sys", "sysfs", ""),
        ("dev", "/dev", "devtmpfs", ""),
        ("debugfs", "/sys/kernel/debug", "debugfs", ""),
        ("tmp", "/tmp", "tmpfs", "size=90%"),
        (
            FILES.0,
            FILES.1,
            "9p",
            "trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro",
        ),
        (
            OUTPUT.0,
            OUTPUT.1,
            "9p",
            "trans=virtio,version=9p2000.L,msize=131072",
        ),
    ] {
        fs::create_dir_all(target).with_context(|| target.to_owned())?;
        let mounted = sys::mount(source, target, fstype, data);
        if target != "/dev" {
            mounted.with_context(|| format!("cannot mount {target}"))?;
        }
    }
    super::tap::set_up("lo", std::net::Ipv4Addr::LOCALHOST, 8).context("lo")?;
    Ok(())
}

fn serve(terminal: File) -> Result<()> {
    let mut output = terminal.try_clone()?;
    let mut report = |line: AgentLine| {
        let _ = output.write_all(format!("{line}\n").as_bytes());
    };
    let result = handle(&terminal, &mut report);
    if let Err(error) = result {
        report(AgentLine::Failure(format!("lab-agent: {error:#}")));
        report(AgentLine::Done {
            milliseconds: 0,
            passed: 0,
        });
    }
    Ok(())
}

fn handle(terminal: &File, report: &mut super::Report<'_>) -> Result<()> {
    let output = PathBuf::from(OUTPUT.1);
    let path = output.join(REQUEST);
    let request =
        Request::parse(&fs::read_to_string(&path).with_context(|| path.display().to_string())?)?;
    let mut task = Task {
        scenario: scenario_of(&request.scenario)?,
        files: PathBuf::from("/tmp/files"),
        output,
        scratch: PathBuf::from("/tmp/scratch"),
        extra: request.arguments.clone(),
        show_guest: request.show_guest,
    };
    match request.mode.as_str() {
        "scenario" => {
            fetch(&task)?;
            super::run(&task, report)
        }
        "shell" => {
            task.scenario.initramfs = Initramfs::Shell;
            fetch(&task)?;
            super::interact(&task, Some(terminal.try_clone()?))?;
            Ok(())
        }
        "bench" => {
            let rounds = request
                .arguments
                .first()
                .context("how many rounds?")?
                .parse()?;
            task.extra.clear();
            if request.scenario == NESTED.name {
                fetch(&task)?;
                return bench_nested::run(task, rounds, report);
            }
            if [SHADOW.name, SHADOW_MAPS.name].contains(&request.scenario.as_str()) {
                fetch(&task)?;
                copy_tree(&Path::new(FILES.1).join("qemu"), &task.files.join("qemu"))?;
                return bench_shadow::run(&task, rounds, report);
            }
            bail!("no benchmark of '{}'", request.scenario)
        }
        "compare" => compare(&request, task, report),
        "tests" => {
            fs::create_dir_all(&task.files)?;
            let source = Path::new(FILES.1).join(unit_tests::PROGRAM);
            let program = task.files.join(unit_tests::PROGRAM);
            fs::copy(&source, program).with_context(|| source.display().to_string())?;
            unit_tests::run(&task, report)
        }
        other => bail!("unknown mode '{other}'"),
    }
}

/// The arguments are who is measured, and what of it.
fn compare(request: &Request, task: Task, report: &mut super::Report<'_>) -> Result<()> {
    let mut words = request.arguments.iter();
    let mut next = || words.next().context("who, and what of it?");
    let (subject, part) = (next()?, next()?);
    let subject = Subject::parse(subject).with_context(|| format!("no subject '{subject}'"))?;
    let part = Part::parse(part).with_context(|| format!("no part '{part}'"))?;
    fs::create_dir_all(&task.files)?;
    for name in ["vmlinux", "guest.cpio", subject.vmm.file()] {
        let (source, target) = (Path::new(FILES.1).join(name), task.files.join(name));
        if source.is_dir() {
            copy_tree(&source, &target)?;
        } else {
            fs::copy(&source, &target).with_context(|| source.display().to_string())?;
        }
    }
    let bench = Bench {
        files: task.files,
        output: task.output,
        subject,
        part,
    };
    bench.run(report)
}

fn copy_tree(source: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target)?;
    for entry in fs::read_dir(source)? {
        let path = entry?.path();
        let copy = target.join(path.file_name().context("no file name")?);
        if path.is_dir() {
            copy_tree(&path, &copy)?;
        } else {
            fs::copy(&path, &copy).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Copies what the task needs out of the share, so that nido reads it from memory.
fn fetch(task: &Task) -> Result<()> {
    fs::create_dir_all(&task.files)?;
    let mut wanted = vec![PathBuf::from("nido"), task.kernel()];
    wanted.extend(task.initramfs());
    if task.scenario.kernel == Kernel::Debian {
        wanted.push(PathBuf::from(stock::PROGRAM_DISK));
        symlink(DISK, task.files.join(stock::ROOT_DISK))?;
    }
    for path in wanted {
        let name = path.file_name().context("no file name")?;
        let source = Path::new(FILES.1).join(name);
        fs::copy(&source, task.files.join(name)).with_context(|| source.display().to_string())?;
    }
    if task.scenario.vhost_user {
        let name = super::back_ends::DIRECTORY;
        copy_tree(&Path::new(FILES.1).join(name), &task.files.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_back() {
        let request = Request {
            mode: "scenario".into(),
            scenario: "legacy".into(),
            arguments: vec!["--device".into(), "edu,dma_mask=1".into()],
            show_guest: true,
        };
        assert_eq!(Request::parse(&request.to_text()).unwrap(), request);
    }
}
