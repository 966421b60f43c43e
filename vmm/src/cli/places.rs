//! Names of devices, and the root ports that devices are behind.

use super::UsageError;
use crate::config::{FunctionConfig, FunctionKind};

/// Refuses names that are not unique, ports that do not exist, and a second device behind a port.
pub(super) fn check(functions: &[FunctionConfig]) -> Result<(), UsageError> {
    let mut names = Vec::new();
    for id in functions
        .iter()
        .filter_map(|function| function.id.as_deref())
    {
        if names.contains(&id) {
            return Err(UsageError::Message(format!(
                "id={id}: two devices have this name; give one of them another"
            )));
        }
        names.push(id);
    }
    let ports: Vec<&str> = functions
        .iter()
        .filter(|function| function.kind == FunctionKind::RootPort)
        .filter_map(|function| function.id.as_deref())
        .collect();
    let mut occupied = Vec::new();
    for bus in functions
        .iter()
        .filter_map(|function| function.bus.as_deref())
    {
        if !ports.contains(&bus) {
            return Err(UsageError::Message(unknown(bus, &ports)));
        }
        if occupied.contains(&bus) {
            return Err(UsageError::Message(format!(
                "bus={bus}: two devices ask for this port, which has room for one; add another pcie-root-port"
            )));
        }
        occupied.push(bus);
    }
    Ok(())
}

fn unknown(bus: &str, ports: &[&str]) -> String {
    let remedy = format!("add `--device pcie-root-port,id={bus}`");
    if ports.is_empty() {
        return format!("bus={bus}: there is no such root port; {remedy}");
    }
    let ports = ports.join(", ");
    format!("bus={bus}: there is no such root port; choose one of {ports}, or {remedy}")
}

#[cfg(test)]
#[path = "places_test.rs"]
mod places_test;
