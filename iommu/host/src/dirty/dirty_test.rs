//! Bits become runs of pages.

use super::*;

fn runs_of(words: &[u64]) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    runs(words, |first, pages| found.push((first, pages)));
    found
}

#[test]
fn runs_go_on_from_word_to_word() {
    assert_eq!(runs_of(&[]), []);
    assert_eq!(runs_of(&[0, 0]), []);
    assert_eq!(runs_of(&[0b1011, 0]), [(0, 2), (3, 1)]);
    assert_eq!(runs_of(&[u64::MAX, u64::MAX]), [(0, 128)]);
    assert_eq!(runs_of(&[1 << 63, 1]), [(63, 2)]);
    assert_eq!(runs_of(&[1 << 63, 2]), [(63, 1), (65, 1)]);
}
