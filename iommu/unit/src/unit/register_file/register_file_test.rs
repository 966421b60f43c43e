//! The register file alone.

use super::*;

fn file() -> RegisterFile {
    RegisterFile::new(&[
        Register::word(0x10)
            .reset(0x1234_5678)
            .writable(0x0000_FFFF),
        Register::quad(0x18)
            .writable(0xFFFF_0000_0000_00F0)
            .clears(0x8)
            .hidden(0x10),
    ])
}

#[test]
fn a_write_changes_writable_bits_only() {
    let mut file = file();
    file.store(0x10, 0xAAAA_AAAA);
    assert_eq!(file.load(0x10), 0x1234_AAAA);
    file.store(0x18, 0xFFFF_FFFF);
    file.store(0x1C, 0xFFFF_FFFF);
    assert_eq!(file.get_quad(0x18), 0xFFFF_0000_0000_00F0);
}

#[test]
fn writing_one_clears_and_writing_zero_keeps() {
    let mut file = file();
    file.set(0x18, 0x8);
    file.store(0x18, 0);
    assert_eq!(file.load(0x18), 0x8);
    file.store(0x18, 0x8);
    assert_eq!(file.load(0x18), 0);
}

#[test]
fn hidden_bits_are_kept_and_read_as_zero() {
    let mut file = file();
    file.store(0x18, 0x30);
    assert_eq!(file.load(0x18), 0x20);
    assert_eq!(file.get(0x18), 0x30);
}

#[test]
fn unknown_offsets_read_zero_and_ignore_writes() {
    let mut file = file();
    for at in [0, 0xC, 0x14, 0x20, 0xFFC] {
        file.store(at, u32::MAX);
        file.set(at, 0);
        assert_eq!(file.load(at), 0);
    }
}

#[test]
fn reset_restores_every_value() {
    let mut file = file();
    file.store(0x10, 1);
    file.set_quad(0x18, u64::MAX);
    file.reset();
    assert_eq!(file.load(0x10), 0x1234_5678);
    assert_eq!(file.get_quad(0x18), 0);
}

#[test]
fn only_aligned_words_and_quads_are_accesses() {
    let list = |at, length| words(at, length).collect::<Vec<_>>();
    assert_eq!(list(0x20, 4), [0x20]);
    assert_eq!(list(0x24, 4), [0x24]);
    assert_eq!(list(0x20, 8), [0x20, 0x24]);
    assert_eq!(list(0xFF8, 8), [0xFF8, 0xFFC]);
    for (at, length) in [
        (0x24, 8),
        (0x22, 4),
        (0x21, 8),
        (0x20, 1),
        (0x20, 2),
        (0x20, 3),
    ] {
        assert!(list(at, length).is_empty(), "{at:#x} {length}");
    }
    for (at, length) in [
        (0x20, 0),
        (0x20, 16),
        (0x1000, 4),
        (0x1_0000_0020, 4),
        (u64::MAX - 7, 8),
    ] {
        assert!(list(at, length).is_empty(), "{at:#x} {length}");
    }
}
