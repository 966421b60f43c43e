//! Whose the guest is when the target was told that it is its own, whatever comes of that.
//!
//! The locks of the disks go over with the guest. Should the connection be lost then, they tell, if both
//! processes are on one host and have the same files: one of them can have the locks, and who has them has
//! the guest. Between hosts they do not: many file systems, and all block devices, lock on one host only.

use std::thread;
use std::time::{Duration, Instant};

use super::send::{Fate, Sender};
use crate::endpoint::Endpoint;
use crate::machine::Handed;
use crate::machine::claims::{Addresses, Arbiter, Claims};

/// How long the target may take to have the guest run when it is given.
const RUNNING: Duration = Duration::from_secs(10);
/// How long a process may take to end that was killed.
const DYING: Duration = Duration::from_secs(2);
/// How often to look whether it has.
const RETRY: Duration = Duration::from_millis(10);

/// Gives the locks of the guest's disks to the target, and its `addresses` if they are to go as well, and the guest, which
/// the target is ready to run.
pub(super) fn hand(
    to: &Endpoint,
    sender: &mut Sender,
    claims: &Claims,
    is_told_by_locks: bool,
    addresses: Addresses,
) -> Handed {
    if let Err(error) = claims.give_up_all(addresses) {
        return back(claims, &format!("{error:#}"));
    }
    log::debug!("migration: yours");
    match sender.yours(RUNNING) {
        Fate::Running => {
            log::debug!("migration: running");
            Handed::Away(String::new())
        }
        Fate::Refused(why) => back(claims, &format!("{to}: {why}")),
        Fate::Lost(why) if is_told_by_locks => {
            arbitrate(claims, addresses, &format!("{to}: {why}"))
        }
        Fate::Lost(why) => unknown(&format!("{to}: {why}")),
    }
}

/// The target does not run the guest, and says so.
fn back(claims: &Claims, why: &str) -> Handed {
    match claims.take_all() {
        Ok(_) => Handed::Back(format!("{why}; the guest stays here")),
        Err(error) => Handed::Unknown(format!(
            "{why}; and what is its own cannot be had back ({error:#}), so the guest stands still here: end whoever has it, and write `resume`"
        )),
    }
}

/// Nothing is known of the target, which may have the guest: it has if it has taken the disks' locks. A
/// target that was killed has them for as long as the host takes to end it.
fn arbitrate(claims: &Claims, addresses: Addresses, why: &str) -> Handed {
    let until = Instant::now() + DYING;
    let mut taken = claims.take_all();
    while taken.is_err() && Instant::now() < until {
        thread::sleep(RETRY);
        taken = claims.take_all();
    }
    match taken {
        Ok(Arbiter::Lock) => Handed::Back(format!(
            "{why}; nobody there has its disks, so the guest stays here, and would be refused there"
        )),
        Ok(Arbiter::Nobody) => {
            // Nothing is this process's until somebody says so.
            if let Err(error) = claims.give_up_all(addresses) {
                log::warn!("{error:#}");
            }
            unknown(why)
        }
        Err(error) => Handed::Unknown(format!(
            "{why}; what is its own is in use ({error:#}), most likely by the guest that runs there: it stands still here; write `quit` if it runs there, or end whoever has that, and write `resume`"
        )),
    }
}

fn unknown(why: &str) -> Handed {
    Handed::Unknown(format!(
        "{why}; whether the guest runs there cannot be told from here: it stands still; see whether it runs there, and write `quit` if it does, `resume` if it does not"
    ))
}

#[cfg(test)]
mod arbiter_test;
