//! When a guest has few enough pages left to be handed over, and what is done if that is not getting
//! nearer.

use std::time::Duration;

use super::wire::PAGE;

/// A round that leaves more than this part of what it has sent has not brought the end nearer.
const SHRINKS: u64 = 2;
/// A round of fewer pages says only that the connection takes at least so much.
const TELLING: u64 = 256;
/// Of what is left, at least this part is expected not to be zeros, in thousandths.
const LEAST_DATA: u64 = 250;
/// So many pages of zeros take the time of one with data, as far as nothing is known: they are looked at, and not sent.
const ZEROS: u64 = 8;
/// How much of the time vCPUs are held first, and how much more after each round that does not help, in
/// percent.
const FIRST_HOLD: u32 = 20;
const MORE_HOLD: u32 = 10;
const MOST_HOLD: u32 = 99;
/// So many rounds in a row that bring nothing are the most, where nothing more can be done.
const PATIENCE: u32 = 30;
/// So many rounds in all are the most: a guest that is quiet now and then is not followed for ever.
const ROUNDS: u32 = 300;

/// A round that has been sent. Figures are of pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    /// Sent with what they hold.
    pub(super) data: u64,
    /// Sent by their number.
    pub(super) zeros: u64,
    pub(super) took: Duration,
    /// Written meanwhile.
    pub(super) left: u64,
}

/// What comes after a round.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another one.
    Round,
    /// Another one, in a while: the guest need not be followed more closely.
    Wait,
    /// Another one, with vCPUs held for so much of the time, in percent.
    Hold(u32),
    /// The guest stops, and what is left is sent.
    HandOver,
    /// This leads nowhere.
    Never,
}

/// What was learnt from rounds.
pub(super) struct Pace {
    /// How long the guest is meant to stand still at the most.
    limit: Duration,
    /// How much of that is taken whatever is left to be sent.
    fixed: Duration,
    slow_down: bool,
    /// Bytes per second that the connection takes, of pages with data.
    rate: u64,
    /// How many of a thousand pages that the guest wrote meanwhile had data.
    data: u64,
    /// Whether something was learnt: the first round has what the guest has ever touched, of which much may be zeros.
    has_begun: bool,
    held: u32,
    /// Rounds that brought nothing since something was done about it.
    futile: u32,
    rounds: u32,
}

impl Pace {
    pub(super) fn new(limit: Duration, fixed: Duration, slow_down: bool) -> Self {
        Self {
            limit,
            fixed,
            slow_down,
            rate: 0,
            data: 1000,
            has_begun: false,
            held: 0,
            futile: 0,
            rounds: 0,
        }
    }

    /// Bytes per second that the connection takes.
    pub(super) fn rate(&self) -> u64 {
        self.rate
    }

    /// How long the guest would stand still with so many bytes to send.
    pub(super) fn pause(&self, left: u64) -> Duration {
        self.fixed + self.sending(left)
    }

    /// How many bytes can be sent while the guest stands still.
    pub(super) fn room(&self) -> u64 {
        let bytes = u128::from(self.rate) * self.time().as_micros() / 1000;
        u64::try_from(bytes / u128::from(self.data)).unwrap_or(u64::MAX)
    }

    /// What no round can shorten does not keep the guest from being handed over.
    fn time(&self) -> Duration {
        self.limit.saturating_sub(self.fixed).max(self.limit / 4)
    }

    fn sending(&self, left: u64) -> Duration {
        let bytes = u128::from(left) * u128::from(self.data);
        let micros = bytes * 1000 / u128::from(self.rate.max(1));
        Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    fn learn(&mut self, round: &Round) {
        let rate = |pages: u64| {
            let bytes = u128::from(pages) * PAGE as u128 * 1_000_000;
            u64::try_from(bytes / round.took.as_micros().max(1)).unwrap_or(u64::MAX)
        };
        let (pages, of_data) = (round.data + round.zeros, rate(round.data));
        // Pages of zeros take time, too: what a round of many of them has sent can only be too little.
        let tells = round.data >= TELLING && round.data >= round.zeros;
        if tells || of_data > self.rate {
            self.rate = of_data;
        }
        if self.rate == 0 {
            self.rate = rate(pages / ZEROS);
        }
        if pages >= TELLING && std::mem::replace(&mut self.has_begun, true) {
            self.data = (round.data * 1000 / pages).max(LEAST_DATA);
        }
    }

    /// What comes after `round`. `is_ready` tells whether nothing but the guest has to be waited for.
    pub(super) fn next(&mut self, round: &Round, is_ready: bool) -> Next {
        self.learn(round);
        if self.sending(round.left * PAGE as u64) <= self.time() || round.left == 0 {
            return match is_ready {
                true => Next::HandOver,
                false => Next::Wait,
            };
        }
        self.rounds += 1;
        if self.rounds >= ROUNDS {
            return Next::Never;
        }
        if round.left <= (round.data + round.zeros) / SHRINKS {
            self.futile = 0;
            return Next::Round;
        }
        if self.slow_down && self.held < MOST_HOLD {
            self.held = match self.held {
                0 => FIRST_HOLD,
                held => (held + MORE_HOLD).min(MOST_HOLD),
            };
            return Next::Hold(self.held);
        }
        self.futile += 1;
        match self.futile < PATIENCE {
            true => Next::Round,
            false => Next::Never,
        }
    }
}

#[cfg(test)]
mod pace_test;
