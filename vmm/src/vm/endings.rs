//! How a machine comes to its end: who may ask for that, and what counts if several do.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use crate::event::{Event, Outcome};
use crate::event_loop::{Handle, Subscription};
use crate::migration::Migrations;
use crate::socket::{Place, Places};
use crate::suspension::Suspension;
use crate::{terminal, upgrade};

/// Has the machine end when the process that was started first does, or is told to.
pub(super) fn watch_keeper(
    event_loop: &Handle,
    line: &File,
    migrations: Arc<Migrations>,
    events: Sender<Event>,
) -> io::Result<Subscription> {
    upgrade::watch_keeper(event_loop, line, move |signal| {
        let gone = || {
            "the process that was started first, and waits for this one since an upgrade, is gone"
                .to_owned()
        };
        let event = signal.map_or_else(|| Event::Failed(gone()), Event::Signal);
        end(&migrations, &events, event);
    })
}

/// What a signal does that asks the process to end: an event once vCPUs have started. Before that
/// nobody waits for events, and whatever opens, pins or loads something may take as long as a user
/// has chosen a slow file: the process ends at once. Nothing runs then that would have to stop
/// first.
pub(super) fn end_by_signal(
    started: Arc<AtomicBool>,
    places: Places,
    migrations: Arc<Migrations>,
    events: Sender<Event>,
) -> impl FnMut(i32) + Send {
    move |signal| {
        if started.load(Ordering::Acquire) {
            end(&migrations, &events, Event::Signal(signal));
            return;
        }
        terminal::restore();
        places.lock().iter().for_each(Place::remove);
        log::logger().flush();
        std::process::exit(crate::signal_code(signal).into());
    }
}

/// What the key does that ends the machine.
pub(super) fn end_by_key(
    migrations: Arc<Migrations>,
    events: Sender<Event>,
) -> impl FnMut() + Send {
    move || end(&migrations, &events, Event::Quit)
}

/// Has the main thread hear that the machine is to end, and why.
fn end(migrations: &Migrations, events: &Sender<Event>, why: Event) {
    // The main thread may be at one, if it is under way.
    let _ = migrations.cancel();
    // Nobody waits for it any more only when the process ends anyway.
    let _ = events.send(why);
}

/// The process's end comes before whatever else was reported while the vCPUs stopped; the rest
/// concerned a machine that no longer runs.
pub(super) fn most_urgent(first: Event, events: &Receiver<Event>) -> Event {
    let ends = |event: &Event| matches!(event, Event::Quit | Event::Signal(_));
    let later = events.try_iter().find(ends);
    if ends(&first) {
        first
    } else {
        later.unwrap_or(first)
    }
}

/// Waits as long as `busy` says. Returns the end of the process if that comes before. There is nothing
/// to be paused meanwhile.
///
/// A disk's file may be on a server that does not answer. Memory that it is to fill is not given to
/// the next guest meanwhile.
pub(super) fn ended_while(
    events: &Receiver<Event>,
    suspension: &Suspension,
    busy: impl Fn() -> bool,
) -> Option<Outcome> {
    let mut told = false;
    while busy() {
        suspension.refuse(
            "the guest restarts, and waits for a device's file that does not answer; try again when it runs",
        );
        if !std::mem::replace(&mut told, true) {
            log::warn!("a device's file does not answer: the guest restarts when it does");
        }
        match events.recv_timeout(Duration::from_millis(10)) {
            Ok(Event::Quit) => return Some(Outcome::Off),
            Ok(Event::Signal(signal)) => return Some(Outcome::Signal(signal)),
            // No vCPU is running.
            Ok(_) | Err(_) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;
    use crate::suspension::Wish;

    #[test]
    fn a_signal_outranks_what_the_guest_reported_first() {
        let (sender, events) = channel();
        sender.send(Event::Reset).expect("receiver");
        sender.send(Event::Signal(15)).expect("receiver");
        assert_eq!(most_urgent(Event::PowerOff, &events), Event::Signal(15));
        assert!(
            events.try_recv().is_err(),
            "nothing stale is left for the next run"
        );
    }

    #[test]
    fn a_message_of_several_lines_is_shown_as_it_is() {
        let event = Event::Failed("vCPU 0 cannot go on\n  rip 0x10\n".to_owned());
        assert_eq!(event.to_string(), "vCPU 0 cannot go on\n  rip 0x10");
    }

    #[test]
    fn a_restart_waits_for_busy_devices_and_the_end_of_the_process_for_none() {
        let (sender, events) = channel();
        let suspension = Suspension::default();
        assert_eq!(ended_while(&events, &suspension, || false), None);
        let looks = std::cell::Cell::new(3);
        let busy = || looks.replace(looks.get() - 1) != 0;
        assert_eq!(ended_while(&events, &suspension, busy), None);
        for (event, outcome) in [
            (Event::Quit, Outcome::Off),
            (Event::Signal(15), Outcome::Signal(15)),
        ] {
            sender.send(Event::Reset).expect("receiver");
            sender.send(event).expect("receiver");
            assert_eq!(ended_while(&events, &suspension, || true), Some(outcome));
        }
    }

    #[test]
    fn who_wants_a_pause_hears_at_once_that_the_guest_restarts() {
        let (sender, events) = channel();
        let suspension = Suspension::default();
        thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let client = Arc::new(());
                suspension.ask(Wish::Pause, Arc::downgrade(&client), &sender)
            });
            let busy = || !asking.is_finished();
            assert_eq!(ended_while(&events, &suspension, busy), None);
            let why = asking.join().expect("no panic").expect_err("refused");
            assert!(why.contains("restarts"), "{why}");
        });
    }

    #[test]
    fn what_the_guest_reported_first_counts() {
        let (sender, events) = channel();
        sender.send(Event::PowerOff).expect("receiver");
        assert_eq!(most_urgent(Event::Reset, &events), Event::Reset);
    }
}
