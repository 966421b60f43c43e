//! Guest memory that devices of the host reach, as the host has it: the agent looks at that.

use anyhow::Result;

use super::Guest;
use super::agent::Agent;

/// It is in huge pages; and so in the page table of the host's IOMMU for the device that the argument
/// names, which reaches all of it.
pub(super) fn check(_guest: &Guest, argument: &str) -> Result<String> {
    let device = match argument {
        "" => String::new(),
        name => format!("{{{name}}}"),
    };
    Agent::open()?.request(format!("huge-pages {device}").trim())?;
    Ok("guest memory is in huge pages".to_owned())
}
