//! Capabilities and widths, in the form in which the walkers need them.

use crate::spec::registers::Caps;

/// What gates the walks of one unit. Immutable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gates {
    /// The capability words.
    pub caps: Caps,
    /// HAW: the width of a guest-physical address, 12 to 52 bits.
    pub host_address_width: u8,
}

impl Gates {
    /// Gates of a unit with `caps` whose guest-physical addresses have `host_address_width` bits.
    pub fn new(caps: Caps, host_address_width: u8) -> Self {
        Self {
            caps,
            host_address_width: host_address_width.clamp(12, 52),
        }
    }

    /// Whether `address` is within the host address width.
    pub const fn within_host(&self, address: u64) -> bool {
        address >> self.host_address_width == 0
    }

    /// Bits 63:HAW.
    pub const fn beyond_host(&self) -> u64 {
        u64::MAX << self.host_address_width
    }

    /// Bits 51:HAW, which are reserved in page-table entries.
    pub const fn beyond_host_in_page_tables(&self) -> u64 {
        self.beyond_host() & ((1 << 52) - 1)
    }

    /// The width of the input addresses of a second stage that is `width` bits wide: the smaller of MGAW and AW.
    pub fn second_stage_width(&self, width: u8) -> u8 {
        width.min(self.caps.guest_address_width())
    }
}
