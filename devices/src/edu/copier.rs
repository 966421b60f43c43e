//! The DMA engine of the edu device: copies between memory and the device's buffer, in the manner
//! that the extension's registers ask for.

use std::sync::Arc;

use intel_vtd::{
    AtsRefusal, DmaTransaction, DmaView, PageRequest, PageRequestRefusal, Pasid, ResponseCode,
    SourceId, Unit,
};
use vm_memory::{Bytes, GuestAddress};

use super::atc::{Atc, grants};
use super::extension::{Manner, Outcome};
use super::registers::{BUFFER_SIZE, Copy, Direction};
use crate::Memory;

/// Requests are cut at pages: that is what a translation is sure to hold for.
const PAGE: u64 = 4096;
/// How often a translation is asked for until it permits what is wanted. Software may take a page
/// away as soon as it has answered the request for it.
const ROUNDS: usize = 8;

/// What the device shares with the unit, or nothing if there is none.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) atc: Arc<Atc>,
    pub(super) unit: Option<(Arc<Unit<Memory>>, SourceId)>,
}

impl Link {
    pub(super) fn aborts(&self) -> u64 {
        self.atc.aborts()
    }
}

/// Page requests and their responses.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PageCounts {
    pub(super) requests: u32,
    pub(super) responses: u32,
    /// Software answered that no page request will succeed.
    pub(super) failed: bool,
}

/// How far a command is that asks for a page.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    /// The bytes that were copied.
    pub(super) before: Vec<u8>,
    pub(super) counts: PageCounts,
}

pub(super) struct Copier {
    view: DmaView<Memory>,
    mask: u64,
    link: Link,
    counts: PageCounts,
}

/// One piece of a command: bytes that lie in one page.
struct Piece<'a> {
    address: u64,
    direction: Direction,
    /// The bytes of the command before it.
    before: &'a [u8],
    /// The device's side.
    own: &'a mut [u8],
}

impl Piece<'_> {
    fn is_write(&self) -> bool {
        self.direction == Direction::ToMemory
    }

    /// Carries it out at `address`.
    fn access(&mut self, transaction: &DmaTransaction<'_, Memory>, address: u64) -> Outcome {
        let address = GuestAddress(address);
        // The IOMMU has reported a blocked request.
        let done = match self.direction {
            Direction::ToMemory => transaction.write_request(self.own, address),
            Direction::FromMemory => transaction.read_slice(self.own, address),
        };
        done.map_or(Outcome::Blocked, |()| Outcome::Done)
    }
}

impl Copier {
    pub(super) fn new(view: DmaView<Memory>, mask: u64, link: Link) -> Self {
        Self {
            view,
            mask,
            link,
            counts: PageCounts::default(),
        }
    }

    /// What happened since this was asked last.
    pub(super) fn take_counts(&mut self) -> PageCounts {
        std::mem::take(&mut self.counts)
    }

    /// Does what `copy` says with the device's bytes `own`; see the module documentation of the
    /// device for what remains of a blocked one. The command began after `aborts` aborts, or goes on
    /// after `carried`.
    pub(super) fn copy(
        &mut self,
        copy: &Copy,
        own: &mut [u8],
        aborts: u64,
        carried: Option<&Progress>,
    ) -> Outcome {
        let address = copy.address & self.mask;
        // What comes from memory reaches the device's buffer only if all of it came.
        let mut staged = [0; BUFFER_SIZE];
        let Some(staged) = staged.get_mut(..own.len()) else {
            return Outcome::Blocked;
        };
        staged.copy_from_slice(own);
        let begin = match carried {
            Some(progress) => match self.go_on(progress, staged, aborts) {
                Ok(begin) => begin,
                Err(outcome) => return outcome,
            },
            None => 0,
        };
        let pieces = pieces(address, staged.len()).skip_while(|(_, start, _)| *start < begin);
        for (address, start, length) in pieces {
            let Some((before, rest)) = staged.split_at_mut_checked(start) else {
                return Outcome::Blocked;
            };
            let Some(own) = rest.get_mut(..length) else {
                return Outcome::Blocked;
            };
            let piece = Piece {
                address,
                direction: copy.direction,
                before,
                own,
            };
            let outcome = self.carry(piece, copy.manner, aborts);
            if outcome != Outcome::Done {
                return outcome;
            }
        }
        own.copy_from_slice(staged);
        Outcome::Done
    }

    /// Waits for the page that a command had asked for before the device was restored. Tells how many
    /// bytes had been copied.
    fn go_on(
        &mut self,
        progress: &Progress,
        staged: &mut [u8],
        aborts: u64,
    ) -> Result<usize, Outcome> {
        let begin = progress.before.len();
        if let Some(before) = staged.get_mut(..begin) {
            before.copy_from_slice(&progress.before);
        }
        self.counts = progress.counts;
        let atc = &self.link.atc;
        let answer = atc.wait(&atc.expect_carried(aborts));
        atc.set_progress(None);
        self.heed(answer)?;
        Ok(begin)
    }

    fn carry(&mut self, mut piece: Piece<'_>, manner: Manner, aborts: u64) -> Outcome {
        let pasid = manner.pasid.and_then(Pasid::new);
        for _ in 0..ROUNDS {
            // The guest may have changed its mind while a page was waited for.
            if !self.link.atc.permits(&manner) {
                return Outcome::NotEnabled;
            }
            if manner.translated {
                let transaction = self.view.begin_translated();
                return piece.access(&transaction, piece.address);
            }
            if !manner.translate {
                let transaction = self.view.begin_pasid(pasid);
                return piece.access(&transaction, piece.address);
            }
            if let Some(outcome) = self.use_kept(&mut piece, pasid) {
                return outcome;
            }
            match self.ask(&mut piece, pasid) {
                Answer::Kept => continue,
                Answer::Over(outcome) => return outcome,
                Answer::Denied => {}
            }
            if !manner.pages {
                return Outcome::Denied;
            }
            if let Err(outcome) = self.request_page(&piece, pasid, aborts) {
                return outcome;
            }
        }
        Outcome::Denied
    }

    /// Uses a translation that the device has.
    fn use_kept(&mut self, piece: &mut Piece<'_>, pasid: Option<Pasid>) -> Option<Outcome> {
        // Looked up and used within one transaction: an invalidation waits for that.
        let transaction = self.view.begin_translated();
        let address = self
            .link
            .atc
            .lookup(pasid, piece.address, piece.is_write())?;
        Some(piece.access(&transaction, address))
    }

    /// Asks for a translation.
    fn ask(&mut self, piece: &mut Piece<'_>, pasid: Option<Pasid>) -> Answer {
        let transaction = self.view.begin_pasid(pasid);
        let write = piece.is_write();
        match transaction.translate(piece.address, !write) {
            Ok(answer) if answer.untranslated_only => {
                Answer::Over(piece.access(&transaction, piece.address))
            }
            Ok(answer) if grants(&answer, write) => {
                self.link.atc.insert(pasid, piece.address, answer);
                Answer::Kept
            }
            Ok(_) => Answer::Denied,
            Err(AtsRefusal::Gated) => Answer::Over(Outcome::Blocked),
            Err(AtsRefusal::UnsupportedRequest | AtsRefusal::CompleterAbort) => {
                Answer::Over(Outcome::Refused)
            }
        }
    }

    /// Asks for a page, and waits until software has dealt with it.
    fn request_page(
        &mut self,
        piece: &Piece<'_>,
        pasid: Option<Pasid>,
        aborts: u64,
    ) -> Result<(), Outcome> {
        let Some((unit, source)) = &self.link.unit else {
            return Err(Outcome::NotQueued);
        };
        let atc = &self.link.atc;
        let expected = atc.expect(pasid, aborts);
        let write = piece.is_write();
        let request = PageRequest {
            pasid,
            address: piece.address,
            read: !write,
            write,
            group: expected.group,
            last: true,
            ..PageRequest::default()
        };
        self.counts.requests = self.counts.requests.wrapping_add(1);
        atc.set_progress(Some(Progress {
            before: piece.before.to_vec(),
            counts: self.counts,
        }));
        let answer = match unit.request_page(*source, &request) {
            Ok(()) => Ok(atc.wait(&expected)),
            Err(PageRequestRefusal::Answered(code)) => {
                atc.forget(Some(code));
                atc.pause(&expected);
                Ok(atc.take_answer())
            }
            Err(PageRequestRefusal::Unsupported | PageRequestRefusal::Dropped) => {
                atc.forget(None);
                Err(Outcome::NotQueued)
            }
        };
        atc.set_progress(None);
        self.heed(answer?)
    }

    /// Does what an answer to a page request says, or none.
    fn heed(&mut self, answer: Option<ResponseCode>) -> Result<(), Outcome> {
        if answer.is_some() {
            self.counts.responses = self.counts.responses.wrapping_add(1);
        }
        match answer {
            Some(ResponseCode::Success) => Ok(()),
            Some(ResponseCode::InvalidRequest) => Err(Outcome::PageInvalid),
            Some(ResponseCode::ResponseFailure | ResponseCode::Reserved(_)) => {
                self.counts.failed = true;
                Err(Outcome::PageInvalid)
            }
            None => Err(Outcome::NoAnswer),
        }
    }
}

/// What came of a translation request.
enum Answer {
    /// It is in the device-TLB.
    Kept,
    /// It does not permit the access.
    Denied,
    /// The piece is dealt with.
    Over(Outcome),
}

/// Cuts `length` bytes at `address` at pages: address, position and length of each piece. Addresses
/// wrap around.
pub(super) fn pieces(address: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let start = done;
        let left = length.checked_sub(start).filter(|left| *left > 0)?;
        let at = address.wrapping_add(u64::try_from(start).ok()?);
        let room = usize::try_from(PAGE - at % PAGE).ok()?;
        let part = left.min(room);
        done += part;
        Some((at, start, part))
    })
}
