//! Registers 0x100 to 0x11b of the edu device, the extension: how the requests of a DMA command
//! travel. The device's documentation has the map.

use serde::{Deserialize, Serialize};
use state::RestoreError;

const FEATURES: u64 = 0x100;
const CONTROL: u64 = 0x104;
const OUTCOME: u64 = 0x108;
const CACHED: u64 = 0x10c;
const INVALIDATIONS: u64 = 0x110;
const PAGE_REQUESTS: u64 = 0x114;
const PAGE_RESPONSES: u64 = 0x118;
const END: u64 = 0x11c;

const CONTROL_PASID: u32 = 0x000f_ffff;
const CONTROL_TRANSLATED: u32 = 1 << 28;
const CONTROL_PAGES: u32 = 1 << 29;
const CONTROL_TRANSLATE: u32 = 1 << 30;
const CONTROL_WITH_PASID: u32 = 1 << 31;
const CONTROL_WRITABLE: u32 =
    CONTROL_PASID | CONTROL_TRANSLATED | CONTROL_PAGES | CONTROL_TRANSLATE | CONTROL_WITH_PASID;

/// What the device was given beyond the public specification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EduFeatures {
    /// Address Translation Services.
    pub ats: bool,
    /// Process Address Space IDs of 20 bits.
    pub pasid: bool,
    /// Page Request Interface. Needs `ats`.
    pub pri: bool,
}

impl EduFeatures {
    /// Whether there is an extension at all.
    pub fn any(self) -> bool {
        self.ats || self.pasid || self.pri
    }

    fn bits(self) -> u32 {
        u32::from(self.ats) | u32::from(self.pasid) << 1 | u32::from(self.pri) << 2
    }
}

/// How the requests of a command travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Manner {
    /// With this PASID; without any if `None`.
    pub(super) pasid: Option<u32>,
    /// A translation is asked for first, unless the device has it, and the request goes out as a
    /// translated one.
    pub(super) translate: bool,
    /// What a translation does not permit is asked for by a page request.
    pub(super) pages: bool,
    /// The command's address is put into a translated request as it is.
    pub(super) translated: bool,
}

/// How the last command went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All bytes were copied.
    #[default]
    Done,
    /// A request was blocked.
    Blocked,
    /// A translation request was answered, and did not permit the access.
    Denied,
    /// A translation request was answered as unsupported or aborted.
    Refused,
    /// A page request was not taken.
    NotQueued,
    /// A page request was answered as invalid, or as failed.
    PageInvalid,
    /// No answer to a page request came in time.
    NoAnswer,
    /// The guest has not enabled a capability that the command needs; nothing was sent.
    NotEnabled,
}

impl Outcome {
    /// By its code.
    const ALL: [Self; 8] = [
        Self::Done,
        Self::Blocked,
        Self::Denied,
        Self::Refused,
        Self::NotQueued,
        Self::PageInvalid,
        Self::NoAnswer,
        Self::NotEnabled,
    ];

    fn code(self) -> u32 {
        match self {
            Self::Done => 0,
            Self::Blocked => 1,
            Self::Denied => 2,
            Self::Refused => 3,
            Self::NotQueued => 4,
            Self::PageInvalid => 5,
            Self::NoAnswer => 6,
            Self::NotEnabled => 7,
        }
    }
}

/// The registers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extension {
    pub(super) features: EduFeatures,
    control: u32,
    pub(super) outcome: Outcome,
    pub(super) page_requests: u32,
    pub(super) page_responses: u32,
}

/// What others count, at the time of a read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cached {
    pub(super) entries: u32,
    pub(super) invalidations: u32,
}

impl Extension {
    pub(super) fn new(features: EduFeatures) -> Self {
        Self {
            features,
            ..Self::default()
        }
    }

    /// Whether the register at `offset` belongs to the extension of this device.
    pub(super) fn has(&self, offset: u64) -> bool {
        self.features.any() && (FEATURES..END).contains(&offset)
    }

    /// The value at `offset`; ones for what is not there or not read as 32 bits.
    pub(super) fn read(&self, offset: u64, size: usize, cached: Cached) -> u64 {
        if size != 4 {
            return u64::MAX;
        }
        let value = match offset {
            FEATURES => self.features.bits(),
            CONTROL => self.control,
            OUTCOME => self.outcome.code(),
            CACHED => cached.entries,
            INVALIDATIONS => cached.invalidations,
            PAGE_REQUESTS => self.page_requests,
            PAGE_RESPONSES => self.page_responses,
            _ => u32::MAX,
        };
        value.into()
    }

    /// Writes the register at `offset`; a running command keeps the manner in which it was started.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        if let (CONTROL, Ok(bytes)) = (offset, data.try_into()) {
            self.control = u32::from_le_bytes(bytes) & CONTROL_WRITABLE;
        }
    }

    /// How a command that starts now travels. Bits for what the device does not have are ignored.
    pub(super) fn manner(&self) -> Manner {
        let set = |bit: u32, feature: bool| feature && self.control & bit != 0;
        Manner {
            pasid: set(CONTROL_WITH_PASID, self.features.pasid)
                .then_some(self.control & CONTROL_PASID),
            translate: set(CONTROL_TRANSLATE, self.features.ats),
            pages: set(CONTROL_PAGES, self.features.pri),
            translated: set(CONTROL_TRANSLATED, self.features.ats),
        }
    }
}

/// The registers, as they are saved.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExtensionState {
    features: u32,
    control: u32,
    outcome: u32,
    page_requests: u32,
    page_responses: u32,
}

impl Extension {
    pub(super) fn save(&self) -> ExtensionState {
        ExtensionState {
            features: self.features.bits(),
            control: self.control,
            outcome: self.outcome.code(),
            page_requests: self.page_requests,
            page_responses: self.page_responses,
        }
    }

    pub(super) fn restore(&mut self, state: &ExtensionState) -> Result<(), RestoreError> {
        let here = self.features.bits();
        RestoreError::unless_equal("the features register", state.features, here)?;
        let odd = state.control & !CONTROL_WRITABLE;
        if odd != 0 {
            let why = format_args!("there are no bits {odd:#x}");
            return Err(RestoreError::damaged("the control register", why));
        }
        let outcomes = Outcome::ALL.into_iter();
        let mut outcome = outcomes.filter(|outcome| outcome.code() == state.outcome);
        self.outcome = outcome.next().ok_or_else(|| {
            let why = format_args!("there is no code {}", state.outcome);
            RestoreError::damaged("the outcome register", why)
        })?;
        self.control = state.control;
        self.page_requests = state.page_requests;
        self.page_responses = state.page_responses;
        Ok(())
    }
}
