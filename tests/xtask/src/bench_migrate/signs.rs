//! What the payload says while it runs (`tests/payload/src/load.rs`), with the times at which it was heard.

use std::time::{Duration, Instant};

/// Digits of a report: four numbers of eight.
const DIGITS: usize = 32;
/// KiB of a batch of pages.
const BATCH: u64 = 256;

/// A report of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Report {
    at: Instant,
    /// Batches that were written since its start.
    batches: u64,
    /// Pages that were not what they should be.
    bad: u64,
    /// The longest time without its noticing anything.
    gap: Duration,
}

/// What was heard of one process.
#[derive(Clone, Debug, Default)]
pub(super) struct Signs {
    first: Option<Instant>,
    last: Option<Instant>,
    reports: Vec<Report>,
    /// The digits of a report that has begun.
    digits: Option<String>,
}

impl Signs {
    /// Hears `bytes` at this time.
    pub(super) fn hear(&mut self, at: Instant, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.first = self.first.or(Some(at));
        self.last = Some(at);
        for byte in bytes {
            self.digits = match (self.digits.take(), byte) {
                (_, b'#') => Some(String::new()),
                (Some(mut digits), byte) if byte.is_ascii_hexdigit() => {
                    digits.push(char::from(*byte));
                    Some(digits)
                }
                (Some(digits), b'\n') => {
                    self.reports.extend(report(at, &digits));
                    None
                }
                // Half of a report may come from where the guest was before.
                _ => None,
            };
        }
    }

    /// Whether the guest runs, and has begun to write if it `writes`.
    pub(super) fn is_at_work(&self, writes: bool) -> bool {
        let mut reports = self.reports.iter();
        reports.any(|report| !writes || report.batches > 0)
    }

    /// Whether a report has come at this time, or later.
    pub(super) fn is_told_since(&self, time: Instant) -> bool {
        self.reports.last().is_some_and(|report| report.at >= time)
    }

    /// When the first sign came.
    pub(super) fn first(&self) -> Option<Instant> {
        self.first
    }

    /// When the last one came.
    pub(super) fn last(&self) -> Option<Instant> {
        self.last
    }

    /// Pages that were not what they should be.
    pub(super) fn bad(&self) -> u64 {
        self.reports.last().map_or(0, |report| report.bad)
    }

    /// The longest time without its noticing anything, of the first report: it began where the guest was
    /// before.
    pub(super) fn gap(&self) -> Option<Duration> {
        self.reports.first().map(|report| report.gap)
    }

    /// Those of one process and then of another.
    pub(super) fn and(&self, later: &Self) -> Self {
        let reports = self.reports.iter().chain(&later.reports);
        Self {
            first: self.first,
            last: later.last,
            reports: reports.copied().collect(),
            digits: None,
        }
    }

    /// KiB of pages that were written between two times, both of which reports are around.
    pub(super) fn written(&self, from: Instant, to: Instant) -> Option<u64> {
        let thousandths = self.at(to)?.saturating_sub(self.at(from)?);
        Some(thousandths * BATCH / 1000)
    }

    /// How many thousandths of a batch were written at a time: between two reports, in proportion.
    fn at(&self, time: Instant) -> Option<u64> {
        let mut pairs = self.reports.iter().zip(self.reports.iter().skip(1));
        let (before, after) =
            pairs.find(|(before, after)| before.at <= time && time <= after.at)?;
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let all = micros(after.at - before.at).max(1);
        let part = micros(time - before.at);
        let written = after.batches.saturating_sub(before.batches) * 1000;
        Some(before.batches * 1000 + written * part / all)
    }
}

/// What the digits of a report say.
fn report(at: Instant, digits: &str) -> Option<Report> {
    if digits.len() != DIGITS {
        return None;
    }
    let number = |index: usize| {
        let digits = digits.get(8 * index..8 * index + 8)?;
        u64::from_str_radix(digits, 16).ok()
    };
    Some(Report {
        at,
        batches: number(0)?,
        bad: number(1)?,
        gap: Duration::from_micros(number(3)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn signs_of_any_kind_count_and_reports_are_read_from_pieces() {
        let start = Instant::now();
        let mut signs = Signs::default();
        assert_eq!(signs.first(), None);
        signs.hear(start, b"@nido report payload-cpus ok 2 of 2\r\n");
        assert!(!signs.is_at_work(false));
        signs.hear(start + ms(1), b"..#0000000a000000");
        signs.hear(start + ms(2), b"03000f42400000002a\n.");
        signs.hear(start + ms(3), b"");
        assert_eq!(signs.first(), Some(start));
        assert_eq!(signs.last(), Some(start + ms(2)));
        assert!(signs.is_at_work(true));
        assert_eq!(signs.bad(), 3);
        assert_eq!(signs.gap(), Some(Duration::from_micros(42)));
    }

    #[test]
    fn half_a_report_is_none() {
        let now = Instant::now();
        for text in ["0001\n", "#0001\n", "#0000000a00000003000f42400000002a.\n"] {
            let mut signs = Signs::default();
            signs.hear(now, text.as_bytes());
            assert_eq!(signs.gap(), None, "{text}");
        }
    }

    #[test]
    fn what_was_written_between_reports_is_in_proportion_and_across_processes() {
        let start = Instant::now();
        let hear = |at: u64, batches: u64| {
            let mut signs = Signs::default();
            let text = format!("#{batches:08x}{:08x}{:08x}{:08x}\n", 0, 0, 0);
            signs.hear(start + ms(at), text.as_bytes());
            signs
        };
        let all = hear(0, 0).and(&hear(100, 40)).and(&hear(300, 40));
        let written = |from, to| all.written(start + ms(from), start + ms(to));
        assert_eq!(written(0, 100), Some(40 * 256));
        assert_eq!(written(50, 300), Some(20 * 256));
        assert_eq!(written(50, 301), None, "nothing is known of later");
    }
}
