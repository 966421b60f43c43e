//! One holder at a time, of disks that several have open.

use std::fs;

use vmm_sys_util::tempdir::TempDir;
use vmm_sys_util::tempfile::TempFile;

use super::Hold;
use crate::virtio::blk::{Block, BlockError, BlockOptions};
use crate::virtio::testing::eventually;

fn image() -> TempFile {
    let file = TempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    file
}

fn options(file: &TempFile, readonly: bool) -> BlockOptions {
    BlockOptions {
        path: file.as_path().to_owned(),
        readonly,
        serial: None,
        queues: 1,
    }
}

fn unlocked(file: &TempFile, readonly: bool) -> Block {
    Block::open_unlocked(&options(file, readonly)).unwrap()
}

fn is_refused(result: Result<Hold, BlockError>, file: &TempFile) -> bool {
    matches!(result, Err(BlockError::InUse(path)) if path == file.as_path())
}

#[test]
fn a_disk_goes_from_one_holder_to_another_while_both_have_it_open() {
    let file = image();
    let source = Block::open(&options(&file, false)).unwrap();
    let target = unlocked(&file, false);
    let (source, target) = (
        (source.claim(), source.part(0)),
        (target.claim(), target.part(0)),
    );
    for ((here, _), (there, _)) in [(&source, &target), (&target, &source)] {
        assert!(is_refused(there.take(), &file));
        // Who has it may ask again.
        assert_eq!(here.take().unwrap(), Hold::Alone);
        here.give_up().unwrap();
        assert_eq!(there.take().unwrap(), Hold::Alone);
        assert!(is_refused(here.take(), &file));
    }
}

#[test]
fn a_disk_of_the_same_open_file_has_its_lock_and_keeps_it_when_the_first_one_goes() {
    let file = image();
    let first = Block::open(&options(&file, false)).unwrap();
    let stranger = unlocked(&file, false);
    let open = first.claim().file().unwrap().unwrap();
    let second = Block::of(open, &options(&file, false)).unwrap();
    assert_eq!(second.claim().take().unwrap(), Hold::Alone);
    assert_eq!(first.claim().take().unwrap(), Hold::Alone);
    let gone = first.claim();
    drop(first);
    assert!(gone.file().unwrap().is_none());
    assert!(is_refused(stranger.claim().take(), &file));
    drop(second);
    assert_eq!(stranger.claim().take().unwrap(), Hold::Alone);
}

#[test]
fn a_disk_that_is_opened_without_its_lock_leaves_that_to_others() {
    let file = image();
    let idle = unlocked(&file, false);
    let writer = Block::open(&options(&file, false)).unwrap();
    // What it never had it cannot give up for another.
    idle.claim().give_up().unwrap();
    assert!(is_refused(unlocked(&file, true).claim().take(), &file));
    drop(writer);
    let claim = idle.claim();
    eventually("the lock ends with its disk", || claim.take().is_ok());
}

#[test]
fn readers_hold_a_disk_together_and_keep_a_writer_out() {
    let file = image();
    let (one, other) = (unlocked(&file, true), unlocked(&file, true));
    let writer = unlocked(&file, false);
    assert_eq!(one.claim().take().unwrap(), Hold::Shared);
    assert_eq!(other.claim().take().unwrap(), Hold::Shared);
    assert!(is_refused(writer.claim().take(), &file));
    one.claim().give_up().unwrap();
    assert!(is_refused(writer.claim().take(), &file));
    other.claim().give_up().unwrap();
    assert_eq!(writer.claim().take().unwrap(), Hold::Alone);
    assert!(is_refused(one.claim().take(), &file));
}

#[test]
fn a_claim_does_not_keep_a_disk_that_is_unplugged() {
    let file = image();
    let block = Block::open(&options(&file, false)).unwrap();
    let claim = block.claim();
    // Another queue's part has the same file.
    let part = block.part(0);
    drop(block);
    assert!(!claim.is_gone());
    assert!(is_refused(unlocked(&file, false).claim().take(), &file));
    drop(part);
    assert!(claim.is_gone());
    assert_eq!(claim.take().unwrap(), Hold::None);
    claim.give_up().unwrap();
    claim.refresh();
    let next = unlocked(&file, false).claim();
    eventually("the lock ends with its disk", || next.take().is_ok());
}

#[test]
fn a_disk_is_written_to_storage_by_its_open_file_and_only_if_the_guest_writes() {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("disk.img");
    let open = |readonly| {
        fs::write(&path, [0; 4096]).unwrap();
        let options = BlockOptions {
            path: path.clone(),
            readonly,
            serial: None,
            queues: 1,
        };
        Block::open(&options).unwrap()
    };
    let block = open(false);
    fs::remove_file(&path).unwrap();
    let claim = block.claim();
    assert_eq!(claim.path(), path);
    claim.sync().unwrap();
    // Asking did not cost it its lock, nor did the file that was opened for it.
    let again = claim.opened_again().unwrap();
    assert!(again.try_lock().is_err());
    drop(block);
    // All that is left is its path, which leads nowhere.
    assert_eq!(
        claim.sync().map_err(|error| error.kind()),
        Err(std::io::ErrorKind::NotFound)
    );
    let reader = open(true).claim();
    fs::remove_file(&path).unwrap();
    reader.sync().unwrap();
}

#[test]
fn a_writers_disk_is_found_in_use_while_somebody_else_has_it() {
    let file = image();
    let (here, there) = (unlocked(&file, false), unlocked(&file, false));
    let (here, there) = (here.claim(), there.claim());
    assert_eq!(here.is_in_use().unwrap(), Some(false));
    there.take().unwrap();
    assert_eq!(here.is_in_use().unwrap(), Some(true));
    there.give_up().unwrap();
    // It was not kept by who has looked.
    assert_eq!(here.is_in_use().unwrap(), Some(false));
    there.take().unwrap();
    let reader = unlocked(&file, true);
    assert_eq!(reader.claim().is_in_use().unwrap(), None);
}

#[test]
fn what_the_host_does_not_know_is_not_taken_for_a_file_without_locks() {
    for (error, expected) in [
        (libc::EOPNOTSUPP, true),
        (libc::ENOLCK, true),
        (libc::EIO, false),
        (libc::EINTR, false),
        (libc::ESTALE, false),
    ] {
        let error = std::io::Error::from_raw_os_error(error);
        assert_eq!(super::without_locks(&error), expected, "{error}");
    }
}
