//! The commands that add devices to a running machine and remove them.

use std::sync::Arc;

use super::monitor::Monitor;
use super::parser::{Answer, Value};
use super::workers::Kind;
use crate::cli::{self, Device, Parsed};

/// `device-add`: at once if it is not valid, otherwise when the device is in its slot.
pub(super) fn add(monitor: &Monitor, values: &[Value]) -> Result<Answer, String> {
    let [Value::Device(argument)] = values else {
        return Err("device-add: the argument is missing".to_owned());
    };
    let config = match cli::parse_device(argument).map_err(|error| error.to_string())? {
        Parsed::Help(text) => return Ok(text.into()),
        Parsed::Device(Device::Function(config)) => config,
        Parsed::Device(Device::Iommu(_)) => {
            return Err(
                "an intel-iommu cannot be plugged in: it is part of the machine; give it on the command line"
                    .to_owned(),
            );
        }
    };
    let hotplug = Arc::clone(&monitor.hotplug);
    let work = move || hotplug.add(&config).map_err(|error| error.to_string());
    Ok(monitor.workers.begin(Kind::Change, work)?.into())
}

/// `device-del`: when the guest has let go of the device, or has not.
pub(super) fn remove(monitor: &Monitor, values: &[Value]) -> Result<Answer, String> {
    let [Value::Removal(id, force)] = values else {
        return Err("device-del: the argument is missing".to_owned());
    };
    let (id, force) = (id.clone(), *force);
    let hotplug = Arc::clone(&monitor.hotplug);
    let work = move || {
        let outcome = hotplug.remove(&id, force);
        outcome.map_err(|error| error.to_string())
    };
    let kind = if force { Kind::Force } else { Kind::Change };
    Ok(monitor.workers.begin(kind, work)?.into())
}
