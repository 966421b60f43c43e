//! Pausing a guest, and giving it away. Whoever wants that leaves a request ([`Suspension`]); the main
//! thread, which alone has the machine, carries it out.

mod guest;

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::event::Event;
use crate::machine::{HandOver, Handed, Work};
use crate::suspension::{Suspension, Wish};
pub(super) use guest::Guest;
#[cfg(test)]
pub(crate) use guest::stop_vcpus;

/// How long the process of a guest that is another's now stays, for whoever had it handed over to be
/// told.
const FAREWELL: Duration = Duration::from_secs(1);
/// Why nothing is done with a guest in such a moment.
const ENDING: &str = "the guest ends, or starts again: try again when it runs";

/// What can be paused.
pub(super) trait Pausable {
    /// Stops everything, or nothing.
    ///
    /// # Errors
    /// Why it cannot be stopped.
    fn pause(&mut self) -> Result<(), String>;

    /// Has the machine have what it may have given away.
    ///
    /// # Errors
    /// Somebody else has it: the guest is not to go on.
    fn reclaim(&mut self) -> Result<(), String>;

    /// Goes on after a pause.
    fn resume(&mut self);

    /// Has its machine worked on while it is paused.
    ///
    /// # Errors
    /// What the work says, or why the guest cannot go on.
    fn work(&mut self, work: Work) -> Result<String, String>;

    /// Has its machine handed over while it is paused.
    fn hand_over(&mut self, work: HandOver, paused: bool) -> Handed;

    /// Has the vCPUs leave the guest for a moment, if they run.
    fn kick(&self);

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
        gone: false,
    };
    loop {
        while let Some((wish, client)) = suspension.next() {
            let answer = carry_out(wish, guest, suspension, &mut inbox);
            // The client may have gone.
            let _ = client.send(answer);
            if inbox.gone {
                suspension.close();
                guest.end();
                return Ok(inbox.farewell());
            }
        }
        let paused = suspension.is_paused();
        if !paused && let Some(event) = inbox.later.take() {
            return Ok(inbox.most_urgent(event));
        }
        match inbox.next()? {
            Event::Attend => {}
            Event::Kick => guest.kick(),
            event @ (Event::Quit | Event::Signal(_) | Event::Failed(_)) => {
                guest.end();
                suspension.set_paused(false);
                return Ok(event);
            }
            event if !paused => return Ok(inbox.most_urgent(event)),
            event => inbox.later = inbox.later.take().or(Some(event)),
        }
    }
}

/// What has happened and is not seen to yet.
struct Inbox<'a> {
    events: &'a Receiver<Event>,
    waiting: VecDeque<Event>,
    /// What the guest has asked for, and waits for it to go on.
    later: Option<Event>,
    /// The guest is another process's.
    gone: bool,
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
        self.later.is_some() || waiting.any(|event| !matches!(event, Event::Attend | Event::Kick))
    }

    /// The end of the process, if that is among what is not seen to, or else `event`.
    fn most_urgent(&mut self, event: Event) -> Event {
        let mut waiting = self.waiting.drain(..);
        let end = waiting.find(|event| matches!(event, Event::Quit | Event::Signal(_)));
        end.unwrap_or(event)
    }

    /// Waits a little for the end of a process whose guest is another's: it comes when a client was
    /// told. What the guest had asked for is not this one's to do.
    fn farewell(&self) -> Event {
        let until = Instant::now() + FAREWELL;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(event @ (Event::Quit | Event::Signal(_))) => return event,
                Ok(_) => {}
                Err(_) => return Event::Quit,
            }
        }
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
            return Err(ENDING.to_owned());
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
            guest.reclaim()?;
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
        (Wish::HandOver(what), paused) => {
            if !paused {
                guest.pause()?;
            }
            // It does not run here, whoever asks meanwhile, and afterwards if it is away.
            suspension.set_paused(true);
            let handed = match inbox.is_ending() {
                true => Handed::Back(ENDING.to_owned()),
                false => guest.hand_over(what, paused),
            };
            match handed {
                Handed::Away(text) => {
                    inbox.gone = true;
                    Ok(text)
                }
                Handed::Back(why) => {
                    if !paused {
                        guest.resume();
                        suspension.set_paused(false);
                    }
                    Err(why)
                }
                Handed::Unknown(why) => {
                    // Who has asked for anything meanwhile did not know that.
                    suspension.refuse(
                        "a migration has ended, and whose the guest is is not known; see what `migrate` has answered, and ask again",
                    );
                    Err(why)
                }
            }
        }
    }
}

#[cfg(test)]
mod suspend_test;
