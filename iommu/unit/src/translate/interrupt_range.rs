//! The interrupt address range 0xFEEx_xxxx, which no table translates (sec. 3.14).

/// Its address bits 63:20.
const INTERRUPT_RANGE: u64 = 0xfee;

/// Whether `address` is in the interrupt address range.
pub(crate) const fn is_interrupt_range(address: u64) -> bool {
    address >> 20 == INTERRUPT_RANGE
}

/// Log2 of the largest block, up to 2^`shift` bytes, around each of `addresses` that is outside of
/// the interrupt address range, whose addresses are dealt with one by one.
pub(super) fn block_shift(shift: u8, addresses: &[u64]) -> u8 {
    let overlaps =
        |address: &u64| shift > 20 && address >> shift == (INTERRUPT_RANGE << 20) >> shift;
    if addresses.iter().any(overlaps) {
        12
    } else {
        shift
    }
}
