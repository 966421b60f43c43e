//! Frames byte by byte.

use super::super::outbox::Outbox;
use super::super::testing::{frame, header, hello, hello_frame};
use super::*;

fn outbox(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut outbox = Outbox::default();
    outbox.frame(kind, payload);
    outbox.bytes().to_vec()
}

#[test]
fn frames_are_what_another_implementation_makes_of_them() {
    // The checksums are those of Python's zlib.
    let round = [
        0x04, 0, 0, 0, 4, 0, 0, 0, 0x8f, 0x94, 0x25, 0x44, 1, 0, 0, 0,
    ];
    assert_eq!(outbox(Kind::Round, &[1, 0, 0, 0]), round);
    let running = [0x86, 0, 0, 0, 0, 0, 0, 0, 0x34, 0x53, 0x76, 0xf0];
    assert_eq!(outbox(Kind::Running, &[]), running);
    assert_eq!(
        outbox(Kind::Hello, &hello().encode().expect("short")),
        hello_frame()
    );
}

#[test]
fn frames_follow_each_other() {
    let mut outbox = Outbox::default();
    outbox.frame(Kind::Last, &[0]);
    outbox.begin();
    outbox.add(b"too ");
    outbox.add(b"bad");
    outbox.end(Kind::Failed);
    outbox.frame(Kind::Yours, &[]);
    let all = [frame(0x06, &[0]), frame(0x85, b"too bad"), frame(0x07, b"")].concat();
    assert_eq!(outbox.bytes(), all);
    outbox.clear();
    outbox.frame(Kind::Ready, &[]);
    assert_eq!(outbox.bytes(), frame(0x84, b""));
}

#[test]
fn each_kind_has_the_lengths_of_its_table_and_no_others() {
    let mib = 1 << 20;
    let lengths = |kind: u8| match kind {
        0x01 => Some((12, mib)),
        0x02 => Some((4112, mib + 16)),
        0x03 => Some((16, 16)),
        0x04 | 0x83 => Some((4, 4)),
        0x05 => Some((1, mib)),
        0x81 | 0x82 | 0x85 => Some((0, 4096)),
        0x06 => Some((1, 1)),
        0x07 | 0x84 | 0x86 => Some((0, 0)),
        _ => None,
    };
    for kind in 0..=u8::MAX {
        for length in [
            0, 1, 3, 4, 5, 11, 12, 15, 16, 17, 64, 65, 4096, 4097, 4111, 4112,
        ]
        .into_iter()
        .chain([mib - 1, mib, mib + 1, mib + 16, mib + 17, 1 << 31, u32::MAX])
        {
            let parsed = Header::parse(&header(kind, [0; 3], length, 5));
            let good = lengths(kind).is_some_and(|(least, most)| length >= least && length <= most);
            assert_eq!(parsed.is_ok(), good, "{kind:#x} of {length}");
            if let Ok(header) = parsed {
                assert_eq!((header.kind as u8, header.length), (kind, length as usize));
            }
        }
    }
}

#[test]
fn reserved_bits_are_refused() {
    for bit in 0..24 {
        let [reserved @ .., _] = (1u32 << bit).to_le_bytes();
        assert!(Header::parse(&header(0x07, reserved, 0, 0)).is_err());
    }
}

#[test]
fn a_hello_says_what_was_said() {
    let payload = hello().encode().expect("short");
    assert_eq!(Hello::decode(&payload).expect("good"), hello());
}

#[test]
fn a_hello_that_is_none_is_told_by_what_is_wrong() {
    let good = hello().encode().expect("short");
    let said = |payload: &[u8]| Hello::decode(payload).expect_err("wrong").to_string();
    assert!(said(b"GET / HTTP/1.1\r\n").contains("begins like no migration"));
    assert!(said(&good[..11]).contains("begins like no migration"));
    let mut newer = good.clone();
    newer[8] = 2;
    let text = said(&newer);
    assert!(
        text.contains("version 2 of migration, where this nido has 1"),
        "{text}"
    );
    assert!(text.contains("use the same nido on both sides"), "{text}");
    for json in [
        &b""[..],
        b"{}",
        b"[]",
        b"{\"writer\":1}",
        b"\xff",
        &[b'['; 100_000],
    ] {
        let text = said(&[&good[..12], json].concat());
        assert!(text.contains("a description of no machine"), "{text}");
    }
    let more = [&good[..good.len() - 1], b",\"more\":1}"].concat();
    assert!(said(&more).contains("a description of no machine"));
}

#[test]
fn a_machine_of_endless_options_is_not_offered() {
    let mut long = hello();
    long.options.push("x".repeat(1 << 20));
    let said = long.encode().expect_err("too long").to_string();
    assert!(said.contains("1048576 are the most"), "{said}");
}

#[test]
fn texts_are_cut_between_letters_and_shown_without_control_characters() {
    assert_eq!(decode_text(encode_text("no disk `ä`")), "no disk `ä`");
    let long = "x".repeat(4095) + "ä";
    assert_eq!(encode_text(&long), &[b'x'; 4095]);
    assert_eq!(decode_text(b"a\x1b[2J\nb\xff"), "a\\u{1b}[2J\\nb\u{fffd}");
}
