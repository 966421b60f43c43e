//! Connections beside the first one, which carry pages at the same time: what one connection takes is often less
//! than what a network does.

use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{Sent, expect, flush, listen, send_runs};
use crate::migration::error::{Result, StreamError, wrong};
use crate::migration::link::Link;
use crate::migration::wire::Kind;

/// See the module. There may be none.
#[derive(Debug, Default)]
pub(super) struct Beside {
    links: Vec<Link>,
    /// How often it was waited for what they carry.
    rounds: u32,
}

impl Beside {
    /// One more, which the target knows to be ours by the key that HELLO has.
    pub(super) fn add(&mut self, mut link: Link, key: &str) -> Result<()> {
        link.say(Kind::Join, key.as_bytes())?;
        self.links.push(link);
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn adopt(&mut self, link: Link) {
        self.links.push(link);
    }

    pub(super) fn links(&self) -> &[Link] {
        &self.links
    }

    /// Sends these runs by `first` and all of these, each of which takes the next one when it is done with one.
    /// `progress` is told how many pages were sent by all.
    pub(super) fn pages<M: GuestMemoryBackend + Sync>(
        &mut self,
        first: &mut Link,
        memory: &M,
        runs: impl Iterator<Item = (GuestAddress, usize)> + Send,
        mut progress: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Sent> {
        let (runs, done, stop) = (Mutex::new(runs), AtomicU64::new(0), AtomicBool::new(false));
        let work = |link: &mut Link, tell: &mut dyn FnMut(u64) -> ControlFlow<()>| {
            let next = || match stop.load(Ordering::Relaxed) {
                true => None,
                false => runs.lock().next(),
            };
            let mut before = 0;
            let flushed = |link: &mut Link, pages: u64| {
                listen(link)?;
                if stop.load(Ordering::Relaxed) {
                    return Err(StreamError::GivenUp);
                }
                let new = pages - std::mem::replace(&mut before, pages);
                match tell(done.fetch_add(new, Ordering::Relaxed) + new) {
                    ControlFlow::Continue(()) => Ok(()),
                    ControlFlow::Break(()) => Err(StreamError::GivenUp),
                }
            };
            send_runs(link, memory, next, flushed)
                .inspect_err(|_| stop.store(true, Ordering::Relaxed))
        };
        let work = &work;
        thread::scope(|scope| {
            let others = self.links.iter_mut().map(|link| {
                thread::Builder::new()
                    .name("migration-send".to_owned())
                    .spawn_scoped(scope, move || {
                        work(link, &mut |_| ControlFlow::Continue(()))
                    })
                    .inspect_err(|_| stop.store(true, Ordering::Relaxed))
            });
            let others: Vec<_> = others.collect();
            let mut outcome = work(first, &mut progress);
            for other in others {
                let other = match other.map(thread::ScopedJoinHandle::join) {
                    Ok(Ok(sent)) => sent,
                    Ok(Err(_)) => Err(StreamError::Lost(io::Error::other("a thread panicked"))),
                    Err(error) => Err(StreamError::Lost(error)),
                };
                outcome = both(outcome, other);
            }
            outcome
        })
    }

    /// Waits for `patience` at most until the target has written what went by these.
    pub(super) fn round(&mut self, patience: Duration) -> Result<()> {
        self.rounds += 1;
        let number = self.rounds.to_le_bytes();
        for link in &mut self.links {
            link.outbox().frame(Kind::Round, &number);
            flush(link)?;
        }
        for link in &mut self.links {
            if expect(link, Kind::Heard, patience)?.payload != number {
                return wrong(format!("HEARD of another round than {}", self.rounds));
            }
        }
        Ok(())
    }
}

/// What both have sent. Of two errors it is the one that says more.
fn both(one: Result<Sent>, other: Result<Sent>) -> Result<Sent> {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok(Sent {
            data: one.data + other.data,
            zeros: one.zeros + other.zeros,
        }),
        // These are what comes of the other.
        (Err(StreamError::Closed | StreamError::GivenUp), Err(other)) => Err(other),
        (Err(one), Err(StreamError::Refused(why))) if !matches!(one, StreamError::Refused(_)) => {
            Err(StreamError::Refused(why))
        }
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}
