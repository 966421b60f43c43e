//! Common parts of the benchmarks: VMMs that are measured in turn, and the start of QEMU in level
//! 1.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::Report;
use crate::protocol::AgentLine;
use crate::sys;

/// Memory of a guest, in MiB.
pub(super) const MEMORY_MIB: u32 = 512;

/// QEMU with all machines.
pub(super) const QEMU: &str = "qemu-system-x86_64";

/// A program of QEMU, in the directory `qemu` of level 1's files.
#[derive(Clone, Copy)]
pub(super) struct Program<'a> {
    pub(super) files: &'a Path,
    pub(super) name: &'static str,
}

/// A VMM with its arguments.
pub(super) struct Candidate {
    pub(super) name: &'static str,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
}

impl Candidate {
    /// QEMU with one vCPU, the serial port on standard input and output, this kernel, initramfs and
    /// command line, and `options`.
    pub(super) fn qemu(
        name: &'static str,
        program: Program<'_>,
        options: &str,
        [kernel, initramfs, command_line]: [String; 3],
    ) -> Self {
        let files = program.files.join("qemu");
        let path = |name: &str| files.join(name).display().to_string();
        let mut arguments = vec!["--library-path".to_owned(), path("lib")];
        arguments.extend([path(program.name), "-L".to_owned()]);
        arguments.push(path("firmware"));
        arguments.extend(words(
            "-nodefaults -no-user-config -display none -serial stdio -no-reboot",
        ));
        arguments.extend(words(&format!(
            "-accel kvm -cpu host -smp 1 -m {MEMORY_MIB} {options}"
        )));
        arguments.extend(["-kernel".to_owned(), kernel]);
        arguments.extend(["-initrd".to_owned(), initramfs]);
        arguments.extend(["-append".to_owned(), command_line]);
        Self {
            name,
            // The dynamic loader that came with QEMU, since level 1 has no libraries.
            program: files.join("lib/ld.so"),
            arguments,
        }
    }
}

/// Whether QEMU is among the files.
pub(super) fn has_qemu(files: &Path) -> bool {
    files.join("qemu").is_dir()
}

pub(super) fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Measures all candidates in turn, round by round. `measure` gets a name for its logs, and returns
/// what it has measured as lines of `key=value` words; an error is a reason against the candidate.
pub(super) fn in_turn(
    candidates: &[Candidate],
    rounds: u32,
    report: &mut Report<'_>,
    mut measure: impl FnMut(&Candidate, &str, &mut Report<'_>) -> Result<Vec<String>>,
) -> Result<()> {
    for round in 0..rounds {
        for candidate in candidates {
            let name = format!("{}-{round}", candidate.name);
            match measure(candidate, &name, report) {
                Ok(lines) => {
                    for line in lines {
                        let line = format!("vmm={} {line}", candidate.name);
                        report(AgentLine::Measure(line));
                    }
                }
                Err(error) => report(AgentLine::Failure(format!("{name}: {error:#}"))),
            }
            if sys::interrupted() {
                bail!("interrupted");
            }
        }
    }
    Ok(())
}

/// Says that all is measured.
pub(super) fn done(report: &mut Report<'_>) {
    report(AgentLine::Done {
        milliseconds: 0,
        passed: 0,
    });
}
