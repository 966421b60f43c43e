//! A guest with a device of the host that has come to the end of a migration: the device has been stopped and
//! saved, and has to go on where it was. Before, targets that have no such device, or one that cannot migrate.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::{is_error, refused};
use crate::agent::control;
use crate::agent::migrations::nido::Nido;
use crate::agent::migrations::proxy::{Event, Place, Proxy};
use crate::agent::migrations::{Journey, SOON, WAITING};
use crate::pci;

/// A piece of the state of the machine, on its way to the target, and the target's word that it is ready to run it.
const STATE: u8 = 0x05;
const READY: u8 = 0x84;
/// A driver by which no edu can migrate.
const PLAIN: &str = "vfio-pci";

pub(super) fn attempt(journey: &Journey<'_>) -> Result<String> {
    let place = journey.unix("incoming");
    let mut without = target(journey, "nido-without", &place, None)?;
    let words = "vfio-pci,id=edu,host=ADDRESS";
    refused(journey, &place, words)?;
    without.gives_up(words)?;

    let mut others = journey.moving.iter().cycle();
    let other = others.nth(*journey.turns as usize + 1);
    let other = other.context("no device that it could have")?;
    let driver = pci::driver(other).context("nobody drives it")?;
    pci::bind(other, PLAIN)?;
    let tried = unfit(journey, &place, other);
    pci::bind(other, &driver)?;
    tried?;

    let mut said = String::new();
    for (back, kind) in [(false, STATE), (true, READY)] {
        let name = format!("nido-cut-at-{kind:#04x}");
        let mut target = journey.target(&name, &place, &[])?;
        let cut = Event::Cut { amid: true };
        let (here, there) = (journey.path("proxy"), journey.path("incoming"));
        let _proxy = Proxy::start(&here, &there, None, Some((Place { back, kind }, cut)))?;
        let request = format!("migrate to={}", journey.unix("proxy"));
        said = control::request(journey.way.socket, &request)?;
        is_error(&said, "stays here")?;
        let status = target.wait_for_end(SOON)?;
        ensure!(status.is_some(), "the target goes on");
    }
    Ok(said)
}

/// A target whose device cannot become like another one.
fn unfit(journey: &Journey<'_>, place: &str, device: &str) -> Result<()> {
    let mut target = target(journey, "nido-unfit", place, Some(device))?;
    refused(journey, place, "VFIO migration")?;
    target.gives_up("VFIO migration")
}

/// A nido that waits at `place`, with this device of the host or none.
fn target(journey: &Journey<'_>, name: &str, place: &str, device: Option<&str>) -> Result<Nido> {
    let mut arguments = vec![format!("--incoming={place}")];
    let device =
        device.map(|host| format!("--device=vfio-pci,id=edu,host={host},iommufd=iommufd0"));
    arguments.extend(device);
    let (program, messages): (&Path, _) = (
        journey.way.program,
        journey.output.join(format!("{name}.log")),
    );
    let target = Nido::start(program, arguments, journey.path("target"), messages, None)?;
    target.wait_to_say(&format!("{WAITING}{place}"), SOON)?;
    Ok(target)
}
