//! The source's side of a stream.

use std::ops::ControlFlow;
use std::time::Duration;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::error::{Result, StreamError, wrong};
use super::inbox::Frame;
use super::link::{Breaker, Link, unexpected};
use super::pages::Pages;
use super::wire::{Hello, Kind, PAGE, PIECE, decode_text};

/// Pages that were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// With what they hold.
    pub(crate) data: u64,
    /// By their number only, as they hold zeros.
    pub(crate) zeros: u64,
}

/// What became of a guest that was given away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It runs there.
    Running,
    /// It certainly does not run there and never will: why. It can go on here.
    Refused(String),
    /// Nobody knows: why. It may run there.
    Lost(String),
}

/// A target that has taken the machine, and is sent its guest. Dropping it closes the connection, and
/// the target ends.
#[derive(Debug)]
pub(crate) struct Sender {
    link: Link,
    /// Where the target says that it is.
    place: String,
}

impl Sender {
    /// Offers a guest, and waits for `patience` at most until the target has made the machine.
    ///
    /// # Errors
    /// The target refuses, or the connection fails.
    pub(crate) fn hello(mut link: Link, hello: &Hello, patience: Duration) -> Result<Self> {
        link.say(Kind::Hello, &hello.encode()?)?;
        let mut sender = Self {
            link,
            place: String::new(),
        };
        sender.place = decode_text(sender.expect(Kind::Accepted, patience)?.payload);
        Ok(sender)
    }

    /// Where the target [is](super::host::place), as it says.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// What another thread can end this by.
    pub(crate) fn breaker(&self) -> Breaker {
        self.link.breaker()
    }

    /// Bytes that were sent in all.
    pub(crate) fn sent(&self) -> u64 {
        self.link.sent()
    }

    /// How long the connection and the target were waited for, in all.
    pub(crate) fn waited(&self) -> Duration {
        self.link.waited()
    }

    /// Sends these runs of pages (guest-physical address, number), which are aligned and within guest
    /// memory. The guest may write to them meanwhile: then what arrives is neither, and they are to be
    /// sent again. `progress` is told again and again how many pages of them were sent, and may give up.
    ///
    /// # Errors
    /// It was given up, the target has failed, or the connection has.
    pub(crate) fn pages<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        runs: impl IntoIterator<Item = (GuestAddress, usize)>,
        mut progress: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Sent> {
        let mut pages = Pages::default();
        for (start, count) in runs {
            for page in 0..count {
                let address = start.0.wrapping_add((page * PAGE) as u64);
                pages.add(self.link.outbox(), memory, address)?;
                if self.link.is_full() {
                    pages.close(self.link.outbox());
                    self.flush()?;
                    self.listen()?;
                    if progress(pages.sent().data + pages.sent().zeros).is_break() {
                        return Err(StreamError::GivenUp);
                    }
                }
            }
        }
        pages.close(self.link.outbox());
        Ok(pages.sent())
    }

    /// Ends a round, the first of which is 1, and waits for `patience` at most until the target has
    /// written all of it to its memory.
    ///
    /// # Errors
    /// The target has failed, or the connection has.
    pub(crate) fn round(&mut self, number: u32, patience: Duration) -> Result<()> {
        self.say(Kind::Round, &number.to_le_bytes())?;
        let heard = self.expect(Kind::Heard, patience)?;
        match heard.payload == number.to_le_bytes() {
            true => Ok(()),
            false => wrong(format!("HEARD of another round than {number}")),
        }
    }

    /// Sends the state of the machine, which stands still. No pages can follow.
    ///
    /// # Errors
    /// The target has failed, or the connection has.
    pub(crate) fn state(&mut self, state: &[u8]) -> Result<()> {
        for piece in state.chunks(PIECE) {
            self.say(Kind::State, piece)?;
        }
        Ok(())
    }

    /// Ends it, and waits for `patience` at most until the target is ready to run the guest, which is to stay
    /// paused there if it is `paused`.
    ///
    /// # Errors
    /// The target has failed, or the connection has.
    pub(crate) fn last(&mut self, paused: bool, patience: Duration) -> Result<()> {
        self.say(Kind::Last, &[u8::from(paused)])?;
        self.expect(Kind::Ready, patience)?;
        Ok(())
    }

    /// Gives the guest away, and waits for `patience` at most to be told that it runs. It is not to run
    /// here from before this is called until what it returns permits it.
    pub(crate) fn yours(&mut self, patience: Duration) -> Fate {
        // A target that has not got all of the frame does not run the guest.
        if let Err(error) = self.say(Kind::Yours, &[]) {
            return Fate::Refused(error.to_string());
        }
        match self.link.hear(patience) {
            Ok(frame) => match frame.kind {
                Kind::Running => Fate::Running,
                Kind::Failed => Fate::Refused(said(frame).to_string()),
                _ => Fate::Lost(format!("the other side says {}", frame.kind.name())),
            },
            Err(error) => Fate::Lost(error.to_string()),
        }
    }

    /// Sends a frame, and those that are ready.
    fn say(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        self.link.outbox().frame(kind, payload);
        self.flush()
    }

    /// Sends what is ready. A target that is there no more may have said why.
    fn flush(&mut self) -> Result<()> {
        let Err(error) = self.link.flush() else {
            return Ok(());
        };
        if matches!(error, StreamError::Closed) {
            self.listen()?;
        }
        Err(error)
    }

    /// Hears whether the target has failed, if it has said anything: it does not speak unasked else.
    fn listen(&mut self) -> Result<()> {
        match self.link.has_news() {
            false => Ok(()),
            true => match self.link.hear(LISTEN)? {
                frame if frame.kind == Kind::Failed => Err(said(frame)),
                frame => unexpected(frame, "FAILED or nothing"),
            },
        }
    }

    /// Waits for this, and that the target says nothing else.
    fn expect(&mut self, kind: Kind, patience: Duration) -> Result<Frame<'_>> {
        match self.link.hear(patience)? {
            frame if frame.kind == kind => Ok(frame),
            frame if matches!(frame.kind, Kind::Failed | Kind::Refused) => Err(said(frame)),
            frame => unexpected(frame, kind.name()),
        }
    }
}

/// How long to wait for the rest of a frame that has begun to come.
const LISTEN: Duration = Duration::from_secs(1);

/// What the target says with REFUSED or FAILED.
fn said(frame: Frame<'_>) -> StreamError {
    StreamError::Refused(decode_text(frame.payload))
}
