//! Guest memory that is written to a file, and comes from one.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::config::MemoryConfig;
use crate::memory::{Backing, Memory, allocate};

const SIZE: u64 = 32 << 20;
/// Somewhere in a piece, at its end and the beginning of the next one, and at the end of memory.
const PLACES: [u64; 4] = [0x3008, 0x1f_fff8, 0x20_0000, SIZE - 8];

fn file() -> File {
    memfd_create(c"snapshot", MFdFlags::empty())
        .expect("a memfd")
        .into()
}

fn ram(backing: Backing, source: Option<&Arc<File>>) -> Memory {
    let config = MemoryConfig::plain(SIZE);
    allocate(&config, 0, backing, source).expect("memory")
}

fn save(memory: &Memory, source: Option<&File>) -> Arc<File> {
    let mut to = file();
    let mut seen = 0;
    let progress = |now| {
        assert!(now > seen);
        seen = now;
        Ok(())
    };
    let touched = Touched::new(memory, source);
    touched.write(&mut to, progress).expect("saved");
    assert_eq!(seen, SIZE);
    assert_eq!(to.metadata().expect("metadata").len(), SIZE);
    Arc::new(to)
}

fn word(memory: &Memory, place: u64) -> u64 {
    memory.read_obj(GuestAddress(place)).expect("memory")
}

fn write(memory: &Memory, place: u64, value: u64) {
    memory
        .write_obj(value, GuestAddress(place))
        .expect("memory");
}

/// Bytes that a file takes.
fn occupied(file: &File) -> u64 {
    file.metadata().expect("metadata").blocks() * 512
}

#[test]
fn memory_comes_back_from_its_file_and_what_was_not_touched_takes_no_room() {
    for from in [Backing::Anonymous, Backing::File] {
        let memory = ram(from, None);
        for place in PLACES {
            write(&memory, place, place | 1);
        }
        // Touched, but with nothing in it.
        write(&memory, 0x80_0000, 0);
        let saved = save(&memory, None);
        assert!(occupied(&saved) <= PLACES.len() as u64 * PAGE as u64);
        for to in [Backing::Anonymous, Backing::File] {
            let memory = ram(to, Some(&saved));
            for place in PLACES {
                assert_eq!(
                    word(&memory, place),
                    place | 1,
                    "{from:?} {to:?} {place:#x}"
                );
                assert_eq!(word(&memory, place ^ 8), 0);
            }
        }
    }
}

#[test]
fn what_the_guest_writes_never_reaches_the_file_that_it_came_from() {
    let memory = ram(Backing::Anonymous, None);
    write(&memory, 0x3008, 1);
    let saved = save(&memory, None);
    let (one, other) = (
        ram(Backing::Anonymous, Some(&saved)),
        ram(Backing::Anonymous, Some(&saved)),
    );
    write(&one, 0x3008, 2);
    write(&one, 0x9000, 3);
    assert_eq!((word(&other, 0x3008), word(&other, 0x9000)), (1, 0));
    let again = ram(Backing::Anonymous, Some(&saved));
    assert_eq!((word(&again, 0x3008), word(&again, 0x9000)), (1, 0));
}

#[test]
fn a_restored_memory_is_saved_with_what_came_from_the_file_and_what_was_written_since() {
    let memory = ram(Backing::Anonymous, None);
    write(&memory, 0x3008, 1);
    write(&memory, 0x20_0000, 2);
    write(&memory, 0x50_0000, 3);
    let first = save(&memory, None);
    let restored = ram(Backing::Anonymous, Some(&first));
    write(&restored, 0x20_0000, 4);
    // Zeros where the file has data.
    write(&restored, 0x50_0000, 0);
    write(&restored, SIZE - 8, 5);
    let second = save(&restored, Some(&first));
    let again = ram(Backing::Anonymous, Some(&second));
    let words = [0x3008, 0x20_0000, 0x50_0000, SIZE - 8].map(|place| word(&again, place));
    assert_eq!(words, [1, 4, 0, 5]);
}

#[test]
fn a_file_that_is_too_short_for_its_memory_is_an_error() {
    let saved = file();
    saved.set_len(SIZE - 1).expect("a length");
    saved.write_all_at(&[1], SIZE - 2).expect("data");
    let memory = ram(Backing::File, None);
    let error = fill(&memory, &saved).expect_err("too short");
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_failure_to_tell_ends_the_writing() {
    let memory = ram(Backing::Anonymous, None);
    let touched = Touched::new(&memory, None);
    let refuse = |_| Err(io::ErrorKind::BrokenPipe.into());
    let error = touched
        .write(&mut file(), refuse)
        .expect_err("nobody hears");
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_host_that_does_not_show_pages_has_all_of_them_saved() {
    let memory = ram(Backing::Anonymous, None);
    write(&memory, 0x3008, 1);
    let blind = Touched {
        pagemap: None,
        ..Touched::new(&memory, None)
    };
    let mut saved = file();
    blind.write(&mut saved, |_| Ok(())).expect("saved");
    let memory = ram(Backing::Anonymous, Some(&Arc::new(saved)));
    assert_eq!(word(&memory, 0x3008), 1);
}

#[test]
fn the_pages_that_were_touched_are_known_and_no_more_of_a_private_memory() {
    let none = ram(Backing::Anonymous, None);
    let saved = save(&none, None);
    for (backing, source) in [
        (Backing::Anonymous, None),
        (Backing::Anonymous, Some(&saved)),
        (Backing::File, None),
    ] {
        let memory = ram(backing, source);
        for place in PLACES {
            write(&memory, place, 1);
        }
        let pages = Touched::new(&memory, source.map(AsRef::as_ref)).pages();
        let pages = pages.expect("the host tells");
        let has = |place: u64| {
            let mut runs = pages.runs(1);
            runs.any(|(address, _)| address.0 == place & !0xfff)
        };
        assert!(PLACES.into_iter().all(has), "{backing:?}");
        // The host may have given huge pages.
        let most = PLACES.len() * PIECE_PAGES;
        assert!(pages.count() <= most as u64, "{backing:?}");
        assert!(pages.count() < SIZE / PAGE as u64);
    }
}

#[test]
fn holes_of_a_file_that_is_memory_are_not_touched_and_not_read() {
    let memory = ram(Backing::File, None);
    // Every other page of a piece and the beginning of the next.
    for page in (0..700_u64).filter(|page| page % 2 == 1) {
        write(&memory, page * PAGE as u64, page);
    }
    write(&memory, SIZE - 8, 1);
    let region = memory.iter().next().expect("a region");
    let file = region.file_offset().expect("a file").file();
    let before = occupied(file);
    let pages = Touched::new(&memory, None).pages().expect("pages");
    assert_eq!(pages.count(), 351);
    let runs: Vec<_> = pages.runs(8).take(2).collect();
    assert_eq!(runs, [(GuestAddress(0x1000), 1), (GuestAddress(0x3000), 1)]);
    let saved = save(&memory, None);
    assert_eq!(occupied(file), before);
    assert_eq!(occupied(&saved), 351 * PAGE as u64);
}
