//! Both sides of a stream with each other.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::error::StreamError;
use super::receive::Item;
use super::send::{Fate, Sent};
use super::testing::{
    ALL, LONG, Numbers, connections, contents, fill, go_on, memory, sender, take, target,
};

#[test]
fn all_of_a_guest_arrives_by_either_connection() {
    for (ours, theirs) in connections() {
        let there = memory();
        // What was there before is not there after.
        for page in [0, 3, 6, 9, 12, 15, 33, 36, 47] {
            fill(&there, page * 4096, 0xee);
        }
        let there = Arc::new(there);
        let written = Arc::clone(&there);
        let target = target(theirs, move |mut receiver| {
            let taken = take(&mut receiver, &written).expect("all of it");
            receiver.running().expect("there is a source");
            taken
        });
        let here = memory();
        for page in [0_u8, 1, 2, 7, 15, 32, 47] {
            fill(&here, u64::from(page) * 4096, page + 1);
        }
        let mut sender = sender(ours);
        let sent = sender.pages(&here, ALL, go_on).expect("sent");
        assert_eq!(sent, Sent { data: 7, zeros: 25 });
        sender.round(1, LONG).expect("heard");
        fill(&here, 0x1000, 0);
        fill(&here, 0x5000, 5);
        let changed = [(GuestAddress(0x1000), 1), (GuestAddress(0x5000), 1)];
        let sent = sender.pages(&here, changed, go_on).expect("sent");
        assert_eq!(sent, Sent { data: 1, zeros: 1 });
        sender.round(2, LONG).expect("heard");
        // In the last, unfinished round.
        fill(&here, 0x2f_000, 9);
        sender
            .pages(&here, [(GuestAddress(0x2f_000), 1)], go_on)
            .expect("sent");
        let state: Vec<u8> = (0..2_500_000u32)
            .map(|number| (number % 251) as u8)
            .collect();
        sender.state(&state).expect("sent");
        sender.last(true, LONG).expect("ready");
        assert_eq!(sender.yours(LONG), Fate::Running);
        let (rounds, received) = target.join().expect("no panic");
        assert_eq!(rounds, 2);
        assert!(received == state);
        assert!(contents(&*there) == contents(&here));
    }
}

#[test]
fn many_pages_arrive_with_each_in_its_place() {
    const PAGES: usize = 10_000;
    let range = [(GuestAddress(0), PAGES * 4096)];
    let new = || GuestMemoryMmap::<()>::from_ranges(&range).expect("mappable");
    let (here, there) = (new(), Arc::new(new()));
    let mut numbers = Numbers(0x1234_5678_9abc_def1);
    for page in 0..PAGES as u64 {
        match numbers.below(3) {
            0 => {}
            // One byte anywhere makes it no page of zeros.
            1 => {
                let place = page * 4096 + numbers.below(4096) as u64;
                let byte = vm_memory::GuestMemoryBackend::get_slice(&here, GuestAddress(place), 1);
                byte.expect("memory").copy_from(&[1_u8]);
            }
            _ => fill(&here, page * 4096, numbers.byte()),
        }
    }
    let [(ours, theirs), _] = connections();
    let written = Arc::clone(&there);
    let target = target(theirs, move |mut receiver| receiver.next(&*written, LONG));
    let mut sender = sender(ours);
    let mut told = Vec::new();
    let sent = sender.pages(&here, [(GuestAddress(0), PAGES)], |pages| {
        told.push(pages);
        ControlFlow::Continue(())
    });
    let sent = sent.expect("sent");
    assert_eq!(sent.data + sent.zeros, PAGES as u64);
    // Every now and then, and never less.
    assert!(told.len() > 50 && told.is_sorted(), "{told:?}");
    sender.round(1, LONG).expect("heard");
    assert_eq!(
        target.join().expect("no panic").expect("a round"),
        Item::Round(1)
    );
    let whole = |memory: &GuestMemoryMmap<()>| {
        let mut bytes = vec![0; PAGES * 4096];
        vm_memory::Bytes::read_slice(memory, &mut bytes, GuestAddress(0)).expect("memory");
        bytes
    };
    assert!(whole(&here) == whole(&there));
}

#[test]
fn a_guest_that_writes_meanwhile_does_not_spoil_the_stream() {
    let [(ours, theirs), _] = connections();
    let target = target(theirs, move |mut receiver| receiver.next(&memory(), LONG));
    let here = memory();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut value = 0u8;
            while !done.load(Ordering::Relaxed) {
                fill(&here, 0, value);
                value = value.wrapping_add(1) % 4;
            }
        });
        let mut sender = sender(ours);
        for _ in 0..3000 {
            sender
                .pages(&here, [(GuestAddress(0), 1)], go_on)
                .expect("sent");
        }
        let heard = sender.round(1, LONG);
        done.store(true, Ordering::Relaxed);
        heard.expect("heard");
    });
    assert_eq!(
        target.join().expect("no panic").expect("a round"),
        Item::Round(1)
    );
}

#[test]
fn pages_that_the_guest_does_not_have_are_the_callers_error() {
    let [(ours, theirs), _] = connections();
    let target = target(theirs, |mut receiver| receiver.next(&memory(), LONG));
    let mut sender = sender(ours);
    for (run, place) in [
        ((0xf000, 2), 0x10_000),
        ((0x10_000, 1), 0x10_000),
        ((0x800, 1), 0x800),
    ] {
        let run = (GuestAddress(run.0), run.1);
        match sender.pages(&memory(), [run], go_on) {
            Err(StreamError::NoPage(address)) => assert_eq!(address, place),
            other => panic!("{other:?}"),
        }
    }
    drop(sender);
    assert!(target.join().expect("no panic").is_err());
}
