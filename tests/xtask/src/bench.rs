//! Common parts of the benchmarks that run virtual machines: their logs and their closing lines.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::agent::init::Request;
use lab::protocol::AgentLine;
use lab::scenario::Scenario;

use crate::bench_samples::Samples;
use crate::build::Stage;
use crate::level0::{Machine, Time};
use crate::{bundle, level0, paths};

/// Directories of firmware in Debian's packages.
const FIRMWARE: &[&str] = &["usr/share/seabios", "usr/share/qemu"];
/// This machine's QEMU.
pub(crate) const PROGRAM: &str = "/usr/bin/qemu-system-x86_64";

/// Takes what is measured, line by line.
pub(crate) type Report<'a> = dyn FnMut(AgentLine) + 'a;

/// Has `measure` fill the directory of logs of this name and report, then has `print` show what has
/// come of it. Whether nothing failed.
pub(crate) fn run(
    name: &str,
    measure: impl FnOnce(&Path, &mut Report<'_>) -> Result<()>,
    print: impl FnOnce(&Samples),
) -> Result<bool> {
    let directory = paths::logs()?.join(name);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)?;
    let mut samples = Samples::default();
    let mut failures = Vec::new();
    measure(&directory, &mut |line| match line {
        AgentLine::Measure(text) => {
            println!("  {text}");
            samples.add(&text);
        }
        AgentLine::Failure(reason) => failures.push(reason),
        AgentLine::Note(_) | AgentLine::Guest(_) | AgentLine::Done { .. } => {}
    })?;
    print(&samples);
    for failure in &failures {
        println!("FAIL {failure}");
    }
    println!("logs: {}", directory.display());
    Ok(failures.is_empty())
}

/// Has level 1 measure `scenario`, whose rounds may take `round` each.
pub(crate) fn in_level1(
    stage: &Stage,
    scenario: &Scenario,
    time: Time,
    rounds: u32,
    round: Duration,
    directory: &Path,
    report: &mut Report<'_>,
) -> Result<()> {
    let request = Request {
        mode: "bench".to_owned(),
        scenario: scenario.name.to_owned(),
        arguments: vec![rounds.to_string()],
        show_guest: false,
    };
    let limit = time.stretch(Duration::from_secs(60) + round * rounds);
    if time == Time::Instructions {
        println!("1 ns is one instruction of level 1 and of all that runs in it");
    }
    let machine = Machine {
        time,
        ..Machine::with(&scenario.host)
    };
    level0::run(stage, directory, &request, &machine, limit, report)
}

/// Copies the distribution's QEMU with its libraries and firmware into the stage.
pub(crate) fn bundle_qemu(stage: &Stage) -> Result<()> {
    let directory = stage.directory.join("qemu");
    bundle_program(Path::new(PROGRAM), &directory)?;
    copy_firmware(Path::new("/"), &directory.join("firmware"))
}

/// A program of this machine with its libraries and its loader.
pub(crate) fn bundle_program(program: &Path, directory: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(directory);
    fs::create_dir_all(directory.join("lib"))?;
    copy(program, &directory.join(bundle::name(program)?))?;
    for library in bundle::libraries(program)? {
        let name = bundle::name(&library)?;
        let name = if name.starts_with("ld-linux") {
            "ld.so".to_owned()
        } else {
            name
        };
        copy(&library, &directory.join("lib").join(name))?;
    }
    Ok(())
}

/// Copies the firmware that is below `root` as packages have it.
pub(crate) fn copy_firmware(root: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target)?;
    for source in FIRMWARE {
        for entry in fs::read_dir(root.join(source))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            let wanted = name.ends_with(".bin") || name == "qboot.rom";
            if wanted && entry.path().is_file() {
                copy(&entry.path(), &target.join(name))?;
            }
        }
    }
    Ok(())
}

pub(crate) fn copy(source: &Path, target: &Path) -> Result<()> {
    fs::copy(source, target).with_context(|| format!("cannot copy {}", source.display()))?;
    Ok(())
}
