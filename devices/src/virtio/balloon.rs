//! Memory balloon (section 5.5): pages that the guest does not use go back to the host.
//!
//! The driver names them by their guest-physical numbers: those of the balloon, which it takes from the
//! guest until there are as many as it is asked for, and, if it reports free pages, those that nobody in
//! the guest uses at the moment. What was given back reads as zeros when the guest touches it again, and
//! takes memory of the host again then; nothing keeps it from that.
//!
//! The driver of Linux knows no addresses but physical ones for it, as most of what it says are such
//! anyhow, and takes no device that asks for others. So this one is [behind no
//! unit](VirtioDevice::mandatory_features), and does not offer `VIRTIO_F_ACCESS_PLATFORM`.
//!
//! Which queue reports free pages depends on whom one asks: the fifth by the specification, and by some
//! versions of Linux the one that follows those that are in use. There is no free-page-hint queue here, so
//! that each queue behind the statistics can be the one that reports.

mod runs;
mod saved;
mod shared;
mod statistics;

use std::io;
use std::iter::from_fn;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;
use std::time::Instant;

use log::warn;
use state::{RestoreError, SaveError, Section};
use vm_memory::GuestAddress;

use super::chain::Chain;
use super::device::{DeviceKind, LiveConfig, VirtioDevice};
use super::error::QueueError;
use super::feature::{self, has, mask};
use super::session::{Progress, Session};
use crate::limit::LogLimit;
use runs::{MOST_NUMBERS, runs};
use shared::Shared;

pub use shared::{BalloonControl, BalloonFigures};
pub use statistics::Statistics;

/// Queue indexes (section 5.5.2). What follows reports free pages.
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const QUEUE_SIZES: &[u16] = &[128; 5];

/// Feature bits (section 5.5.3).
const STATS_VQ: u32 = 1;
const DEFLATE_ON_OOM: u32 = 2;
const PAGE_POISON: u32 = 4;
const PAGE_REPORTING: u32 = 5;

/// Bytes of a page, as the driver counts (section 5.5.6).
const PAGE: u64 = 4096;
/// Most bytes that are given back between two looks whether the device is to stop.
const PIECE: u64 = 4 << 20;

/// Guest memory, as far as the host can have it back.
pub trait Reclaim: Send + Sync {
    /// Gives the host back what is guest memory of a range of whole pages of 4 KiB. From then on it reads
    /// as zeros, and is marked as written to. What cannot be given back stays as it is. Returns how many
    /// bytes were.
    ///
    /// # Errors
    /// The host refuses. Some of it may have been given back.
    fn reclaim(&self, start: GuestAddress, length: u64) -> io::Result<u64>;

    /// Whether somebody follows what is written: a page that is given back is one more to be looked at. What need not
    /// be given back stays where it is then.
    fn is_followed(&self) -> bool {
        false
    }
}

/// What is offered to the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonOptions {
    /// It may take pages out of the balloon by itself when it has no others.
    pub deflate_on_oom: bool,
    /// It may report pages that are free.
    pub free_page_reporting: bool,
}

/// Which statistics somebody waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Wanted {
    #[default]
    Nothing,
    /// Those that come next: the driver was asked for them.
    Next,
    /// Those after them: what comes next was made before.
    AfterNext,
}

/// A balloon device.
pub struct Balloon {
    options: BalloonOptions,
    memory: Arc<dyn Reclaim>,
    shared: Arc<Shared>,
    /// How often the target had changed when the driver was last told to look at it.
    told: u64,
    chain: Chain,
    /// The buffer of the statistics queue, which goes back when there is to be another.
    held: Option<Chain>,
    wanted: Wanted,
    /// The buffer that comes next was there before: what it says is known, or older than can be told.
    retaken: bool,
    numbers: Vec<u32>,
    limit: LogLimit,
}

impl Balloon {
    /// An empty balloon for the guest whose memory `memory` is.
    ///
    /// # Errors
    /// When the host gives no eventfd.
    pub fn new(options: BalloonOptions, memory: Arc<dyn Reclaim>) -> io::Result<Self> {
        Ok(Self {
            options,
            memory,
            shared: Arc::new(Shared::new()?),
            told: 0,
            chain: Chain::default(),
            held: None,
            wanted: Wanted::default(),
            retaken: false,
            numbers: Vec::new(),
            limit: LogLimit::default(),
        })
    }

    /// What changes its size, and tells of it.
    #[must_use]
    pub fn control(&self) -> BalloonControl {
        BalloonControl::of(&self.shared)
    }

    /// Gives the pages of one buffer of numbers back to the host; `false` if there is none.
    fn inflate(&mut self, session: &mut Session) -> Result<bool, QueueError> {
        if !session.pop(INFLATE, &mut self.chain)? {
            return Ok(false);
        }
        self.read_numbers(session)?;
        let mut numbers = std::mem::take(&mut self.numbers);
        let mut given = 0;
        let mut pieces = runs(&mut numbers).flat_map(|(start, length)| pieces(start.0, length));
        let is_done = loop {
            let Some((start, length)) = pieces.next() else {
                break true;
            };
            if !session.goes_on()? {
                break false;
            }
            given += self.reclaim(start, length);
        };
        drop(pieces);
        self.numbers = numbers;
        self.shared.add_inflated(given);
        Self::end(INFLATE, &self.chain, is_done, session)
    }

    /// Reads the page numbers of the chain.
    fn read_numbers(&mut self, session: &mut Session) -> Result<(), QueueError> {
        let bytes = usize::try_from(self.chain.readable()).unwrap_or(usize::MAX);
        if bytes > MOST_NUMBERS * size_of::<u32>() {
            return Err(QueueError::ChainTooLong);
        }
        let mut data = vec![0; bytes];
        session.read(&self.chain, 0, &mut data)?;
        // What is left is no number.
        let (numbers, _) = data.as_chunks();
        self.numbers.clear();
        self.numbers
            .extend(numbers.iter().map(|number| u32::from_le_bytes(*number)));
        Ok(())
    }

    /// Gives the pages that one chain of `index` is made of back to the host; `false` if there is none.
    fn report(&mut self, index: usize, session: &mut Session) -> Result<bool, QueueError> {
        if !session.pop(index, &mut self.chain)? {
            return Ok(false);
        }
        if self.may_zero(session.features()) {
            let ranges: Vec<_> = self
                .chain
                .writable_ranges(0, self.chain.writable())
                .collect();
            let ranges = ranges.into_iter();
            for (start, length) in ranges.flat_map(|(start, length)| pieces(start.0, length as u64))
            {
                if !session.goes_on()? {
                    return Self::end(index, &self.chain, false, session);
                }
                let given = self.reclaim(start, length);
                self.shared.add_reported(given);
            }
        }
        Self::end(index, &self.chain, true, session)
    }

    /// Returns a chain whose pages have gone back, or leaves it in its queue: to give them back once more
    /// does no harm, as the driver has not got it. Whether to go on.
    fn end(
        index: usize,
        chain: &Chain,
        is_done: bool,
        session: &mut Session,
    ) -> Result<bool, QueueError> {
        match is_done {
            true => session.complete(index, chain, 0)?,
            false => session.undo(index, 1),
        }
        Ok(is_done)
    }

    /// Whether pages that are reported are to go back, and may hold zeros afterwards (section 5.5.6.7): the
    /// driver may want another pattern in them.
    fn may_zero(&self, features: u64) -> bool {
        let holds_zeros = !has(features, PAGE_POISON) || self.shared.poison() == 0;
        holds_zeros && !self.memory.is_followed()
    }

    fn reclaim(&mut self, start: GuestAddress, length: u64) -> u64 {
        match self.memory.reclaim(start, length) {
            Ok(bytes) => bytes,
            Err(error) => {
                if let Some(held_back) = self.limit.pass() {
                    warn!(
                        "virtio-balloon: the host does not take {length:#x} bytes at {:#x} back: {error} ({held_back} messages held back)",
                        start.0
                    );
                }
                0
            }
        }
    }

    /// Takes the statistics that the driver has given, if it has and there are none yet. Those that were
    /// there before somebody asked for some go back at once.
    fn take_statistics(&mut self, session: &mut Session) -> Result<(), QueueError> {
        while self.held.is_none() && session.pop(STATISTICS, &mut self.chain)? {
            let mut data = [0; statistics::MOST_BYTES];
            let length = usize::try_from(self.chain.readable()).unwrap_or(usize::MAX);
            let part = data.get_mut(..length.min(statistics::MOST_BYTES));
            let part = part.unwrap_or_default();
            session.read(&self.chain, 0, part)?;
            let statistics = Statistics::decode(part, Instant::now());
            let wanted = std::mem::take(&mut self.wanted);
            if !std::mem::take(&mut self.retaken) {
                self.shared.hear(statistics, wanted == Wanted::Next);
            }
            if wanted == Wanted::AfterNext {
                session.complete(STATISTICS, &self.chain, 0)?;
                self.wanted = Wanted::Next;
            } else {
                self.held = Some(std::mem::take(&mut self.chain));
            }
        }
        Ok(())
    }

    /// Has the driver give new statistics.
    fn ask_statistics(&mut self, session: &mut Session) -> Result<(), QueueError> {
        match self.held.take() {
            Some(held) => {
                session.complete(STATISTICS, &held, 0)?;
                self.chain = held;
                self.wanted = Wanted::Next;
                // A driver may have given another already.
                self.take_statistics(session)?;
            }
            None if self.wanted == Wanted::Nothing => self.wanted = Wanted::AfterNext,
            None => {}
        }
        Ok(())
    }

    /// Has the driver look at the target, if it has not looked at this one.
    fn tell(&mut self, session: &Session) {
        let changes = self.shared.changes();
        if self.told != changes {
            self.told = changes;
            session.config_changed();
        }
    }
}

/// The whole pages of a range, so many at a time.
fn pieces(start: u64, length: u64) -> impl Iterator<Item = (GuestAddress, u64)> {
    let end = start.saturating_add(length) / PAGE * PAGE;
    let mut at = start.checked_next_multiple_of(PAGE).unwrap_or(end);
    from_fn(move || {
        let length = end.checked_sub(at).filter(|left| *left != 0)?.min(PIECE);
        let piece = (GuestAddress(at), length);
        at += length;
        Some(piece)
    })
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn features(&self) -> u64 {
        let mut features = mask(&[STATS_VQ]);
        if self.options.deflate_on_oom {
            features |= mask(&[DEFLATE_ON_OOM]);
        }
        if self.options.free_page_reporting {
            features |= mask(&[PAGE_REPORTING, PAGE_POISON]);
        }
        features
    }

    fn mandatory_features(&self) -> u64 {
        feature::PHYSICAL
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn live_config(&self) -> Option<Arc<dyn LiveConfig>> {
        Some(Arc::clone(&self.shared) as _)
    }

    fn unsavable(&self) -> Option<&'static str> {
        None
    }

    fn save(&mut self) -> Result<Section, SaveError> {
        self.save_part()
    }

    fn restore(&mut self, state: &Section) -> Result<(), RestoreError> {
        self.restore_part(state)
    }

    fn activate(&mut self, features: u64) -> io::Result<()> {
        self.shared.set_driver(Some(features));
        // A target that was set before is told, whether the driver has seen it or not.
        self.shared.ask();
        Ok(())
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.shared.asked().as_raw_fd()]
    }

    fn queue_ready(&mut self, index: usize, session: &mut Session) -> Result<Progress, QueueError> {
        let features = session.features();
        match index {
            INFLATE => session.turn(index, |session| self.inflate(session)),
            // Pages that the guest takes back are the host's to give when it touches them.
            DEFLATE => session.turn(index, |session| {
                let some = session.pop(index, &mut self.chain)?;
                if some {
                    session.complete(index, &self.chain, 0)?;
                }
                Ok(some)
            }),
            STATISTICS if has(features, STATS_VQ) => {
                self.take_statistics(session)?;
                Ok(Progress::Idle)
            }
            _ if has(features, PAGE_REPORTING) => {
                session.turn(index, |session| self.report(index, session))
            }
            _ => Ok(Progress::Idle),
        }
    }

    fn source_ready(&mut self, _source: usize, session: &mut Session) -> Result<(), QueueError> {
        // Non-blocking: an error means that it is empty.
        let _ = self.shared.asked().read();
        self.tell(session);
        if self.shared.take_wish() {
            self.ask_statistics(session)?;
        }
        Ok(())
    }

    fn suspend(&mut self, session: &mut Session) -> Result<(), QueueError> {
        // No chain is out while the device is at rest. It is taken again when all queues are looked at.
        if self.held.take().is_some() {
            session.undo(STATISTICS, 1);
            self.retaken = true;
        }
        Ok(())
    }

    fn deactivate(&mut self) {
        self.held = None;
        self.wanted = Wanted::default();
        self.told = 0;
        self.retaken = false;
        self.shared.reset();
    }
}

#[cfg(test)]
mod balloon_test;
