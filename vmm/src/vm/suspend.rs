//! Pausing a guest. Whoever wants that leaves a request ([`Suspension`]); the main thread, which alone
//! has the machine, carries it out.

mod guest;

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;

use anyhow::Context as _;

use crate::event::Event;
use crate::machine::Work;
use crate::suspension::{Suspension, Wish};
pub(super) use guest::Guest;
#[cfg(test)]
pub(crate) use guest::stop_vcpus;

/// What can be paused.
pub(super) trait Pausable {
    /// Stops everything, or nothing.
    ///
    /// # Errors
    /// Why it cannot be stopped.
    fn pause(&mut self) -> Result<(), String>;

    /// Goes on after a pause.
    fn resume(&mut self);

    /// Has its machine worked on while it is paused.
    ///
    /// # Errors
    /// What the work says, or why the guest cannot go on.
    fn work(&mut self, work: Work) -> Result<String, String>;

    /// Comes to its end, whether it is paused or not. Nothing that has stopped goes on for that.
    fn end(&mut self);
}

/// Serves requests until something else happens to `guest`. While it is paused, that is the end of the
/// process; what the guest has asked for waits for it to go on.
pub(super) fn attend(
    guest: &mut impl Pausable,
    events: &Receiver<Event>,
    suspension: &Suspension,
) -> anyhow::Result<Event> {
    let mut inbox = Inbox {
        events,
        waiting: VecDeque::new(),
        later: None,
    };
    loop {
        while let Some((wish, client)) = suspension.next() {
            let answer = carry_out(wish, guest, suspension, &mut inbox);
            // The client may have gone.
            let _ = client.send(answer);
        }
        let paused = suspension.is_paused();
        if !paused && let Some(event) = inbox.later {
            return Ok(event);
        }
        match inbox.next()? {
            Event::Attend => {}
            event @ (Event::Quit | Event::Signal(_) | Event::Failed(_)) => {
                guest.end();
                suspension.set_paused(false);
                return Ok(event);
            }
            event if !paused => return Ok(event),
            event => inbox.later = inbox.later.or(Some(event)),
        }
    }
}

/// What has happened and is not seen to yet.
struct Inbox<'a> {
    events: &'a Receiver<Event>,
    waiting: VecDeque<Event>,
    /// What the guest has asked for, and waits for it to go on.
    later: Option<Event>,
}

impl Inbox<'_> {
    fn next(&mut self) -> anyhow::Result<Event> {
        match self.waiting.pop_front() {
            Some(event) => Ok(event),
            None => self.events.recv().context("all vCPUs are gone"),
        }
    }

    /// Whether the guest has come to its end, or asked for another beginning. No state has that.
    fn is_ending(&mut self) -> bool {
        self.waiting.extend(self.events.try_iter());
        let mut waiting = self.waiting.iter();
        self.later.is_some() || waiting.any(|event| *event != Event::Attend)
    }
}

fn carry_out(
    wish: Wish,
    guest: &mut impl Pausable,
    suspension: &Suspension,
    inbox: &mut Inbox<'_>,
) -> Result<String, String> {
    let mut work = |guest: &mut _, work| {
        if inbox.is_ending() {
            return Err("the guest ends, or starts again: try again when it runs".to_owned());
        }
        Pausable::work(guest, work)
    };
    match (wish, suspension.is_paused()) {
        (Wish::Pause, false) => {
            guest.pause()?;
            suspension.set_paused(true);
            Ok("the guest is paused\n".to_owned())
        }
        (Wish::Pause, true) => Err("the guest is paused already; `resume` has it go on".to_owned()),
        (Wish::Resume, true) => {
            guest.resume();
            suspension.set_paused(false);
            Ok("the guest goes on\n".to_owned())
        }
        (Wish::Resume, false) => Err("the guest is not paused".to_owned()),
        (Wish::Work(what), true) => work(guest, what),
        (Wish::Work(what), false) => {
            guest.pause()?;
            let answer = work(guest, what);
            guest.resume();
            answer
        }
    }
}

#[cfg(test)]
mod suspend_test;
