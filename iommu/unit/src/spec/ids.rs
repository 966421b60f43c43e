//! Who a request comes from: requester (source) identity and process address space.

use std::fmt;

/// A PCI requester id: bus in 15:8, device in 7:3, function in 2:0 (sec. 3.4.1 of the VT-d specification).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u16);

impl SourceId {
    /// The bus number, which indexes the root table.
    pub const fn bus(self) -> u8 {
        self.0.to_be_bytes()[0]
    }

    /// Device and function, which index a context table.
    pub const fn devfn(self) -> u8 {
        self.0.to_be_bytes()[1]
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let devfn = self.devfn();
        write!(f, "{:02x}:{:02x}.{}", self.bus(), devfn >> 3, devfn & 7)
    }
}

/// A process address space id: 20 bits, as it stands in a PASID TLP prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pasid(u32);

impl Pasid {
    /// The largest value that a TLP prefix can carry.
    pub const MAX: Self = Self(0xf_ffff);
    /// What requests without a PASID are tagged with when RID_PASID is not supported.
    pub const ZERO: Self = Self(0);

    /// `None` when `value` does not fit in 20 bits.
    pub const fn new(value: u32) -> Option<Self> {
        if value <= Self::MAX.0 {
            Some(Self(value))
        } else {
            None
        }
    }

    /// The low 20 bits of `value`, for fields of exactly that width.
    pub(crate) const fn from_field(value: u64) -> Self {
        Self((value & 0xf_ffff) as u32)
    }

    /// The value.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
