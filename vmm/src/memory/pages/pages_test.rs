//! Sets of pages.

use vm_memory::{GuestMemoryBackend as _, GuestMemoryMmap};

use super::*;

const HIGH: u64 = 0x1_0000_0000;

/// 130 pages, and one.
fn memory() -> GuestRam {
    let ranges = [(GuestAddress(0), 130 << 12), (GuestAddress(HIGH), 0x1000)];
    GuestMemoryMmap::from_ranges(&ranges).expect("mappable")
}

fn runs(pages: &Pages, most: usize) -> Vec<(u64, usize)> {
    let runs = pages.runs(most).take(1000);
    runs.map(|(address, pages)| (address.0, pages)).collect()
}

#[test]
fn all_pages_are_those_of_each_region_and_no_more() {
    let pages = Pages::all(&memory());
    assert_eq!(pages.count(), 131);
    assert!(!pages.is_empty());
    assert_eq!(runs(&pages, usize::MAX), [(0, 130), (HIGH, 1)]);
}

#[test]
fn no_page_is_no_run() {
    let pages = Pages::none(&memory());
    assert_eq!(pages.count(), 0);
    assert!(pages.is_empty());
    assert_eq!(runs(&pages, 1), []);
}

#[test]
fn runs_are_as_long_as_is_wanted_at_the_most() {
    let pages = Pages::all(&memory());
    let parts = [(0, 60), (0x3_c000, 60), (0x7_8000, 10), (HIGH, 1)];
    assert_eq!(runs(&pages, 60), parts);
    assert_eq!(runs(&pages, 1).len(), 131);
    // A caller that wants none would wait for ever.
    assert_eq!(runs(&pages, 0).len(), 131);
}

#[test]
fn runs_begin_and_end_anywhere_in_a_word() {
    let mut pages = Pages::none(&memory());
    pages.insert(0, &[1 << 63 | 0b1101, 0b1, 0b10]);
    let expected = [(0, 1), (0x2000, 2), (0x3_f000, 2), (0x8_1000, 1)];
    assert_eq!(runs(&pages, 99), expected);
    assert_eq!(pages.count(), 6);
    let mut pages = Pages::none(&memory());
    pages.insert(0, &[0, u64::MAX]);
    assert_eq!(runs(&pages, 99), [(0x4_0000, 64)]);
}

#[test]
fn what_is_beyond_a_region_is_left_out() {
    let mut pages = Pages::none(&memory());
    pages.insert(0, &[0, 0, 0b111, 0b1]);
    pages.insert(1, &[0b11]);
    pages.insert(2, &[0b1]);
    assert_eq!(runs(&pages, 99), [(0x8_0000, 2), (HIGH, 1)]);
}

#[test]
fn a_run_that_is_added_ends_with_its_region() {
    let mut pages = Pages::none(&memory());
    for (start, count) in [
        (0x1000, 1),
        (0x3_e000, 3),
        (0x8_1000, 5),
        (HIGH, u64::MAX),
        (HIGH + 0x1000, 1),
        (0xffff_f000, 1),
        (u64::MAX - 0xfff, u64::MAX),
    ] {
        pages.add(GuestAddress(start), count);
    }
    let expected = [(0x1000, 1), (0x3_e000, 3), (0x8_1000, 1), (HIGH, 1)];
    assert_eq!(runs(&pages, 99), expected);
}

#[test]
fn a_merged_set_has_the_pages_of_both() {
    let mut pages = Pages::none(&memory());
    pages.insert(0, &[0b101]);
    let mut other = Pages::none(&memory());
    other.insert(0, &[0b110]);
    other.insert(1, &[0b1]);
    pages.merge(&other);
    assert_eq!(runs(&pages, 99), [(0, 3), (HIGH, 1)]);
    assert_eq!(runs(&other, 99), [(0x1000, 2), (HIGH, 1)]);
}

#[test]
fn a_set_is_what_a_plain_list_of_its_pages_says() {
    let memory = memory();
    let mut random = 1_u64;
    for _ in 0..200 {
        let mut word = || {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            // Long runs of ones and of zeros, as well as mixtures.
            match random >> 62 {
                0 => 0,
                1 => u64::MAX,
                2 => u64::MAX << (random >> 56 & 63),
                _ => random,
            }
        };
        let words = [word(), word(), word()];
        let mut pages = Pages::none(&memory);
        pages.insert(0, &words);
        let expected: Vec<u64> = (0..130)
            .filter(|page| words[page / 64] & 1 << (page % 64) != 0)
            .map(|page| page as u64 * 0x1000)
            .collect();
        let found: Vec<u64> = pages
            .runs(7)
            .flat_map(|(start, pages)| (0..pages as u64).map(move |page| start.0 + page * 0x1000))
            .collect();
        assert_eq!(found, expected);
        assert!(memory.num_regions() == 2 && pages.count() == expected.len() as u64);
    }
}
