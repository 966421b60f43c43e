//! Address translation services: a device asks for translations, and keeps them in a device-TLB
//! (section 4.1).

use std::ops::Deref;

use thiserror::Error;
use vm_memory::GuestMemoryBackend;

use super::transaction::DmaTransaction;
use crate::spec::fault_reason::Reply;
use crate::translate::{Access, RequestKind};

/// The answer to a translation request. Its Global and Exe bits are always 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtsTranslation {
    /// Guest-physical address of the byte that was asked for. Without meaning if no access is
    /// permitted, or if `untranslated_only`.
    pub address: u64,
    /// Log2 of the size of the naturally aligned block for which the answer holds: 12 or more.
    pub page_shift: u8,
    /// R: reads are permitted. An answer that permits nothing is not to be kept.
    pub readable: bool,
    /// W: writes are permitted.
    pub writable: bool,
    /// U: the block may be accessed with untranslated requests only.
    pub untranslated_only: bool,
    /// N: accesses are to be snooped; the device must not ask for anything else.
    pub snooped: bool,
    /// Priv: the permissions are those of a supervisor, which asked for them.
    pub privileged: bool,
}

/// A translation request got no answer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AtsRefusal {
    /// The gate of the port is closed: the request did not leave the device.
    #[error("the device may not make requests")]
    Gated,
    /// Unsupported Request: there is no unit, translation is off, or this device may not ask for
    /// translations.
    #[error("translation requests are not supported")]
    UnsupportedRequest,
    /// Completer Abort: the tables are in disorder.
    #[error("the translation request was aborted")]
    CompleterAbort,
}

impl<M: Deref<Target: GuestMemoryBackend>> DmaTransaction<'_, M> {
    /// Asks for the translation of `address`, with the PASID and the privilege of this transaction,
    /// to keep it in a device-TLB.
    ///
    /// With `no_write` (NW), permission to write is neither asked for nor given. Without, a page
    /// that may be written is marked dirty, as the unit does not hear of the writes.
    ///
    /// A page that is not present, or may not be accessed, is an answer without permissions.
    ///
    /// # Errors
    /// There is no answer. The fault has been recorded, unless the guest disabled that.
    pub fn translate(&self, address: u64, no_write: bool) -> Result<AtsTranslation, AtsRefusal> {
        if !self.is_open() {
            return Err(AtsRefusal::Gated);
        }
        let (lookup, source) = self.lookup().ok_or(AtsRefusal::UnsupportedRequest)?;
        lookup.state.count_translation_request();
        let kind = RequestKind::TranslationRequest { no_write };
        let request = self.request(source, address, Access::Read, kind);
        match lookup.translate(&request) {
            Ok(translation) => Ok(AtsTranslation {
                address: translation.address,
                page_shift: translation.page_shift,
                readable: translation.readable,
                writable: translation.writable,
                untranslated_only: translation.untranslated_only,
                snooped: translation.force_snoop,
                privileged: request.privileged,
            }),
            Err(fault) => match fault.reply {
                Reply::UnsupportedRequest => Err(AtsRefusal::UnsupportedRequest),
                Reply::CompleterAbort => Err(AtsRefusal::CompleterAbort),
                Reply::NoAccess => Ok(AtsTranslation {
                    address,
                    page_shift: 12,
                    readable: false,
                    writable: false,
                    untranslated_only: false,
                    snooped: false,
                    privileged: false,
                }),
            },
        }
    }
}

#[cfg(test)]
mod ats_test;
