//! Memory base address registers (section 7.5.1.2.1).

/// What kind of memory a base address register asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// 32-bit, not prefetchable; occupies one register.
    Memory32,
    /// 64-bit; occupies two registers.
    Memory64 {
        /// Reads have no side effects and writes may be merged.
        prefetchable: bool,
    },
}

impl BarKind {
    /// The read-only type bits 3:0 of the first register.
    pub(crate) const fn type_bits(self) -> u32 {
        match self {
            Self::Memory32 => 0,
            Self::Memory64 {
                prefetchable: false,
            } => 0b0100,
            Self::Memory64 { prefetchable: true } => 0b1100,
        }
    }

    /// How many registers the BAR occupies.
    pub(crate) const fn registers(self) -> usize {
        match self {
            Self::Memory32 => 1,
            Self::Memory64 { .. } => 2,
        }
    }
}

/// A base address register that exists.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bar {
    pub(crate) kind: BarKind,
    /// Power of two, at least 16.
    pub(crate) size: u64,
}

/// The range of addresses that a BAR decodes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarWindow {
    /// Index of the BAR's first register, 0 to 5.
    pub bar: usize,
    /// Guest-physical address of the first byte.
    pub base: u64,
    /// Bytes.
    pub size: u64,
}

impl BarWindow {
    /// The last address inside, or `None` when the window would wrap around the address space.
    #[must_use]
    pub const fn last(&self) -> Option<u64> {
        match self.size.checked_sub(1) {
            Some(span) => self.base.checked_add(span),
            None => None,
        }
    }
}
