//! What can go wrong with a stream.

use std::io;
use std::time::Duration;

/// Why a stream ends before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// The host says so.
    #[error("the connection is lost: {0}")]
    Lost(io::Error),
    /// There is nothing more to be read.
    #[error(
        "the other side closed the connection before the end; see there whether it was given up or killed"
    )]
    Closed,
    /// For so long there was no whole frame, or nothing was taken.
    #[error("the other side did nothing for {} ms; see whether it, and the network, are at work", .0.as_millis())]
    Silent(Duration),
    /// What came cannot be from a nido that is in order: what it is.
    #[error("what came is not what a nido sends: {0}; use the same nido on both sides")]
    Wrong(String),
    /// What the other side said: why it does not take the guest, or has given up.
    #[error("the other side says: {0}")]
    Refused(String),
    /// The machine cannot be sent: what it has that cannot.
    #[error("the machine cannot be described: {0}")]
    Unfit(String),
    /// By this side.
    #[error("it was given up")]
    GivenUp,
    /// The caller named pages that the guest's memory does not have: the first of them.
    #[error("internal error: the guest has no page of memory at {0:#x}; please report this")]
    NoPage(u64),
}

/// Of [`StreamError`].
pub(crate) type Result<T> = std::result::Result<T, StreamError>;

/// What came is wrong.
pub(super) fn wrong<T>(what: impl Into<String>) -> Result<T> {
    Err(StreamError::Wrong(what.into()))
}
