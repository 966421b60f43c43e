//! A stream by several connections.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::GuestMemoryMmap;

use super::error::{Result, StreamError};
use super::link::Link;
use super::receive::beside::{Side, beside};
use super::receive::{Item, Receiver};
use super::send::{Sender, Sent};
use super::testing::{
    ALL, LONG, connections, contents, fill, frame, go_on, hello, memory, offered, run,
};

const KEY: &str = "01234567-89ab-cdef-0123-456789abcdef";
const SHORT: Duration = Duration::from_millis(100);

/// A source that has three connections beside the first one, and the target's ends of these.
fn sides() -> (Sender, Receiver, Vec<Side>) {
    let (first, theirs) = ends();
    let accepted = thread::spawn(move || {
        let (mut receiver, _) = Receiver::accept(theirs, LONG).expect("HELLO");
        receiver.accepted("a host").expect("there is a source");
        receiver
    });
    let mut sender = offered(first, LONG).expect("accepted");
    let mut sides = Vec::new();
    for _ in 0..3 {
        let (ours, theirs) = ends();
        sender.join(ours, KEY).expect("connected");
        sides.push(Side::join(theirs, KEY, LONG).expect("the key"));
    }
    (sender, accepted.join().expect("no panic"), sides)
}

fn ends() -> (Link, Link) {
    let [_, (ours, theirs)] = connections();
    let link = |socket| Link::new(socket, LONG).expect("a socket");
    (link(ours), link(theirs))
}

/// Takes all that comes. Returns the rounds.
fn take(mut receiver: Receiver, sides: Vec<Side>, memory: &GuestMemoryMmap<()>) -> Result<u32> {
    beside(sides, memory, LONG, || {
        let mut rounds = 0;
        while let Item::Round(number) = receiver.next(memory, LONG)? {
            rounds = number;
        }
        receiver.ready()?;
        Ok(rounds)
    })
}

#[test]
fn all_of_a_guest_arrives_by_four_connections() {
    let (mut sender, receiver, sides) = sides();
    let there = Arc::new(memory());
    let written = Arc::clone(&there);
    let target = thread::spawn(move || take(receiver, sides, &written));
    let here = memory();
    for page in (0..16).chain(32..48) {
        fill(&here, page * 4096, 1);
    }
    // Runs of one page, so that each connection has some; again and again, the last round with what counts.
    let pages = || {
        ALL.into_iter().flat_map(|(start, count)| {
            (0..count as u64)
                .map(move |page| (vm_memory::Address::unchecked_add(&start, page * 4096), 1))
        })
    };
    for number in 1..=50_u8 {
        for page in (0..16).chain(32..48_u8) {
            fill(&here, u64::from(page) * 4096, number ^ page);
        }
        let sent = sender.pages(&here, pages(), go_on).expect("sent");
        assert_eq!(sent.data + sent.zeros, 32);
        sender.round(number.into(), LONG).expect("heard");
    }
    fill(&here, 0x2000, 0);
    let sent = sender.pages(&here, pages(), go_on).expect("sent");
    assert!(sent.zeros >= 1, "{sent:?}");
    sender.gather(LONG).expect("heard");
    sender.state(b"the state").expect("sent");
    sender.last(false, LONG).expect("ready");
    assert_eq!(target.join().expect("no panic").expect("all"), 50);
    assert!(contents(&*there) == contents(&here));
}

#[test]
fn much_memory_is_carried_by_all_of_them() {
    let (mut sender, receiver, sides) = sides();
    let target = thread::spawn(move || take(receiver, sides, &memory()));
    let here = memory();
    for page in (0..16).chain(32..48) {
        fill(&here, page * 4096, 1);
    }
    let mut told = 0;
    let many = (0..1000).flat_map(|_| ALL);
    let sent = sender.pages(&here, many, |pages| {
        assert!(pages > told);
        told = pages;
        ControlFlow::Continue(())
    });
    assert_eq!(
        sent.expect("sent"),
        Sent {
            data: 32_000,
            zeros: 0
        }
    );
    let carried = sender.sent_by_each();
    assert!(carried.iter().all(|bytes| *bytes > 1 << 20), "{carried:?}");
    assert_eq!(carried.iter().sum::<u64>(), sender.sent());
    drop(sender);
    assert!(target.join().expect("no panic").is_err());
}

#[test]
fn who_does_not_have_the_key_is_not_taken_for_one_of_them() {
    for said in [
        frame(0x08, b"01234567-89ab-cdef-0123-456789abcdeF"),
        frame(0x08, b"short"),
        frame(0x05, KEY.as_bytes()),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ] {
        let (ours, mut theirs) = UnixStream::pair().expect("descriptors");
        theirs.write_all(&said).expect("there is room");
        let link = Link::new(ours, LONG).expect("a socket");
        let outcome = Side::join(link, KEY, LONG);
        assert!(matches!(outcome, Err(StreamError::Wrong(_))), "{outcome:?}");
    }
}

#[test]
fn what_is_wrong_with_one_of_them_is_told_on_both_sides() {
    for (said, why) in [
        (frame(0x02, &run(0x10_000, 0, &[1; 4096])), "guest has none"),
        (frame(0x04, &7u32.to_le_bytes()), "another number"),
        (frame(0x05, b"state"), "STATE instead of memory"),
    ] {
        let (mut sender, mut receiver, mut all) = sides();
        let (bare, theirs) = UnixStream::pair().expect("descriptors");
        let mut join = &bare;
        join.write_all(&[frame(0x08, KEY.as_bytes()), said].concat())
            .expect("there is room");
        let link = Link::new(theirs, LONG).expect("a socket");
        all.push(Side::join(link, KEY, LONG).expect("the key"));
        let there = memory();
        let target =
            thread::spawn(move || beside(all, &there, LONG, || receiver.next(&there, LONG)));
        let link = Link::new(bare, LONG).expect("a socket");
        sender.adopt(link);
        let error = loop {
            if let Err(error) = sender.pages(&memory(), (0..100).flat_map(|_| ALL), go_on) {
                break error;
            }
            if let Err(error) = sender.gather(LONG) {
                break error;
            }
        };
        assert!(error.to_string().contains(why), "{error}");
        drop(sender);
        let error = target.join().expect("no panic").expect_err("it is wrong");
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn one_that_ends_or_says_nothing_ends_it() {
    let (mut sender, _receiver, mut sides) = sides();
    sides.pop();
    let error = loop {
        if let Err(error) = sender.pages(&memory(), ALL, go_on) {
            break error;
        }
        if let Err(error) = sender.gather(SHORT) {
            break error;
        }
    };
    assert!(
        matches!(error, StreamError::Closed | StreamError::Silent(_)),
        "{error}"
    );
}

#[test]
fn another_thread_can_end_all_of_them() {
    let (mut sender, _receiver, _sides) = sides();
    let breaker = sender.breaker();
    let began = Instant::now();
    let waiting = thread::spawn(move || sender.gather(LONG));
    thread::sleep(SHORT);
    breaker.give_up();
    let outcome = waiting.join().expect("no panic");
    assert!(matches!(outcome, Err(StreamError::GivenUp)), "{outcome:?}");
    assert!(began.elapsed() < LONG / 2);
}

#[test]
fn a_number_of_connections_beyond_the_bound_is_refused() {
    for count in [0, 15, 16, u32::MAX] {
        let others = super::wire::Others {
            count,
            key: KEY.to_owned(),
        };
        let mut hello = hello();
        hello.others = Some(others);
        let payload = hello.encode().expect("short");
        let decoded = super::wire::Hello::decode(&payload);
        assert_eq!(decoded.is_ok(), count <= 15, "{count}");
    }
}
