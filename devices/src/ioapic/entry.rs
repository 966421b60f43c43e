//! A redirection table entry (82093AA section 3.2.4; remappable format: VT-d section 5.1.5.1).

use pci::MsiMessage;

use super::Route;

/// Which 32 bits of an entry a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Low,
    High,
}

const VECTOR: u64 = 0xff;
const DELIVERY_MODE: u64 = 0x700;
/// Destination mode, or bit 15 of the index in remappable format: on the wire it is the same bit.
const BIT_11: u64 = 1 << 11;
const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const REMAPPABLE: u64 = 1 << 48;

/// What software cannot write: delivery status, remote IRR, reserved bits 31:17 and 47:32.
const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR | 0x0000_ffff_fffe_0000;

/// Base of the interrupt address range.
const MESSAGE_BASE: u64 = 0xfee0_0000;
/// Message data: level assert and level-triggered.
const DATA_ASSERT: u32 = 1 << 14;
const DATA_LEVEL: u32 = 1 << 15;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry(u64);

impl Entry {
    /// Masked, everything else zero.
    pub(super) const RESET: Self = Self(MASKED);

    /// All of it, as software reads it.
    pub(super) fn bits(self) -> u64 {
        self.0
    }

    /// The entry that [`bits`](Self::bits) were of; `None` if there is no such entry.
    pub(super) fn saved(bits: u64) -> Option<Self> {
        let entry = Self(bits);
        let reserved = bits & READ_ONLY & !REMOTE_IRR != 0;
        let odd = entry.remote_irr() && !entry.level();
        (!reserved && !odd).then_some(entry)
    }

    pub(super) fn half(self, half: Half) -> u32 {
        let [a, b, c, d, e, f, g, h] = self.0.to_le_bytes();
        u32::from_le_bytes(match half {
            Half::Low => [a, b, c, d],
            Half::High => [e, f, g, h],
        })
    }

    pub(super) fn set_half(&mut self, half: Half, value: u32) {
        let (value, lanes) = match half {
            Half::Low => (u64::from(value), 0xffff_ffff_u64),
            Half::High => (u64::from(value) << 32, 0xffff_ffff_u64 << 32),
        };
        let writable = lanes & !READ_ONLY;
        self.0 = self.0 & !writable | value & writable;
        if !self.level() {
            // Remote IRR has no meaning for an edge; Linux clears it by switching to edge and back.
            self.set_remote_irr(false);
        }
    }

    pub(super) fn vector(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    pub(super) fn masked(self) -> bool {
        self.0 & MASKED != 0
    }

    pub(super) fn level(self) -> bool {
        self.0 & LEVEL != 0
    }

    pub(super) fn remappable(self) -> bool {
        self.0 & REMAPPABLE != 0
    }

    pub(super) fn remote_irr(self) -> bool {
        self.0 & REMOTE_IRR != 0
    }

    pub(super) fn set_remote_irr(&mut self, set: bool) {
        self.0 = if set {
            self.0 | REMOTE_IRR
        } else {
            self.0 & !REMOTE_IRR
        };
    }

    pub(super) fn message(self) -> MsiMessage {
        let address = MESSAGE_BASE | self.0 >> 48 << 4 | (self.0 & BIT_11) >> 9;
        let [a, b, ..] = (self.0 & (VECTOR | DELIVERY_MODE)).to_le_bytes();
        let mut data = u32::from(u16::from_le_bytes([a, b]));
        if self.level() {
            data |= DATA_ASSERT | DATA_LEVEL;
        }
        MsiMessage { address, data }
    }

    pub(super) fn route(self) -> Route {
        Route {
            message: self.message(),
            level: self.level(),
            masked: self.masked(),
        }
    }
}
