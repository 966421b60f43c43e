//! Live migration: a guest goes on in another nido, while it runs.
//!
//! Two nidos speak over one connection ([`endpoint`]) in [frames](wire). The [source](send) sends all of
//! memory, then what the guest has written since, round by round; then the guest stands still, and the
//! rest follows. The [target](receive) writes to a memory of its own, and believes nothing that it is told.

pub(crate) mod endpoint;
pub(crate) mod error;
mod inbox;
pub(crate) mod link;
mod outbox;
mod pages;
pub(crate) mod receive;
pub(crate) mod send;
pub(crate) mod socket;
pub(crate) mod wire;

#[cfg(test)]
mod stream_test;
