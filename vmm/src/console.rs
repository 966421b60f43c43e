//! Standard input for the guest's console: a subscriber of the event loop that reads it, with the
//! escape key taken out.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::entrance::{Entrance, Typed};
use crate::event_loop::{Handle, Subscription, Timer};

/// Ctrl-A.
const ESCAPE: u8 = 1;
/// How long to wait when the guest takes no more input.
const RETRY: Duration = Duration::from_millis(10);
/// Bytes that are read at a time.
const PIECE: usize = 4096;

/// Recognizes `Ctrl-A x` (quit) and `Ctrl-A Ctrl-A` (one Ctrl-A for the guest).
struct Filter<'a> {
    escaped: &'a mut bool,
}

impl Filter<'_> {
    /// What of `input` is for the guest, and whether the user wants to quit.
    fn pass(self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut output = Vec::with_capacity(input.len());
        for &byte in input {
            match (std::mem::take(self.escaped), byte) {
                (false, ESCAPE) => *self.escaped = true,
                (true, b'x' | b'X') => return (output, true),
                (true, ESCAPE) | (false, _) => output.push(byte),
                (true, _) => output.extend([ESCAPE, byte]),
            }
        }
        (output, false)
    }
}

/// Standard input, so that reading it does not block where that can be had.
///
/// # Errors
/// When the host has no descriptor left.
pub(crate) fn standard_input() -> io::Result<File> {
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    Ok(reopen(&input).unwrap_or(input))
}

/// Opens a terminal or a pipe anew: whether reads block is a property that other processes share
/// with the file as it is.
fn reopen(input: &File) -> Option<File> {
    let metadata = input.metadata().ok()?;
    // Opening this one makes another terminal.
    let is_multiplexer = metadata.rdev() == libc::makedev(5, 2);
    if !metadata.file_type().is_fifo() && (!input.is_terminal() || is_multiplexer) {
        return None;
    }
    File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", input.as_raw_fd()))
        .ok()
}

/// Reads `input` until it ends, while the `entrance` is open. `push` takes what it has room for and returns how
/// much that was. The key to quit calls `quit`, once.
///
/// # Errors
/// When the host has no descriptor left.
pub(crate) fn start(
    event_loop: &Handle,
    input: File,
    quit: impl FnMut() + Send + 'static,
    entrance: Arc<Entrance>,
    push: impl Fn(&[u8]) -> usize + Send + 'static,
) -> io::Result<Subscription> {
    let mut timer = Timer::new()?;
    // The first look, on the loop's thread.
    timer.set(Duration::ZERO);
    let sources = [Events::new(&timer, EventSet::IN)];
    let reader = Reader {
        input,
        listening: false,
        timer,
        entrance,
        quit,
        push,
    };
    event_loop.subscribe(reader, &sources)
}

struct Reader<P, Q> {
    input: File,
    /// The loop tells when there is input. Otherwise the timer says when to look.
    listening: bool,
    timer: Timer,
    /// Has what the guest had no room for. Nothing more is read before it is gone.
    entrance: Arc<Entrance>,
    push: P,
    quit: Q,
}

/// When to look at the input again.
enum Next {
    WhenReady,
    After(Duration),
    Never,
}

impl<P: Fn(&[u8]) -> usize, Q: FnMut()> Reader<P, Q> {
    /// One look at the input: because it is `ready`, or because the time has come.
    fn look(&mut self, ready: bool, ops: &mut EventOps<'_>) -> Next {
        if self.entrance.is_closed() {
            return Next::After(RETRY);
        }
        let mut typed = self.entrance.take_typed();
        let next = self.move_on(&mut typed, ready, ops);
        self.entrance.put_typed(typed);
        next
    }

    fn move_on(&mut self, typed: &mut Typed, ready: bool, ops: &mut EventOps<'_>) -> Next {
        if !self.deliver(typed) {
            return Next::After(RETRY);
        }
        if !ready && self.listen(ops) {
            return Next::WhenReady;
        }
        let input = match self.read() {
            Ok(Some(input)) if input.is_empty() => return Next::Never,
            Ok(input) => input.unwrap_or_default(),
            Err(error) => {
                log::warn!("standard input is lost: {error}");
                return Next::Never;
            }
        };
        let filter = Filter {
            escaped: &mut typed.escaped,
        };
        let (output, quit) = filter.pass(&input);
        if quit {
            (self.quit)();
            return Next::Never;
        }
        typed.waiting = output;
        match (self.deliver(typed), self.listening) {
            (true, true) => Next::WhenReady,
            (true, false) if !input.is_empty() => Next::After(Duration::ZERO),
            _ => Next::After(RETRY),
        }
    }

    /// Gives the guest what waits. Whether nothing is left.
    fn deliver(&self, typed: &mut Typed) -> bool {
        let waiting = &mut typed.waiting;
        if !waiting.is_empty() {
            let taken = (self.push)(waiting).min(waiting.len());
            waiting.drain(..taken);
        }
        waiting.is_empty()
    }

    /// Reads what is there, which is nothing at the end. `None` if there may be something later.
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        // Another process that has the same terminal may have been faster, and not everything can
        // be opened anew.
        let mut files = [PollFd::new(self.input.as_fd(), PollFlags::POLLIN)];
        let read = poll(&mut files, PollTimeout::ZERO)
            .map_err(io::Error::from)
            .and_then(|count| match count {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                _ => {
                    let mut piece = vec![0; PIECE];
                    let length = (&self.input).read(&mut piece)?;
                    piece.truncate(length);
                    Ok(piece)
                }
            });
        match read {
            Ok(piece) => Ok(Some(piece)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Has the loop tell when there is input. Whether it can: the kernel waits for no regular file
    /// and not for `/dev/null`, which can be read at any time.
    fn listen(&mut self, ops: &mut EventOps<'_>) -> bool {
        if !self.listening {
            let added = ops.add(Events::new(&self.input, EventSet::IN));
            self.listening = added
                .inspect_err(|error| log::debug!("standard input is read without waiting: {error}"))
                .is_ok();
        }
        self.listening
    }

    /// Undoes it: even a source that is asked for nothing tells that its other end is closed, again
    /// and again.
    fn ignore(&mut self, ops: &mut EventOps<'_>) {
        if std::mem::take(&mut self.listening) {
            // It fails only for one that is not listened to.
            let _ = ops.remove(Events::empty(&self.input));
        }
    }
}

impl<P: Fn(&[u8]) -> usize, Q: FnMut()> MutEventSubscriber for Reader<P, Q> {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let ready = events.fd() == self.input.as_raw_fd();
        if !ready {
            self.timer.stop();
        }
        match self.look(ready, ops) {
            Next::WhenReady => {}
            Next::After(delay) => {
                self.ignore(ops);
                self.timer.set(delay);
            }
            Next::Never => self.ignore(ops),
        }
    }

    fn init(&mut self, _ops: &mut EventOps<'_>) {}
}

#[cfg(test)]
mod console_test;
