//! Pausing a guest. Whoever wants that leaves a request ([`Suspension`]); the main thread, which alone
//! has the machine, carries it out.

mod guest;
mod requests;

use std::sync::mpsc::Receiver;

use anyhow::Context as _;

use crate::event::Event;
pub(super) use guest::Guest;
#[cfg(test)]
pub(crate) use guest::stop_vcpus;
pub(crate) use requests::{Suspension, Wish};

/// What can be paused.
pub(super) trait Pausable {
    /// Stops everything, or nothing.
    ///
    /// # Errors
    /// Why it cannot be stopped.
    fn pause(&mut self) -> Result<(), String>;

    /// Goes on after a pause.
    fn resume(&mut self);

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
    let mut later = None;
    loop {
        while let Some((wish, client)) = suspension.next() {
            let answer = carry_out(wish, guest, suspension);
            // The client may have gone.
            let _ = client.send(answer);
        }
        let paused = suspension.is_paused();
        if !paused && let Some(event) = later {
            return Ok(event);
        }
        match events.recv().context("all vCPUs are gone")? {
            Event::Attend => {}
            event @ (Event::Quit | Event::Signal(_) | Event::Failed(_)) => {
                guest.end();
                suspension.set_paused(false);
                return Ok(event);
            }
            event if !paused => return Ok(event),
            event => later = later.or(Some(event)),
        }
    }
}

fn carry_out(
    wish: Wish,
    guest: &mut impl Pausable,
    suspension: &Suspension,
) -> Result<String, String> {
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
    }
}

#[cfg(test)]
mod suspend_test;
