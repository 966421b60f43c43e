//! What is said of pages that were written.

use parking_lot::Mutex;
use vm_memory::GuestAddress;

use super::*;
use crate::config::MemoryConfig;
use crate::control::control_test::bare;
use crate::memory::{Backing, Memory, allocate};

const SIZE: u64 = 16 << 20;

fn memory() -> Memory {
    allocate(&MemoryConfig::plain(SIZE), 0, Backing::Anonymous, None).expect("memory")
}

fn pages(memory: &Memory, runs: &[(u64, u64)]) -> Pages {
    let mut pages = Pages::none(memory);
    for (start, count) in runs {
        pages.add(GuestAddress(*start), *count);
    }
    pages
}

/// Rounds in which a device of the host has written this, and somebody else something besides.
struct Fake(Mutex<Vec<Written>>);

impl Following for Fake {
    fn take(&self) -> io::Result<Written> {
        let mut rounds = self.0.lock();
        (!rounds.is_empty())
            .then(|| rounds.remove(0))
            .ok_or_else(|| io::Error::other("it was removed"))
    }
}

fn wish(rounds: u32, of: Option<WriterKind>) -> FollowConfig {
    FollowConfig {
        time: Duration::from_millis(1),
        rounds,
        of,
    }
}

#[test]
fn runs_are_listed_of_all_together_or_of_one_kind() {
    let memory = memory();
    let round = || Written {
        vcpus: pages(&memory, &[(0x1000, 2), (0x8000, 1)]),
        host_devices: pages(&memory, &[(0x3000, 1), (0x8000, 1)]),
        ..Written::none(&memory)
    };
    let here = Arc::new(());
    let client = Arc::downgrade(&here);
    let log = Fake(Mutex::new(vec![round()]));
    assert_eq!(
        rounds(&wish(1, None), &log, &client).expect("a round"),
        "vcpus: 3 pages\ndevices: 0 pages\nvhost: 0 pages\nhost-devices: 2 pages\ntogether: 4 pages\n0x1000 3\n0x8000 1\n"
    );
    let log = Fake(Mutex::new(vec![round(), Written::none(&memory)]));
    assert_eq!(
        rounds(&wish(2, Some(WriterKind::HostDevices)), &log, &client).expect("two rounds"),
        "round 1\nhost-devices: 2 pages\n0x3000 1\n0x8000 1\nround 2\nhost-devices: 0 pages\n"
    );
    let error = rounds(&wish(1, None), &log, &client).expect_err("no more");
    assert!(error.contains("it was removed"), "{error}");
}

#[test]
fn no_more_runs_are_listed_than_are_read_by_anyone() {
    let memory = memory();
    let runs: Vec<_> = (0..1030).map(|run| (run * 0x2000, 1)).collect();
    let mut text = String::new();
    let written = Written {
        devices: pages(&memory, &runs),
        ..Written::none(&memory)
    };
    describe(&mut text, written, Some(WriterKind::Devices));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 1026);
    assert_eq!(lines.first(), Some(&"devices: 1030 pages"));
    assert_eq!(lines.get(1024), Some(&"0x7fe000 1"));
    assert_eq!(lines.last(), Some(&"and 6 more"));
}

#[test]
fn a_client_that_goes_away_ends_it() {
    let gone = Arc::downgrade(&Arc::new(()));
    let log = Fake(Mutex::new(Vec::new()));
    let wish = FollowConfig {
        time: Duration::from_secs(30),
        ..wish(8, None)
    };
    let began = Instant::now();
    let error = rounds(&wish, &log, &gone).expect_err("nobody");
    assert!(error.contains("nobody waits"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn it_is_refused_while_something_else_takes_long_and_the_reason_of_a_writer_is_told() {
    let (monitor, _events) = bare();
    let ask = |argument: &str| look(&monitor, &[Value::DirtyPages(argument.to_owned())]);
    let turn = monitor.begin(Long::Migration).expect("the only one");
    let error = ask("").err().expect("refused");
    assert!(error.contains("a migration is under way"), "{error}");
    drop(turn);
    let answer = ask("of=host-devices").expect("begun");
    let outcome = answer.later.expect("work").outcome.recv().expect("an end");
    let error = outcome.expect_err("nobody");
    assert!(error.contains("nobody to be followed"), "{error}");
    assert!(monitor.begin(Long::Snapshot).is_ok(), "its turn is over");
}
