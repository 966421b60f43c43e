//! A client's connection: its requests, its answers, and its deadlines.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::geteuid;

use super::parser::{self, Answer};
use super::workers::Pending;
use crate::event::Event;

/// Longest request in bytes, without its newline.
pub(super) const REQUEST_LIMIT: usize = 1024;
/// Time for a client to complete a request, and to read an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time that a client may stay without a request.
const IDLE: Duration = Duration::from_secs(600);

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    /// To be read from.
    Input,
    /// To be written to.
    Output,
    /// Nothing: it has a request at hand.
    Turn,
    /// The end of work that its request began.
    Work,
    /// Its end.
    Close,
}

/// A connection. Nothing here blocks.
pub(super) struct Connection {
    stream: UnixStream,
    is_owners: bool,
    /// At most one request, and what came with its last bytes.
    input: Vec<u8>,
    /// What is left of the answer.
    output: Vec<u8>,
    /// Where the answer will come from.
    work: Option<Pending>,
    /// What follows from the answer, once it is sent.
    event: Option<Event>,
    /// The client sends nothing more.
    ended: bool,
    /// Close as soon as the answer is sent.
    last: bool,
    phase: Phase,
    deadline: Instant,
}

/// What the deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Receiving,
    Working,
    Sending,
}

impl Connection {
    /// Takes over a client.
    pub(super) fn new(stream: UnixStream, now: Instant) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let client = getsockopt(&stream, PeerCredentials)?;
        Ok(Self {
            is_owners: [0, geteuid().as_raw()].contains(&client.uid()),
            stream,
            input: Vec::new(),
            output: Vec::new(),
            work: None,
            event: None,
            ended: false,
            last: false,
            phase: Phase::Idle,
            deadline: now + IDLE,
        })
    }

    /// Whether the client is of the user that this process runs as, or of root.
    pub(super) fn is_owners(&self) -> bool {
        self.is_owners
    }

    /// When it has to have got further.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Sends, receives, and carries out at most one request, so that every client gets its turn.
    ///
    /// `answer` carries a request out, and `happen` what follows from it.
    pub(super) fn step(
        &mut self,
        now: Instant,
        answer: impl FnOnce(&str) -> Answer,
        happen: impl FnOnce(Event),
    ) -> Wants {
        let wants = self.advance(answer, happen, now).unwrap_or(Wants::Close);
        self.watch(now);
        if now >= self.deadline {
            return Wants::Close;
        }
        wants
    }

    fn advance(
        &mut self,
        answer: impl FnOnce(&str) -> Answer,
        happen: impl FnOnce(Event),
        now: Instant,
    ) -> io::Result<Wants> {
        if !self.finish_work(now) {
            return Ok(Wants::Work);
        }
        let sent = self.send();
        // The client was told, or does not want to be.
        if let Some(event) = self.event.take() {
            happen(event);
            return Ok(Wants::Output);
        }
        if !sent? {
            return Ok(Wants::Output);
        }
        if self.last {
            return Ok(Wants::Close);
        }
        if self.next_line().is_none() && !self.receive()? {
            return Ok(if self.ended {
                Wants::Close
            } else {
                Wants::Input
            });
        }
        let Some(request) = self.take_request() else {
            return Ok(Wants::Input);
        };
        let event = match request {
            Ok(request) => {
                let Answer { text, later, event } = answer(&request);
                if let Some(later) = later {
                    self.work = Some(later);
                    return Ok(Wants::Turn);
                }
                self.output = text.into_bytes();
                event
            }
            Err(TooLong) => {
                let text = format!("error: a request has at most {REQUEST_LIMIT} bytes\n\n");
                self.output = text.into_bytes();
                self.last = true;
                None
            }
        };
        // A new answer has a time of its own.
        self.phase = Phase::Sending;
        self.deadline = now + PATIENCE;
        let sent = self.send();
        // The client was told, or does not want to be.
        if let Some(event) = event {
            happen(event);
        }
        Ok(match sent? {
            false => Wants::Output,
            true => Wants::Turn,
        })
    }

    /// Whether no work is under way. What it has come to is to be sent then.
    fn finish_work(&mut self, now: Instant) -> bool {
        let Some(work) = &mut self.work else {
            return true;
        };
        let outcome = match work.outcome.try_recv() {
            Err(TryRecvError::Empty) => return false,
            Ok(outcome) => outcome,
            Err(TryRecvError::Disconnected) => {
                Err("internal error: the request was given up; please report this".to_owned())
            }
        };
        self.event = work.event.take().filter(|_| outcome.is_ok());
        self.work = None;
        self.output = parser::outcome(outcome).into_bytes();
        self.phase = Phase::Sending;
        self.deadline = now + PATIENCE;
        true
    }

    /// Sends what it can. Whether that was all.
    fn send(&mut self) -> io::Result<bool> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => drop(self.output.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Receives what is there, up to a little more than a request. Whether there may be something
    /// to carry out.
    fn receive(&mut self) -> io::Result<bool> {
        let mut buffer = [0; REQUEST_LIMIT];
        match self.stream.read(&mut buffer) {
            Ok(0) => {
                self.ended = true;
                Ok(!self.input.is_empty())
            }
            Ok(length) => {
                self.input
                    .extend_from_slice(buffer.get(..length).unwrap_or_default());
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn next_line(&self) -> Option<usize> {
        self.input.iter().position(|byte| *byte == b'\n')
    }

    /// The next request, if it is complete: by a newline, or because the client sends nothing more.
    fn take_request(&mut self) -> Option<Result<String, TooLong>> {
        let end = match self.next_line() {
            Some(end) => end,
            None if self.ended || self.input.len() > REQUEST_LIMIT => self.input.len(),
            None => return None,
        };
        if end > REQUEST_LIMIT {
            self.input.clear();
            return Some(Err(TooLong));
        }
        let request = String::from_utf8_lossy(self.input.get(..end).unwrap_or_default());
        let request = request.into_owned();
        self.input.drain(..(end + 1).min(self.input.len()));
        Some(Ok(request))
    }

    /// Gives a phase that has just begun its time.
    fn watch(&mut self, now: Instant) {
        let patience = self.work.as_ref().map(|work| work.patience);
        let phase = if patience.is_some() {
            Phase::Working
        } else if !self.output.is_empty() {
            Phase::Sending
        } else if self.input.is_empty() {
            Phase::Idle
        } else {
            Phase::Receiving
        };
        if phase != self.phase {
            self.phase = phase;
            self.deadline = now
                + match phase {
                    Phase::Idle => IDLE,
                    Phase::Working | Phase::Receiving | Phase::Sending => {
                        patience.unwrap_or(PATIENCE)
                    }
                };
        }
    }
}

/// A request is longer than [`REQUEST_LIMIT`].
struct TooLong;

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

#[cfg(test)]
mod connection_test;
