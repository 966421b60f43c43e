//! The check `disk-bench`: direct I/O of the first disk, one request at a time and many at once.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Guest, disk};
use crate::sys::aio::Queue;

const DISK: &str = "/dev/vda";
/// How long each kind of request is measured.
const TIME: Duration = Duration::from_millis(1000);
/// The same before, uncounted.
const WARM: Duration = Duration::from_millis(100);

/// A kind of requests.
struct Kind {
    /// Of the result.
    name: &'static str,
    length: usize,
    /// Outstanding at once.
    depth: u32,
    write: bool,
    /// At any place, or one behind the other.
    random: bool,
}

const KINDS: [Kind; 6] = [
    kind("read_4k_1", 4096, 1, false),
    kind("read_4k_32", 4096, 32, false),
    kind("write_4k_1", 4096, 1, true),
    kind("write_4k_32", 4096, 32, true),
    kind("read_128k", 128 * 1024, 1, false),
    kind("write_128k", 128 * 1024, 1, true),
];

const fn kind(name: &'static str, length: usize, depth: u32, write: bool) -> Kind {
    Kind {
        name,
        length,
        depth,
        write,
        random: length == 4096,
    }
}

/// Where requests go.
struct Places {
    /// How many there are.
    count: u64,
    random: bool,
    state: u64,
}

impl Places {
    fn next(&mut self) -> u64 {
        self.state = if self.random {
            // Knuth's MMIX; the upper bits are good.
            self.state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407)
        } else {
            self.state + 1
        };
        let place = if self.random {
            self.state >> 33
        } else {
            self.state
        };
        place % self.count
    }
}

/// Keeps as many requests as the kind says outstanding for `time`; returns how many there were, and
/// how long they took.
fn run(kind: &Kind, file: &File, size: u64, time: Duration) -> Result<(u32, Duration)> {
    let mut queue = Queue::new(kind.depth, kind.length).context("io_setup")?;
    let length = kind.length as u64;
    let mut places = Places {
        count: size / length,
        random: kind.random,
        state: 0,
    };
    let started = Instant::now();
    for number in 0..kind.depth as usize {
        queue.submit(number, file, places.next() * length, kind.write)?;
    }
    let (mut outstanding, mut count) = (kind.depth as usize, 0_u32);
    while outstanding > 0 {
        for number in queue.wait().context(kind.name)? {
            count += 1;
            if started.elapsed() < time {
                queue.submit(number, file, places.next() * length, kind.write)?;
            } else {
                outstanding -= 1;
            }
        }
    }
    Ok((count, started.elapsed()))
}

/// Microseconds for each request of each kind: `read_4k_32_us=12.5`.
pub(super) fn check(_guest: &Guest, _argument: &str) -> Result<String> {
    let (file, size) = disk::open(DISK, true)?;
    let mut results = Vec::new();
    for kind in &KINDS {
        run(kind, &file, size, WARM)?;
        let (count, time) = run(kind, &file, size, TIME)?;
        let each = time.as_secs_f64() * 1e6 / f64::from(count);
        results.push(format!("{}_us={each:.1}", kind.name));
    }
    Ok(results.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_within_the_disk_and_in_order_unless_random() {
        let mut places = Places {
            count: 3,
            random: false,
            state: 0,
        };
        let found: Vec<u64> = (0..5).map(|_| places.next()).collect();
        assert_eq!(found, [1, 2, 0, 1, 2]);
        places.random = true;
        assert!((0..100).all(|_| places.next() < 3));
    }
}
