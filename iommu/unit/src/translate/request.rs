//! The types of a DMA request, of its translation and of its fault (sec. 3 and 7.1).

use crate::spec::fault_reason::{FaultReason, Reply};
use crate::spec::ids::{Pasid, SourceId};
use crate::spec::registers::{RootTableAddress, TableMode};

/// The root-table pointer, as the last SRTP command latched it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RootPointer {
    /// Guest-physical address of the root table.
    pub address: u64,
    /// How the tables are to be read.
    pub mode: TableMode,
}

impl RootPointer {
    /// What `register` says.
    pub(crate) fn of(register: RootTableAddress) -> Self {
        Self {
            address: register.table(),
            mode: register.mode(),
        }
    }
}

/// What the guest has commanded: everything outside of memory that a translation depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latched {
    /// GSTS.TES. While it is off, untranslated requests pass unchanged.
    pub enabled: bool,
    /// The root-table pointer.
    pub root: RootPointer,
}

/// What a request wants to do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Fetch-and-add, swap, compare-and-swap: needs both permissions.
    Atomic,
    /// A read without data, which makes earlier writes visible.
    ZeroLengthRead,
}

impl Access {
    /// Whether the request modifies memory.
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Atomic)
    }

    /// Whether the request observes memory.
    pub const fn reads(self) -> bool {
        !matches!(self, Self::Write)
    }
}

/// The address type of a request (PCIe AT field), or the message that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// AT = 00.
    Untranslated,
    /// AT = 01: the device asks for a translation that it will cache.
    TranslationRequest {
        /// NW: the device does not ask for permission to write.
        no_write: bool,
    },
    /// AT = 10: the address is the answer to an earlier translation request.
    Translated,
    /// A page-request message.
    PageRequest,
}

/// One request of a device. It concerns one page of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub source: SourceId,
    /// In which address space; `None` for a request without PASID.
    pub pasid: Option<Pasid>,
    /// The address.
    pub address: u64,
    /// What for. Of no meaning to translation requests and page requests.
    pub access: Access,
    /// PMR: supervisor privilege is requested. Only requests with PASID can do so.
    pub privileged: bool,
    /// The kind of request.
    pub kind: RequestKind,
}

impl Request {
    /// An untranslated request without PASID.
    pub const fn untranslated(source: SourceId, address: u64, access: Access) -> Self {
        Self {
            source,
            pasid: None,
            address,
            access,
            privileged: false,
            kind: RequestKind::Untranslated,
        }
    }
}

/// What translates a request: the translation type of a context entry or of a PASID entry (PGTT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranslationType {
    /// The address is taken as it is.
    PassThrough,
    /// First-stage tables.
    FirstStage,
    /// Second-stage tables.
    SecondStage,
    /// First-stage tables, every address of which goes through second-stage tables.
    Nested,
}

/// The answer to a request that is not blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest-physical address of the byte that was asked for.
    pub address: u64,
    /// Log2 of the size of the naturally aligned block for which the answer holds: the smallest
    /// page of all stages.
    pub page_shift: u8,
    /// Reads are permitted.
    pub readable: bool,
    /// Writes are permitted.
    pub writable: bool,
    /// Writes need no further update of dirty bits: the answer may be kept for writes, too.
    pub dirty: bool,
    /// The access is to be snooped whatever the request says (PGSNP, SNP).
    pub force_snoop: bool,
    /// The answer to a translation request: the address may be used only untranslated (U).
    pub untranslated_only: bool,
    /// What translated; `None` when translation is off, or nothing had to be translated.
    pub translated_by: Option<TranslationType>,
    /// The domain id under which the answer is cached.
    pub domain: u16,
}

/// A request is blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Why.
    pub reason: FaultReason,
    /// Whether a fault record is due: not when a Fault Processing Disable bit suppresses it, and
    /// not when a translation request meets a recoverable condition.
    pub record: bool,
    /// What the requester of a translation, or of an access with a translated address, is told.
    /// Untranslated requests are dropped, and reads among them are answered as unsupported.
    pub reply: Reply,
}

impl Fault {
    /// The fault for `reason`. `fpd` is the disjunction of the Fault Processing Disable bits that
    /// were reached.
    pub const fn new(reason: FaultReason, fpd: bool, kind: RequestKind) -> Self {
        let (reply, recoverable) = match kind {
            RequestKind::TranslationRequest { .. } => {
                (reason.translation_reply(), reason.is_recoverable())
            }
            RequestKind::Translated => (reason.translated_reply(), false),
            RequestKind::Untranslated | RequestKind::PageRequest => {
                (Reply::UnsupportedRequest, false)
            }
        };
        let suppressed = fpd && reason.is_qualified();
        Self {
            reason,
            record: !recoverable && !suppressed,
            reply,
        }
    }
}
