//! Devices that others serve for nido: the agent counts how often nido's threads run meanwhile.

use anyhow::{Context, Result};

use super::agent::Agent;
use super::{Guest, checks};
use crate::plan::Check;

/// A check that the argument names before the first `:` passes, and none of nido's threads whose names
/// start with what follows runs meanwhile: not for a notification of the guest, and not for an
/// interrupt.
pub(super) fn check(guest: &Guest, argument: &str) -> Result<String> {
    let (name, threads) = argument.split_once(':').context("asleep=CHECK:THREADS")?;
    let mut agent = Agent::open()?;
    agent.request(&format!("threads {threads}"))?;
    let check = Check {
        name: name.to_owned(),
        argument: String::new(),
    };
    let detail = checks::run(guest, &check)?;
    agent.request(&format!("asleep {threads}"))?;
    Ok(format!("{detail}, and no thread of nido's ran for it"))
}
