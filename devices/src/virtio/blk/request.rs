//! One block request (section 5.2.6): header, data, status; from when it was taken to its end, with a
//! system call at a time.
//!
//! What the request asks for and cannot have is answered in its status byte. Only a request that
//! leaves no place for a status byte, or one whose rings fail, is an error of the queue.
//!
//! Data goes straight between the file and guest memory: the pages are pinned while the system call
//! lasts, so that no transaction spans it.

use std::io;

use intel_vtd::{DmaPin, Pinned};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, virtio_blk_discard_write_zeroes,
    virtio_blk_outhdr,
};

use super::call::{Allocate, Call, ZEROES};
use super::outcome::{Outcome, Refused};
use super::pages::Pages;
use super::target::{SECTOR, Target, unsupported};
use crate::Memory;
use crate::virtio::chain::Chain;
use crate::virtio::error::QueueError;
use crate::virtio::feature::has;
use crate::virtio::session::Session;

/// Largest discard: 2 GiB in sectors.
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// Largest write-zeroes: 32 MiB in sectors, because it may have to be written out.
pub(super) const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 16;
/// Size of `struct virtio_blk_req` up to its data.
const HEADER: u64 = size_of::<virtio_blk_outhdr>() as u64;
/// Size of a range to discard or to fill with zeroes.
const RANGE: u64 = size_of::<virtio_blk_discard_write_zeroes>() as u64;

/// A range of the disk in bytes, and how much of it is done.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u64,
    length: u64,
    done: u64,
}

impl Span {
    fn offset(&self) -> u64 {
        self.start + self.done
    }

    fn left(&self) -> u64 {
        self.length - self.done
    }
}

/// What a request is about.
#[derive(Clone, Copy, Debug)]
enum Work {
    Read(Span),
    Write(Span),
    Sync,
    Discard(Span),
    /// As the file system does it.
    Zero {
        range: Span,
        is_hole: bool,
    },
    /// Where it cannot.
    WriteZeroes(Span),
}

/// What comes next for a request.
pub(super) enum Step {
    /// Have this call made, with the request's pages, and resume the request with its result.
    Call(Call),
    /// Nothing: the driver is to have it back.
    End(Outcome),
}

/// A request, and room for the next one: so that handling one allocates nothing once the largest has
/// been seen.
#[derive(Default)]
pub(super) struct Request {
    pub(super) chain: Chain,
    pages: Pages,
    work: Option<Work>,
}

impl Request {
    /// What the calls read from and write to.
    pub(super) fn pages(&self) -> &Pages {
        &self.pages
    }

    /// Has the request pin into `pages`, and gives those that it had. Drains look at each that was ever
    /// used, so who serves a request at a time has one for all.
    pub(super) fn swap_pages(&mut self, pages: &mut Pages) {
        std::mem::swap(&mut self.pages, pages);
    }

    /// Gives back what the request has pinned: it ends, or begins once more.
    pub(super) fn release(&mut self) {
        self.pages.release();
    }

    /// Begins with what was taken into `chain`.
    ///
    /// # Errors
    /// There is no place for a status.
    pub(super) fn begin(
        &mut self,
        target: &Target,
        session: &mut Session,
    ) -> Result<Step, QueueError> {
        self.release();
        self.work = None;
        if self.chain.writable() == 0 {
            return Err(QueueError::Length);
        }
        let step = self.parse(target, session);
        Ok(self.step(step))
    }

    /// Goes on after a call.
    pub(super) fn resume(&mut self, session: &mut Session, result: io::Result<usize>) -> Step {
        let step = self.account(result).and_then(|()| self.next(session));
        self.step(step)
    }

    fn step(&mut self, step: Result<Step, Refused>) -> Step {
        let step = step.unwrap_or_else(|refused| Step::End(Outcome::Failed(refused)));
        if matches!(step, Step::End(_)) {
            self.release();
        }
        step
    }

    /// Finds out what the header asks for, and makes a first step.
    fn parse(&mut self, target: &Target, session: &mut Session) -> Result<Step, Refused> {
        let mut header = [0; 16];
        session.read(&self.chain, 0, &mut header)?;
        let (kind, sector) = parse_header(&header);
        let features = session.features();
        self.work = Some(match kind {
            VIRTIO_BLK_T_IN => {
                let length = self.chain.writable().saturating_sub(1);
                Work::Read(range(target, sector, whole_sectors(length)?)?)
            }
            VIRTIO_BLK_T_OUT if target.readonly => return Err(Refused::Error),
            VIRTIO_BLK_T_OUT => {
                let length = self.chain.readable().saturating_sub(HEADER);
                Work::Write(range(target, sector, whole_sectors(length)?)?)
            }
            VIRTIO_BLK_T_FLUSH if has(features, VIRTIO_BLK_F_FLUSH) => Work::Sync,
            VIRTIO_BLK_T_GET_ID => return self.identify(target, session),
            VIRTIO_BLK_T_DISCARD if has(features, VIRTIO_BLK_F_DISCARD) => {
                // Section 5.2.6.2: one with `unmap` set, or with unknown flags, is unsupported.
                self.ranges(target, session, MAX_DISCARD_SECTORS, 0)
                    .map(|(range, _)| Work::Discard(range))?
            }
            VIRTIO_BLK_T_WRITE_ZEROES if has(features, VIRTIO_BLK_F_WRITE_ZEROES) => {
                let unmap = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
                self.ranges(target, session, MAX_WRITE_ZEROES_SECTORS, unmap)
                    .map(|(range, flags)| Work::Zero {
                        range,
                        is_hole: flags & unmap != 0,
                    })?
            }
            _ => return Err(Refused::Unsupported),
        });
        self.next(session)
    }

    fn identify(&self, target: &Target, session: &mut Session) -> Result<Step, Refused> {
        let room = usize::try_from(self.chain.writable().saturating_sub(1)).unwrap_or(usize::MAX);
        let id = target
            .id
            .get(..room.min(target.id.len()))
            .unwrap_or_default();
        session.write(&self.chain, 0, id)?;
        Ok(Step::End(Outcome::Written(id.len() as u64)))
    }

    /// The one range of a discard or write-zeroes request (one is all that the configuration allows)
    /// and its flags, which are among `known`.
    fn ranges(
        &self,
        target: &Target,
        session: &mut Session,
        max_sectors: u32,
        known: u32,
    ) -> Result<(Span, u32), Refused> {
        if target.readonly || self.chain.readable() != HEADER + RANGE {
            return Err(Refused::Error);
        }
        let mut bytes = [0; 16];
        session.read(&self.chain, HEADER, &mut bytes)?;
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let count = u32::from_le_bytes([n0, n1, n2, n3]);
        if count == 0 || count > max_sectors {
            return Err(Refused::Error);
        }
        let range = range(target, sector, u64::from(count))?;
        let flags = u32::from_le_bytes(flags);
        if flags & !known != 0 {
            return Err(Refused::Unsupported);
        }
        Ok((range, flags))
    }

    /// Notes what a call has done.
    fn account(&mut self, result: io::Result<usize>) -> Result<(), Refused> {
        // What is left of a short one is pinned anew: the guest may have taken it away.
        self.release();
        let work = self.work.as_mut().ok_or(Refused::Error)?;
        let moved = match (&mut *work, result) {
            // To be made again.
            (_, Err(error)) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            // A hint only: a file system that cannot do it changes nothing.
            (Work::Discard(_), Err(error)) if unsupported(&error) => 0,
            (Work::Zero { range, .. }, Err(error)) if unsupported(&error) => {
                *work = Work::WriteZeroes(*range);
                return Ok(());
            }
            (_, result) => result?,
        };
        match work {
            Work::Read(_) if moved == 0 => Err(io::ErrorKind::UnexpectedEof)?,
            Work::Write(_) | Work::WriteZeroes(_) if moved == 0 => {
                Err(io::ErrorKind::WriteZero)?;
            }
            Work::Read(span) | Work::Write(span) => {
                span.done += moved as u64;
            }
            Work::WriteZeroes(span) => span.done += moved as u64,
            Work::Discard(span) | Work::Zero { range: span, .. } => span.done = span.length,
            Work::Sync => self.work = None,
        }
        Ok(())
    }

    /// The next call, if there is to be one. A reset ends the request here.
    fn next(&mut self, session: &mut Session) -> Result<Step, Refused> {
        let Some(work) = self.work else {
            return Ok(Step::End(Outcome::Written(0)));
        };
        if session.stopping() {
            return Err(Refused::Error);
        }
        let chain = &self.chain;
        Ok(match work {
            Work::Read(span) if span.left() != 0 => {
                hold(&mut self.pages, |pin| {
                    session.pin_writable(pin, chain, span.done, span.left())
                })?;
                let offset = span.offset();
                Step::Call(Call::Read { offset })
            }
            Work::Read(span) => Step::End(Outcome::Written(span.length)),
            Work::Write(span) if span.left() != 0 => {
                hold(&mut self.pages, |pin| {
                    session.pin_readable(pin, chain, HEADER + span.done, span.left())
                })?;
                let offset = span.offset();
                Step::Call(Call::Write { offset })
            }
            // Without FLUSH the driver takes a write to be stable when it completes (section 5.2.6.2).
            Work::Write(_) if !has(session.features(), VIRTIO_BLK_F_FLUSH) => {
                self.work = Some(Work::Sync);
                Step::Call(Call::Sync)
            }
            Work::Sync => Step::Call(Call::Sync),
            Work::Discard(range) if range.left() != 0 => allocate(range, true),
            Work::Zero { range, is_hole } if range.left() != 0 => allocate(range, is_hole),
            Work::WriteZeroes(span) if span.left() != 0 => {
                let length = usize::try_from(span.left()).unwrap_or(usize::MAX);
                Step::Call(Call::WriteZeroes {
                    offset: span.offset(),
                    length: length.min(ZEROES.len()),
                })
            }
            Work::Write(_) | Work::Discard(_) | Work::Zero { .. } | Work::WriteZeroes(_) => {
                Step::End(Outcome::Written(0))
            }
        })
    }
}

/// Pins what `pin` does, which is something.
fn hold(
    pages: &mut Pages,
    pin: impl for<'p> FnOnce(&'p mut DmaPin<Memory>) -> Result<Pinned<'p, Memory>, QueueError>,
) -> Result<(), Refused> {
    if pages.hold(pin)? == 0 {
        return Err(Refused::Error);
    }
    Ok(())
}

fn allocate(range: Span, is_hole: bool) -> Step {
    Step::Call(Call::Allocate(Allocate {
        offset: range.start,
        length: range.length,
        is_hole,
    }))
}

/// Type and sector of a request header.
fn parse_header(header: &[u8; 16]) -> (u32, u64) {
    let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = *header;
    (
        u32::from_le_bytes([k0, k1, k2, k3]),
        u64::from_le_bytes(sector),
    )
}

/// Sectors in `length` bytes, which must be a whole number of them.
fn whole_sectors(length: u64) -> Result<u64, Refused> {
    if length.is_multiple_of(SECTOR) {
        Ok(length / SECTOR)
    } else {
        Err(Refused::Error)
    }
}

/// `count` sectors from `sector`.
fn range(target: &Target, sector: u64, count: u64) -> Result<Span, Refused> {
    let (start, length) = target.range(sector, count).ok_or(Refused::Error)?;
    Ok(Span {
        start,
        length,
        done: 0,
    })
}
