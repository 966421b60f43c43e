//! Page numbers of the driver as runs of pages: one call of the host for neighbours.

use vm_memory::GuestAddress;

use super::PAGE;

/// Most page numbers of a buffer. Linux gives 256 at a time.
pub(super) const MOST_NUMBERS: usize = 16 << 10;

/// The pages that `numbers` name, which are sorted here: where each run of neighbours begins, and its
/// bytes.
pub(super) fn runs(numbers: &mut [u32]) -> impl Iterator<Item = (GuestAddress, u64)> {
    numbers.sort_unstable();
    let sorted: &[u32] = numbers;
    sorted
        .chunk_by(|one, next| next - one <= 1)
        .filter_map(|run| {
            let (first, last) = (u64::from(*run.first()?), u64::from(*run.last()?));
            Some((GuestAddress(first * PAGE), (last - first + 1) * PAGE))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(numbers: &[u32]) -> Vec<(u64, u64)> {
        let mut numbers = numbers.to_vec();
        let runs = runs(&mut numbers);
        runs.map(|(start, length)| (start.0, length)).collect()
    }

    #[test]
    fn neighbours_in_any_order_are_one_run_and_a_number_counts_once() {
        assert_eq!(of(&[]), []);
        assert_eq!(of(&[7]), [(0x7000, 0x1000)]);
        assert_eq!(
            of(&[5, 3, 4, 9, 4, 3, 8]),
            [(0x3000, 0x3000), (0x8000, 0x2000)]
        );
    }

    #[test]
    fn the_last_page_that_can_be_named_does_not_wrap_around() {
        assert_eq!(
            of(&[u32::MAX, 0, u32::MAX - 1]),
            [(0, 0x1000), (0xfff_ffff_e000, 0x2000)]
        );
    }
}
