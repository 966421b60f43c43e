//! A guest with a device of this host: it lets go of that, goes to another nido, and gets another such device
//! there.

use std::process::Child;

use anyhow::{Result, ensure};

use super::Journey;
use crate::agent::control;
use crate::agent::moved::Moved;

/// What the guest's device is called, and where it is plugged in.
const DEVICE: &str = "moved";
const PORT: &str = "rp0";

impl Journey<'_> {
    /// The option for the device that the guest gets where it goes: there are two, which it has in turn.
    fn other_device(&self) -> String {
        let number = (*self.turns + 1) % 2;
        let option = format!(
            "--device=vfio-pci,id={DEVICE},host={{edu{number}}},iommufd=iommufd0,bus={PORT}"
        );
        (self.substitute)(&option)
    }
}

/// With a device there.
pub(super) fn go(journey: &mut Journey<'_>, nido: &mut Child) -> Result<(Moved, String)> {
    let place = journey.unix("incoming");
    let name = format!("nido-{}", *journey.turns + 1);
    let target = journey.target(&name, &place, &[journey.other_device()])?;
    let request = format!("migrate to={place},unplug={DEVICE}");
    let answer = control::request(journey.way.socket, &request)?;
    journey.arrived(nido, target, &place, &answer)
}

/// A guest that keeps its device does not go; and one that has let go of it has it again when the target turns out
/// to lack a disk.
pub(super) fn stay(journey: &Journey<'_>, nido: &mut Child) -> Result<String> {
    let place = journey.unix("incoming");
    let disk = "--disk=id=counter,path=/none".to_owned();
    let further = [journey.other_device(), disk];
    let mut target = journey.target("nido-in-vain", &place, &further)?;
    let socket = journey.way.socket;
    let said = control::request(socket, &format!("migrate to={place}"))?;
    ensure!(said.starts_with("error: "), "migrate: {}", said.trim());
    let remedy = format!("`unplug={DEVICE}`");
    ensure!(said.contains(&remedy), "no {remedy}: {}", said.trim());
    ensure!(target.waits(), "the target has heard of it");
    let said = control::request(socket, &format!("migrate to={place},unplug={DEVICE}"))?;
    ensure!(said.starts_with("error: "), "migrate: {}", said.trim());
    for words in ["/none", &format!("`{DEVICE}` is plugged in again")] {
        ensure!(said.contains(words), "no '{words}': {}", said.trim());
    }
    target.gives_up("/none")?;
    journey.stays(nido)?;
    Ok(said.trim().to_owned())
}
