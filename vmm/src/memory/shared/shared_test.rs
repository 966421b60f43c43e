//! That both see the same memory, and that nobody can take it from them.

use nix::fcntl::{FcntlArg, fcntl};
use vm_memory::{Bytes as _, GuestAddress};

use super::super::{Backing, allocate};
use super::*;

const SIZE: u64 = 16 << 20;

#[test]
fn what_is_written_by_one_mapping_is_read_by_the_other() {
    let config = MemoryConfig::plain(SIZE);
    let one = allocate(&config, 0, Backing::File, None).expect("memory");
    let file = file(&one).expect("it is in a file");
    let other = map_again(&config, 0, &file).expect("the same file");
    let place = GuestAddress(SIZE - 8);
    one.write_obj(0x1122_3344_5566_7788_u64, place)
        .expect("there");
    assert_eq!(
        other.read_obj::<u64>(place).expect("there"),
        0x1122_3344_5566_7788
    );
}

#[test]
fn a_memory_file_keeps_its_size_for_ever_and_can_be_written() {
    let memory = allocate(&MemoryConfig::plain(SIZE), 0, Backing::File, None).expect("memory");
    let file = file(&memory).expect("it is in a file");
    let seals = fcntl(&*file, FcntlArg::F_GET_SEALS).expect("a memfd");
    // F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW.
    assert_eq!(seals, 1 | 2 | 4);
    for size in [SIZE / 2, 2 * SIZE] {
        let error = file.set_len(size).expect_err("sealed");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
}

#[test]
fn a_file_of_another_size_is_refused_by_its_size_and_memory_of_this_process_has_none() {
    let one = allocate(&MemoryConfig::plain(SIZE), 0, Backing::File, None).expect("memory");
    let larger = MemoryConfig::plain(2 * SIZE);
    let error = map_again(&larger, 0, &file(&one).expect("a file"));
    let text = error.map(|_| ()).expect_err("too small").to_string();
    assert!(text.contains("it has 16777216 bytes"), "{text}");
    let private = allocate(&MemoryConfig::plain(SIZE), 0, Backing::Anonymous, None);
    assert!(file(&private.expect("memory")).is_none());
}
