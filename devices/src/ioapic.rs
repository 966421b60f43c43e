//! The I/O APIC (Intel 82093AA, with the version 0x20 EOI register): 24 pins that become
//! message-signalled interrupts.
//!
//! Each pin's message is a plain memory write with the I/O APIC's own requester id, so that the
//! IOMMU remaps it as any other. Redirection table entries in compatibility and in remappable
//! format (VT-d section 5.1.5.1) map to messages by the same wires: entry bits 63:48 are address
//! bits 19:4, entry bit 11 is address bit 2.

mod entry;
#[cfg(test)]
mod ioapic_test;
mod line;
mod saved;

use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use pci::{Bdf, MsiMessage, MsiSink};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use entry::Entry;
pub use line::IntxLine;

/// How many pins there are.
pub const PINS: u8 = 24;
/// Bytes of the register window.
pub const WINDOW_SIZE: u64 = 0x1000;
/// Where the register window lies.
pub const ADDRESS: u64 = 0xfec0_0000;

/// Version 0x20 (has an EOI register) in bits 7:0, highest pin in bits 23:16.
const VERSION: u32 = 0x0017_0020;

/// Memory-mapped registers.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

/// Registers behind the window.
const REGISTER_ID: u8 = 0;
const REGISTER_VERSION: u8 = 1;
const REGISTER_ARBITRATION: u8 = 2;
const FIRST_ENTRY: u8 = 0x10;
/// The id's field in its register.
const ID_MASK: u32 = 0x0f00_0000;

/// Where a pin leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The message that the pin sends, before any remapping.
    pub message: MsiMessage,
    /// Level-triggered: the pin waits for the end of the interrupt before it sends again.
    pub level: bool,
    /// The pin sends nothing.
    pub masked: bool,
}

/// Learns of changed redirection entries: for example to mirror level-triggered pins into the
/// hypervisor's routes, so that it reports the end of their interrupts.
pub trait RouteListener: Send + Sync {
    /// `pin` leads to `route` now. Calls come in the order of the changes. May call
    /// [`IoApic::set_eoi_vector`], but must not access the registers.
    fn route_changed(&self, pin: u8, route: Route);
}

/// Told when processors end the level-triggered interrupt of a pin.
pub trait EndOfInterrupt: Send + Sync {
    /// The pin may be lowered now. It is raised again by the device if it still asks for an
    /// interrupt.
    fn interrupt_ended(&self);
}

#[derive(Clone, Copy)]
struct Pin {
    entry: Entry,
    /// The level that [`IoApic::set_level`] gave.
    driven: bool,
    /// How many [`IntxLine`]s assert the pin.
    lines: u32,
    /// The vector with which processors end this pin's interrupt, when it is not the entry's.
    eoi_vector: Option<u8>,
}

impl Pin {
    const RESET: Self = Self {
        entry: Entry::RESET,
        driven: false,
        lines: 0,
        eoi_vector: None,
    };

    fn asserted(&self) -> bool {
        self.driven || self.lines > 0
    }

    /// The message to send because the pin's level or entry changed; `rising` says that the level
    /// just went up.
    fn evaluate(&mut self, rising: bool) -> Option<MsiMessage> {
        if self.entry.masked() {
            // An edge at a masked pin is neither delivered nor held.
            return None;
        }
        if self.entry.level() {
            if !self.asserted() || self.entry.remote_irr() {
                return None;
            }
            self.entry.set_remote_irr(true);
            return Some(self.entry.message());
        }
        rising.then(|| self.entry.message())
    }

    /// The vector with which processors end this pin's interrupt, if that is known.
    fn processors_vector(&self) -> Option<u8> {
        match self.eoi_vector {
            None if self.entry.remappable() => None,
            None => Some(self.entry.vector()),
            resolved => resolved,
        }
    }

    /// Whether a processor's end of interrupt for `vector` is this pin's.
    fn ends_with(&self, vector: u8) -> bool {
        self.processors_vector() == Some(vector)
    }

    /// Ends the interrupt that the pin sent. Whether there was one.
    fn end(&mut self) -> bool {
        let sent = self.entry.level() && self.entry.remote_irr();
        if sent {
            self.entry.set_remote_irr(false);
        }
        sent
    }
}

struct State {
    select: u8,
    id: u32,
    pins: [Pin; PINS as usize],
}

/// The I/O APIC.
pub struct IoApic {
    sink: Arc<dyn MsiSink>,
    requester: Bdf,
    listener: OnceLock<Arc<dyn RouteListener>>,
    /// Keeps the listener's calls in the order of the changes; taken before `state`, held during
    /// the call.
    order: Mutex<()>,
    /// Who hears of the ends of each pin's interrupts. A leaf, too: it is not held during the
    /// calls.
    ends: Mutex<Vec<(u8, Weak<dyn EndOfInterrupt>)>>,
    /// Leaf lock: nothing is called while it is held.
    state: Mutex<State>,
}

impl IoApic {
    /// An I/O APIC in its reset state, whose messages go to `sink` in the name of `requester`.
    #[must_use]
    pub fn new(sink: Arc<dyn MsiSink>, requester: Bdf) -> Arc<Self> {
        let state = State {
            select: 0,
            id: 0,
            pins: [Pin::RESET; PINS as usize],
        };
        let listener = OnceLock::new();
        Arc::new(Self {
            sink,
            requester,
            listener,
            order: Mutex::new(()),
            ends: Mutex::default(),
            state: Mutex::new(state),
        })
    }

    /// Names the listener; once, and later calls change nothing.
    pub fn set_listener(&self, listener: Arc<dyn RouteListener>) {
        let _ = self.listener.set(listener);
    }

    /// Drives `pin`. Sources that share a pin use [`line`](Self::line) instead. A pin that does not
    /// exist is ignored.
    pub fn set_level(&self, pin: u8, asserted: bool) {
        self.change_level(pin, |pin| pin.driven = asserted);
    }

    /// One edge on `pin`: up and down in one step.
    pub fn pulse(&self, pin: u8) {
        let mut state = self.state.lock();
        let Some(pin) = state.pins.get_mut(usize::from(pin)) else {
            return;
        };
        pin.driven = true;
        let message = pin.evaluate(true);
        pin.driven = false;
        drop(state);
        message.into_iter().for_each(|message| self.send(message));
    }

    /// A source of its own on `pin`: the pin is asserted while any of its lines is.
    #[must_use]
    pub fn line(self: &Arc<Self>, pin: u8) -> Arc<IntxLine> {
        IntxLine::new(Arc::clone(self), pin)
    }

    /// The same for a source that has to know when processors have ended the pin's interrupt:
    /// `owner` hears of it until it is dropped. It is called before the pin's level is looked at
    /// again, with no lock of the I/O APIC held that it could need: it may set the level of lines,
    /// but not access the registers. Of a pin that several lines share, all owners hear.
    #[must_use]
    pub fn line_with_end(
        self: &Arc<Self>,
        pin: u8,
        owner: Weak<dyn EndOfInterrupt>,
    ) -> Arc<IntxLine> {
        self.tell_end(pin, owner);
        self.line(pin)
    }

    fn tell_end(&self, pin: u8, owner: Weak<dyn EndOfInterrupt>) {
        let mut ends = self.ends.lock();
        ends.retain(|(_, owner)| owner.strong_count() > 0);
        ends.push((pin, owner));
    }

    /// A processor ended its interrupt `vector`: level-triggered pins that sent it may send again.
    /// The vector is the one that the processor received; see
    /// [`set_eoi_vector`](Self::set_eoi_vector).
    pub fn eoi(&self, vector: u8) {
        self.end(|pin| pin.ends_with(vector));
    }

    /// Names the vector that processors receive for `pin`, where interrupt remapping replaces the
    /// entry's own. Forgotten when the entry is changed. Without it, [`eoi`](Self::eoi) knows
    /// entries in compatibility format only; an operating system that remaps pins as edges, as
    /// Linux does, ends them with the EOI register.
    pub fn set_eoi_vector(&self, pin: u8, vector: Option<u8>) {
        if let Some(pin) = self.state.lock().pins.get_mut(usize::from(pin)) {
            pin.eoi_vector = vector;
        }
    }

    /// Where `pin` leads.
    #[must_use]
    pub fn route(&self, pin: u8) -> Option<Route> {
        self.state
            .lock()
            .pins
            .get(usize::from(pin))
            .map(|pin| pin.entry.route())
    }

    /// Platform reset: all pins masked. Levels stay what the devices make them.
    pub fn reset(&self) {
        let order = self.order.lock();
        let mut state = self.state.lock();
        state.select = 0;
        state.id = 0;
        for pin in &mut state.pins {
            pin.entry = Entry::RESET;
            pin.eoi_vector = None;
        }
        drop(state);
        if let Some(listener) = self.listener.get() {
            (0..PINS).for_each(|pin| listener.route_changed(pin, Entry::RESET.route()));
        }
        drop(order);
    }

    fn send(&self, message: MsiMessage) {
        self.sink
            .signal(self.requester, message.address, message.data);
    }

    fn change_level(&self, pin: u8, change: impl FnOnce(&mut Pin)) {
        let mut state = self.state.lock();
        let Some(pin) = state.pins.get_mut(usize::from(pin)) else {
            return;
        };
        let before = pin.asserted();
        change(pin);
        let rising = !before && pin.asserted();
        let message = pin.evaluate(rising);
        drop(state);
        message.into_iter().for_each(|message| self.send(message));
    }

    fn end(&self, matches: impl Fn(&Pin) -> bool) {
        let mut state = self.state.lock();
        let mut ended = Vec::new();
        for (index, pin) in (0..).zip(&mut state.pins) {
            if matches(pin) && pin.end() {
                ended.push(index);
            }
        }
        drop(state);
        for pin in ended {
            // Those who lower the pin now spare the processor an interrupt for nothing.
            self.interrupt_ended(pin);
            self.change_level(pin, |_| {});
        }
    }

    /// Tells the owners of the lines of `pin`.
    fn interrupt_ended(&self, pin: u8) {
        let owners: Vec<_> = {
            let ends = self.ends.lock();
            let of_pin = ends.iter().filter(|(of, _)| *of == pin);
            of_pin.filter_map(|(_, owner)| owner.upgrade()).collect()
        };
        for owner in owners {
            owner.interrupt_ended();
        }
    }

    fn read_register(&self) -> u32 {
        let state = self.state.lock();
        match state.select {
            REGISTER_ID | REGISTER_ARBITRATION => state.id,
            REGISTER_VERSION => VERSION,
            register => entry_position(register)
                .and_then(|(pin, half)| Some(state.pins.get(usize::from(pin))?.entry.half(half)))
                .unwrap_or(0),
        }
    }

    fn write_register(&self, value: u32) {
        let order = self.order.lock();
        let mut state = self.state.lock();
        let register = state.select;
        if register == REGISTER_ID {
            state.id = value & ID_MASK;
            return;
        }
        let Some((index, half)) = entry_position(register) else {
            return;
        };
        let Some(pin) = state.pins.get_mut(usize::from(index)) else {
            return;
        };
        let before = pin.entry.route();
        let waiting = pin.entry.remote_irr();
        pin.entry.set_half(half, value);
        let route = pin.entry.route();
        let given_up = waiting && !pin.entry.remote_irr();
        if route != before {
            pin.eoi_vector = None;
        }
        // Not `evaluate` yet: the listener must know the route before the interrupt can end.
        drop(state);
        if route != before
            && let Some(listener) = self.listener.get()
        {
            listener.route_changed(index, route);
        }
        drop(order);
        if given_up {
            // Made an edge, the pin waits for no end any more, and no processor will report one.
            self.interrupt_ended(index);
        }
        self.change_level(index, |_| {});
    }
}

/// The pin and the half of its entry that a register index names.
fn entry_position(register: u8) -> Option<(u8, entry::Half)> {
    let index = register.checked_sub(FIRST_ENTRY)?;
    let half = if index & 1 == 0 {
        entry::Half::Low
    } else {
        entry::Half::High
    };
    (index / 2 < PINS).then_some((index / 2, half))
}

impl DeviceMmio for IoApic {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        let value = match offset {
            SELECT => u32::from(self.state.lock().select),
            WINDOW => self.read_register(),
            _ => 0,
        };
        data.fill(0);
        data.iter_mut()
            .zip(value.to_le_bytes())
            .for_each(|(byte, value)| *byte = value);
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        // Registers are 32 bits wide and accessed as such; only the low byte of two of them
        // matters.
        let Some(low) = data.first().copied() else {
            return;
        };
        match (offset, data) {
            (SELECT, _) => self.state.lock().select = low,
            (WINDOW, &[a, b, c, d]) => self.write_register(u32::from_le_bytes([a, b, c, d])),
            (EOI, _) => self.end(|pin| pin.entry.vector() == low),
            _ => {}
        }
    }
}
