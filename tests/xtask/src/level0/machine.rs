//! The machine that level 1 runs on: what emulates it, what it has, what its time is.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use lab::scenario::Host;

use crate::bundle;

/// What time is in level 1 and in all that runs in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Time {
    /// The time of this machine.
    Real,
    /// A nanosecond for each instruction that its processor executes, in whatever level, and what it
    /// waits for takes no time: what else this machine does has no influence. What an instruction
    /// costs real hardware is not in it, above all that of an entry and an exit of a guest.
    Instructions,
}

/// How much longer level 1 may take while its instructions are counted.
const SLOWDOWN: u32 = 6;

impl Time {
    /// What a limit of real time becomes.
    pub(crate) fn stretch(self, limit: Duration) -> Duration {
        match self {
            Self::Real => limit,
            Self::Instructions => limit * SLOWDOWN,
        }
    }

    pub(super) fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Real => &["-accel", "tcg,thread=multi"],
            // Counting takes a single thread.
            Self::Instructions => &[
                "-accel",
                "tcg,thread=single",
                "-icount",
                "shift=0,sleep=off",
            ],
        }
    }
}

/// Which QEMU emulates level 1.
#[derive(Clone, Debug)]
pub(crate) enum Emulator {
    /// The distribution's.
    Distribution,
    /// A newer one, unpacked into this directory. What other VMMs need of a machine, the older one
    /// lacks: their timers stand still in it, and it has no XSAVE.
    Newer(PathBuf),
}

impl Emulator {
    pub(super) fn command(&self) -> Command {
        match self {
            Self::Distribution => Command::new("qemu-system-x86_64"),
            Self::Newer(directory) => bundle::command(directory),
        }
    }

    /// Debian 12's crashes guests of level 1 on any other processor.
    pub(super) fn processor(&self) -> &'static str {
        match self {
            Self::Distribution => "qemu64,+svm,+npt",
            Self::Newer(_) => "max",
        }
    }

    /// The properties of the unit as this version names them.
    pub(super) fn unit(&self, properties: &str) -> String {
        match self {
            Self::Distribution => properties.to_owned(),
            Self::Newer(_) => properties.replace("x-scalable-mode", "scalable-mode"),
        }
    }
}

/// The machine that level 1 runs on.
#[derive(Clone, Debug)]
pub(crate) struct Machine<'a> {
    /// What it has, and its unit.
    pub(crate) host: &'a Host,
    /// What its time is.
    pub(crate) time: Time,
    /// What emulates it.
    pub(crate) emulator: Emulator,
    /// A virtio disk for level 1. What is written to it is dropped in the end.
    pub(crate) disk: Option<PathBuf>,
}

impl<'a> Machine<'a> {
    /// One with `host`, as the distribution's QEMU emulates it in real time.
    pub(crate) fn with(host: &'a Host) -> Self {
        Self {
            host,
            time: Time::Real,
            emulator: Emulator::Distribution,
            disk: None,
        }
    }
}
