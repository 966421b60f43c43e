//! The registers of a root port: its configuration space, with the link and the hot-plug slot of
//! its PCI Express capability (sections 7.5.3.6 to 7.5.3.14; hot-plug: section 6.7).
//!
//! The slot has an attention button, a power controller and both indicators; no latch, no
//! interlock, no surprise removal. The link is up while there is a function, power is on, and
//! software neither disables the link nor holds the bus in reset.

mod saved;

use crate::builder::{ConfigBuilder, Identity};
use crate::capability::id;
use crate::capability::pcie::{
    CAPABILITIES, DEVICE_CAPABILITIES, DEVICE_CAPABILITIES_2, DEVICE_CONTROL, LINK_CAPABILITIES,
    LINK_CAPABILITIES_2, LINK_CONTROL, LINK_CONTROL_2, LINK_STATUS, ROOT_CONTROL, ROOT_STATUS,
    SIZE, SLOT_CAPABILITIES, SLOT_CONTROL, SLOT_STATUS,
};
use crate::config::ConfigSpace;
use crate::extended::{ACS_EXTENDED_ID, ACS_ISOLATION};
use crate::msi::MsiMessage;

/// Version 2, device/port type 4 (root port), slot implemented; interrupts use message 0.
const ROOT_PORT: u16 = 0x0142;
/// 128-byte payloads, role-based error reporting.
const DEVICE: u32 = 0x8000;
/// Error reporting enables, relaxed ordering.
const DEVICE_CONTROL_WRITABLE: u16 = 0x001f;
/// End-End TLP prefixes supported (bit 21), at most one of them (bits 23:22): requests with PASID
/// pass.
const DEVICE_2: u32 = 0x0060_0000;
/// 2.5 GT/s, one lane, link active reporting (bit 20), ASPM optionality (bit 22). The port number
/// is in bits 31:24.
const LINK: u32 = 0x0050_0011;
/// Link Disable, Common Clock, Extended Synch. Retrain Link reads as zero, and there is nothing to
/// train.
const LINK_CONTROL_WRITABLE: u16 = 0x00d0;
const LINK_DISABLE: u16 = 1 << 4;
/// Link Status of a link that is up: 2.5 GT/s, one lane, active (bit 13).
const LINK_UP: u16 = 0x2011;
/// 2.5 GT/s is supported; and it is the target speed.
const LINK_2: u32 = 0x2;
const TARGET_SPEED: u16 = 1;
const TARGET_SPEED_WRITABLE: u16 = 0xf;
/// Attention button, power controller, attention and power indicator, hot-plug capable. The number
/// is in bits 31:19.
const SLOT: u32 = 0x5b;
/// System error and power management interrupt enables.
const ROOT_CONTROL_WRITABLE: u16 = 0xf;
/// PME Status, which software clears by writing ones. No function here sends such messages.
const ROOT_STATUS_PME: u32 = 1 << 16;

/// Slot Control: everything that this slot has.
const CONTROL_WRITABLE: u16 = 0x17fb;
const HOT_PLUG_INTERRUPT: u16 = 1 << 5;
const POWER_OFF: u16 = 1 << 10;
const LINK_EVENT_ENABLE: u16 = 1 << 12;
/// Slot Control at power-on: attention indicator off; power indicator and power on, or both off.
const CONTROL_OCCUPIED: u16 = 0x01c0;
const CONTROL_EMPTY: u16 = 0x07c0;

/// Slot Status: the events. Their enables are the same bits of Slot Control, but for the link's.
const BUTTON_PRESSED: u16 = 1 << 0;
const PRESENCE_CHANGED: u16 = 1 << 3;
const COMMAND_COMPLETED: u16 = 1 << 4;
const PRESENT: u16 = 1 << 6;
const LINK_CHANGED: u16 = 1 << 8;
const LOW_EVENTS: u16 = 0x1f;
const EVENTS: u16 = LOW_EVENTS | LINK_CHANGED;

/// What an indicator shows (Slot Control, two bits each).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Indicator {
    /// Not lit.
    Off,
    /// Lit.
    On,
    /// Blinking: for the power indicator, software is about to change the power.
    Blinking,
    /// A reserved value.
    Unknown,
}

impl Indicator {
    const fn from_bits(bits: u16) -> Self {
        match bits & 3 {
            1 => Self::On,
            2 => Self::Blinking,
            3 => Self::Off,
            _ => Self::Unknown,
        }
    }
}

/// A root port's registers. Messages that they return are to be sent after releasing the lock
/// around them.
pub(crate) struct Registers {
    pub(crate) config: ConfigSpace,
    /// Offset of the PCI Express capability.
    pcie: u16,
    occupied: bool,
    /// An enabled event is there; a message is sent when this becomes true (section 6.7.3.4).
    asserted: bool,
}

impl Registers {
    /// The registers of an empty slot at power-on. `number` identifies port and slot.
    pub(crate) fn new(number: u8) -> Self {
        let mut builder = ConfigBuilder::bridge(Identity {
            // A generic root port: drivers bind to the class.
            vendor: 0x1b36,
            device: 0x000c,
            class: [0x06, 0x04, 0x00],
            subsystem_vendor: 0x1b36,
            ..Identity::default()
        });
        builder.add_msi(0);
        let pcie = add_pcie(&mut builder, number);
        builder.add_ext_capability(ACS_EXTENDED_ID, 1, &ACS_ISOLATION, &[0, 0, 0x1d, 0]);
        let mut registers = Self {
            config: builder.build(),
            pcie,
            occupied: false,
            asserted: false,
        };
        registers.power_on(false);
        registers
    }

    /// Everything back to power-on values, for a slot that is occupied or not.
    pub(crate) fn power_on(&mut self, occupied: bool) {
        self.config.reset();
        self.occupied = occupied;
        self.asserted = false;
        let control = if occupied {
            CONTROL_OCCUPIED
        } else {
            CONTROL_EMPTY
        };
        self.set(SLOT_CONTROL, control);
        self.show_presence();
        self.set(LINK_STATUS, self.link_status());
    }

    /// A function is put into the slot or taken out of it. Putting one in also presses the button,
    /// as a person would do: software need not heed presence where there is a button.
    pub(crate) fn set_occupied(&mut self, occupied: bool) -> Option<MsiMessage> {
        self.occupied = occupied;
        self.show_presence();
        // Software that has not yet noticed that the slot was emptied by force would take the
        // button for a wish to turn it off.
        let asks = occupied && !self.powered();
        self.raise(PRESENCE_CHANGED | if asks { BUTTON_PRESSED } else { 0 });
        self.settle()
    }

    /// Somebody presses the attention button.
    pub(crate) fn press_button(&mut self) -> Option<MsiMessage> {
        self.raise(BUTTON_PRESSED);
        self.settle()
    }

    /// Whether software has not yet noticed that the button was pressed.
    pub(crate) fn button_unnoticed(&self) -> bool {
        self.get(SLOT_STATUS) & BUTTON_PRESSED != 0
    }

    /// A configuration write. Every write of Slot Control is a command, which completes at once.
    pub(crate) fn write(&mut self, offset: u16, data: &[u8]) -> Vec<MsiMessage> {
        let change = self.config.write(offset, data);
        let mut messages = Vec::new();
        if change.msi || change.bus_master == Some(true) {
            messages = self.config.take_pending_msi();
        }
        let control = usize::from(self.pcie + SLOT_CONTROL);
        let start = usize::from(offset);
        if start < control + 2 && control < start + data.len() {
            self.raise(COMMAND_COMPLETED);
        }
        messages.extend(self.settle());
        messages
    }

    /// Whether the slot has power.
    pub(crate) fn powered(&self) -> bool {
        self.get(SLOT_CONTROL) & POWER_OFF == 0
    }

    /// Whether the function in the slot can be reached.
    pub(crate) fn link_up(&self) -> bool {
        self.occupied
            && self.powered()
            && self.get(LINK_CONTROL) & LINK_DISABLE == 0
            && !self.config.secondary_bus_reset()
    }

    pub(crate) fn power_indicator(&self) -> Indicator {
        Indicator::from_bits(self.get(SLOT_CONTROL) >> 8)
    }

    pub(crate) fn attention_indicator(&self) -> Indicator {
        Indicator::from_bits(self.get(SLOT_CONTROL) >> 6)
    }

    /// Makes Link Status follow the link, and returns the message that is now due.
    fn settle(&mut self) -> Option<MsiMessage> {
        let link = self.link_status();
        if self.get(LINK_STATUS) != link {
            self.set(LINK_STATUS, link);
            self.raise(LINK_CHANGED);
        }
        let asserted = self.wants_interrupt();
        let rises = asserted && !self.asserted;
        self.asserted = asserted;
        rises.then(|| self.config.msi_notify(0))?
    }

    /// Whether an enabled event is there.
    fn wants_interrupt(&self) -> bool {
        let (status, control) = (self.get(SLOT_STATUS), self.get(SLOT_CONTROL));
        let enabled = control & LOW_EVENTS
            | if control & LINK_EVENT_ENABLE != 0 {
                LINK_CHANGED
            } else {
                0
            };
        control & HOT_PLUG_INTERRUPT != 0 && status & enabled != 0
    }

    fn link_status(&self) -> u16 {
        if self.link_up() { LINK_UP } else { 0 }
    }

    fn show_presence(&mut self) {
        let status = self.get(SLOT_STATUS) & !PRESENT;
        self.set(
            SLOT_STATUS,
            status | if self.occupied { PRESENT } else { 0 },
        );
    }

    fn raise(&mut self, events: u16) {
        self.set(SLOT_STATUS, self.get(SLOT_STATUS) | events & EVENTS);
    }

    fn get(&self, register: u16) -> u16 {
        self.config.read_u16(self.pcie + register)
    }

    fn set(&mut self, register: u16, value: u16) {
        self.config
            .set_bytes(self.pcie + register, &value.to_le_bytes());
    }
}

fn add_pcie(builder: &mut ConfigBuilder, number: u8) -> u16 {
    let mut body = [0; SIZE - 2];
    let mut writable = [0; SIZE - 2];
    let put = |bytes: &mut [u8], register: u16, value: &[u8]| {
        let start = usize::from(register) - 2;
        bytes[start..start + value.len()].copy_from_slice(value);
    };
    let number = u32::from(number);
    put(&mut body, CAPABILITIES, &ROOT_PORT.to_le_bytes());
    put(&mut body, DEVICE_CAPABILITIES, &DEVICE.to_le_bytes());
    let link = LINK | number << 24;
    put(&mut body, LINK_CAPABILITIES, &link.to_le_bytes());
    let slot = SLOT | number << 19;
    put(&mut body, SLOT_CAPABILITIES, &slot.to_le_bytes());
    put(&mut body, DEVICE_CAPABILITIES_2, &DEVICE_2.to_le_bytes());
    put(&mut body, LINK_CAPABILITIES_2, &LINK_2.to_le_bytes());
    put(&mut body, LINK_CONTROL_2, &TARGET_SPEED.to_le_bytes());
    for (register, mask) in [
        (DEVICE_CONTROL, DEVICE_CONTROL_WRITABLE),
        (LINK_CONTROL, LINK_CONTROL_WRITABLE),
        (SLOT_CONTROL, CONTROL_WRITABLE),
        (ROOT_CONTROL, ROOT_CONTROL_WRITABLE),
        (LINK_CONTROL_2, TARGET_SPEED_WRITABLE),
    ] {
        put(&mut writable, register, &mask.to_le_bytes());
    }
    let offset = builder.add_capability(id::PCIE, &body, &writable);
    builder.set_write_one_to_clear(offset + SLOT_STATUS, &EVENTS.to_le_bytes());
    builder.set_own(offset + LINK_STATUS, &LINK_UP.to_le_bytes());
    builder.set_own(offset + SLOT_STATUS, &PRESENT.to_le_bytes());
    builder.set_write_one_to_clear(offset + ROOT_STATUS, &ROOT_STATUS_PME.to_le_bytes());
    offset
}
