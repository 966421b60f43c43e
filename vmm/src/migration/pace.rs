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
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    /// Pages of a MiB.
    const MIB: u64 = 256;

    fn pace(limit: u64, fixed: u64, slow_down: bool) -> Pace {
        let [limit, fixed] = [limit, fixed].map(Duration::from_millis);
        Pace::new(limit, fixed, slow_down)
    }

    /// A round that has sent so many pages in so long, and leaves so many.
    fn round(data: u64, took: Duration, left: u64) -> Round {
        Round {
            data,
            zeros: 0,
            took,
            waited: took,
            left,
        }
    }

    #[test]
    fn it_ends_when_what_is_left_fits_into_the_pause() {
        let mut pace = pace(100, 20, true);
        // 100 MiB a second: 8 MiB take the 80 ms that are left of the pause.
        let first = round(100 * MIB, SECOND, 40 * MIB);
        assert_eq!(pace.next(&first, true), Next::Round);
        assert_eq!((pace.rate(), pace.room()), (100 << 20, 8 << 20));
        assert_eq!(pace.pause(5 << 20), Duration::from_millis(70));
        let second = round(40 * MIB, Duration::from_millis(400), 9 * MIB);
        assert_eq!(pace.next(&second, true), Next::Round);
        let third = round(9 * MIB, Duration::from_millis(90), 8 * MIB);
        assert_eq!(pace.next(&third, false), Next::Wait);
        assert_eq!(pace.next(&third, true), Next::HandOver);
    }

    #[test]
    fn what_no_round_can_shorten_does_not_keep_it_from_ending() {
        let mut pace = pace(100, 500, true);
        let three = round(100 * MIB, SECOND, 3 * MIB);
        assert_eq!(pace.next(&three, true), Next::Round);
        let two = round(100 * MIB, SECOND, 2 * MIB);
        assert_eq!(pace.next(&two, true), Next::HandOver);
    }

    #[test]
    fn a_small_round_makes_a_connection_faster_but_not_slower() {
        let mut pace = pace(100, 0, true);
        let first = round(100 * MIB, SECOND, 40 * MIB);
        assert_eq!(pace.next(&first, true), Next::Round);
        let slow = round(1, Duration::from_millis(50), 10 * MIB);
        assert_eq!(pace.next(&slow, true), Next::HandOver);
        let fast = round(100, Duration::from_millis(1), 0);
        assert_eq!(pace.next(&fast, true), Next::HandOver);
        assert_eq!(pace.rate(), 409_600_000);
    }

    #[test]
    fn a_guest_whose_memory_holds_mostly_zeros_is_not_taken_for_one_behind_a_slow_connection() {
        let mut pace = pace(100, 0, true);
        let mostly_zeros = Round {
            data: 1000,
            zeros: 8000 * MIB,
            took: SECOND,
            waited: Duration::from_millis(10),
            left: 50 * MIB,
        };
        assert_eq!(pace.next(&mostly_zeros, true), Next::HandOver);
        // One that writes zeros does not write more than is sent.
        let zeros = Round {
            data: 0,
            zeros: 2000 * MIB,
            took: SECOND,
            waited: Duration::from_millis(1),
            left: 900 * MIB,
        };
        assert_eq!(pace.next(&zeros, true), Next::Round);
    }

    #[test]
    fn zeros_do_not_make_a_slow_connection_a_fast_one() {
        let mut pace = pace(100, 0, true);
        // 63 GiB of zeros are looked at in 12 s; 100 MiB take 80 s.
        let first = Round {
            data: 100 * MIB,
            zeros: 63 << 18,
            took: 92 * SECOND,
            waited: 80 * SECOND,
            left: 9 * MIB,
        };
        assert_ne!(pace.next(&first, true), Next::HandOver);
        assert_eq!(pace.rate(), (100 << 20) / 80);
        assert!(pace.room() < 1 << 20, "{}", pace.room());
        let few = Round {
            data: 0,
            zeros: 200,
            took: Duration::from_millis(1),
            waited: Duration::from_micros(1),
            left: 9 * MIB,
        };
        assert_ne!(pace.next(&few, true), Next::HandOver);
    }

    #[test]
    fn a_guest_that_writes_faster_than_is_sent_is_held_more_and_more() {
        let mut pace = pace(100, 0, true);
        let futile = round(100 * MIB, SECOND, 90 * MIB);
        let mut holds = Vec::new();
        for _ in 0..9 {
            match pace.next(&futile, true) {
                Next::Hold(percent) => holds.push(percent),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(holds, [20, 30, 40, 50, 60, 70, 80, 90, 99]);
        for _ in 1..PATIENCE {
            assert_eq!(pace.next(&futile, true), Next::Round);
        }
        assert_eq!(pace.next(&futile, true), Next::Never);
    }

    #[test]
    fn without_slowing_down_it_is_given_up_after_rounds_that_bring_nothing() {
        let mut pace = pace(100, 0, false);
        let (futile, good) = (
            round(100 * MIB, SECOND, 90 * MIB),
            round(100 * MIB, SECOND, 50 * MIB),
        );
        for _ in 1..PATIENCE {
            assert_eq!(pace.next(&futile, true), Next::Round);
        }
        // One that helps has it go on.
        assert_eq!(pace.next(&good, true), Next::Round);
        for _ in 1..PATIENCE {
            assert_eq!(pace.next(&futile, true), Next::Round);
        }
        assert_eq!(pace.next(&futile, true), Next::Never);
    }

    #[test]
    fn a_guest_that_is_quiet_now_and_then_is_not_followed_for_ever() {
        let mut pace = pace(100, 0, true);
        let (futile, good) = (
            round(100 * MIB, SECOND, 90 * MIB),
            round(100 * MIB, SECOND, 50 * MIB),
        );
        let turns = [&futile, &good].into_iter().cycle().take(1000);
        let ends = turns.map(|round| pace.next(round, true));
        let never = ends.take_while(|next| *next != Next::Never).count();
        assert_eq!(never, 299);
    }

    #[test]
    fn nothing_at_all_to_send_is_no_reason_to_wait() {
        let mut pace = pace(1, 0, true);
        assert_eq!(
            pace.next(&round(0, Duration::ZERO, 0), true),
            Next::HandOver
        );
    }
}
