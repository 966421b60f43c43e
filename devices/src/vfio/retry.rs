//! Trying again while the kernel refuses an operation on a device because a reset of it is going
//! on.

use std::io;
use std::thread;
use std::time::Duration;

/// The time between two tries.
const PAUSE: Duration = Duration::from_millis(5);
/// How often an operation is tried again: for 2 s.
pub(super) const PAUSES: u32 = 400;

/// Tries again, at most so often, while `operation` fails with one of `errors`.
pub(super) fn retry<T>(
    mut pauses: u32,
    errors: &[i32],
    mut operation: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    loop {
        let outcome = operation();
        let number = outcome.as_ref().err().and_then(io::Error::raw_os_error);
        let is_busy = number.is_some_and(|number| errors.contains(&number));
        if pauses == 0 || !is_busy {
            return outcome;
        }
        pauses -= 1;
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod retry_test;
