//! Runs a scenario on this machine: files, tap, echo server, nido, time limit, judgement.

pub mod back_ends;
mod bench;
pub mod bench_compare;
pub mod bench_nested;
pub mod bench_shadow;
mod control;
mod dirty;
mod disks;
mod echo;
mod given_back;
mod host;
mod huge_pages;
mod impostor;
mod inherited;
pub mod init;
mod invocation;
pub(crate) mod level3;
mod link;
mod log;
mod migrations;
mod moved;
mod pauses;
mod refusal;
mod restores;
mod run;
mod session;
pub(crate) mod speed_server;
pub mod stock;
mod tally;
pub mod tap;
mod threads;
pub mod unit_tests;
mod upgrades;
mod vsock;

use std::path::PathBuf;

use crate::protocol::AgentLine;
use crate::scenario::Scenario;

pub use run::{interact, run};

/// A run of a scenario.
pub struct Task {
    /// What to run.
    pub scenario: Scenario,
    /// Directory with `nido`, the kernels and the initramfs archives.
    pub files: PathBuf,
    /// Directory for the logs.
    pub output: PathBuf,
    /// Directory for disks and other files that are not kept.
    pub scratch: PathBuf,
    /// Further arguments of nido, after the scenario's.
    pub extra: Vec<String>,
    /// Repeat the guest's console as [`AgentLine::Guest`].
    pub show_guest: bool,
}

/// Takes the agent's lines.
pub type Report<'a> = dyn FnMut(AgentLine) + 'a;
