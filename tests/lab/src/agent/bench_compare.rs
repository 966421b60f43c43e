//! The comparison of VMMs in level 1: one boot of one of them.
//!
//! Level 1 is made anew for each, since a second guest takes longer than the first.

mod boot;
mod command;
mod counters;
mod memory;
mod running;
mod subject;

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use super::{Report, bench};
use crate::protocol::AgentLine;
use command::Guest;

pub use counters::COUNTERS;
pub use subject::{Mode, Subject, Vmm};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The start, until the guest's init.
    Boot,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Boot];

    /// How many guests of each are measured, if boots are measured so often.
    pub fn rounds(self, boots: u32) -> u32 {
        match self {
            Self::Boot => boots,
        }
    }

    /// Name in requests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
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
            Part::Boot => self.boot(),
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

    fn boot(&self) -> Result<String> {
        let guest = Guest {
            files: &self.files,
            scratch: &self.output,
            subject: self.subject,
            // A guest that left would take what is counted with it.
            plan: ">stay",
        };
        boot::measure(&guest.command()?, &self.output.join("guest.log"))
    }
}
