//! Live migration: a guest goes on in another nido, while it runs.
//!
//! Two nidos speak over one [connection](dial) in [frames](wire). The source ([`leave()`]) [sends](send) all of
//! memory, then what the guest has written since, round by round; then the guest stands still, the rest
//! follows, and it is [given](give). The target ([`wait`]) [writes](receive) to a memory of its own, and
//! believes nothing that it is told.

mod arbiter;
mod arrive;
mod begin;
mod connection;
mod dial;
mod error;
mod give;
mod holding;
mod host;
mod inbox;
mod leave;
mod link;
mod outbox;
mod pace;
mod pages;
mod progress;
mod receive;
mod rounds;
mod send;
mod syncing;
mod time_limit;
mod wire;

pub(crate) use arrive::{Arrival, wait};
pub(crate) use error::StreamError;
pub(crate) use leave::{Here, leave};
pub(crate) use link::Link;
pub(crate) use progress::Migrations;
pub(crate) use receive::{Item, Receiver};
pub(crate) use send::{Fate, Sender};
pub(crate) use wire::Hello;

#[cfg(test)]
mod failure_test;
#[cfg(test)]
mod stream_test;
#[cfg(test)]
mod streams_test;
#[cfg(test)]
mod testing;
