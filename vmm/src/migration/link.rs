//! A connection that carries frames. Every wait on it has a limit, and another thread can end it.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::connection::Connection;
use super::error::{Result, StreamError, wrong};
use super::inbox::{Frame, Inbox};
use super::outbox::Outbox;
use super::wire::Kind;

/// A good time for a send to make no progress in, before the connection counts as lost.
pub(crate) const STALL: Duration = Duration::from_secs(10);
/// Bytes that are sent together, if there are as many.
const TOGETHER: usize = 256 << 10;
/// How long to wait for the other side to have read a farewell.
const FAREWELL: Duration = Duration::from_secs(2);

/// A connection that carries frames. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Link {
    line: Arc<Line>,
    stall: Duration,
    outbox: Outbox,
    inbox: Inbox,
    sent: u64,
}

#[derive(Debug)]
struct Line {
    socket: Connection,
    is_given_up: AtomicBool,
}

/// Ends [`Link`]s from another thread. It may outlive them.
#[derive(Clone, Debug)]
pub(crate) struct Breaker(Vec<Weak<Line>>);

impl Breaker {
    /// Ends those of `other` as well.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Has the thread that uses a link fail with [`StreamError::GivenUp`], now or at its next call,
    /// and the other side with [`StreamError::Closed`].
    pub(crate) fn give_up(&self) {
        for line in self.0.iter().filter_map(Weak::upgrade) {
            line.is_given_up.store(true, Ordering::Release);
            line.socket.shutdown(Shutdown::Both);
        }
    }
}

impl Link {
    /// Carries frames by `socket`. A send that makes no progress for `stall` ends it.
    ///
    /// # Errors
    /// The host refuses.
    pub(crate) fn new(socket: impl Into<Connection>, stall: Duration) -> io::Result<Self> {
        let socket = socket.into();
        socket.prepare(stall)?;
        let is_given_up = AtomicBool::new(false);
        Ok(Self {
            line: Arc::new(Line {
                socket,
                is_given_up,
            }),
            stall,
            outbox: Outbox::default(),
            inbox: Inbox::new(),
            sent: 0,
        })
    }

    /// What another thread can end this by.
    pub(crate) fn breaker(&self) -> Breaker {
        Breaker(vec![Arc::downgrade(&self.line)])
    }

    /// Bytes that the host has taken.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// What frames are put into, which go with the next [`flush`](Self::flush).
    pub(super) fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Whether there is enough to be sent.
    pub(super) fn is_full(&self) -> bool {
        self.outbox.bytes().len() >= TOGETHER
    }

    /// Sends all frames. If it fails, the last byte was not taken, and there are none any more.
    ///
    /// # Errors
    /// The connection is lost, or it made no progress.
    pub(super) fn flush(&mut self) -> Result<()> {
        let outcome = self.send();
        self.outbox.clear();
        outcome
    }

    fn send(&mut self) -> Result<()> {
        self.go_on()?;
        let mut left = self.outbox.bytes();
        while !left.is_empty() {
            let error = match (&self.line.socket).write(left) {
                Ok(0) => StreamError::Lost(io::ErrorKind::WriteZero.into()),
                Ok(taken) => {
                    self.sent += taken as u64;
                    left = left.get(taken..).unwrap_or_default();
                    continue;
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => continue,
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        StreamError::Silent(self.stall)
                    }
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                        StreamError::Closed
                    }
                    _ => StreamError::Lost(error),
                },
            };
            self.go_on()?;
            return Err(error);
        }
        Ok(())
    }

    /// Sends one frame, and those before it.
    pub(super) fn say(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        self.outbox.frame(kind, payload);
        self.flush()
    }

    /// The next frame, which is there before `patience` has passed.
    ///
    /// # Errors
    /// There is none, or what comes is none.
    pub(super) fn hear(&mut self, patience: Duration) -> Result<Frame<'_>> {
        match self.inbox.next(&self.line.socket, patience) {
            Ok(frame) => Ok(frame),
            Err(_) if self.line.is_given_up.load(Ordering::Acquire) => Err(StreamError::GivenUp),
            Err(StreamError::Lost(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                Err(StreamError::Closed)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether something has come, or nothing ever will.
    pub(super) fn has_news(&self) -> bool {
        let fd = match &self.line.socket {
            Connection::Unix(stream) => stream.as_fd(),
            Connection::Tcp(stream) => stream.as_fd(),
        };
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        // A signal that interrupts it is no news.
        let polled = poll(&mut fds, PollTimeout::ZERO);
        self.inbox.has_some() || polled.is_ok_and(|ready| ready > 0)
    }

    /// Has nothing come any more: the other side, which is of this host, fails to send from here on.
    pub(super) fn refuse(&self) {
        self.line.socket.shutdown(Shutdown::Read);
    }

    /// Says a last thing, and waits a moment for the other side to have read it: closing a connection
    /// on which something came that was not read can take from the other side what was sent.
    pub(super) fn say_farewell(mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        self.say(kind, payload)?;
        self.line.socket.shutdown(Shutdown::Write);
        let deadline = Instant::now() + FAREWELL;
        let mut rest = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.line.socket.set_read_timeout(left).is_err() {
                return Ok(());
            }
            match (&self.line.socket).read(&mut rest) {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => {}
            }
        }
    }

    fn go_on(&self) -> Result<()> {
        match self.line.is_given_up.load(Ordering::Acquire) {
            true => Err(StreamError::GivenUp),
            false => Ok(()),
        }
    }
}

/// What came out of order.
pub(super) fn unexpected<T>(frame: Frame<'_>, expected: &str) -> Result<T> {
    wrong(format!("{} instead of {expected}", frame.kind.name()))
}
