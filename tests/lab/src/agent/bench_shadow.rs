//! The shadow benchmark in level 1: maps and direct I/O of a guest with an assigned device behind
//! shadowed tables, in nido and in the distribution's QEMU; and what the kernel alone takes for it.

use std::fs;

use anyhow::Result;

use super::bench::{self, Candidate, Program};
use super::host::Devices;
use super::invocation::{Invocation, Surroundings};
use super::session::{Ending, Session};
use super::{Report, Task};
use crate::guest::ioas_speed;
use crate::judge::Judge;
use crate::protocol::AgentLine;

/// QEMU with the same devices. It knows VFIO's containers only, and no scalable mode that it could
/// shadow.
const QEMU: &str = "-machine q35,kernel-irqchip=split -device intel-iommu,intremap=on,caching-mode=on,aw-bits=48 \
                    -device vfio-pci,host={nvme0} -device vfio-pci,host={edu0}";

fn candidates(task: &Task, devices: &Devices) -> Vec<Candidate> {
    let invocation = Invocation::new(task, &Surroundings::default(), false);
    let nido = invocation.arguments.iter();
    let nido: Vec<String> = nido.map(|word| devices.substitute(word)).collect();
    let command_line = nido.iter().skip_while(|word| *word != "--cmdline").nth(1);
    let mut list = Vec::new();
    if bench::has_qemu(&task.files)
        && let Some(initramfs) = task.initramfs()
        && let Some(command_line) = command_line
    {
        let what = [
            task.kernel().display().to_string(),
            initramfs.display().to_string(),
            command_line.clone(),
        ];
        let options = devices.substitute(QEMU);
        let program = Program {
            files: &task.files,
            name: bench::QEMU,
        };
        list.push(Candidate::qemu("qemu", program, &options, what));
    }
    list.push(Candidate {
        name: "nido",
        program: task.files.join("nido"),
        arguments: nido,
    });
    list
}

/// Measures both in turn, round by round.
pub fn run(task: &Task, rounds: u32, report: &mut Report<'_>) -> Result<()> {
    fs::create_dir_all(&task.output)?;
    let devices = Devices::prepare(&task.scenario.host)?;
    let candidates = candidates(task, &devices);
    bench::in_turn(&candidates, rounds, report, |candidate, name, report| {
        let session = Session {
            program: &candidate.program,
            arguments: &candidate.arguments,
            output: &task.output,
            name,
            socket: None,
            control: &[],
            scratch: &task.scratch,
            messages: &task.output.join(format!("nido-{name}.log")),
            taps: &[],
            moving: &[],
            substitute: &str::to_owned,
            look: &|_| Ok(()),
            limit: task.scenario.limit,
            ending: Ending::ByItself,
            show_guest: false,
        };
        let outcome = session.run(Judge::new(task.scenario.plan, false)?, report)?;
        for failure in &outcome.failures {
            report(AgentLine::Failure(format!("{name}: {failure}")));
        }
        devices.nothing_left()?;
        Ok(outcome.measures())
    })?;
    for line in ioas_speed::measure(devices.address("edu0")?)? {
        report(AgentLine::Measure(format!("vmm=kernel {line}")));
    }
    for failure in devices.faults()? {
        report(AgentLine::Failure(failure));
    }
    bench::done(report);
    Ok(())
}
