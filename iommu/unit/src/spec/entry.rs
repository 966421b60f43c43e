//! What can be wrong with an entry of a remapping structure.

/// Why an entry cannot be used. Each is a fault reason of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryError {
    /// The present bit is clear. Nothing else in the entry means anything, but for FPD.
    NotPresent,
    /// Bits are set that the revision, or the absence of a capability, reserves.
    ReservedBits {
        /// Index of the first 64-bit word with such bits.
        word: usize,
        /// These bits.
        bits: u64,
    },
    /// A field has a value that is not defined, that no capability offers, or that contradicts another field.
    Unsupported,
}

/// Finds the first word of `words` that has bits of `reserved`.
pub(super) fn check_reserved<const N: usize>(
    words: &[u64; N],
    reserved: &[u64; N],
) -> Result<(), EntryError> {
    for (word, (value, mask)) in words.iter().zip(reserved).enumerate() {
        let bits = value & mask;
        if bits != 0 {
            return Err(EntryError::ReservedBits { word, bits });
        }
    }
    Ok(())
}

/// `bits` when a capability is absent, which reserves them.
pub(super) const fn reserved_without(capability: bool, bits: u64) -> u64 {
    if capability { 0 } else { bits }
}

/// Bits `high` to `low`.
pub(super) const fn field(high: u32, low: u32) -> u64 {
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

/// A single bit.
pub(super) const fn bit(position: u32) -> u64 {
    1 << position
}

/// Bits `high` to `low` of `word`, shifted down.
pub(super) const fn extract(word: u64, high: u32, low: u32) -> u64 {
    (word & field(high, low)) >> low
}
