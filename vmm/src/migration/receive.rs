//! The target's side of a stream. The source is not trusted: nothing that comes is more than an error.

pub(super) mod beside;

use std::time::Duration;

use vm_memory::bitmap::MS;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::error::{Result, wrong};
use super::link::{Link, unexpected};
use super::wire::{Hello, Kind, PAGE, RUN, STATE_MOST, ZEROS_MOST, encode_text};
use crate::memory::holes::Holes;

/// What has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// All of this round, which the source was told.
    Round(u32),
    /// All that there is: memory is complete.
    All {
        /// The state of the machine, encoded.
        state: Vec<u8>,
        /// Whether the guest is paused, and is to stay so.
        paused: bool,
    },
}

/// A source that has offered its guest. Dropping it closes the connection, and the guest goes on there.
#[derive(Debug)]
pub(crate) struct Receiver {
    link: Link,
    /// The last round that has come.
    round: u32,
    state: Vec<u8>,
    /// LAST has come.
    is_complete: bool,
}

impl Receiver {
    /// Hears what guest there is, which the source says within `patience`. Then it is to be answered by
    /// [`accepted`](Self::accepted) or [`refused`](Self::refused).
    ///
    /// # Errors
    /// Whoever is there is no nido, or one of another version, which is told so.
    pub(crate) fn accept(mut link: Link, patience: Duration) -> Result<(Self, Hello)> {
        let frame = link.hear(patience)?;
        let hello = match frame.kind {
            Kind::Hello => Hello::decode(frame.payload),
            _ => unexpected(frame, Kind::Hello.name()),
        };
        match hello {
            Ok(hello) => Ok((
                Self {
                    link,
                    round: 0,
                    state: Vec::new(),
                    is_complete: false,
                },
                hello,
            )),
            Err(error) => {
                // What is wrong is what matters; whoever it is may have gone.
                let _ = link.say_farewell(Kind::Refused, encode_text(&error.to_string()));
                Err(error)
            }
        }
    }

    /// Says that the machine is made, at this [place](super::host::place).
    ///
    /// # Errors
    /// The connection fails.
    pub(crate) fn accepted(&mut self, place: &str) -> Result<()> {
        self.link.say(Kind::Accepted, encode_text(place))
    }

    /// Says why the machine cannot be made, in place of [`accepted`](Self::accepted).
    ///
    /// # Errors
    /// The connection fails.
    pub(crate) fn refused(self, why: &str) -> Result<()> {
        self.link.say_farewell(Kind::Refused, encode_text(why))
    }

    /// Writes pages to `memory` until a round is complete, or all is. Between two frames there is no
    /// more than `patience`.
    ///
    /// # Errors
    /// The connection fails, or what comes is wrong: say so by [`failed`](Self::failed).
    pub(crate) fn next<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        patience: Duration,
    ) -> Result<Item> {
        if self.is_complete {
            return wrong("more after LAST");
        }
        loop {
            let frame = self.link.hear(patience)?;
            let payload = frame.payload;
            match frame.kind {
                Kind::Pages if self.state.is_empty() => write_pages(memory, payload)?,
                Kind::Zeros if self.state.is_empty() => write_zeros(memory, payload)?,
                Kind::Round if self.state.is_empty() => {
                    let expected = self.round.checked_add(1).map(u32::to_le_bytes);
                    if expected.is_none_or(|expected| payload != expected) {
                        return wrong(format!("ROUND of another number after {}", self.round));
                    }
                    self.round += 1;
                    self.link.say(Kind::Heard, &self.round.to_le_bytes())?;
                    return Ok(Item::Round(self.round));
                }
                Kind::State => {
                    if self.state.len() + payload.len() > STATE_MOST {
                        return wrong(format!("a state of more than {STATE_MOST} bytes"));
                    }
                    self.state.extend_from_slice(payload);
                }
                Kind::Last if !self.state.is_empty() => {
                    self.is_complete = true;
                    return Ok(Item::All {
                        paused: payload == [1],
                        state: std::mem::take(&mut self.state),
                    });
                }
                _ if self.state.is_empty() => return unexpected(frame, "memory or state"),
                _ => return unexpected(frame, "the rest of the state"),
            }
        }
    }

    /// Says that the guest is ready to run.
    ///
    /// # Errors
    /// The connection fails. The guest goes on at the source.
    pub(crate) fn ready(&mut self) -> Result<()> {
        self.link.say(Kind::Ready, &[])
    }

    /// Waits for `patience` at most until the guest is given. Only if it was, it may run here.
    ///
    /// # Errors
    /// It was not: the guest goes on at the source.
    pub(crate) fn wait_for_yours(&mut self, patience: Duration) -> Result<()> {
        match self.link.hear(patience)? {
            frame if frame.kind == Kind::Yours => Ok(()),
            frame => unexpected(frame, Kind::Yours.name()),
        }
    }

    /// Says that the guest runs here.
    ///
    /// # Errors
    /// The source cannot be told, which changes nothing.
    pub(crate) fn running(mut self) -> Result<()> {
        self.link.say(Kind::Running, &[])
    }

    /// Says that the guest does not run here and will not, and why. The source may have it go on at once.
    ///
    /// # Errors
    /// The source cannot be told.
    pub(crate) fn failed(self, why: &str) -> Result<()> {
        self.link.say_farewell(Kind::Failed, encode_text(why))
    }
}

/// The address that a payload of PAGES or ZEROS begins with, and the number that follows.
fn run(payload: &[u8]) -> Option<(u64, u64, &[u8])> {
    let (run, data) = payload.split_at_checked(RUN)?;
    let (address, number) = run.split_first_chunk()?;
    let number = number.first_chunk()?;
    Some((
        u64::from_le_bytes(*address),
        u64::from_le_bytes(*number),
        data,
    ))
}

fn write_pages<M: GuestMemoryBackend>(memory: &M, payload: &[u8]) -> Result<()> {
    let Some((start, 0, data)) = run(payload) else {
        return wrong("PAGES with reserved bits");
    };
    let (pages, []) = data.as_chunks::<PAGE>() else {
        return wrong(format!("PAGES with {} bytes of data", data.len()));
    };
    for (page, index) in pages.iter().zip(0..) {
        with_page(memory, start, index, |place| place.copy_from(page))?;
    }
    Ok(())
}

/// Does not write where there are zeros: what the host has given no page stays so.
fn write_zeros<M: GuestMemoryBackend>(memory: &M, payload: &[u8]) -> Result<()> {
    let Some((start, count @ 1..=ZEROS_MOST, [])) = run(payload) else {
        return wrong("ZEROS of no page or of too many");
    };
    let (mut page, mut holes) = ([0_u8; PAGE], Holes::default());
    for index in 0..count {
        // If it is too large, there is no such page.
        let address = start.wrapping_add(index.wrapping_mul(PAGE as u64));
        with_page(memory, start, index, |place| {
            if holes.has(memory, address) {
                return;
            }
            place.copy_to(&mut page);
            // It is written, and not given back: a device of the host that is there already has this page.
            if page != [0; PAGE] {
                place.copy_from(&[0_u8; PAGE]);
            }
        })?;
    }
    Ok(())
}

/// Has `work` done with the page `index` after the one at `start`.
fn with_page<'a, M: GuestMemoryBackend>(
    memory: &'a M,
    start: u64,
    index: u64,
    work: impl FnOnce(VolatileSlice<'a, MS<'a, M>>),
) -> Result<()> {
    let address = index
        .checked_mul(PAGE as u64)
        .and_then(|offset| start.checked_add(offset));
    let place = address
        .filter(|address| address.is_multiple_of(PAGE as u64))
        .and_then(|address| memory.get_slice(GuestAddress(address), PAGE).ok());
    let Some(place) = place else {
        return wrong(format!(
            "a page where the guest has none, {index} after {start:#x}"
        ));
    };
    work(place);
    Ok(())
}

#[cfg(test)]
mod receive_test;
