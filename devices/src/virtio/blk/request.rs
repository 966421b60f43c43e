//! One block request (section 5.2.6): header, data, status.
//!
//! What the request asks for and cannot have is answered in its status byte. Only a request that
//! leaves no place for a status byte, or one whose rings fail, is an error of the queue.
//!
//! Data goes straight between the file and guest memory: the pages are pinned while the system call
//! lasts, so that no transaction spans it.

use std::io;
use std::os::unix::fs::FileExt;

use intel_vtd::DmaPin;
use log::warn;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, virtio_blk_discard_write_zeroes,
    virtio_blk_outhdr,
};

use super::pinned_io::PinnedIo as _;
use super::target::{SECTOR, Target, unsupported};
use crate::Memory;
use crate::limit::LogLimit;
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
/// What is written where the file cannot be zeroed otherwise, a piece at a time.
static ZEROES: [u8; 256 << 10] = [0; 256 << 10];

/// Status (section 5.2.6), which is one byte.
#[allow(clippy::cast_possible_truncation)]
mod status {
    use virtio_bindings::virtio_blk as blk;

    pub(super) const OK: u8 = blk::VIRTIO_BLK_S_OK as u8;
    pub(super) const IOERR: u8 = blk::VIRTIO_BLK_S_IOERR as u8;
    pub(super) const UNSUPP: u8 = blk::VIRTIO_BLK_S_UNSUPP as u8;
}

/// Whether a request may wait for the storage of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    /// It may.
    Permitted,
    /// Reads may not, as far as the file can tell: they are to be served again.
    Refused,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// It was returned to the driver.
    Done,
    /// The host has begun to fetch what it reads.
    Later,
}

/// Why a request is not carried out.
enum Refused {
    /// It would wait.
    Later,
    /// `VIRTIO_BLK_S_IOERR`.
    Error,
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
    /// `VIRTIO_BLK_S_IOERR`, because of the host.
    Host(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

/// A buffer of the request that cannot be reached is the request's failure, not the queue's.
impl From<QueueError> for Refused {
    fn from(_: QueueError) -> Self {
        Self::Error
    }
}

/// The reusable parts of handling a request.
#[derive(Default)]
pub(super) struct Request {
    pin: DmaPin<Memory>,
    /// The file cannot tell whether a read would wait.
    always_waits: bool,
    limit: LogLimit,
}

impl Request {
    /// Carries out the request in `chain`, which came from queue `index`, and returns it to the
    /// driver, if it is not one that would wait and may not.
    pub(super) fn serve(
        &mut self,
        index: usize,
        chain: &Chain,
        target: &Target,
        session: &mut Session,
        waiting: Waiting,
    ) -> Result<Served, QueueError> {
        let data_length = chain.writable().checked_sub(1).ok_or(QueueError::Length)?;
        let (written, status) = match self.execute(chain, target, session, waiting) {
            Ok(written) => (written, status::OK),
            Err(Refused::Later) => return Ok(Served::Later),
            Err(Refused::Error) => (0, status::IOERR),
            Err(Refused::Unsupported) => (0, status::UNSUPP),
            Err(Refused::Host(error)) => {
                if let Some(held_back) = self.limit.pass() {
                    warn!(
                        "virtio-blk: request failed on the host: {error} ({held_back} messages held back)"
                    );
                }
                (0, status::IOERR)
            }
        };
        // The used length counts from the start of the writable part, so it covers the status byte
        // only if everything before it was written. A driver must not rely on more than that
        // (section 2.7.8.2).
        let used = if written == data_length {
            written + 1
        } else {
            written
        };
        session.write(chain, data_length, &[status])?;
        session.complete(index, chain, u32::try_from(used).unwrap_or(u32::MAX))?;
        Ok(Served::Done)
    }

    /// Does what the header says; the result is the number of data bytes written to the guest.
    fn execute(
        &mut self,
        chain: &Chain,
        target: &Target,
        session: &mut Session,
        waiting: Waiting,
    ) -> Result<u64, Refused> {
        let mut header = [0; 16];
        session.read(chain, 0, &mut header)?;
        let (kind, sector) = parse_header(&header);
        let features = session.features();
        match kind {
            VIRTIO_BLK_T_IN => self.read(sector, chain, target, session, waiting),
            VIRTIO_BLK_T_OUT if target.readonly => Err(Refused::Error),
            VIRTIO_BLK_T_OUT => {
                self.write(sector, chain, target, session)?;
                // Without FLUSH the driver takes a write to be stable when it completes (section
                // 5.2.6.2).
                if !has(features, VIRTIO_BLK_F_FLUSH) {
                    target.file.sync_data()?;
                }
                Ok(0)
            }
            VIRTIO_BLK_T_FLUSH if has(features, VIRTIO_BLK_F_FLUSH) => {
                target.file.sync_data()?;
                Ok(0)
            }
            VIRTIO_BLK_T_GET_ID => {
                let room =
                    usize::try_from(chain.writable().saturating_sub(1)).unwrap_or(usize::MAX);
                let id = target
                    .id
                    .get(..room.min(target.id.len()))
                    .unwrap_or_default();
                session.write(chain, 0, id)?;
                Ok(id.len() as u64)
            }
            VIRTIO_BLK_T_DISCARD if has(features, VIRTIO_BLK_F_DISCARD) => {
                self.discard(chain, target, session)
            }
            VIRTIO_BLK_T_WRITE_ZEROES if has(features, VIRTIO_BLK_F_WRITE_ZEROES) => {
                self.write_zeroes(chain, target, session)
            }
            _ => Err(Refused::Unsupported),
        }
    }

    fn read(
        &mut self,
        sector: u64,
        chain: &Chain,
        target: &Target,
        session: &mut Session,
        waiting: Waiting,
    ) -> Result<u64, Refused> {
        let may_wait = waiting == Waiting::Permitted || self.always_waits;
        let length = chain.writable().saturating_sub(1);
        let (start, length) = range(target, sector, whole_sectors(length)?)?;
        let mut done = 0;
        while done < length {
            let pinned = session.pin_writable(&mut self.pin, chain, done, length - done)?;
            if pinned.is_empty() {
                return Err(Refused::Error);
            }
            if may_wait {
                target.file.read_pinned(&pinned, start + done)?;
            } else {
                match target.file.read_pinned_at_once(&pinned, start + done) {
                    Ok(true) => {}
                    Ok(false) => {
                        // Not the rest of a long one: it has its turn, and the host its memory.
                        target.fetch(start + done, pinned.len() as u64);
                        return Err(Refused::Later);
                    }
                    Err(error) if unsupported(&error) => {
                        self.always_waits = true;
                        target.file.read_pinned(&pinned, start + done)?;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            done += pinned.len() as u64;
        }
        Ok(length)
    }

    fn write(
        &mut self,
        sector: u64,
        chain: &Chain,
        target: &Target,
        session: &mut Session,
    ) -> Result<(), Refused> {
        let length = chain.readable().saturating_sub(HEADER);
        let (start, length) = range(target, sector, whole_sectors(length)?)?;
        let mut done = 0;
        while done < length {
            let at = HEADER + done;
            let pinned = session.pin_readable(&mut self.pin, chain, at, length - done)?;
            if pinned.is_empty() {
                return Err(Refused::Error);
            }
            target.file.write_pinned(&pinned, start + done)?;
            done += pinned.len() as u64;
        }
        Ok(())
    }

    /// Section 5.2.6.2: a discard with `unmap` set, or with unknown flags, is unsupported.
    fn discard(
        &mut self,
        chain: &Chain,
        target: &Target,
        session: &mut Session,
    ) -> Result<u64, Refused> {
        let (start, length, flags) = requested_range(chain, target, session, MAX_DISCARD_SECTORS)?;
        if flags != 0 {
            return Err(Refused::Unsupported);
        }
        match target.punch_hole(start, length) {
            // A hint only: a file system that cannot do it changes nothing.
            Err(error) if unsupported(&error) => Ok(0),
            result => Ok(result.map(|()| 0)?),
        }
    }

    fn write_zeroes(
        &mut self,
        chain: &Chain,
        target: &Target,
        session: &mut Session,
    ) -> Result<u64, Refused> {
        let (start, length, flags) =
            requested_range(chain, target, session, MAX_WRITE_ZEROES_SECTORS)?;
        if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
            return Err(Refused::Unsupported);
        }
        let zeroed = if flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
            target.punch_hole(start, length)
        } else {
            target.zero_range(start, length)
        };
        match zeroed {
            Err(error) if unsupported(&error) => {}
            result => return Ok(result.map(|()| 0)?),
        }
        let mut done = 0;
        while done < length {
            // A reset ends the request here.
            if session.stopping() {
                return Err(Refused::Error);
            }
            let left = usize::try_from(length - done).unwrap_or(usize::MAX);
            let piece = ZEROES.get(..left).unwrap_or(&ZEROES);
            target.file.write_all_at(piece, start + done)?;
            done += piece.len() as u64;
        }
        Ok(0)
    }
}

/// Type and sector of a request header.
fn parse_header(header: &[u8; 16]) -> (u32, u64) {
    let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = *header;
    (
        u32::from_le_bytes([k0, k1, k2, k3]),
        u64::from_le_bytes(sector),
    )
}

/// The one range of a discard or write-zeroes request (one is all that the configuration allows),
/// in bytes, and its flags.
fn requested_range(
    chain: &Chain,
    target: &Target,
    session: &mut Session,
    max_sectors: u32,
) -> Result<(u64, u64, u32), Refused> {
    if target.readonly || chain.readable() != HEADER + RANGE {
        return Err(Refused::Error);
    }
    let mut bytes = [0; 16];
    session.read(chain, HEADER, &mut bytes)?;
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let count = u32::from_le_bytes([n0, n1, n2, n3]);
    if count == 0 || count > max_sectors {
        return Err(Refused::Error);
    }
    let (start, length) = range(target, sector, u64::from(count))?;
    Ok((start, length, u32::from_le_bytes(flags)))
}

/// Sectors in `length` bytes, which must be a whole number of them.
fn whole_sectors(length: u64) -> Result<u64, Refused> {
    if length.is_multiple_of(SECTOR) {
        Ok(length / SECTOR)
    } else {
        Err(Refused::Error)
    }
}

/// Start and length in bytes of `count` sectors from `sector`.
fn range(target: &Target, sector: u64, count: u64) -> Result<(u64, u64), Refused> {
    target.range(sector, count).ok_or(Refused::Error)
}
