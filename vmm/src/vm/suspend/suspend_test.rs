//! Requests, carried out on a stand-in for a guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use super::*;
use crate::machine::Work;

/// Counts what has stopped and gone on.
#[derive(Default)]
struct Counts {
    stopped: AtomicU32,
    resumed: AtomicU32,
    /// How often it had stopped and gone on when it was worked on.
    worked: Mutex<Vec<(u32, u32)>>,
    /// What comes of handing it over.
    handed: Mutex<Option<Handed>>,
    ended: AtomicBool,
    kicks: AtomicU32,
    /// Whether it was paused when it was handed over.
    paused: AtomicBool,
    /// Whether somebody else has what it needs.
    lost: AtomicBool,
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

    fn reclaim(&mut self) -> Result<(), String> {
        match self.counts.lost.load(Ordering::SeqCst) {
            true => Err("somebody has it".to_owned()),
            false => Ok(()),
        }
    }

    fn hand_over(&mut self, _work: HandOver, paused: bool) -> Handed {
        self.counts.paused.store(paused, Ordering::SeqCst);
        let handed = self.counts.handed.lock().take();
        handed.expect("it is known what comes of it")
    }

    fn kick(&self) {
        self.counts.kicks.fetch_add(1, Ordering::SeqCst);
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

/// Has it be handed over, with this outcome.
fn hand_over(bench: &Bench, handed: Handed) -> Result<String, String> {
    *bench.counts.handed.lock() = Some(handed);
    let work = |_: &mut crate::machine::Machine, _| unreachable!("a stand-in has no machine");
    bench.ask(Wish::HandOver(Box::new(work)))
}

#[test]
fn nothing_of_a_guest_that_is_handed_over_goes_on_and_nobody_is_served_any_more() {
    let bench = bench(None);
    let answer = hand_over(&bench, Handed::Away("there".to_owned()));
    assert_eq!(answer, Ok("there".to_owned()));
    // Its client was told.
    bench.send(Event::Quit);
    let Bench {
        counts,
        suspension,
        events,
        main,
    } = bench;
    assert_eq!(main.join().expect("no panic"), Event::Quit);
    assert!(counts.ended.load(Ordering::SeqCst));
    assert_eq!(counts.resumed.load(Ordering::SeqCst), 0);
    let client = Arc::new(());
    let answer = suspension.ask(Wish::Resume, Arc::downgrade(&client), &events);
    assert!(answer.expect_err("closed").contains("ends"));
}

#[test]
fn a_process_whose_guest_is_gone_ends_though_nobody_says_so() {
    let bench = bench(None);
    hand_over(&bench, Handed::Away(String::new())).expect("gone");
    assert_eq!(bench.main.join().expect("no panic"), Event::Quit);
}

#[test]
fn a_guest_that_comes_back_goes_on_unless_it_was_paused_before() {
    let bench = bench(None);
    let back = || Handed::Back("no".to_owned());
    assert_eq!(hand_over(&bench, back()), Err("no".to_owned()));
    assert_eq!(
        (bench.counts(), bench.suspension.is_paused()),
        ((1, 1), false)
    );
    assert!(!bench.counts.paused.load(Ordering::SeqCst));
    bench.ask(Wish::Pause).expect("paused");
    assert_eq!(hand_over(&bench, back()), Err("no".to_owned()));
    assert!(bench.counts.paused.load(Ordering::SeqCst));
    assert_eq!(
        (bench.counts(), bench.suspension.is_paused()),
        ((2, 1), true)
    );
    bench.send(Event::Quit);
    bench.main.join().expect("no panic");
}

#[test]
fn a_guest_of_whom_nobody_knows_whose_it_is_stands_still_until_somebody_decides() {
    let bench = bench(None);
    let answer = hand_over(&bench, Handed::Unknown("who knows".to_owned()));
    assert_eq!(answer, Err("who knows".to_owned()));
    assert_eq!(
        (bench.counts(), bench.suspension.is_paused()),
        ((1, 0), true)
    );
    bench.counts.lost.store(true, Ordering::SeqCst);
    let why = bench.ask(Wish::Resume).expect_err("another has it");
    assert_eq!(
        (why.as_str(), bench.suspension.is_paused()),
        ("somebody has it", true)
    );
    bench.counts.lost.store(false, Ordering::SeqCst);
    bench.ask(Wish::Resume).expect("decided");
    assert_eq!(
        (bench.counts(), bench.suspension.is_paused()),
        ((1, 1), false)
    );
    bench.send(Event::Quit);
    bench.main.join().expect("no panic");
}

#[test]
fn vcpus_are_kicked_when_somebody_asks_and_that_is_no_end_of_anything() {
    let bench = bench(None);
    for _ in 0..3 {
        bench.send(Event::Kick);
    }
    bench.ask(Wish::Pause).expect("paused");
    bench
        .ask(Wish::Work(Box::new(|_| Ok(String::new()))))
        .expect("worked");
    bench.send(Event::Kick);
    bench.send(Event::Quit);
    let counts = Arc::clone(&bench.counts);
    assert_eq!(bench.main.join().expect("no panic"), Event::Quit);
    assert_eq!(counts.kicks.load(Ordering::SeqCst), 4);
}

#[test]
fn who_asks_for_a_resume_before_it_is_known_whose_the_guest_is_does_not_get_it() {
    let (events, receiver) = channel();
    let suspension = Suspension::default();
    let counts = Arc::<Counts>::default();
    *counts.handed.lock() = Some(Handed::Unknown("who knows".to_owned()));
    let mut guest = Fake {
        why: None,
        counts: Arc::clone(&counts),
    };
    let client = Arc::new(());
    let here = || Arc::downgrade(&client);
    thread::scope(|scope| {
        let (suspension, events) = (&suspension, &events);
        let work = |_: &mut crate::machine::Machine, _: bool| unreachable!("a stand-in has none");
        let over =
            scope.spawn(move || suspension.ask(Wish::HandOver(Box::new(work)), here(), events));
        assert_eq!(receiver.recv(), Ok(Event::Attend));
        // Both wait when the main thread comes.
        let resume = scope.spawn(move || suspension.ask(Wish::Resume, here(), events));
        assert_eq!(receiver.recv(), Ok(Event::Attend));
        let told = scope.spawn(move || {
            let (over, resume) = (over.join(), resume.join());
            events.send(Event::Quit).expect("somebody listens");
            (over.expect("no panic"), resume.expect("no panic"))
        });
        events.send(Event::Attend).expect("somebody listens");
        attend(&mut guest, &receiver, suspension).expect("an event");
        let (over, resume) = told.join().expect("no panic");
        assert_eq!(over, Err("who knows".to_owned()));
        let why = resume.expect_err("refused");
        assert!(why.contains("not known"), "{why}");
    });
    assert_eq!(counts.resumed.load(Ordering::SeqCst), 0);
}

#[test]
fn the_end_of_the_process_outranks_what_the_guest_asked_for_before() {
    let bench = bench(None);
    bench.ask(Wish::Pause).expect("paused");
    bench.send(Event::Reset);
    // Looks at what has come, and refuses.
    let answer = bench.ask(Wish::Work(Box::new(|_| Ok(String::new()))));
    assert!(answer.expect_err("it restarts").contains("starts again"));
    bench.send(Event::Signal(15));
    let answer = bench.ask(Wish::Work(Box::new(|_| Ok(String::new()))));
    drop(answer);
    drop(bench.ask(Wish::Resume));
    assert_eq!(bench.main.join().expect("no panic"), Event::Signal(15));
}
