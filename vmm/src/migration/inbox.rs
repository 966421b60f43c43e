//! Frames on their way in: whole ones, which were checked, from bytes that come as they come.

use std::io::{self, Read};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::error::{Result, StreamError};
use super::wire::{HEADER, Header, Kind, LONGEST};

/// Bytes that are read together, if there are as many: small frames come by one call of the host.
const AHEAD: usize = 64 << 10;
/// The shortest time that the host is told to wait: none would be for ever.
const INSTANT: Duration = Duration::from_millis(1);

/// What has come and was not looked at. It never grows.
#[derive(Debug)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    /// Where of `bytes` that is.
    filled: Range<usize>,
}

/// A frame. Its payload has a length that its kind may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) kind: Kind,
    pub(super) payload: &'a [u8],
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; HEADER + LONGEST + AHEAD],
            filled: 0..0,
        }
    }

    /// Whether a byte has come that was not looked at.
    pub(super) fn has_some(&self) -> bool {
        !self.filled.is_empty()
    }

    /// The next frame, all of which has to be there before `patience` has passed. What is there by then counts, also
    /// if this process comes to look at it later, as it did not run.
    ///
    /// # Errors
    /// What comes is no frame, or too late, or nothing more comes.
    pub(super) fn next(
        &mut self,
        mut socket: &Connection,
        patience: Duration,
    ) -> Result<Frame<'_>> {
        let deadline = Instant::now() + patience;
        let mut fill = |inbox: &mut Self, wanted: usize| -> Result<()> {
            let mut is_late = false;
            while inbox.filled.len() < wanted {
                let left = deadline.saturating_duration_since(Instant::now());
                // One look after the deadline: it finds all that is there.
                if left.is_zero() && std::mem::replace(&mut is_late, true) {
                    return Err(StreamError::Silent(patience));
                }
                socket
                    .set_read_timeout(left.max(INSTANT))
                    .map_err(StreamError::Lost)?;
                match socket.read(inbox.room(wanted)) {
                    Ok(0) => return Err(StreamError::Closed),
                    Ok(read) => inbox.filled.end += read,
                    // The time that is left says what that was.
                    Err(error) if is_passing(error.kind()) => {}
                    Err(error) => return Err(StreamError::Lost(error)),
                }
            }
            Ok(())
        };
        fill(self, HEADER)?;
        let head = self.bytes.get(self.filled.clone());
        let head = head.and_then(|bytes| bytes.first_chunk());
        let header = Header::parse(head.ok_or(StreamError::Closed)?)?;
        let length = HEADER + header.length;
        fill(self, length)?;
        let frame = self.filled.start..self.filled.start + length;
        self.filled.start = frame.end;
        let frame = self.bytes.get(frame).unwrap_or_default();
        header.check(frame)?;
        Ok(Frame {
            kind: header.kind,
            payload: frame.get(HEADER..).unwrap_or_default(),
        })
    }

    /// Where bytes are to be read to, so that `wanted` of them can be there: up to [`LONGEST`] and a
    /// header.
    fn room(&mut self, wanted: usize) -> &mut [u8] {
        if self.filled.is_empty() {
            self.filled = 0..0;
        }
        if self.filled.start + wanted > self.bytes.len() {
            self.bytes.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        let end = (self.filled.start + wanted).max(self.filled.end + AHEAD);
        let end = end.min(self.bytes.len());
        self.bytes.get_mut(self.filled.end..end).unwrap_or_default()
    }
}

fn is_passing(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
