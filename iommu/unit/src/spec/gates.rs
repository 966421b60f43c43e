//! Capabilities and widths, in the form in which entries are checked against them.

use super::registers::Caps;

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

    /// Whether an untranslated request may have `address` where it is passed through: within HAW, and within MGAW, which
    /// bounds the addresses of all untranslated requests (section 11.4.2).
    pub fn within_pass_through(&self, address: u64) -> bool {
        self.within_host(address)
            && address
                .checked_shr(self.caps.guest_address_width().into())
                .unwrap_or(0)
                == 0
    }

    /// Bits 63:HAW.
    pub const fn beyond_host(&self) -> u64 {
        u64::MAX << self.host_address_width
    }

    /// Bits 51:HAW, which are reserved in page-table entries.
    pub const fn beyond_host_in_page_tables(&self) -> u64 {
        self.beyond_host() & ((1 << 52) - 1)
    }

    /// The width of the input addresses of a second stage with `levels` levels: the smaller of MGAW and AW.
    pub fn second_stage_width(&self, levels: u8) -> u8 {
        (12 + 9 * levels).min(self.caps.guest_address_width())
    }

    /// The number of levels that an AW field stands for, when SAGAW offers it: 1 is 3, 2 is 4, 3 is 5.
    pub fn second_stage_levels(&self, width_field: u64) -> Option<u8> {
        let levels = match width_field {
            1 => 3,
            2 => 4,
            3 => 5,
            _ => return None,
        };
        (self.caps.cap.sagaw() >> width_field & 1 == 1).then_some(levels)
    }

    /// Whether `levels` is the deepest second stage that SAGAW offers.
    pub fn is_deepest(&self, levels: u8) -> bool {
        [3, 2, 1]
            .into_iter()
            .find_map(|field| self.second_stage_levels(field))
            == Some(levels)
    }
}
