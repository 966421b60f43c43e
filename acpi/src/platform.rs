//! The machine that the tables describe: processors, memory map, interrupt routing, remapping unit.

use std::ops::Range;

/// The machine.
#[derive(Clone, Debug)]
pub struct Platform<'a> {
    /// Guest-physical address of the blob; a multiple of 16.
    pub base: u64,
    /// APIC ids of the processors, the boot processor first.
    pub cpu_apic_ids: &'a [u32],
    /// Address of the processors' local APICs.
    pub local_apic: u32,
    /// The I/O APIC.
    pub ioapic: IoApic,
    /// Configuration space.
    pub ecam: Ecam,
    /// Memory windows of the host bridge.
    pub apertures: Apertures,
    /// The remapping unit, if there is one.
    pub dmar: Option<Dmar>,
    /// Sleep and reset registers.
    pub power: Power,
    /// COM1, if there is one.
    pub uart: Option<Uart>,
}

/// The I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Its id, which the DMAR table's scope repeats.
    pub id: u8,
    /// Address of its registers.
    pub address: u32,
    /// Global system interrupt of its pin 0.
    pub gsi_base: u32,
}

/// Enhanced configuration access: 1 MiB per bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecam {
    /// Address of bus 0's configuration space.
    pub base: u64,
    /// The last bus that it covers.
    pub last_bus: u8,
}

/// Memory windows of the host bridge. An empty range is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apertures {
    /// Below 4 GiB.
    pub mmio32: Range<u64>,
    /// Above 4 GiB.
    pub mmio64: Range<u64>,
}

/// A remapping unit that covers the whole segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dmar {
    /// Address of the unit's registers (4 KiB).
    pub base: u64,
    /// Host address width in bits.
    pub haw: u8,
    /// The unit remaps interrupts.
    pub interrupt_remapping: bool,
    /// The unit's interrupt remapping takes 32-bit destinations. Without it the operating system
    /// is asked to stay out of x2APIC mode.
    pub x2apic: bool,
    /// Bus, device and function in whose name the I/O APIC sends its interrupts.
    pub ioapic_scope: (u8, u8, u8),
    /// Functions behind root ports may ask the unit for translations (ATS). Those on the root bus
    /// always may.
    pub ats_behind_ports: bool,
}

/// I/O ports of the registers of ACPI 6.5 section 4.8.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Power {
    /// Sleep control.
    pub sleep_control: u16,
    /// Sleep status.
    pub sleep_status: u16,
    /// The sleep type of `_S5`.
    pub sleep_type_off: u8,
    /// Reset.
    pub reset: u16,
    /// What to write to it.
    pub reset_value: u8,
}

/// A 16550 UART.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uart {
    /// First of its eight I/O ports.
    pub port: u16,
    /// Its global system interrupt, edge-triggered and active high.
    pub gsi: u32,
}

/// The global system interrupt of a PCI interrupt pin, 0 for INTA to 3 for INTD: 16 to 19, rotated
/// by the slot. It is what `_PRT` says.
#[must_use]
pub const fn intx_gsi(slot: u8, pin: u8) -> u32 {
    16 + (slot as u32 + pin as u32) % 4
}

/// The global system interrupt of a pin of device `slot` behind the root port in `port_slot`: the
/// port passes pins on rotated by the device number, as bridges do (PCI Express Base Specification,
/// section 2.2.8.1), and operating systems look up the port.
#[must_use]
pub const fn intx_gsi_behind(port_slot: u8, slot: u8, pin: u8) -> u32 {
    intx_gsi(port_slot, (pin % 4 + slot % 4) % 4)
}
