//! How long things took: a histogram whose buckets double.

use std::time::Duration;

use super::Counter;

/// One bucket for each power of two of microseconds up to a second, and one for what took longer.
const BUCKETS: usize = 22;

/// How often something took how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations([u64; BUCKETS]);

impl Durations {
    /// The bound of each bucket with the number of times that were shorter, but not shorter than the bound before: 1 µs,
    /// 2 µs and so on to 1.05 s. The last has no bound.
    pub fn entries(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        let bounds = (0..).map(|power| {
            // The last bucket has what is beyond all bounds.
            let bound = Duration::from_micros(1 << power);
            (power < BUCKETS - 1).then_some(bound)
        });
        bounds.zip(self.0)
    }

    /// How many took `bound` or longer, as far as buckets tell that: with a bound that is none of theirs, from the next one on.
    pub fn at_least(&self, bound: Duration) -> u64 {
        let shorter = |end: Option<Duration>| end.is_some_and(|end| end <= bound);
        let longer = self.entries().filter(|(end, _)| !shorter(*end));
        longer.map(|(_, count)| count).sum()
    }
}

/// Counts durations.
#[derive(Debug, Default)]
pub(crate) struct Histogram([Counter; BUCKETS]);

impl Histogram {
    pub(crate) fn record(&self, duration: Duration) {
        let micros = duration.as_micros();
        let bits = u128::BITS - micros.leading_zeros();
        let index = usize::try_from(bits).unwrap_or(BUCKETS);
        if let Some(bucket) = self.0.get(index.min(BUCKETS - 1)) {
            bucket.add();
        }
    }

    pub(crate) fn snapshot(&self) -> Durations {
        let mut durations = Durations::default();
        for (count, bucket) in durations.0.iter_mut().zip(&self.0) {
            *count = bucket.get();
        }
        durations
    }
}

#[cfg(test)]
mod durations_test;
