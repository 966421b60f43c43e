//! Bus, device and function number: the name of a function, and its requester id (section 2.2.6.2).

use std::fmt;

/// A function's address on its segment: bus in bits 15:8, device in bits 7:3, function in bits 2:0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf(u16);

impl Bdf {
    /// The function `bus:device.function`, or `None` when the device is above 31 or the function
    /// above 7.
    #[must_use]
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device > 31 || function > 7 {
            return None;
        }
        Some(Self(
            (bus as u16) << 8 | (device as u16) << 3 | function as u16,
        ))
    }

    /// The function whose requester id is `id`; every 16-bit value is one.
    #[must_use]
    pub const fn from_requester_id(id: u16) -> Self {
        Self(id)
    }

    /// Bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.0.to_be_bytes()[0]
    }

    /// Device number, at most 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.devfn() >> 3
    }

    /// Function number, at most 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.devfn() & 7
    }

    /// Device and function in one byte, as VT-d's context tables are indexed.
    #[must_use]
    pub const fn devfn(self) -> u8 {
        self.0.to_be_bytes()[1]
    }

    /// The requester id: what VT-d calls the source-id.
    #[must_use]
    pub const fn as_u16(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x}:{:02x}.{}",
            self.bus(),
            self.device(),
            self.function()
        )
    }
}

impl fmt::Debug for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bdf_packs_as_a_requester_id() {
        let bdf = Bdf::new(0xff, 0x1f, 7).expect("in range");
        assert_eq!(bdf.as_u16(), 0xffff);
        let bdf = Bdf::new(0, 3, 0).expect("in range");
        assert_eq!(bdf.as_u16(), 0x18);
        assert_eq!(bdf.to_string(), "00:03.0");
        let bdf = Bdf::from_requester_id(0x1234);
        assert_eq!((bdf.bus(), bdf.device(), bdf.function()), (0x12, 6, 4));
    }

    #[test]
    fn device_and_function_numbers_beyond_the_field_are_refused() {
        assert_eq!(Bdf::new(0, 32, 0), None);
        assert_eq!(Bdf::new(0, 0, 8), None);
    }
}
