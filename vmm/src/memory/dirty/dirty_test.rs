//! Memory that is followed while a guest runs on the host's KVM, where there is one: a copy that takes
//! over what is said to be written is the same in the end.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use vm_memory::{Bytes as _, GuestAddress};

use super::super::{Backing, allocate};
use super::*;
use crate::config::MemoryConfig;
use crate::vcpu::saved::machine::Machine;

const SIZE: usize = 4 << 20;

/// Writes to each page from 2 MiB to 4 MiB once, in turn, with a pause of 200000 ticks after each, and
/// tells 1.
#[rustfmt::skip]
const SWEEP: &[u8] = &[
    0xbb, 0x00, 0x00, 0x20, 0x00, // mov ebx,0x200000
    0x89, 0x1b, // mov DWORD PTR [ebx],ebx
    0x0f, 0x31, // rdtsc
    0x89, 0xc6, // mov esi,eax
    0x0f, 0x31, // rdtsc
    0x29, 0xf0, // sub eax,esi
    0x3d, 0x40, 0x0d, 0x03, 0x00, // cmp eax,0x30d40
    0x72, 0xf5, // jb 0xb
    0x81, 0xc3, 0x00, 0x10, 0x00, 0x00, // add ebx,0x1000
    0x81, 0xfb, 0x00, 0x00, 0x40, 0x00, // cmp ebx,0x400000
    0x75, 0xe1, // jne 0x5
    0xc7, 0x05, 0x00, 0x00, 0x00, 0xd0, 0x01, 0x00, 0x00, 0x00, // mov DWORD PTR ds:0xd0000000,0x1
    0xf4, // hlt
    0xeb, 0xfd, // jmp 0x2e
];

/// Adds a number to a word in one page from 2 MiB to 4 MiB after the other, in a random order, for ever.
#[rustfmt::skip]
const SCATTER: &[u8] = &[
    0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax,0x1
    0x69, 0xc0, 0x0d, 0x66, 0x19, 0x00, // imul eax,eax,0x19660d
    0x05, 0x5f, 0xf3, 0x6e, 0x3c, // add eax,0x3c6ef35f
    0x89, 0xc2, // mov edx,eax
    0xc1, 0xea, 0x08, // shr edx,0x8
    0x81, 0xe2, 0x00, 0xf0, 0x1f, 0x00, // and edx,0x1ff000
    0x81, 0xc2, 0x00, 0x00, 0x20, 0x00, // add edx,0x200000
    0x01, 0x02, // add DWORD PTR [edx],eax
    0xeb, 0xe0, // jmp 0x5
];

/// A copy of a guest's memory, which does not overlook anything if the log does not.
struct Copy<'a> {
    memory: &'a Memory,
    bytes: Vec<u8>,
}

impl<'a> Copy<'a> {
    fn new(memory: &'a Memory) -> Self {
        let mut bytes = vec![0; SIZE];
        memory.read_slice(&mut bytes, GuestAddress(0)).expect("RAM");
        Self { memory, bytes }
    }

    fn take_over(&mut self, pages: &Pages) {
        for (start, pages) in pages.runs(16) {
            let at = usize::try_from(start.0).expect("small");
            let part = &mut self.bytes[at..at + pages * 4096];
            self.memory.read_slice(part, start).expect("RAM");
        }
    }

    /// Which pages are not what memory has.
    fn differences(&self) -> Vec<usize> {
        let now = Self::new(self.memory);
        let pages = self.bytes.chunks(4096).zip(now.bytes.chunks(4096));
        let different = pages.enumerate().filter(|(_, (copy, now))| copy != now);
        different.map(|(page, _)| page).collect()
    }
}

fn starts(pages: &Pages) -> Vec<u64> {
    pages.runs(1).map(|(start, _)| start.0).collect()
}

/// Sets a flag when it is dropped, so that who waits for it ends when a test fails, too.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Runs `code` while a device writes to each page from 1.5 MiB to 2 MiB, and memory is copied all the
/// time.
fn follow(mut machine: Machine, code: &[u8], time: Option<Duration>) {
    machine.load(code, |_, _| {});
    let memory = Arc::clone(&machine.memory);
    let log = DirtyLog::start(&machine.vm, &memory, &Arc::default()).expect("a log");
    let mut copy = Copy::new(&memory);
    assert!(log.take().expect("a set").is_empty(), "nothing has run");
    let stop = AtomicBool::new(false);
    let (memory, stop, log) = (&memory, &stop, &log);
    let rounds = thread::scope(|scope| {
        let copying = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Ordering::SeqCst) {
                let pages = log.take().expect("a set");
                rounds += u32::from(!pages.is_empty());
                copy.take_over(&pages);
            }
            rounds
        });
        scope.spawn(move || {
            for (count, page) in (1_u64..).zip((0x18_0000..0x20_0000).step_by(4096)) {
                memory.write_obj(count, GuestAddress(page)).expect("RAM");
                thread::sleep(Duration::from_micros(100));
            }
        });
        let ended = Ended(stop);
        machine.run(time);
        drop(ended);
        copying.join().expect("no panic")
    });
    assert!(rounds > 2, "copied while it ran: {rounds} times");
    copy.take_over(&log.take().expect("a set"));
    let different = copy.differences();
    assert!(different.is_empty(), "{different:x?}");
}

#[test]
fn a_copy_that_follows_the_log_misses_no_page_that_is_written_once() {
    let Some(machine) = Machine::new(1) else {
        return;
    };
    follow(machine, SWEEP, None);
}

#[test]
fn a_copy_that_follows_the_log_misses_no_last_write_to_a_page() {
    for cpus in [1, 2] {
        let Some(machine) = Machine::new(cpus) else {
            return;
        };
        follow(machine, SCATTER, Some(Duration::from_millis(200)));
    }
}

#[test]
fn memory_that_is_a_file_or_comes_from_one_is_followed_as_well() {
    let saved = vmm_sys_util::tempfile::TempFile::new().expect("a file");
    let saved: Arc<File> = Arc::new(saved.into_file());
    saved.set_len(SIZE as u64).expect("room");
    saved.write_all_at(&[7; 8192], 0x30_0000).expect("room");
    for (backing, saved) in [
        (Backing::Anonymous, Some(&saved)),
        (Backing::File, Some(&saved)),
        (Backing::File, None),
    ] {
        let config = MemoryConfig::plain(SIZE as u64);
        let memory = allocate(&config, 0, backing, saved).expect("memory");
        let Some(machine) = Machine::with_memory(1, memory) else {
            return;
        };
        follow(machine, SWEEP, None);
    }
}

#[test]
fn what_is_logged_are_the_pages_that_were_written_and_no_others() {
    let Some(mut machine) = Machine::new(1) else {
        return;
    };
    machine.load(SWEEP, |_, _| {});
    let log = DirtyLog::start(&machine.vm, &machine.memory, &Arc::default()).expect("a log");
    let device = GuestAddress(0x18_0000);
    machine.memory.write_obj(1_u8, device).expect("RAM");
    assert_eq!(starts(&log.take().expect("a set")), [0x18_0000]);
    machine.run(None);
    assert!(machine.has_told(1));
    let pages = log.take().expect("a set");
    let swept: Vec<_> = (0x20_0000..0x40_0000).step_by(4096).collect();
    // The processor marks the segments that it uses as accessed.
    let others = starts(&pages);
    let others: Vec<_> = others.iter().filter(|page| !swept.contains(page)).collect();
    assert!(others.len() <= 1, "{others:x?}");
    assert!(swept.iter().all(|page| starts(&pages).contains(page)));
    assert!(log.take().expect("a set").is_empty(), "told once");
}

#[test]
fn a_log_that_is_dropped_leaves_nothing_on_and_another_begins_with_nothing() {
    let Some(mut machine) = Machine::new(1) else {
        return;
    };
    machine.load(SWEEP, |_, _| {});
    let log = DirtyLog::start(&machine.vm, &machine.memory, &Arc::default()).expect("a log");
    drop(log);
    machine.run(None);
    let device = GuestAddress(0x18_0000);
    machine.memory.write_obj(1_u8, device).expect("RAM");
    assert!(marks(&machine.memory).all(|marks| marks.take().iter().all(|word| *word == 0)));
    let logged: io::Result<Vec<_>> = kvm::dirty::logged(&machine.vm, &machine.memory).collect();
    assert!(logged.is_err(), "KVM logs nothing");
    let log = DirtyLog::start(&machine.vm, &machine.memory, &Arc::default()).expect("a log");
    assert!(log.take().expect("a set").is_empty());
}
