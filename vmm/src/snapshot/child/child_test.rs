//! A child that writes memory, at work and cut off.

use std::os::unix::fs::FileExt as _;

use devices::virtio::balloon::Reclaim as _;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::config::MemoryConfig;
use crate::memory::reclaim::Reclaimer;
use crate::memory::{Backing, Memory, allocate};

const SIZE: u64 = 64 << 20;

fn ram() -> Memory {
    let config = MemoryConfig::plain(SIZE);
    let memory = allocate(&config, 0, Backing::Anonymous, None).expect("memory");
    for page in (0..SIZE).step_by(4096) {
        set(&memory, page, page | 1);
    }
    memory
}

fn set(memory: &Memory, place: u64, value: u64) {
    memory
        .write_obj(value, GuestAddress(place))
        .expect("memory");
}

fn file() -> File {
    memfd_create(c"snapshot", MFdFlags::empty())
        .expect("a memfd")
        .into()
}

#[test]
fn the_file_shows_the_moment_whatever_is_written_since() {
    let memory = ram();
    let touched = Touched::new(&memory, None);
    let mut file = file();
    let mut child = Child::start(&touched, &mut file).expect("a child");
    for page in (0..SIZE).step_by(4096) {
        set(&memory, page, 7);
    }
    let mut seen = 0;
    child.follow(|bytes| seen = bytes).expect("written");
    child.end().expect("written");
    assert_eq!(seen, SIZE);
    for page in (0..SIZE).step_by(4096) {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, page).expect("data");
        assert_eq!(u64::from_le_bytes(word), page | 1);
    }
}

#[test]
fn the_file_shows_pages_that_were_given_back_to_the_host_since() {
    let memory = ram();
    let touched = Touched::new(&memory, None);
    let mut file = file();
    let mut child = Child::start(&touched, &mut file).expect("a child");
    kill(child.pid(), Signal::SIGSTOP).expect("a child");
    let reclaimer = Reclaimer::new(&memory, None);
    let given = reclaimer.reclaim(GuestAddress(0), SIZE).expect("given");
    assert_eq!(given, SIZE);
    kill(child.pid(), Signal::SIGCONT).expect("a child");
    child.follow(|_| {}).expect("written");
    child.end().expect("written");
    for page in (0..SIZE).step_by(4096) {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, page).expect("data");
        assert_eq!(u64::from_le_bytes(word), page | 1);
        assert_eq!(memory.read_obj::<u64>(GuestAddress(page)).expect("RAM"), 0);
    }
}

#[test]
fn a_child_that_is_killed_has_not_written_and_says_so() {
    let memory = ram();
    let touched = Touched::new(&memory, None);
    // Nobody reads: the child waits when the pipe is full, if it gets so far.
    let mut file = file();
    let mut child = Child::start(&touched, &mut file).expect("a child");
    kill(child.pid(), Signal::SIGSTOP).expect("a child");
    kill(child.pid(), Signal::SIGKILL).expect("a child");
    let written = child.follow(|_| {}).and_then(|()| child.end());
    // It may have been done before it was stopped.
    if let Err(error) = written {
        assert!(error.to_string().contains("SIGKILL"), "{error}");
    }
    let mut file = File::open("/dev/full").expect("a device that takes nothing");
    let mut child = Child::start(&touched, &mut file).expect("a child");
    let error = child.follow(|_| {}).expect_err("no room");
    assert!(error.raw_os_error().is_some(), "{error}");
}

#[test]
fn a_child_keeps_no_file_of_the_parent() {
    let memory = ram();
    let touched = Touched::new(&memory, None);
    let (mut reader, writer) = io::pipe().expect("a pipe");
    let mut file = file();
    let mut child = Child::start(&touched, &mut file).expect("a child");
    // Before it writes, it closes: the end of the pipe is seen although the child is there still.
    child.first_message();
    drop(writer);
    let mut nothing = Vec::new();
    reader.read_to_end(&mut nothing).expect("the end");
    child.follow(|_| {}).expect("written");
}

#[test]
fn a_child_ends_with_its_handle() {
    let memory = ram();
    let touched = Touched::new(&memory, None);
    let child = Child::start(&touched, &mut file()).expect("a child");
    let pid = child.pid();
    drop(child);
    assert_eq!(kill(pid, None), Err(Errno::ESRCH));
}
