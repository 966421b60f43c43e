//! The comparison of VMMs in level 1: one boot, or one guest that measures its devices.
//!
//! Level 1 is made anew for each, since a second guest takes longer than the first.

mod boot;
mod command;
mod counters;
mod data;
mod first;
mod memory;
mod running;
mod subject;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::tap::Tap;
use super::{Report, bench, speed_server};
use crate::protocol::AgentLine;
use command::{Device, Guest, HOST, PREFIX, TAP};

pub use counters::COUNTERS;
pub use subject::{Mode, Subject, Vmm};

/// The kernel of all guests.
const KERNEL: &str = "vmlinux";
/// The one that only tells that it runs.
const FIRST: &str = "first";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The start, until the guest's first instruction.
    First,
    /// The start, until the guest's init.
    Boot,
    /// Direct I/O of a disk.
    Disk,
    /// TCP over a tap.
    Net,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::First, Self::Boot, Self::Disk, Self::Net];

    /// How many guests of each are measured, if boots are measured so often.
    pub fn rounds(self, boots: u32) -> u32 {
        match self {
            Self::First | Self::Boot => boots,
            // They measure for a time, so that fewer do.
            Self::Disk | Self::Net => boots.div_ceil(3),
        }
    }

    /// Name in requests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Boot => "boot",
            Self::Disk => "disk",
            Self::Net => "net",
        }
    }

    /// The part of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.name() == name)
    }
}

/// A measurement.
pub struct Bench {
    /// Directory with `vmlinux`, `guest.cpio` and the VMM's files.
    pub files: PathBuf,
    /// Directory for logs.
    pub output: PathBuf,
    /// Who is measured.
    pub subject: Subject,
    /// What of it.
    pub part: Part,
}

impl Bench {
    /// Measures once, and reports it. That a VMM fails is a failure that is reported.
    pub fn run(&self, report: &mut Report<'_>) -> Result<()> {
        fs::create_dir_all(&self.output)?;
        let measured = match self.part {
            Part::First => self.first(),
            Part::Boot => self.boot(),
            Part::Disk => self.disk(),
            Part::Net => self.net(),
        };
        match measured {
            Ok(text) => {
                let line = format!("vmm={} {text}", self.subject.name());
                report(AgentLine::Measure(line));
            }
            Err(error) => {
                let name = self.subject.name();
                report(AgentLine::Failure(format!("{name}: {error:#}")));
            }
        }
        bench::done(report);
        Ok(())
    }

    fn first(&self) -> Result<String> {
        first::make(&self.files.join(KERNEL), &self.files.join(FIRST))?;
        let guest = Guest {
            kernel: FIRST,
            ..self.guest(">stay", Device::None)
        };
        boot::measure_first(&guest.command()?, &self.output.join("guest.log"))
    }

    fn boot(&self) -> Result<String> {
        // A guest that left would take what is counted with it.
        let command = self.guest(">stay", Device::None).command()?;
        boot::measure(&command, &self.output.join("guest.log"))
    }

    fn disk(&self) -> Result<String> {
        let disk = self.files.join("disk.raw");
        data::make_disk(&disk)?;
        self.data("disk-bench", Device::Disk(&disk))
    }

    fn net(&self) -> Result<String> {
        let _tap = Tap::new(TAP, HOST, PREFIX, false).context(TAP)?;
        let port = speed_server::serve(HOST).context("server")?;
        self.data("net-bench", Device::Net(port))
    }

    fn data(&self, check: &str, device: Device<'_>) -> Result<String> {
        let translation = self.subject.mode.translation();
        let plan = format!("device-mode={translation},{check}>stay");
        let command = self.guest(&plan, device).command()?;
        data::measure(&command, &self.output.join("guest.log"))
    }

    fn guest<'a>(&'a self, plan: &'a str, device: Device<'a>) -> Guest<'a> {
        Guest {
            files: &self.files,
            kernel: KERNEL,
            scratch: &self.output,
            subject: self.subject,
            plan,
            device,
        }
    }
}
