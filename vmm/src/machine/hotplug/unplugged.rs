//! Devices that a guest lets go of before it moves, as they are the host's.

use std::sync::Arc;

use super::HotPlug;
use crate::config::FunctionConfig;

/// Devices that are out of their slots for a migration.
pub(crate) struct Unplugged<'a> {
    hotplug: &'a Arc<HotPlug>,
    /// In the order in which they were taken out.
    devices: Vec<FunctionConfig>,
}

impl<'a> Unplugged<'a> {
    /// None yet.
    pub(crate) fn new(hotplug: &'a Arc<HotPlug>) -> Self {
        Self {
            hotplug,
            devices: Vec::new(),
        }
    }

    /// Asks the guest for the devices of these names, or behind the ports of these names, in turn, as
    /// `device-del` does: it has 30 seconds for each. `go_on` is asked before each.
    ///
    /// # Errors
    /// There is no such device, the guest keeps it, or it is not to go on. Some may be out: see
    /// [`give_back`](Self::give_back).
    pub(crate) fn take_all(
        &mut self,
        names: &[String],
        go_on: impl Fn() -> Result<(), String>,
    ) -> Result<(), String> {
        for name in names {
            go_on()?;
            let mut plugged = self.hotplug.plugged().into_iter();
            let device =
                plugged.find(|device| [&device.id, &device.bus].contains(&&Some(name.clone())));
            self.hotplug
                .remove(name, false)
                .map_err(|error| format!("unplug={name}: {error}"))?;
            log::debug!("migration: `{name}` is out");
            self.devices.extend(device);
        }
        go_on()
    }

    /// Has the guest have them again, which stays. Returns what is to be said of it, which is nothing if nothing was
    /// taken.
    pub(crate) fn give_back(self) -> String {
        let mut text = String::new();
        for device in self.devices {
            let name = device.id.as_deref().or(device.bus.as_deref());
            let name = name.unwrap_or_default().to_owned();
            match self.hotplug.add(&device) {
                Ok(_) => text.push_str(&format!("; `{name}` is plugged in again")),
                Err(error) => text.push_str(&format!(
                    "; `{name}` cannot be plugged in again: {error}; write `device-add` when that is mended"
                )),
            }
        }
        text
    }
}
