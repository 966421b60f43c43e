//! The machine's map: what vCPUs find at which port and address.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use anyhow::Context as _;
use devices::ioapic::IoApic;
use devices::power::{self, Power, PowerEvent};
use devices::serial::{self, SerialPort};
use devices::vtd::VtdMmio;
use pci::RootComplex;

use crate::bus::{Aperture, Bus, Ecam};
use crate::event::Event;
use crate::irq::Unit;
use crate::layout;

/// A bus with everything on it that vCPUs can reach.
pub(super) fn bus(
    root: &Arc<RootComplex>,
    window: Option<&Arc<VtdMmio>>,
    ioapic: &Arc<IoApic>,
    serial: &Arc<SerialPort>,
    events: &Sender<Event>,
) -> anyhow::Result<Bus> {
    let mut bus = Bus::new(Arc::clone(ioapic));
    add_windows(&mut bus, root, window, ioapic)?;
    add_ports(&mut bus, serial, events)?;
    Ok(bus)
}

/// The registers of the remapping unit, with a thread for what they leave.
pub(super) fn window(unit: Option<&Arc<Unit>>) -> anyhow::Result<Option<Arc<VtdMmio>>> {
    let start = |unit: &Arc<Unit>| VtdMmio::start(Arc::clone(unit)).map(Arc::new);
    let window = unit.map(start).transpose();
    window.context("the remapping unit has no thread")
}

/// Puts the windows of memory on the bus.
fn add_windows(
    bus: &mut Bus,
    root: &Arc<RootComplex>,
    window: Option<&Arc<VtdMmio>>,
    ioapic: &Arc<IoApic>,
) -> anyhow::Result<()> {
    let apertures = root.apertures();
    for window in [&apertures.mmio32, &apertures.mmio64] {
        bus.add_mmio(
            window.start,
            window.end - window.start,
            Arc::new(Aperture(Arc::clone(root))),
        )?;
    }
    bus.add_mmio(
        apertures.ecam_base,
        root.ecam_size(),
        Arc::new(Ecam(Arc::clone(root))),
    )?;
    let size = |window: std::ops::Range<u64>| window.end - window.start;
    bus.add_mmio(
        layout::IOAPIC.start,
        size(layout::IOAPIC),
        Arc::clone(ioapic) as _,
    )?;
    if let Some(window) = window {
        bus.add_mmio(
            layout::VTD.start,
            size(layout::VTD),
            Arc::clone(window) as _,
        )?;
    }
    Ok(())
}

/// Puts the ports on the bus. What the guest asks of the machine as a whole goes to `events`.
fn add_ports(
    bus: &mut Bus,
    serial: &Arc<SerialPort>,
    events: &Sender<Event>,
) -> anyhow::Result<()> {
    let events = events.clone();
    let power = Arc::new(Power::new(move |event| {
        // The receiver lives as long as any vCPU thread.
        let _ = events.send(match event {
            PowerEvent::Off => Event::PowerOff,
            PowerEvent::Reset => Event::Reset,
        });
    }));
    bus.add_pio(layout::COM1, serial::COM1_PORTS, Arc::clone(serial) as _)?;
    bus.add_pio(power::SLEEP_CONTROL_PORT, 2, Arc::clone(&power) as _)?;
    bus.add_pio(power::RESET_PORT, 1, Arc::clone(&power) as _)?;
    bus.add_pio(power::KEYBOARD_PORT, 1, power)?;
    Ok(())
}
