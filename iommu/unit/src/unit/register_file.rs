//! The register file: registers as data, and the one place that splits accesses (sections 11.2 and 11.3).
//!
//! A file knows masks and values and nothing about effects. Every access ends up as aligned 32-bit words, so an effect belongs
//! to the word that holds the bit: the high one for CCMD.ICC, IOTLB_REG.IVT and FRCD.F, as the section asks.

/// Size in bytes of the register window.
pub const REGISTER_WINDOW_SIZE: u64 = 0x1000;

/// One register of 32 or 64 bits. Bits that no mask names are read-only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Register {
    /// Where it is; a multiple of its size.
    pub(crate) offset: u16,
    /// 4 or 8.
    pub(crate) size: u8,
    /// Value after reset.
    pub(crate) reset: u64,
    /// Bits that software writes.
    pub(crate) writable: u64,
    /// RW1C: bits that software clears by writing 1.
    pub(crate) clears: u64,
    /// WO: writable bits that read as 0.
    pub(crate) hidden: u64,
}

impl Register {
    /// A 32-bit register that software cannot change.
    pub(crate) const fn word(offset: u16) -> Self {
        Self {
            offset,
            size: 4,
            reset: 0,
            writable: 0,
            clears: 0,
            hidden: 0,
        }
    }

    /// A 64-bit register that software cannot change.
    pub(crate) const fn quad(offset: u16) -> Self {
        Self {
            size: 8,
            ..Self::word(offset)
        }
    }

    pub(crate) const fn reset(self, reset: u64) -> Self {
        Self { reset, ..self }
    }

    pub(crate) const fn writable(self, writable: u64) -> Self {
        Self { writable, ..self }
    }

    pub(crate) const fn clears(self, clears: u64) -> Self {
        Self { clears, ..self }
    }

    pub(crate) const fn hidden(self, hidden: u64) -> Self {
        Self { hidden, ..self }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Masks {
    /// There is a register.
    exists: bool,
    reset: u32,
    writable: u32,
    clears: u32,
    hidden: u32,
}

/// Values and masks of a set of registers. Offsets of other registers read 0 and ignore writes.
#[derive(Debug)]
pub(crate) struct RegisterFile {
    values: Vec<u32>,
    masks: Vec<Masks>,
}

impl RegisterFile {
    /// A file with the values after reset.
    pub(crate) fn new(registers: &[Register]) -> Self {
        let end = registers
            .iter()
            .map(|register| usize::from(register.offset) + usize::from(register.size))
            .max()
            .unwrap_or(0);
        let mut masks = vec![Masks::default(); end / 4];
        for register in registers {
            let words = usize::from(register.size / 4);
            let first = usize::from(register.offset / 4);
            for (part, slot) in masks.iter_mut().skip(first).take(words).enumerate() {
                *slot = Masks {
                    exists: true,
                    reset: half(register.reset, part),
                    writable: half(register.writable, part),
                    clears: half(register.clears, part),
                    hidden: half(register.hidden, part),
                };
            }
        }
        let values = masks.iter().map(|masks| masks.reset).collect();
        Self { values, masks }
    }

    /// Back to the values after reset.
    pub(crate) fn reset(&mut self) {
        for (value, masks) in self.values.iter_mut().zip(&self.masks) {
            *value = masks.reset;
        }
    }

    /// Where the words of registers are, in ascending order.
    pub(crate) fn offsets(&self) -> impl Iterator<Item = u16> + '_ {
        (0..)
            .step_by(4)
            .zip(&self.masks)
            .filter_map(|(offset, masks)| masks.exists.then_some(offset))
    }

    /// What software reads from the word at `offset`.
    pub(crate) fn load(&self, offset: u16) -> u32 {
        let hidden = self
            .masks
            .get(index(offset))
            .map_or(0, |masks| masks.hidden);
        self.get(offset) & !hidden
    }

    /// What software writes to the word at `offset`.
    pub(crate) fn store(&mut self, offset: u16, value: u32) {
        let at = index(offset);
        if let (Some(old), Some(masks)) = (self.values.get_mut(at), self.masks.get(at)) {
            let kept = *old & !masks.writable;
            *old = (kept | value & masks.writable) & !(value & masks.clears);
        }
    }

    /// The word at `offset`, hidden bits included.
    pub(crate) fn get(&self, offset: u16) -> u32 {
        self.values.get(index(offset)).copied().unwrap_or(0)
    }

    /// Sets the word at `offset`, read-only bits included.
    pub(crate) fn set(&mut self, offset: u16, value: u32) {
        if let Some(word) = self.values.get_mut(index(offset)) {
            *word = value;
        }
    }

    /// The 64-bit register at `offset`, hidden bits included.
    pub(crate) fn get_quad(&self, offset: u16) -> u64 {
        u64::from(self.get(offset)) | u64::from(self.get(offset + 4)) << 32
    }

    /// Sets the 64-bit register at `offset`, read-only bits included.
    pub(crate) fn set_quad(&mut self, offset: u16, value: u64) {
        self.set(offset, half(value, 0));
        self.set(offset + 4, half(value, 1));
    }
}

fn index(offset: u16) -> usize {
    usize::from(offset / 4)
}

/// Word 0 or 1 of a 64-bit value.
pub(super) fn half(value: u64, part: usize) -> u32 {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    match part {
        0 => u32::from_le_bytes([a, b, c, d]),
        _ => u32::from_le_bytes([e, f, g, h]),
    }
}

/// The words that an access of `length` bytes at `offset` consists of, low one first; none if the access is not one that
/// registers take: 4 bytes aligned to 4, or 8 bytes aligned to 8.
pub(crate) fn words(offset: u64, length: usize) -> impl Iterator<Item = u16> + Clone {
    let whole = match length {
        4 => offset.is_multiple_of(4),
        8 => offset.is_multiple_of(8),
        _ => false,
    };
    let count = if whole && offset < REGISTER_WINDOW_SIZE {
        length / 4
    } else {
        0
    };
    let first = u16::try_from(offset).unwrap_or(0);
    (first..).step_by(4).take(count)
}

#[cfg(test)]
mod register_file_test;
