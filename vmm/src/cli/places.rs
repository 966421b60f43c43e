//! Names and places of PCI functions: the keys `id`, `bus` and `addr`, and which of their values go
//! together.

use super::error::UsageError;
use super::keys::{Key, ListError, Values};
use super::values::{Kind, Value};
use crate::config::{FunctionConfig, FunctionKind};

/// Device numbers on bus 0, without the host bridge's.
const MOST_FUNCTIONS: usize = 31;

/// `addr`, which every PCI function has.
pub(super) const ADDR: Key = Key {
    name: "addr",
    aliases: &[],
    kind: Kind::Slot,
    default: "next free device",
    help: "place on PCI bus 0, hexadecimal",
};

/// `bus`, which every PCI function has that can be behind a root port.
pub(super) const BUS: Key = Key {
    name: "bus",
    aliases: &[],
    kind: Kind::Text("PORT"),
    default: "none",
    help: "id of the pcie-root-port that it is behind",
};

/// `id`, which every PCI function has.
pub(super) const ID: Key = Key {
    name: "id",
    aliases: &[],
    kind: Kind::Text("NAME"),
    default: "none",
    help: "name for other options and for the control socket",
};

/// The keys of a function that has no others.
pub(super) const PLACE: &[Key] = &[ID, BUS, ADDR];

/// A function of that kind with its name and at its place: the values of `id`, `bus` and `addr`.
pub(super) fn placed(values: &Values, kind: FunctionKind) -> Result<FunctionConfig, ListError> {
    let device = match values.get(ADDR.name) {
        Some(Value::Slot(slot)) => Some(*slot),
        _ => None,
    };
    let bus = values.text(BUS.name);
    if let (Some(bus), Some(_)) = (bus, device) {
        return Err(values.conflict(format!(
            "bus={bus} and addr do not go together: a port has one place; drop `addr`"
        )));
    }
    Ok(FunctionConfig {
        id: values.text(ID.name).map(str::to_owned),
        bus: bus.map(str::to_owned),
        device,
        kind,
    })
}

/// Refuses functions that cannot be together in one machine.
pub(super) fn check(functions: &[FunctionConfig]) -> Result<(), UsageError> {
    check_names(functions)?;
    check_ports(functions)?;
    check_bus_0(functions)?;
    check_consoles(functions)
}

/// Refuses two functions of one name.
fn check_names(functions: &[FunctionConfig]) -> Result<(), UsageError> {
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
    Ok(())
}

/// Refuses ports that do not exist, and a second function behind a port.
fn check_ports(functions: &[FunctionConfig]) -> Result<(), UsageError> {
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

/// Refuses two functions at one place of bus 0, and more of them than it has places.
fn check_bus_0(functions: &[FunctionConfig]) -> Result<(), UsageError> {
    let mut taken = Vec::new();
    for device in functions.iter().filter_map(|function| function.device) {
        if taken.contains(&device) {
            return Err(UsageError::Message(format!(
                "addr={device:x}: two devices ask for this place; give one of them another"
            )));
        }
        taken.push(device);
    }
    let on_bus_0 = functions.iter().filter(|function| function.bus.is_none());
    let on_bus_0 = on_bus_0.count();
    if on_bus_0 > MOST_FUNCTIONS {
        return Err(UsageError::Message(format!(
            "--disk, --net and --device ask for {on_bus_0} PCI devices; the bus has room for {MOST_FUNCTIONS}, so remove some"
        )));
    }
    Ok(())
}

/// Refuses a second console.
fn check_consoles(functions: &[FunctionConfig]) -> Result<(), UsageError> {
    let consoles = functions
        .iter()
        .filter(|function| function.kind == FunctionKind::Console);
    if consoles.count() > 1 {
        return Err(UsageError::Message(
            "--device virtio-console is given twice; the standard streams serve one, so keep one of them".to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod places_test;
