//! How much time changes of KVM's routes may take at the guest's pleasure.

use std::time::{Duration, Instant};

/// Time for changes in a row.
const MOST: Duration = Duration::from_millis(5);
/// What a change costs at least: as long as most take.
const LEAST: Duration = Duration::from_micros(100);
/// This part of the time that passes may go into changes, in the long run.
const SHARE: u32 = 10;

/// Time to spend on changes.
pub(super) struct Credit {
    left: Duration,
    /// When some was given last.
    since: Option<Instant>,
    /// One in so many moments is given.
    share: u32,
}

impl Default for Credit {
    /// As much as there ever is.
    fn default() -> Self {
        Self {
            left: MOST,
            since: None,
            share: SHARE,
        }
    }
}

impl Credit {
    /// Whether a change may be made.
    pub(super) fn is_good(&mut self, now: Instant) -> bool {
        let since = self.since.replace(now).unwrap_or(now);
        let given = now.saturating_duration_since(since) / self.share;
        self.left = self.left.saturating_add(given).min(MOST);
        !self.left.is_zero()
    }

    /// A change took so long.
    pub(super) fn charge(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time.max(LEAST));
    }

    /// For changes that cost next to nothing: 50 in all.
    #[cfg(test)]
    pub(super) fn without_more() -> Self {
        Self {
            share: u32::MAX,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(credit: &mut Credit, now: Instant, time: Duration) -> usize {
        let mut count = 0;
        while credit.is_good(now) {
            credit.charge(time);
            count += 1;
        }
        count
    }

    #[test]
    fn five_milliseconds_may_go_into_changes_and_then_a_tenth_of_the_time() {
        let start = Instant::now();
        let mut credit = Credit::default();
        assert_eq!(changes(&mut credit, start, Duration::ZERO), 50);
        let later = start + Duration::from_millis(10);
        assert_eq!(changes(&mut credit, later, Duration::ZERO), 10);
        let later = later + Duration::from_secs(3600);
        assert_eq!(changes(&mut credit, later, Duration::from_millis(2)), 3);
        assert!(!credit.is_good(later));
    }
}
