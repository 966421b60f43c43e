//! The type 1 configuration header (section 7.5.1.3) of a bridge that forwards memory, but no I/O:
//! bus numbers, the two memory windows, Bridge Control; and the capability that holds a bridge's
//! subsystem ids (section 7.9.5).

use std::ops::Range;

use crate::builder::{ConfigBuilder, Identity};
use crate::capability::id;
use crate::config::ConfigSpace;
use crate::header::{HEADER_TYPE, STATUS_ERRORS};

const PRIMARY_BUS: u16 = 0x18;
const SECONDARY_BUS: u16 = 0x19;
const SUBORDINATE_BUS: u16 = 0x1a;
const SECONDARY_STATUS: u16 = 0x1e;
const MEMORY_BASE: u16 = 0x20;
const MEMORY_LIMIT: u16 = 0x22;
const PREFETCHABLE_BASE: u16 = 0x24;
const PREFETCHABLE_LIMIT: u16 = 0x26;
const PREFETCHABLE_BASE_UPPER: u16 = 0x28;
const PREFETCHABLE_LIMIT_UPPER: u16 = 0x2c;
const BRIDGE_CONTROL: u16 = 0x3e;

/// Header type 1, one function.
const TYPE_1: u8 = 1;
/// Base and limit registers hold address bits 31:20 in bits 15:4.
const ADDRESS_BITS: u16 = 0xfff0;
/// Low bits of the prefetchable registers: the window has 64-bit addresses.
const WIDE: u16 = 1;

/// Bridge Control: forwarding of parity errors and of system errors.
const CONTROL_ERRORS: u16 = 0x3;
const SECONDARY_BUS_RESET: u16 = 1 << 6;

/// Unit and alignment of the windows.
pub(crate) const WINDOW_UNIT: u64 = 1 << 20;

impl ConfigBuilder {
    /// A type 1 header. Its I/O window does not exist: the registers are hardwired to zero.
    pub(crate) fn bridge(identity: Identity) -> Self {
        let mut builder = Self::new(identity);
        builder.put(HEADER_TYPE, &[TYPE_1]);
        builder.set_writable(PRIMARY_BUS, &[0xff; 3]);
        builder.set_write_one_to_clear(SECONDARY_STATUS, &STATUS_ERRORS.to_le_bytes());
        for register in [MEMORY_BASE, MEMORY_LIMIT] {
            builder.set_writable(register, &ADDRESS_BITS.to_le_bytes());
        }
        for register in [PREFETCHABLE_BASE, PREFETCHABLE_LIMIT] {
            builder.put(register, &WIDE.to_le_bytes());
            builder.set_writable(register, &ADDRESS_BITS.to_le_bytes());
        }
        builder.set_writable(PREFETCHABLE_BASE_UPPER, &[0xff; 4]);
        builder.set_writable(PREFETCHABLE_LIMIT_UPPER, &[0xff; 4]);
        let control = CONTROL_ERRORS | SECONDARY_BUS_RESET;
        builder.set_writable(BRIDGE_CONTROL, &control.to_le_bytes());
        let mut ids = [0; 6];
        ids[2..4].copy_from_slice(&identity.subsystem_vendor.to_le_bytes());
        ids[4..].copy_from_slice(&identity.subsystem_device.to_le_bytes());
        builder.add_capability(id::SUBSYSTEM, &ids, &[]);
        builder
    }
}

impl ConfigSpace {
    /// Secondary and subordinate bus number: the first and the last bus behind a bridge.
    pub(crate) fn buses_behind(&self) -> (u8, u8) {
        (self.read_u8(SECONDARY_BUS), self.read_u8(SUBORDINATE_BUS))
    }

    /// Sets the bus numbers of a bridge on bus 0 with one bus behind it.
    pub(crate) fn set_bus_behind(&mut self, bus: u8) {
        self.write(PRIMARY_BUS, &[0, bus, bus]);
    }

    /// Whether software holds the bus behind a bridge in reset.
    pub(crate) fn secondary_bus_reset(&self) -> bool {
        self.read_u16(BRIDGE_CONTROL) & SECONDARY_BUS_RESET != 0
    }

    /// The addresses that a bridge forwards: the memory window and the prefetchable one, as far as
    /// they exist. None while Memory Space is disabled.
    pub(crate) fn forwarded(&self) -> [Option<Range<u64>>; 2] {
        if !self.command().memory {
            return [None, None];
        }
        let address = |register| u64::from(self.read_u16(register) & ADDRESS_BITS) << 16;
        let upper = |register| u64::from(self.read_u32(register)) << 32;
        let window = |base: u64, limit: u64| {
            let last = limit | (WINDOW_UNIT - 1);
            (base <= last).then(|| base..last.saturating_add(1))
        };
        [
            window(address(MEMORY_BASE), address(MEMORY_LIMIT)),
            window(
                upper(PREFETCHABLE_BASE_UPPER) | address(PREFETCHABLE_BASE),
                upper(PREFETCHABLE_LIMIT_UPPER) | address(PREFETCHABLE_LIMIT),
            ),
        ]
    }

    /// Sets the windows of a bridge, as firmware does. Both ends are multiples of [`WINDOW_UNIT`],
    /// the first window lies below 4 GiB; an empty one is closed.
    pub(crate) fn set_windows(&mut self, memory: &Range<u64>, prefetchable: &Range<u64>) {
        let (base, limit) = ends(memory);
        self.write(MEMORY_BASE, &middle(base));
        self.write(MEMORY_LIMIT, &middle(limit));
        let (base, limit) = ends(prefetchable);
        self.write(PREFETCHABLE_BASE, &middle(base));
        self.write(PREFETCHABLE_LIMIT, &middle(limit));
        self.write(PREFETCHABLE_BASE_UPPER, &upper_half(base));
        self.write(PREFETCHABLE_LIMIT_UPPER, &upper_half(limit));
    }
}

/// First and last address; the last below the first for an empty window.
fn ends(window: &Range<u64>) -> (u64, u64) {
    if window.is_empty() {
        (0xfff0_0000, 0)
    } else {
        (window.start, window.end - 1)
    }
}

/// Bits 31:16.
fn middle(address: u64) -> [u8; 2] {
    let [_, _, a, b, ..] = address.to_le_bytes();
    [a, b]
}

/// Bits 63:32.
fn upper_half(address: u64) -> [u8; 4] {
    let [_, _, _, _, half @ ..] = address.to_le_bytes();
    half
}
