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
    /// How much of that the connection and the target took.
    pub(super) waited: Duration,
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
    /// Nanoseconds in which a page is looked at and made ready, whatever it holds.
    looking: u64,
    /// How many of a thousand pages had data.
    data: u64,
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
            looking: 0,
            data: 1000,
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
        let pages = self.time().as_nanos() / self.of_page().max(1);
        u64::try_from(pages)
            .unwrap_or(u64::MAX)
            .saturating_mul(PAGE as u64)
    }

    /// What no round can shorten does not keep the guest from being handed over.
    fn time(&self) -> Duration {
        self.limit.saturating_sub(self.fixed).max(self.limit / 4)
    }

    fn sending(&self, left: u64) -> Duration {
        let looking = u128::from(left / PAGE as u64) * u128::from(self.looking);
        let nanos = looking + self.going(u128::from(left));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// How many nanoseconds a page takes of those that are left, on average.
    fn of_page(&self) -> u128 {
        u128::from(self.looking) + self.going(PAGE as u128)
    }

    /// How many nanoseconds the connection takes for so many bytes of pages.
    fn going(&self, bytes: u128) -> u128 {
        bytes * u128::from(self.data) * 1_000_000 / u128::from(self.rate.max(1))
    }

    /// Pages of zeros are looked at, and not sent: they say nothing of the connection.
    fn learn(&mut self, round: &Round) {
        let bytes = u128::from(round.data) * PAGE as u128;
        let rate = bytes * 1_000_000 / round.waited.as_micros().max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        if round.data >= TELLING || rate > self.rate {
            self.rate = rate;
        }
        let pages = round.data + round.zeros;
        if pages >= TELLING {
            let looking = round.took.saturating_sub(round.waited).as_nanos() / u128::from(pages);
            self.looking = u64::try_from(looking).unwrap_or(u64::MAX);
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
