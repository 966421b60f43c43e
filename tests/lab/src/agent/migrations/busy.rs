//! A guest that writes its memory faster than the link takes it: it goes elsewhere if it may be slowed down.

use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Journey, LOOK};
use crate::agent::control;
use crate::agent::moved::Moved;

/// Bytes a second.
const RATE: u64 = 24 << 20;
/// When it has sent so many it has not come to an end, which is more than once all that is not zero.
const IN_VAIN: u64 = 128 << 20;
/// Time for that.
const LIMIT: Duration = Duration::from_secs(120);
/// How long the guest may stand still, which is less than what it writes in a round takes. Twice what is
/// asked for would be enough on a machine that has nothing else to do.
const PAUSE_MS: u64 = 500;

/// First it may not be slowed down, then it may.
pub(super) fn go(journey: &mut Journey<'_>, nido: &mut Child) -> Result<(Moved, String)> {
    let socket = journey.way.socket;
    let slow = journey.slowly("nido-in-vain", RATE, 1, ",slow-down=off")?;
    slow.proxy.wait_for(IN_VAIN, LIMIT)?;
    let status = control::request(socket, "status")?;
    ensure!(status.contains("\nmigration: "), "{}", status.trim());
    ensure!(!status.contains("held"), "{}", status.trim());
    let ended = slow.migrating.is_finished();
    ensure!(!ended, "migrate: {}", slow.answer()?.1.trim());
    control::request(socket, "migrate-cancel")?;
    let (target, said) = slow.answer()?;
    ensure!(said.starts_with("error: "), "migrate: {}", said.trim());
    drop(target);
    journey.stays(nido)?;

    let slow = journey.slowly("nido-busy", RATE, 1, ",slow-down=on")?;
    let (until, mut was_held) = (Instant::now() + LIMIT, String::new());
    while !slow.migrating.is_finished() {
        // It ends between two looks, once.
        let status = control::request(socket, "status").unwrap_or_default();
        let held = status.lines().find(|line| line.contains("held"));
        was_held = held.map_or(was_held, str::to_owned);
        ensure!(Instant::now() < until, "no end in time: {}", status.trim());
        std::thread::sleep(50 * LOOK);
    }
    ensure!(!was_held.is_empty(), "the guest was not slowed down");
    let place = slow.place.clone();
    let (target, answer) = slow.answer()?;
    let (moved, said) = journey.arrived(nido, target, &place, &answer)?;
    let pause = pause_ms(&said)?;
    ensure!(pause <= PAUSE_MS, "{said}");
    Ok((moved, format!("{said}; at last {was_held}")))
}

/// How long the guest stood still, from the answer of `migrate`.
fn pause_ms(said: &str) -> Result<u64> {
    let (_, rest) = said.split_once("it stood still for ").context("no pause")?;
    let (number, _) = rest.split_once(" ms").context("no milliseconds")?;
    number.parse().context("a number")
}

#[cfg(test)]
mod tests {
    use super::pause_ms;

    #[test]
    fn the_answer_tells_the_pause() {
        let said =
            "the guest runs at unix:/a: it stood still for 23 ms; 5 rounds, 130 MiB in 1.9 s";
        assert_eq!(pause_ms(said).unwrap(), 23);
        assert!(pause_ms("error: no").is_err());
    }
}
