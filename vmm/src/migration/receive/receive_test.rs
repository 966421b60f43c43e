//! Sources that are not what they should be.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::thread;
use std::time::Instant;

use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::{AtomicBitmap, Bitmap as _};

use super::super::error::StreamError;
use super::super::testing::{
    LONG, Numbers, PIECES, contents, fill, frame, header, hello, hello_frame, memory, pair, run,
    saying,
};
use super::*;
use crate::config::MemoryConfig;
use crate::memory::{Backing, allocate, shared};

/// Goes through a whole migration as a target does, until the guest is given. Returns the rounds and the
/// state.
fn receive<M: GuestMemoryBackend>(link: Link, memory: &M) -> Result<(u32, Vec<u8>)> {
    let (mut receiver, heard) = Receiver::accept(link, LONG)?;
    assert_eq!(heard, hello());
    receiver.accepted("a host")?;
    let mut rounds = 0;
    let state = loop {
        match receiver.next(memory, LONG)? {
            Item::Round(number) => rounds = number,
            Item::All { state, paused } => {
                assert!(paused);
                break state;
            }
        }
    };
    receiver.ready()?;
    receiver.wait_for_yours(LONG)?;
    receiver.running()?;
    Ok((rounds, state))
}

/// The frames of a whole stream with little in it.
fn frames() -> Vec<Vec<u8>> {
    vec![
        hello_frame(),
        frame(0x02, &run(0x1000, 0, &[7; 4096])),
        frame(0x03, &run(0x20_000, 16, &[])),
        frame(0x04, &1u32.to_le_bytes()),
        frame(0x03, &run(0x2000, 1, &[])),
        frame(0x04, &2u32.to_le_bytes()),
        frame(0x02, &run(0x3000, 0, &[8; 4096])),
        frame(0x05, b"the state "),
        frame(0x05, b"of it"),
        frame(0x06, &[1]),
        frame(0x07, b""),
    ]
}

/// What is wrong with a stream that begins with HELLO and goes on with `frames`.
fn wrong_with(frames: &[u8]) -> String {
    let (link, _peer) = saying(&[&hello_frame(), frames].concat());
    match receive(link, &memory()) {
        Err(StreamError::Wrong(what)) => what,
        other => panic!("it is not wrong: {other:?}"),
    }
}

#[test]
fn a_whole_stream_is_taken_and_answered() {
    let memory = memory();
    fill(&memory, 0x2000, 1);
    fill(&memory, 0x2f_000, 1);
    let (link, mut peer) = saying(&frames().concat());
    let received = receive(link, &memory).expect("a good stream");
    assert_eq!(received, (2, b"the state of it".to_vec()));
    let mut expected = vec![0; 0x20_000];
    expected[0x1000..0x2000].fill(7);
    expected[0x3000..0x4000].fill(8);
    assert!(contents(&memory) == expected);
    let mut answers = Vec::new();
    peer.read_to_end(&mut answers).expect("answers and an end");
    let expected = [
        frame(0x81, b"a host"),
        frame(0x83, &1u32.to_le_bytes()),
        frame(0x83, &2u32.to_le_bytes()),
        frame(0x84, b""),
        frame(0x86, b""),
    ];
    assert_eq!(answers, expected.concat());
}

#[test]
fn each_byte_that_is_changed_is_found() {
    let memory = memory();
    let good = frames().concat();
    for place in 0..good.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[place] ^= change;
            let (link, _peer) = saying(&bytes);
            let outcome = receive(link, &memory);
            assert!(outcome.is_err(), "byte {place} by {change:#x}");
        }
    }
}

#[test]
fn a_stream_that_ends_anywhere_gives_no_guest() {
    let memory = memory();
    let good = frames().concat();
    for length in 0..good.len() {
        let (link, _peer) = saying(&good[..length]);
        match receive(link, &memory) {
            Err(StreamError::Closed) => {}
            other => panic!("{length} bytes: {other:?}"),
        }
    }
}

#[test]
fn a_frame_that_is_left_out_or_comes_twice_or_in_anothers_place_is_told() {
    let good = frames();
    for place in 0..good.len() {
        for put in &good {
            let mut frames = good.clone();
            frames.insert(place, put.clone());
            // Memory before the state, parts of the state from there to LAST. What comes after the guest
            // was given nobody reads.
            let fits = match put[0] {
                0x02 | 0x03 => (1..=7).contains(&place),
                0x05 => (7..=9).contains(&place),
                0x07 => place == 10,
                _ => false,
            };
            let (link, _peer) = saying(&frames.concat());
            let is_taken = receive(link, &memory()).is_ok();
            assert_eq!(is_taken, fits, "{:#x} before {place}", put[0]);
        }
        let mut frames = good.clone();
        let kind = frames.remove(place)[0];
        // Nobody can know that they are missing, but for the round that others follow.
        let fits = matches!(kind, 0x02 | 0x03 | 0x05) || place == 5;
        let (link, _peer) = saying(&frames.concat());
        let is_taken = receive(link, &memory()).is_ok();
        assert_eq!(is_taken, fits, "without frame {place}");
    }
}

#[test]
fn a_state_cannot_be_nothing() {
    assert!(wrong_with(&frame(0x06, &[1])).contains("LAST instead of memory or state"));
}

#[test]
fn frames_of_a_target_are_not_taken() {
    for kind in 0x81..=0x86 {
        let payload: &[u8] = if kind == 0x83 { &[1, 0, 0, 0] } else { b"" };
        assert!(wrong_with(&frame(kind, payload)).contains("instead of memory or state"));
        let (link, _peer) = saying(&frame(kind, payload));
        assert!(receive(link, &memory()).is_err());
    }
}

#[test]
fn rounds_have_their_numbers() {
    let round = |number: u32| frame(0x04, &number.to_le_bytes());
    for numbers in [&[0][..], &[2], &[1, 1], &[1, 3], &[1, 0], &[u32::MAX]] {
        let frames: Vec<u8> = numbers.iter().flat_map(|number| round(*number)).collect();
        assert!(
            wrong_with(&frames).contains("ROUND of another number"),
            "{numbers:?}"
        );
    }
}

#[test]
fn a_length_that_no_frame_has_is_refused_before_anything_is_waited_for() {
    for (kind, length) in [
        (0x02, u32::MAX),
        (0x02, (1 << 20) + 17),
        (0x02, 16),
        (0x03, 32),
        (0x04, 5),
        (0x05, 0),
        (0x05, (1 << 20) + 1),
        (0x06, 0),
        (0x06, 2),
        (0x07, u32::MAX),
        (0x00, 0),
    ] {
        let (link, mut peer) = pair();
        let bytes = [&hello_frame()[..], &header(kind, [0; 3], length, 0)].concat();
        peer.write_all(&bytes).expect("there is room");
        // The peer could still send.
        let began = Instant::now();
        let outcome = receive(link, &memory());
        assert!(matches!(outcome, Err(StreamError::Wrong(_))), "{outcome:?}");
        assert!(began.elapsed() < LONG / 2);
    }
}

#[test]
fn pages_are_written_only_where_the_guest_has_memory() {
    let data = [1; 2 * 4096];
    for address in [
        0x800,
        // The last of a piece, and the one after it.
        0xf000,
        0x10_000,
        0x1f_000,
        0x2f_000,
        0x30_000,
        1 << 52,
        u64::MAX,
        u64::MAX - 4095,
    ] {
        let pages = frame(0x02, &run(address, 0, &data));
        assert!(
            wrong_with(&pages).contains("a page where the guest has none"),
            "{address:#x}"
        );
        let zeros = frame(0x03, &run(address, 2, &[]));
        assert!(
            wrong_with(&zeros).contains("a page where the guest has none"),
            "{address:#x}"
        );
    }
    for (address, number) in [(0, 1), (0, u64::MAX)] {
        assert!(wrong_with(&frame(0x02, &run(address, number, &data))).contains("reserved bits"));
    }
    for length in [4097, 8191] {
        let pages = frame(0x02, &run(0, 0, &data[..length]));
        assert!(wrong_with(&pages).contains("bytes of data"));
    }
    for number in [0, 65_537, u64::MAX] {
        assert!(wrong_with(&frame(0x03, &run(0, number, &[]))).contains("no page or of too many"));
    }
}

#[test]
fn zeros_are_written_only_over_what_is_not_zero() {
    let memory = GuestMemoryMmap::<AtomicBitmap>::from_ranges(&PIECES).expect("mappable");
    let first = memory
        .get_slice(GuestAddress(0x3000), 4096)
        .expect("memory");
    first.copy_from(&[0_u8; 4096]);
    first.subslice(4095, 1).expect("within").copy_from(&[1_u8]);
    let written = || {
        let low = memory.iter().next().expect("two pieces").bitmap();
        let dirty: Vec<_> = (0..16).filter(|page| low.dirty_at(page * 4096)).collect();
        low.reset();
        dirty
    };
    assert_eq!(written(), [3]);
    let frames = [
        hello_frame(),
        frame(0x03, &run(0, 16, &[])),
        frame(0x05, b"state"),
        frame(0x06, &[1]),
        frame(0x07, b""),
    ];
    receive(saying(&frames.concat()).0, &memory).expect("a good stream");
    assert_eq!(written(), [3]);
    assert!(contents(&memory) == [0; 0x20_000]);
}

#[test]
fn a_state_has_an_end() {
    let (link, mut peer) = pair();
    let source = thread::spawn(move || {
        let piece = frame(0x05, &[b' '; 1 << 20]);
        let _ = peer.write_all(&hello_frame());
        // It is cut off in the middle of this.
        let sent = (0..100)
            .take_while(|_| peer.write_all(&piece).is_ok())
            .count();
        (sent, peer)
    });
    match receive(link, &memory()) {
        Err(StreamError::Wrong(what)) => assert!(what.contains("a state of more than"), "{what}"),
        other => panic!("{other:?}"),
    }
    let (sent, _peer) = source.join().expect("no panic");
    assert!((64..80).contains(&sent), "{sent}");
}

#[test]
fn whoever_is_no_nido_is_told_so() {
    let mut newer = hello_frame();
    newer.splice(.., frame(0x01, b"nidomove\x02\0\0\0{}"));
    let (link, mut peer) = saying(&newer);
    assert!(Receiver::accept(link, LONG).is_err());
    let mut answer = Vec::new();
    peer.read_to_end(&mut answer).expect("an answer");
    let text = String::from_utf8_lossy(&answer[12..]).into_owned();
    assert_eq!(answer[0], 0x82);
    assert!(
        text.contains("version 2 of migration, where this nido has 1"),
        "{text}"
    );
    let (link, _peer) = saying(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let said = Receiver::accept(link, LONG)
        .expect_err("no nido")
        .to_string();
    assert!(said.contains("not what a nido sends"), "{said}");
}

#[test]
fn nothing_that_comes_is_more_than_an_error() {
    let memory = memory();
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let good = frames();
    let mut wrong = 0;
    for _ in 0..5000 {
        let mut bytes = Vec::new();
        for _ in 0..numbers.below(12) {
            match numbers.below(4) {
                // Anything.
                0 => bytes.extend((0..numbers.below(40)).map(|_| numbers.byte())),
                // A frame in order, somewhere.
                1 => bytes.extend(&good[numbers.below(good.len())]),
                // One of its kind and length, with anything in it.
                _ => {
                    let like = &good[numbers.below(good.len())];
                    let mut payload = like[12..].to_vec();
                    for _ in 0..numbers.below(24) {
                        if let Some(last) = payload.len().checked_sub(1) {
                            payload[numbers.below(last.min(24) + 1)] = numbers.byte();
                        }
                    }
                    bytes.extend(frame(like[0], &payload));
                }
            }
        }
        if numbers.below(2) == 0 {
            bytes.splice(0..0, hello_frame());
        }
        let (link, _peer) = saying(&bytes);
        let Ok((mut receiver, _)) = Receiver::accept(link, LONG) else {
            continue;
        };
        loop {
            match receiver.next(&memory, LONG) {
                Ok(_) => {}
                Err(StreamError::Closed) => break,
                Err(StreamError::Wrong(_)) => {
                    wrong += 1;
                    break;
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
    // It got as far as that.
    assert!(wrong > 500, "{wrong}");
}

#[test]
fn a_source_that_drips_does_not_outlast_patience() {
    let (link, mut peer) = pair();
    let source = thread::spawn(move || {
        let began = Instant::now();
        for byte in hello_frame().iter().cycle() {
            // Nobody is there any more.
            if peer.write_all(&[*byte]).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = peer.shutdown(Shutdown::Both);
        began.elapsed()
    });
    let patience = Duration::from_millis(100);
    let outcome = Receiver::accept(link, patience);
    assert!(
        matches!(outcome, Err(StreamError::Silent(waited)) if waited == patience),
        "{outcome:?}"
    );
    drop(outcome);
    assert!(source.join().expect("no panic") < LONG);
}

/// A device of the host that is there before the guest's memory has the pages of its file pinned: what a guest has
/// cleared is cleared there.
#[test]
fn a_page_that_was_sent_and_is_cleared_later_stays_the_page_that_it_is() {
    let memory = allocate(&MemoryConfig::plain(8 << 20), 0, Backing::File, None).expect("memory");
    let file = shared::file(&memory).expect("it is in a file");
    let blocks = || std::os::unix::fs::MetadataExt::blocks(&file.metadata().expect("a file"));
    let before = blocks();
    write_pages(&*memory, &run(0x3000, 0, &[7; 4096])).expect("memory");
    assert_eq!(blocks(), before + 8);
    write_zeros(&*memory, &run(0x2000, 3, &[])).expect("memory");
    assert_eq!(
        blocks(),
        before + 8,
        "none is given back, and none is taken"
    );
    let mut page = [1; 4096];
    vm_memory::Bytes::read_slice(&*memory, &mut page, GuestAddress(0x3000)).expect("memory");
    assert_eq!(page, [0; 4096]);
}
