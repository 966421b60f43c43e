//! Trying again while the kernel refuses an operation on a device because a reset of it is going
//! on.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

/// How long operations on a device are tried again, in 10 seconds.
pub(super) const BUSY_LIMIT: Duration = Duration::from_secs(2);
/// The time between two tries.
pub(super) const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// How long operations have been waiting of late.
#[derive(Debug)]
pub(super) struct Waited {
    since: Instant,
    time: Duration,
}

impl Waited {
    /// After which time it is as if nobody had waited.
    const FORGOTTEN: Duration = Duration::from_secs(10);

    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            time: Duration::ZERO,
        }
    }

    /// Whether there may be another pause.
    pub(super) fn may_wait(&mut self) -> bool {
        if self.since.elapsed() > Self::FORGOTTEN {
            *self = Self::new();
        }
        let may = self.time < BUSY_LIMIT;
        if may {
            self.time += BUSY_PAUSE;
        }
        may
    }
}

/// Tries again, as long as it may wait, while `operation` fails with one of `errors`.
pub(super) fn retry<T>(
    mut may_wait: impl FnMut() -> bool,
    errors: &[i32],
    mut operation: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match operation() {
            Err(error)
                if error
                    .raw_os_error()
                    .is_some_and(|number| errors.contains(&number))
                    && may_wait() =>
            {
                thread::sleep(BUSY_PAUSE);
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod retry_test;
