//! Requests, carried out on a stand-in for a guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use super::*;

/// Counts what has stopped and gone on.
#[derive(Default)]
struct Counts {
    stopped: AtomicU32,
    resumed: AtomicU32,
    /// How often it had stopped and gone on when it was worked on.
    worked: Mutex<Vec<(u32, u32)>>,
    ended: AtomicBool,
}

struct Fake {
    /// Why it cannot be paused.
    why: Option<&'static str>,
    counts: Arc<Counts>,
}

impl Pausable for Fake {
    fn pause(&mut self) -> Result<(), String> {
        if let Some(why) = self.why {
            return Err(why.to_owned());
        }
        self.counts.stopped.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn resume(&mut self) {
        self.counts.resumed.fetch_add(1, Ordering::SeqCst);
    }

    fn work(&mut self, _work: Work) -> Result<String, String> {
        let counts = &self.counts;
        let count = |counter: &AtomicU32| counter.load(Ordering::SeqCst);
        let now = (count(&counts.stopped), count(&counts.resumed));
        counts.worked.lock().push(now);
        Ok("worked".to_owned())
    }

    fn end(&mut self) {
        self.counts.ended.store(true, Ordering::SeqCst);
    }
}

struct Bench {
    counts: Arc<Counts>,
    suspension: Arc<Suspension>,
    events: Sender<Event>,
    main: JoinHandle<Event>,
}

/// A guest that can be paused, unless `why` says why not.
fn bench(why: Option<&'static str>) -> Bench {
    let (events, receiver) = channel();
    let counts = Arc::<Counts>::default();
    let suspension = Arc::<Suspension>::default();
    let main = {
        let (counts, suspension) = (Arc::clone(&counts), Arc::clone(&suspension));
        let mut guest = Fake { why, counts };
        thread::spawn(move || attend(&mut guest, &receiver, &suspension).expect("an event"))
    };
    Bench {
        counts,
        suspension,
        events,
        main,
    }
}

impl Bench {
    fn ask(&self, wish: Wish) -> Result<String, String> {
        let client = Arc::new(());
        let here = Arc::downgrade(&client);
        self.suspension.ask(wish, here, &self.events)
    }

    fn counts(&self) -> (u32, u32) {
        let count = |counter: &AtomicU32| counter.load(Ordering::SeqCst);
        (count(&self.counts.stopped), count(&self.counts.resumed))
    }

    fn send(&self, event: Event) {
        self.events.send(event).expect("somebody listens");
    }
}

#[test]
fn a_second_pause_and_a_second_resume_are_refused_and_change_nothing() {
    let bench = bench(None);
    assert!(bench.ask(Wish::Resume).is_err());
    for round in 1..4 {
        bench.ask(Wish::Pause).expect("paused");
        assert!(bench.suspension.is_paused());
        assert!(bench.ask(Wish::Pause).is_err());
        assert_eq!(bench.counts(), (round, round - 1));
        bench.ask(Wish::Resume).expect("resumed");
        assert!(!bench.suspension.is_paused());
        assert!(bench.ask(Wish::Resume).is_err());
        assert_eq!(bench.counts(), (round, round));
    }
    bench.send(Event::Quit);
    assert_eq!(bench.main.join().expect("no panic"), Event::Quit);
}

#[test]
fn work_is_done_while_it_is_paused_and_leaves_it_as_it_was() {
    let bench = bench(None);
    let work = || bench.ask(Wish::Work(Box::new(|_| Err("not here".to_owned()))));
    assert_eq!(work(), Ok("worked".to_owned()));
    assert_eq!(bench.counts(), (1, 1));
    bench.ask(Wish::Pause).expect("paused");
    assert_eq!(work(), Ok("worked".to_owned()));
    assert!(bench.suspension.is_paused());
    assert_eq!(bench.counts(), (2, 1));
    assert_eq!(*bench.counts.worked.lock(), [(1, 0), (2, 1)]);
}

#[test]
fn what_the_guest_has_asked_for_while_it_stopped_is_in_no_state() {
    let bench = bench(None);
    let work = || bench.ask(Wish::Work(Box::new(|_| Ok(String::new()))));
    bench.ask(Wish::Pause).expect("paused");
    bench.send(Event::Reset);
    for _ in 0..2 {
        let why = work().expect_err("it would be forgotten");
        assert!(why.contains("starts again"), "{why}");
    }
    assert!(bench.counts.worked.lock().is_empty());
    bench.ask(Wish::Resume).expect("resumed");
    assert_eq!(bench.main.join().expect("no panic"), Event::Reset);
}

#[test]
fn what_cannot_be_paused_is_not_worked_on() {
    let bench = bench(Some("vCPU 2"));
    let answer = bench.ask(Wish::Work(Box::new(|_| Ok(String::new()))));
    assert_eq!(answer, Err("vCPU 2".to_owned()));
    assert!(bench.counts.worked.lock().is_empty());
}

#[test]
fn what_cannot_be_paused_goes_on_and_the_client_hears_why() {
    let bench = bench(Some("vCPU 2"));
    assert_eq!(bench.ask(Wish::Pause), Err("vCPU 2".to_owned()));
    assert!(!bench.suspension.is_paused());
    bench.send(Event::Reset);
    assert_eq!(bench.main.join().expect("no panic"), Event::Reset);
}

#[test]
fn the_end_of_the_process_comes_while_paused_and_nothing_goes_on_for_it() {
    for event in [
        Event::Quit,
        Event::Signal(15),
        Event::Failed("lost".to_owned()),
    ] {
        let bench = bench(None);
        bench.ask(Wish::Pause).expect("paused");
        bench.send(event.clone());
        let counts = Arc::clone(&bench.counts);
        assert_eq!(bench.main.join().expect("no panic"), event);
        assert!(counts.ended.load(Ordering::SeqCst));
        assert_eq!(counts.resumed.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn what_the_guest_has_asked_for_waits_until_it_goes_on() {
    for event in [
        Event::Reset,
        Event::PowerOff,
        Event::TripleFault { vcpu: 1 },
    ] {
        let bench = bench(None);
        bench.ask(Wish::Pause).expect("paused");
        bench.send(event.clone());
        assert!(bench.ask(Wish::Pause).is_err(), "still paused");
        assert_eq!(bench.counts(), (1, 0));
        bench.ask(Wish::Resume).expect("resumed");
        let counts = Arc::clone(&bench.counts);
        assert_eq!(bench.main.join().expect("no panic"), event);
        assert!(!counts.ended.load(Ordering::SeqCst));
    }
}
