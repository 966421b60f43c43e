//! Which bucket takes what.

use std::time::Duration;

use super::Histogram;

fn buckets(nanos: u64) -> Vec<usize> {
    let histogram = Histogram::default();
    histogram.record(Duration::from_nanos(nanos));
    let counts: Vec<u64> = histogram
        .snapshot()
        .entries()
        .map(|(_, count)| count)
        .collect();
    assert_eq!(counts.iter().sum::<u64>(), 1);
    (0..counts.len()).filter(|at| counts[*at] != 0).collect()
}

#[test]
fn each_bucket_ends_at_twice_the_end_of_the_one_before() {
    for (nanos, bucket) in [
        (0, 0),
        (999, 0),
        (1_000, 1),
        (1_999, 1),
        (2_000, 2),
        (3_999, 2),
        (4_000, 3),
        (1_048_575_999, 20),
        (1_048_576_000, 21),
        (u64::MAX, 21),
    ] {
        assert_eq!(buckets(nanos), [bucket], "{nanos} ns");
    }
}

#[test]
fn entries_tell_their_bounds() {
    let bounds: Vec<_> = Histogram::default()
        .snapshot()
        .entries()
        .map(|(bound, _)| bound.map(|bound| bound.as_micros()))
        .collect();
    assert_eq!(bounds.len(), 22);
    assert_eq!(bounds[..4], [Some(1), Some(2), Some(4), Some(8)]);
    assert_eq!(bounds[20..], [Some(1_048_576), None]);
}

#[test]
fn long_ones_are_counted_from_a_bound_on() {
    let histogram = Histogram::default();
    for micros in [0, 5, 8_191, 8_192, 20_000, 5_000_000] {
        histogram.record(Duration::from_micros(micros));
    }
    let durations = histogram.snapshot();
    assert_eq!(durations.at_least(Duration::ZERO), 6);
    assert_eq!(durations.at_least(Duration::from_micros(8192)), 3);
    assert_eq!(durations.at_least(Duration::from_micros(16_384)), 2);
}
