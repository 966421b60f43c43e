//! What the host is asked for.

use super::*;

const GIB: u64 = 1 << 30;

fn asked_for(input: u64, output: u64, length: u64) -> Vec<(u64, u64, u64)> {
    let area = Run {
        input,
        output,
        length,
        rights: Rights::ALL,
    };
    let pieces = pieces(&area).map(|piece| (piece.input, piece.output, piece.length));
    pieces.collect()
}

#[test]
fn no_huge_page_is_asked_for_in_parts() {
    assert_eq!(
        asked_for(0x1000, 0x7000, 0x1000),
        [(0x1000, 0x7000, 0x1000)]
    );
    assert_eq!(asked_for(0, 0, 2 * GIB), [(0, 0, GIB), (GIB, GIB, GIB)]);
    // From 0xfef00000, which is the end of the interrupt address range, to 5 GiB: a huge page at 4 GiB
    // is not torn.
    assert_eq!(
        asked_for(0xfef0_0000, 0xfef0_0000, 0x4110_0000),
        [
            (0xfef0_0000, 0xfef0_0000, 0x110_0000),
            (0x1_0000_0000, 0x1_0000_0000, GIB)
        ]
    );
    assert_eq!(
        asked_for(GIB - 0x1000, 0, 0x2000),
        [(GIB - 0x1000, 0, 0x1000), (GIB, 0x1000, 0x1000)]
    );
    // To the end of all addresses.
    assert_eq!(
        asked_for(u64::MAX - 0xfff, 0, 0xfff),
        [(u64::MAX - 0xfff, 0, 0xfff)]
    );
    assert_eq!(asked_for(0, 0, 0), []);
}
