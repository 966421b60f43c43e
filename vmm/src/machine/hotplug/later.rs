//! Devices that are plugged in when a guest has come that does not have them yet.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use super::{HotPlug, HotPlugError};
use crate::config::FunctionConfig;

/// How often to see whether a guest that is paused goes on.
const LOOK: Duration = Duration::from_millis(50);

/// Plugs `devices` in by a thread of its own, once the guest goes on, if it is paused. Of one that cannot be had
/// the log tells; the guest runs without it.
pub(crate) fn plug_later(hotplug: &Arc<HotPlug>, devices: Vec<FunctionConfig>) {
    if devices.is_empty() {
        return;
    }
    let machine = Arc::downgrade(hotplug);
    let plugging = move || devices.iter().for_each(|device| plug(&machine, device));
    let thread = thread::Builder::new().name("plug-later".to_owned());
    if let Err(error) = thread.spawn(plugging) {
        log::error!(
            "devices of the host are not plugged in: the host has no thread for that: {error}"
        );
    }
}

/// Waits for the guest as long as there is one.
fn plug(machine: &Weak<HotPlug>, device: &FunctionConfig) {
    while let Some(hotplug) = machine.upgrade() {
        match hotplug.add(device) {
            Ok(_) => return,
            Err(HotPlugError::Paused) => {}
            Err(error) => {
                let name = device
                    .id
                    .as_deref()
                    .or(device.bus.as_deref())
                    .unwrap_or_default();
                log::error!(
                    "the guest runs without `{name}`, which was to be plugged in: {error}; write `device-add` when that is mended"
                );
                return;
            }
        }
        drop(hotplug);
        thread::sleep(LOOK);
    }
}
