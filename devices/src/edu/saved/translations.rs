//! The state of a device-TLB: its translations, as they were answered.

use intel_vtd::{AtsTranslation, Pasid};
use serde::{Deserialize, Serialize};
use state::RestoreError;

use crate::edu::atc::{CAPACITY, Entry};

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TranslationState {
    pasid: Option<u32>,
    input: u64,
    address: u64,
    page_shift: u8,
    readable: bool,
    writable: bool,
    snooped: bool,
    privileged: bool,
}

impl TranslationState {
    pub(super) fn new(entry: &Entry) -> Self {
        let answer = entry.answer;
        Self {
            pasid: entry.pasid.map(Pasid::get),
            input: entry.input,
            address: answer.address,
            page_shift: answer.page_shift,
            readable: answer.readable,
            writable: answer.writable,
            snooped: answer.snooped,
            privileged: answer.privileged,
        }
    }

    fn read(&self) -> Result<Entry, RestoreError> {
        if !(12..=63).contains(&self.page_shift) {
            let why = format_args!("no page has {} address bits", self.page_shift);
            return Err(RestoreError::damaged("a translation", why));
        }
        Ok(Entry {
            pasid: pasid(self.pasid)?,
            input: self.input,
            answer: AtsTranslation {
                address: self.address,
                page_shift: self.page_shift,
                readable: self.readable,
                writable: self.writable,
                untranslated_only: false,
                snooped: self.snooped,
                privileged: self.privileged,
            },
        })
    }
}

/// As many as fit.
pub(super) fn read(saved: &[TranslationState]) -> Result<Vec<Entry>, RestoreError> {
    if saved.len() > CAPACITY {
        let why = format_args!("{} translations, and {CAPACITY} fit", saved.len());
        return Err(RestoreError::damaged("the device-TLB", why));
    }
    saved.iter().map(TranslationState::read).collect()
}

/// A PASID, if it is one.
pub(super) fn pasid(saved: Option<u32>) -> Result<Option<Pasid>, RestoreError> {
    let pasid = |value| {
        Pasid::new(value).ok_or_else(|| {
            let why = format_args!("{value:#x} has more than 20 bits");
            RestoreError::damaged("a PASID", why)
        })
    };
    saved.map(pasid).transpose()
}
