//! Processor time of a thread, so that what else runs on the machine counts little.

use std::fs;
use std::time::{Duration, Instant};

/// A stopwatch for the thread that made it.
pub(crate) struct Clock {
    wall: Instant,
    spent: Option<Duration>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            wall: Instant::now(),
            spent: spent(),
        }
    }

    /// Processor time since the start; where the kernel does not tell, what the clock on the wall shows.
    pub(crate) fn elapsed(&self) -> Duration {
        match (self.spent, spent()) {
            (Some(before), Some(now)) => now.saturating_sub(before),
            _ => self.wall.elapsed(),
        }
    }
}

/// Nanoseconds on a processor are the first field.
fn spent() -> Option<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanoseconds = text.split(' ').next()?.parse().ok()?;
    Some(Duration::from_nanos(nanoseconds))
}
