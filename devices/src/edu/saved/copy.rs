//! The state of a DMA command, and of the page request that it waits for.

use serde::{Deserialize, Serialize};
use state::{Bytes, RestoreError};

use super::translations::pasid;
use crate::edu::atc::Carried;
use crate::edu::copier::{PageCounts, Progress, pieces};
use crate::edu::extension::{EduFeatures, Manner};
use crate::edu::registers::{BUFFER_SIZE, Copy, Direction};
use intel_vtd::{Pasid, ResponseCode};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CopyState {
    to_memory: bool,
    address: u64,
    offset: u16,
    length: u16,
    pasid: Option<u32>,
    translate: bool,
    pages: bool,
    translated: bool,
    carried: Option<CarriedState>,
}

/// A command that has asked for a page.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CarriedState {
    /// The bytes that were copied before.
    before: Bytes,
    requests: u32,
    responses: u32,
    failed: bool,
    /// PASID and group of the request that is in flight.
    waits_for: Option<(Option<u32>, u16)>,
    /// The code of its answer, which has not been looked at.
    answer: Option<u8>,
}

impl CopyState {
    pub(super) fn new(copy: &Copy, carried: Option<Carried>) -> Self {
        let manner = copy.manner;
        Self {
            to_memory: copy.direction == Direction::ToMemory,
            address: copy.address,
            offset: u16::try_from(copy.offset).unwrap_or(u16::MAX),
            length: u16::try_from(copy.length).unwrap_or(u16::MAX),
            pasid: manner.pasid,
            translate: manner.translate,
            pages: manner.pages,
            translated: manner.translated,
            carried: carried.map(CarriedState::new),
        }
    }

    /// The command of a device with these features, and what it waits for.
    pub(super) fn read(
        &self,
        features: EduFeatures,
        mask: u64,
    ) -> Result<(Copy, Option<Carried>), RestoreError> {
        let (offset, length) = (usize::from(self.offset), usize::from(self.length));
        if offset + length > BUFFER_SIZE {
            let why = format_args!("{length} bytes at {offset} of the buffer");
            return Err(RestoreError::damaged("a copy", why));
        }
        let manner = Manner {
            pasid: pasid(self.pasid)?.map(Pasid::get),
            translate: self.translate,
            pages: self.pages,
            translated: self.translated,
        };
        let needs = [
            (manner.pasid.is_some(), features.pasid),
            (manner.translate || manner.translated, features.ats),
            (manner.pages, features.pri),
        ];
        if needs.into_iter().any(|(needed, there)| needed && !there) {
            let why = "the device cannot do it in this manner";
            return Err(RestoreError::damaged("a copy", why));
        }
        let direction = match self.to_memory {
            true => Direction::ToMemory,
            false => Direction::FromMemory,
        };
        let copy = Copy {
            direction,
            address: self.address,
            offset,
            length,
            manner,
        };
        let carried = self.carried.as_ref();
        let carried = carried
            .map(|carried| carried.read(&copy, mask))
            .transpose()?;
        Ok((copy, carried))
    }
}

impl CarriedState {
    fn new(carried: Carried) -> Self {
        let Progress { before, counts } = carried.progress;
        let waits_for = carried.waiting;
        Self {
            before: before.into(),
            requests: counts.requests,
            responses: counts.responses,
            failed: counts.failed,
            waits_for: waits_for.map(|(pasid, group)| (pasid.map(Pasid::get), group)),
            answer: carried.answer.map(bits),
        }
    }

    fn read(&self, copy: &Copy, mask: u64) -> Result<Carried, RestoreError> {
        let damaged = |why: &str| RestoreError::damaged("a page request", why);
        let before = self.before.as_slice();
        let mut starts = pieces(copy.address & mask, copy.length).map(|(_, start, _)| start);
        if !copy.manner.pages || !starts.any(|start| start == before.len()) {
            return Err(damaged("no copy asks for a page there"));
        }
        if self.waits_for.is_none() && self.answer.is_none() {
            return Err(damaged("there is none that could be answered"));
        }
        let waiting = match self.waits_for {
            Some((_, group)) if group >= super::GROUPS => {
                return Err(damaged("its group has more than 9 bits"));
            }
            Some((saved, group)) => Some((pasid(saved)?, group)),
            None => None,
        };
        let answer = match self.answer {
            Some(bits) => Some(code(bits).ok_or_else(|| damaged("its answer has no such code"))?),
            None => None,
        };
        Ok(Carried {
            progress: Progress {
                before: before.to_vec(),
                counts: PageCounts {
                    requests: self.requests,
                    responses: self.responses,
                    failed: self.failed,
                },
            },
            waiting,
            answer,
        })
    }
}

/// Response codes (PCIe 10.4.2.1).
fn bits(code: ResponseCode) -> u8 {
    match code {
        ResponseCode::Success => 0,
        ResponseCode::InvalidRequest => 1,
        ResponseCode::ResponseFailure => 0xf,
        ResponseCode::Reserved(bits) => bits,
    }
}

fn code(bits: u8) -> Option<ResponseCode> {
    match bits {
        0 => Some(ResponseCode::Success),
        1 => Some(ResponseCode::InvalidRequest),
        0xf => Some(ResponseCode::ResponseFailure),
        2..=0xe => Some(ResponseCode::Reserved(bits)),
        _ => None,
    }
}
