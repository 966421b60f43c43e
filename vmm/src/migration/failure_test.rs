//! A side that fails, is killed, says nothing or what it should not, and what the other makes of it.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::GuestAddress;

use super::error::StreamError;
use super::link::Link;
use super::receive::Receiver;
use super::send::{Fate, Sender};
use super::testing::{
    ALL, LONG, Numbers, connections, fill, frame, go_on, memory, offered, pair, sender, take,
    target,
};

const SHORT: Duration = Duration::from_millis(100);

#[test]
fn the_source_is_told_why_it_is_refused() {
    for (ours, theirs) in connections() {
        let target = thread::spawn(move || {
            let link = Link::new(theirs, LONG).expect("a socket");
            let (receiver, _) = Receiver::accept(link, LONG).expect("HELLO");
            receiver.refused("--disk path=/none: it is not there\x07")
        });
        let link = Link::new(ours, LONG).expect("a socket");
        let refused = offered(link, LONG).expect_err("refused");
        assert_eq!(
            refused.to_string(),
            "the other side says: --disk path=/none: it is not there\\u{7}"
        );
        target.join().expect("no panic").expect("it was told");
    }
}

/// Sends rounds of zeros for ever, until that fails.
fn send_for_ever(sender: &mut Sender) -> StreamError {
    let here = memory();
    fill(&here, 0, 1);
    for number in 1.. {
        for _ in 0..1000 {
            if let Err(error) = sender.pages(&here, ALL, go_on) {
                return error;
            }
        }
        if let Err(error) = sender.round(number, LONG) {
            return error;
        }
    }
    unreachable!("there are fewer rounds than that")
}

#[test]
fn the_source_is_told_why_the_target_fails_while_it_sends() {
    for rounds in 0..3 {
        for (ours, theirs) in connections() {
            let target = target(theirs, move |mut receiver| {
                for _ in 0..rounds {
                    receiver.next(&memory(), LONG).expect("a round");
                }
                receiver.failed("the host has no memory left")
            });
            match send_for_ever(&mut sender(ours)) {
                StreamError::Refused(why) => assert_eq!(why, "the host has no memory left"),
                other => panic!("{other}"),
            }
            target.join().expect("no panic").expect("it was told");
        }
    }
}

#[test]
fn a_target_that_is_killed_ends_the_source_at_once() {
    for (ours, theirs) in connections() {
        let target = target(theirs, |mut receiver| {
            receiver.next(&memory(), LONG).expect("a round");
        });
        let began = Instant::now();
        let error = send_for_ever(&mut sender(ours));
        assert!(matches!(error, StreamError::Closed), "{error}");
        assert!(began.elapsed() < LONG / 2);
        target.join().expect("no panic");
    }
}

#[test]
fn a_source_that_is_dropped_ends_the_target_at_once() {
    for (ours, theirs) in connections() {
        let target = target(theirs, |mut receiver| take(&mut receiver, &memory()));
        let sender = sender(ours);
        drop(sender);
        let outcome = target.join().expect("no panic");
        assert!(matches!(outcome, Err(StreamError::Closed)), "{outcome:?}");
    }
}

#[test]
fn a_target_that_says_nothing_is_left_after_patience() {
    let (link, _peer) = pair();
    let began = Instant::now();
    let outcome = offered(link, SHORT);
    assert!(
        matches!(outcome, Err(StreamError::Silent(SHORT))),
        "{outcome:?}"
    );
    assert!(began.elapsed() >= SHORT && began.elapsed() < LONG / 2);
}

/// A source whose target has accepted, and is played by the test.
fn played(stall: Duration) -> (Sender, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().expect("descriptors");
    theirs.write_all(&frame(0x81, b"")).expect("there is room");
    let link = Link::new(ours, stall).expect("a socket");
    let sender = offered(link, LONG).expect("accepted");
    (sender, theirs)
}

#[test]
fn a_target_that_takes_nothing_is_left_after_its_limit() {
    let (mut sender, _peer) = played(SHORT);
    let error = send_for_ever(&mut sender);
    assert!(matches!(error, StreamError::Silent(SHORT)), "{error}");
}

#[test]
fn answers_that_were_not_asked_for_end_it() {
    for answer in [
        frame(0x84, b""),
        frame(0x83, &[2, 0, 0, 0]),
        frame(0x86, b""),
        b"nonsense nonsense".to_vec(),
    ] {
        let (mut sender, mut peer) = played(LONG);
        peer.write_all(&answer).expect("there is room");
        let outcome = sender.round(1, LONG);
        assert!(matches!(outcome, Err(StreamError::Wrong(_))), "{outcome:?}");
        let (mut sender, mut peer) = played(LONG);
        peer.write_all(&answer).expect("there is room");
        // A peer that reads, so that it is not for that.
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            let _ = peer.read_to_end(&mut all);
        });
        let error = send_for_ever(&mut sender);
        assert!(matches!(error, StreamError::Wrong(_)), "{error}");
        drop(sender);
        reader.join().expect("no panic");
    }
}

#[test]
fn progress_can_give_it_up() {
    let [(ours, theirs), _] = connections();
    let target = target(theirs, |mut receiver| take(&mut receiver, &memory()));
    let mut sender = sender(ours);
    let here = memory();
    fill(&here, 0, 1);
    let endless = std::iter::repeat((GuestAddress(0), 1));
    let outcome = sender.pages(&here, endless, |pages| match pages < 1000 {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(()),
    });
    assert!(matches!(outcome, Err(StreamError::GivenUp)), "{outcome:?}");
    drop(sender);
    let outcome = target.join().expect("no panic");
    assert!(matches!(outcome, Err(StreamError::Closed)), "{outcome:?}");
}

#[test]
fn another_thread_can_end_each_side_in_any_wait() {
    // Waiting to be accepted, to send, and to receive.
    let (link, _peer) = pair();
    let breaker = link.breaker();
    let waiting = thread::spawn(move || offered(link, LONG).map(drop));
    thread::sleep(SHORT);
    breaker.give_up();
    let outcome = waiting.join().expect("no panic");
    assert!(matches!(outcome, Err(StreamError::GivenUp)), "{outcome:?}");

    let (ours, mut theirs) = UnixStream::pair().expect("descriptors");
    theirs.write_all(&frame(0x81, b"")).expect("there is room");
    let link = Link::new(ours, LONG).expect("a socket");
    let breaker = link.breaker();
    let mut sender = offered(link, LONG).expect("accepted");
    let sending = thread::spawn(move || send_for_ever(&mut sender));
    thread::sleep(SHORT);
    breaker.give_up();
    let error = sending.join().expect("no panic");
    assert!(matches!(error, StreamError::GivenUp), "{error}");

    let (link, mut peer) = pair();
    let breaker = link.breaker();
    let receiving = thread::spawn(move || Receiver::accept(link, LONG).map(drop));
    breaker.give_up();
    let outcome = receiving.join().expect("no panic");
    assert!(matches!(outcome, Err(StreamError::GivenUp)), "{outcome:?}");
    // The other side sees the end, and the link is gone.
    assert_eq!(peer.read(&mut [0]).expect("an end"), 0);
    breaker.give_up();
}

/// What becomes of a guest whose target answers YOURS with `answer` and ends.
fn handed(answer: &[u8]) -> Fate {
    let (mut sender, mut peer) = played(LONG);
    peer.write_all(answer).expect("there is room");
    peer.shutdown(Shutdown::Write).expect("connected");
    sender.yours(LONG)
}

#[test]
fn only_a_target_that_says_so_has_the_guest_and_only_one_that_says_so_has_not() {
    assert_eq!(handed(&frame(0x86, b"")), Fate::Running);
    let refused = handed(&frame(0x85, b"the lock of /d is another's"));
    let Fate::Refused(why) = refused else {
        panic!("{refused:?}");
    };
    assert!(why.contains("the lock of /d is another's"), "{why}");
    for answer in [
        Vec::new(),
        frame(0x86, b"")[..11].to_vec(),
        frame(0x84, b""),
        frame(0x82, b""),
        b"nonsense nonsense".to_vec(),
    ] {
        let handed = handed(&answer);
        assert!(matches!(handed, Fate::Lost(_)), "{handed:?}");
    }
    let (mut sender, _peer) = played(LONG);
    let handed = sender.yours(SHORT);
    assert!(matches!(handed, Fate::Lost(_)), "{handed:?}");
}

#[test]
fn a_target_that_was_gone_before_it_was_given_the_guest_does_not_have_it() {
    let (mut sender, peer) = played(LONG);
    drop(peer);
    let handed = sender.yours(LONG);
    assert!(matches!(handed, Fate::Refused(_)), "{handed:?}");
}

#[test]
fn a_source_takes_any_answer_for_an_error() {
    let mut numbers = Numbers(0xfeed_beef_dead_cafe);
    for _ in 0..2000 {
        let mut bytes = Vec::new();
        for _ in 0..numbers.below(6) {
            match numbers.below(3) {
                0 => bytes.extend((0..numbers.below(40)).map(|_| numbers.byte())),
                _ => {
                    let kind = 0x7f + numbers.byte() % 9;
                    let length = [0, 4, 30][numbers.below(3)];
                    let payload: Vec<u8> = (0..length).map(|_| numbers.byte()).collect();
                    bytes.extend(frame(kind, &payload));
                }
            }
        }
        let (link, mut peer) = pair();
        peer.write_all(&bytes).expect("there is room");
        peer.shutdown(Shutdown::Write).expect("connected");
        let Ok(mut sender) = offered(link, LONG) else {
            continue;
        };
        let heard = sender.round(1, LONG).is_ok();
        let ready = sender.last(false, LONG).is_ok();
        let handed = sender.yours(LONG);
        assert!(!(heard && ready && handed == Fate::Running), "by chance?");
    }
}

/// A target that has all, and does `work` when the guest is its own, and what the source makes of it.
fn given(work: impl FnOnce(Receiver) + Send + 'static) -> (Fate, Duration) {
    let (ours, theirs) = UnixStream::pair().expect("descriptors");
    let target = target(theirs.into(), move |mut receiver| {
        take(&mut receiver, &memory()).expect("all of it");
        work(receiver);
    });
    let mut sender = sender(ours.into());
    sender.state(b"state").expect("there is a target");
    sender.last(false, LONG).expect("it is ready");
    let began = Instant::now();
    let fate = sender.yours_or_never(SHORT);
    let took = began.elapsed();
    target.join().expect("no panic");
    (fate, took)
}

#[test]
fn a_child_that_does_not_say_in_time_that_it_runs_the_guest_cannot_say_so_any_more() {
    let (fate, _) = given(|receiver| receiver.running().expect("it is heard"));
    assert_eq!(fate, Fate::Running);
    let (fate, took) = given(|receiver| {
        thread::sleep(3 * SHORT);
        receiver.running().expect_err("nobody hears it any more");
    });
    assert!(
        matches!(&fate, Fate::Refused(why) if why.contains("did nothing for 100 ms")),
        "{fate:?}"
    );
    assert!(took < 3 * SHORT, "{took:?}");
    let (fate, _) = given(drop);
    assert!(
        matches!(&fate, Fate::Refused(why) if why.contains("closed")),
        "{fate:?}"
    );
    let (fate, _) = given(|receiver| receiver.failed("no address").expect("it is heard"));
    assert!(
        matches!(&fate, Fate::Refused(why) if why.contains("no address")),
        "{fate:?}"
    );
}

/// Whatever the moment in which it says so: either both think that it runs there, or neither.
#[test]
fn of_a_child_that_says_at_the_limit_that_it_runs_the_guest_both_sides_think_the_same() {
    for microseconds in (99_000..101_500).step_by(50) {
        let (tell, told) = std::sync::mpsc::channel();
        let (fate, _) = given(move |receiver| {
            thread::sleep(Duration::from_micros(microseconds));
            tell.send(receiver.running().is_ok()).expect("the test");
        });
        let runs = told.recv().expect("it tells");
        assert_eq!(fate == Fate::Running, runs, "{microseconds} us: {fate:?}");
    }
}
