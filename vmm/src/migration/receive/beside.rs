//! Connections beside the first one, which carry pages at the same time. Each is read by a thread of its own.

use std::io;
use std::thread;
use std::time::Duration;

use vm_memory::GuestMemoryBackend;

use super::{write_pages, write_zeros};
use crate::migration::error::{Result, StreamError, wrong};
use crate::migration::link::{Link, unexpected};
use crate::migration::wire::{Kind, encode_text};

/// One of them.
#[derive(Debug)]
pub(crate) struct Side {
    link: Link,
    /// How often the source has waited for it.
    round: u32,
}

impl Side {
    /// Hears whether `link` is one of those that have this key, which it says within `patience`.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn join(mut link: Link, key: &str, patience: Duration) -> Result<Self> {
        match link.hear(patience)? {
            frame if frame.kind == Kind::Join && frame.payload == key.as_bytes() => {}
            frame if frame.kind == Kind::Join => return wrong("JOIN by another key"),
            frame => return unexpected(frame, Kind::Join.name()),
        }
        Ok(Self { link, round: 0 })
    }

    /// Writes what comes to `memory` until the connection ends.
    fn receive<M: GuestMemoryBackend>(mut self, memory: &M, patience: Duration) -> Result<()> {
        let error = loop {
            match self.next(memory, patience) {
                Ok(()) => {}
                // The first connection is at its end, or it is the source's end.
                Err(StreamError::GivenUp | StreamError::Closed) => return Ok(()),
                Err(error) => break error,
            }
        };
        // It may be why it failed.
        let _ = self
            .link
            .say_farewell(Kind::Failed, encode_text(&error.to_string()));
        Err(error)
    }

    fn next<M: GuestMemoryBackend>(&mut self, memory: &M, patience: Duration) -> Result<()> {
        let frame = self.link.hear(patience)?;
        match frame.kind {
            Kind::Pages => write_pages(memory, frame.payload),
            Kind::Zeros => write_zeros(memory, frame.payload),
            Kind::Round => {
                let expected = self.round.checked_add(1).map(u32::to_le_bytes);
                if expected.is_none_or(|expected| frame.payload != expected) {
                    return wrong(format!("ROUND of another number after {}", self.round));
                }
                self.round += 1;
                self.link.say(Kind::Heard, &self.round.to_le_bytes())
            }
            _ => unexpected(frame, "memory"),
        }
    }
}

/// Does `work` while what comes by these connections is written to `memory`, and ends them when it is done: a
/// source that has come to its end has waited for them. Between two of their frames there is no more than
/// `patience`.
///
/// # Errors
/// What was wrong with one of them, in place of that `work` heard no more.
pub(crate) fn beside<M: GuestMemoryBackend + Sync, T>(
    sides: Vec<Side>,
    memory: &M,
    patience: Duration,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    thread::scope(|scope| {
        let mut breakers = Vec::with_capacity(sides.len());
        let mut threads = Vec::with_capacity(sides.len());
        let mut failed = None;
        for side in sides {
            breakers.push(side.link.breaker());
            let thread = thread::Builder::new()
                .name("migration-receive".to_owned())
                .spawn_scoped(scope, move || side.receive(memory, patience));
            match thread {
                Ok(thread) => threads.push(thread),
                Err(error) => failed = Some(StreamError::Lost(error)),
            }
        }
        let outcome = match failed {
            None => work(),
            Some(error) => Err(error),
        };
        breakers.iter().for_each(|breaker| breaker.give_up());
        let ends = threads.into_iter().map(|thread| {
            let panicked = |_| Err(StreamError::Lost(io::Error::other("a thread panicked")));
            thread.join().unwrap_or_else(panicked)
        });
        // All of them are waited for.
        let ends: Vec<_> = ends.collect();
        let failed = ends.into_iter().find_map(Result::err);
        match (outcome, failed) {
            (outcome, None) => outcome,
            (_, Some(error)) => Err(error),
        }
    })
}
