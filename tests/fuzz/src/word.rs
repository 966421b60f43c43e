//! Values as guests write them: mostly pointers with flags, as table entries and registers have
//! them.

use arbitrary::{Arbitrary, Unstructured};

use crate::guest::{Guest, LOW_PAGES};

/// A 64-bit value or address.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Word {
    /// Anything.
    Raw(u64),
    /// A page of low memory, with what stands in bits 11:0, and in bits 63:56.
    Entry {
        page: u8,
        flags: u16,
        high: u8,
    },
    /// A place around the end of guest memory.
    AtEnd {
        before: u16,
        flags: u8,
    },
    Small(u16),
}

impl Word {
    pub(crate) fn value(self, guest: &Guest) -> u64 {
        match self {
            Self::Raw(value) => value,
            Self::Entry { page, flags, high } => {
                (u64::from(page) % LOW_PAGES) << 12
                    | u64::from(flags) & 0xFFF
                    | u64::from(high) << 56
            }
            Self::AtEnd { before, flags } => {
                (guest.end() + 0x2000 - u64::from(before)) & !0xFF | u64::from(flags)
            }
            Self::Small(value) => value.into(),
        }
    }
}

/// Who makes a request.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Source {
    /// 00:03.0.
    Usual,
    Other(u16),
}

impl Source {
    pub(crate) fn id(self) -> u16 {
        match self {
            Self::Usual => 0x0018,
            Self::Other(id) => id,
        }
    }
}

/// Decodes all of `data`; `None` when it is too short.
pub(crate) fn decode<'a, T: Arbitrary<'a>>(data: &'a [u8]) -> Option<T> {
    T::arbitrary_take_rest(Unstructured::new(data)).ok()
}
