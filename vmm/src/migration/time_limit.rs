//! A limit of time for all that is said on a connection, whatever each part of it may take.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::link::Breaker;

/// Ends a connection when the time is over, unless it is dropped before.
pub(super) struct TimeLimit {
    over: Arc<AtomicBool>,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TimeLimit {
    /// Has what `breaker` is of end after `limit`.
    ///
    /// # Errors
    /// The host has no thread for it.
    pub(super) fn start(limit: Duration, breaker: Breaker) -> Result<Self, String> {
        let (end, ended) = channel();
        let over = Arc::<AtomicBool>::default();
        let is_over = Arc::clone(&over);
        let watch = move || {
            if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                is_over.store(true, Ordering::Release);
                breaker.give_up();
            }
        };
        let thread = thread::Builder::new().name("migration-limit".to_owned());
        let thread = thread.spawn(watch);
        let failed = |error: io::Error| format!("the host has no thread for this ({error})");
        Ok(Self {
            over,
            end: Some(end),
            thread: Some(thread.map_err(failed)?),
        })
    }

    /// Has it end nothing from here on. Whether it has.
    pub(super) fn stop(mut self) -> bool {
        self.join();
        self.over.load(Ordering::Acquire)
    }

    fn join(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It does nothing that could panic.
            let _ = thread.join();
        }
    }
}

impl Drop for TimeLimit {
    fn drop(&mut self) {
        self.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::error::StreamError;
    use crate::migration::testing::{LONG, pair};

    #[test]
    fn what_waits_longer_is_ended_and_what_does_not_goes_on() {
        let (mut link, _peer) = pair();
        let limit = TimeLimit::start(Duration::from_millis(20), link.breaker()).expect("a thread");
        let heard = link.hear(LONG);
        assert!(matches!(heard, Err(StreamError::GivenUp)), "{heard:?}");
        assert!(limit.stop());
        let (mut link, _peer) = pair();
        let limit = TimeLimit::start(LONG, link.breaker()).expect("a thread");
        assert!(!limit.stop());
        let heard = link.hear(Duration::from_millis(1));
        assert!(matches!(heard, Err(StreamError::Silent(_))), "{heard:?}");
    }
}
