//! The source's side of a stream.

mod beside;

use std::ops::ControlFlow;
use std::time::Duration;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::error::{Result, StreamError, wrong};
use super::inbox::Frame;
use super::link::{Breaker, Link, unexpected};
use super::pages::Pages;
use super::wire::{Hello, Kind, PAGE, PIECE, decode_text};
use beside::Beside;

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
    beside: Beside,
    /// Where the target says that it is.
    place: String,
}

impl Sender {
    /// Offers a guest. Connections may [join](Self::join) then, and the target [answers](Self::accepted).
    ///
    /// # Errors
    /// The connection fails.
    pub(crate) fn offer(mut link: Link, hello: &Hello) -> Result<Self> {
        link.say(Kind::Hello, &hello.encode()?)?;
        Ok(Self {
            link,
            beside: Beside::default(),
            place: String::new(),
        })
    }

    /// Has `link` carry pages as well, as one of those that HELLO has told of with this key.
    ///
    /// # Errors
    /// The connection fails.
    pub(crate) fn join(&mut self, link: Link, key: &str) -> Result<()> {
        self.beside.add(link, key)
    }

    /// Waits for `patience` at most until the target has made the machine.
    ///
    /// # Errors
    /// The target refuses, or the connection fails.
    pub(crate) fn accepted(&mut self, patience: Duration) -> Result<()> {
        let frame = expect(&mut self.link, Kind::Accepted, patience)?;
        self.place = decode_text(frame.payload);
        Ok(())
    }

    /// Where the target [is](super::host::place), as it says.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// What another thread can end this by.
    pub(crate) fn breaker(&self) -> Breaker {
        let others = self.beside.links().iter().map(Link::breaker);
        others.fold(self.link.breaker(), Breaker::and)
    }

    /// Bytes that were sent in all.
    pub(crate) fn sent(&self) -> u64 {
        let others = self.beside.links().iter().map(Link::sent);
        self.link.sent() + others.sum::<u64>()
    }

    /// The same for each connection.
    #[cfg(test)]
    pub(crate) fn sent_by_each(&self) -> Vec<u64> {
        let others = self.beside.links().iter().map(Link::sent);
        std::iter::once(self.link.sent()).chain(others).collect()
    }

    /// Has `link` carry pages, which has joined already.
    #[cfg(test)]
    pub(crate) fn adopt(&mut self, link: Link) {
        self.beside.adopt(link);
    }

    /// Sends these runs of pages (guest-physical address, number), which are aligned and within guest
    /// memory. The guest may write to them meanwhile: then what arrives is neither, and they are to be
    /// sent again. `progress` is told again and again how many pages of them were sent, and may give up.
    ///
    /// # Errors
    /// It was given up, the target has failed, or the connection has.
    pub(crate) fn pages<M: GuestMemoryBackend + Sync>(
        &mut self,
        memory: &M,
        runs: impl IntoIterator<Item = (GuestAddress, usize), IntoIter: Send>,
        mut progress: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Sent> {
        let mut runs = runs.into_iter();
        if !self.beside.links().is_empty() {
            return self.beside.pages(&mut self.link, memory, runs, progress);
        }
        send_runs(
            &mut self.link,
            memory,
            || runs.next(),
            |link, pages| {
                listen(link)?;
                match progress(pages) {
                    ControlFlow::Continue(()) => Ok(()),
                    ControlFlow::Break(()) => Err(StreamError::GivenUp),
                }
            },
        )
    }

    /// Waits for `patience` at most until what went by other connections than the first is written to the target's
    /// memory.
    ///
    /// # Errors
    /// The target has failed, or a connection has.
    pub(crate) fn gather(&mut self, patience: Duration) -> Result<()> {
        match self.beside.links() {
            [] => Ok(()),
            _ => self.beside.round(patience),
        }
    }

    /// Ends a round, the first of which is 1, and waits for `patience` at most until the target has
    /// written all of it to its memory.
    ///
    /// # Errors
    /// The target has failed, or the connection has.
    pub(crate) fn round(&mut self, number: u32, patience: Duration) -> Result<()> {
        self.say(Kind::Round, &number.to_le_bytes())?;
        self.gather(patience)?;
        let heard = expect(&mut self.link, Kind::Heard, patience)?;
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
        expect(&mut self.link, Kind::Ready, patience)?;
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

    /// The same to a process of this host, of which all is known: if it does not say in time that the guest
    /// runs, it cannot say so any more, and so does not run it. Never [`Fate::Lost`].
    pub(crate) fn yours_or_never(&mut self, patience: Duration) -> Fate {
        let why = match self.yours(patience) {
            Fate::Lost(why) => why,
            fate => return fate,
        };
        // What has come until now can still be read, and nothing can come any more.
        self.link.refuse();
        match self.link.hear(LISTEN) {
            Ok(frame) if frame.kind == Kind::Running => Fate::Running,
            Ok(frame) if frame.kind == Kind::Failed => Fate::Refused(said(frame).to_string()),
            Ok(_) | Err(_) => Fate::Refused(why),
        }
    }

    /// Sends a frame, and those that are ready.
    fn say(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        self.link.outbox().frame(kind, payload);
        flush(&mut self.link)
    }
}

/// Sends the runs that `next` has by `link`, of which the last pages are ready and not sent then. `flushed` is told
/// again and again how many pages of them were sent, and may give up.
fn send_runs<M: GuestMemoryBackend>(
    link: &mut Link,
    memory: &M,
    mut next: impl FnMut() -> Option<(GuestAddress, usize)>,
    mut flushed: impl FnMut(&mut Link, u64) -> Result<()>,
) -> Result<Sent> {
    let mut pages = Pages::default();
    while let Some((start, count)) = next() {
        for page in 0..count {
            let address = start.0.wrapping_add((page * PAGE) as u64);
            pages.add(link.outbox(), memory, address)?;
            if link.is_full() {
                pages.close(link.outbox());
                flush(link)?;
                flushed(link, pages.sent().data + pages.sent().zeros)?;
            }
        }
    }
    pages.close(link.outbox());
    Ok(pages.sent())
}

/// Sends what is ready. A target that is there no more may have said why.
fn flush(link: &mut Link) -> Result<()> {
    let Err(error) = link.flush() else {
        return Ok(());
    };
    if matches!(error, StreamError::Closed) {
        listen(link)?;
    }
    Err(error)
}

/// Hears whether the target has failed, if it has said anything: it does not speak unasked else.
fn listen(link: &mut Link) -> Result<()> {
    match link.has_news() {
        false => Ok(()),
        true => match link.hear(LISTEN)? {
            frame if frame.kind == Kind::Failed => Err(said(frame)),
            frame => unexpected(frame, "FAILED or nothing"),
        },
    }
}

/// Waits for this, and that the target says nothing else.
fn expect(link: &mut Link, kind: Kind, patience: Duration) -> Result<Frame<'_>> {
    match link.hear(patience)? {
        frame if frame.kind == kind => Ok(frame),
        frame if matches!(frame.kind, Kind::Failed | Kind::Refused) => Err(said(frame)),
        frame => unexpected(frame, kind.name()),
    }
}

/// How long to wait for the rest of a frame that has begun to come.
const LISTEN: Duration = Duration::from_secs(1);

/// What the target says with REFUSED or FAILED.
fn said(frame: Frame<'_>) -> StreamError {
    StreamError::Refused(decode_text(frame.payload))
}
