//! What a guest's maps and direct I/O cost with an assigned device behind tables that are shadowed: nido, and the
//! distribution's QEMU.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::bench::{qemu_arguments, qemu_program};
use super::host::Devices;
use super::invocation::{Invocation, Surroundings};
use super::session::{Ending, Outcome, Session};
use super::{Report, Task};
use crate::judge::Judge;
use crate::protocol::AgentLine;
use crate::sys;

struct Candidate {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
}

/// QEMU with the same devices. It knows VFIO's containers only, and no scalable mode that it could shadow.
const QEMU: &str = "-machine q35,kernel-irqchip=split -device intel-iommu,intremap=on,caching-mode=on,aw-bits=48 \
                    -device vfio-pci,host={nvme0} -device vfio-pci,host={edu0}";

fn candidates(task: &Task, devices: &Devices) -> Vec<Candidate> {
    let invocation = Invocation::new(task, &Surroundings::default(), false);
    let nido = invocation.arguments.iter();
    let nido: Vec<String> = nido.map(|word| devices.substitute(word)).collect();
    let mut list = vec![Candidate {
        name: "nido",
        program: task.files.join("nido"),
        arguments: nido.clone(),
    }];
    let command_line = nido.iter().skip_while(|word| *word != "--cmdline").nth(1);
    if task.files.join("qemu").is_dir()
        && let Some(initramfs) = task.initramfs()
        && let Some(command_line) = command_line
    {
        let mut arguments = qemu_arguments(&task.files, &devices.substitute(QEMU));
        for (option, value) in [
            ("-kernel", task.kernel().display().to_string()),
            ("-initrd", initramfs.display().to_string()),
            ("-append", command_line.clone()),
        ] {
            arguments.extend([option.to_owned(), value]);
        }
        list.push(Candidate {
            name: "qemu",
            program: qemu_program(&task.files),
            arguments,
        });
    }
    list
}

/// Measures both in turn, round by round.
pub fn run(task: &Task, rounds: u32, report: &mut Report<'_>) -> Result<()> {
    fs::create_dir_all(&task.output)?;
    let devices = Devices::prepare(&task.scenario.host)?;
    let candidates = candidates(task, &devices);
    for round in 0..rounds {
        for candidate in &candidates {
            let outcome = measure(task, candidate, round, report)
                .with_context(|| format!("{} round {round}", candidate.name))?;
            for failure in &outcome.failures {
                let failure = format!("{} round {round}: {failure}", candidate.name);
                report(AgentLine::Failure(failure));
            }
            for (_, detail) in outcome.details {
                if detail.contains('=') {
                    let line = format!("vmm={} {detail}", candidate.name);
                    report(AgentLine::Measure(line));
                }
            }
            if let Err(error) = devices.nothing_left() {
                let failure = format!("after {} round {round}: {error:#}", candidate.name);
                report(AgentLine::Failure(failure));
            }
            if sys::interrupted() {
                bail!("interrupted");
            }
        }
    }
    for failure in devices.faults()? {
        report(AgentLine::Failure(failure));
    }
    report(AgentLine::Done {
        milliseconds: 0,
        passed: 0,
    });
    Ok(())
}

fn measure(
    task: &Task,
    candidate: &Candidate,
    round: u32,
    report: &mut Report<'_>,
) -> Result<Outcome> {
    let session = Session {
        program: &candidate.program,
        arguments: &candidate.arguments,
        output: &task.output,
        name: &format!("{}-{round}", candidate.name),
        socket: None,
        control: &[],
        substitute: &str::to_owned,
        look: &|| Ok(()),
        limit: task.scenario.limit,
        ending: Ending::ByItself,
        show_guest: false,
    };
    session.run(Judge::new(task.scenario.plan, false)?, report)
}
