//! Fault reasons (sec. 7.1): the codes that go into a fault record, and what each means for the requester.
//!
#![doc = include_str!("../../FAULTS.md")]

/// What the requester is told when a request with an address type other than untranslated fails (sec. 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Unsupported Request.
    UnsupportedRequest,
    /// Completer Abort.
    CompleterAbort,
    /// A translation completion that grants nothing. Such a condition is recoverable and is not recorded.
    NoAccess,
}

macro_rules! fault_reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $qualified:literal, $reply:ident;)*) => {
        /// Why a request was blocked.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum FaultReason {
            $($(#[$doc])* $name = $code,)*
        }

        impl FaultReason {
            /// Every reason, in the order of the codes.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Whether a Fault Processing Disable bit on the way suppresses the record.
            pub const fn is_qualified(self) -> bool {
                match self { $(Self::$name => $qualified,)* }
            }

            /// What a translation request is answered with. Denied permissions are no fault of a translation
            /// request: it succeeds with what is permitted.
            pub const fn translation_reply(self) -> Reply {
                match self { $(Self::$name => Reply::$reply,)* }
            }
        }
    };
}

fault_reasons! {
    /// LRT.2: the root entry is not present.
    RootNotPresent = 0x01, false, UnsupportedRequest;
    /// LCT.2: the context entry is not present.
    ContextNotPresent = 0x02, true, UnsupportedRequest;
    /// LCT.4: the context entry is programmed invalidly.
    ContextInvalid = 0x03, true, CompleterAbort;
    /// LGN.1: the address is beyond the width of the tables or of the host.
    AddressBeyondWidth = 0x04, true, NoAccess;
    /// LGN.2: no permission to write.
    WriteDenied = 0x05, true, NoAccess;
    /// LGN.3: no permission to read.
    ReadDenied = 0x06, true, NoAccess;
    /// LSS.1: a second-stage entry cannot be read.
    SecondStageFetch = 0x07, true, CompleterAbort;
    /// LRT.1: the root entry cannot be read.
    RootFetch = 0x08, false, CompleterAbort;
    /// LCT.1: the context entry cannot be read.
    ContextFetch = 0x09, false, CompleterAbort;
    /// LRT.3: reserved bits in the root entry.
    RootReserved = 0x0a, false, CompleterAbort;
    /// LCT.3: reserved bits in the context entry.
    ContextReserved = 0x0b, true, CompleterAbort;
    /// LSS.2: reserved bits in a second-stage entry.
    SecondStageReserved = 0x0c, true, CompleterAbort;
    /// LCT.5: the translation type blocks translation requests and translated requests.
    TranslationTypeBlocks = 0x0d, true, UnsupportedRequest;
    /// LGN.4: the output is in the interrupt address range.
    InterruptRange = 0x0e, true, CompleterAbort;

    /// An interrupt request has reserved bits set.
    InterruptRequestReserved = 0x20, false, UnsupportedRequest;
    /// The interrupt index is beyond the table.
    InterruptIndexBeyondTable = 0x21, false, UnsupportedRequest;
    /// The interrupt remapping entry is not present.
    InterruptEntryNotPresent = 0x22, true, UnsupportedRequest;
    /// The interrupt remapping entry cannot be read.
    InterruptEntryFetch = 0x23, false, UnsupportedRequest;
    /// The interrupt remapping entry is programmed invalidly.
    InterruptEntryReserved = 0x24, true, UnsupportedRequest;
    /// Compatibility-format interrupts are blocked.
    CompatibilityFormatBlocked = 0x25, false, UnsupportedRequest;
    /// The requester is not the one that the interrupt remapping entry names.
    InterruptSourceMismatch = 0x26, true, UnsupportedRequest;
    /// The posted-interrupt descriptor cannot be accessed.
    PostedDescriptorAccess = 0x27, true, UnsupportedRequest;
    /// Reserved bits in the posted-interrupt descriptor.
    PostedDescriptorReserved = 0x28, true, UnsupportedRequest;
    /// A request to the interrupt address range that is no interrupt.
    NotAnInterrupt = 0x29, false, UnsupportedRequest;
    /// The extended interrupt mode is required, and is off.
    ExtendedModeRequired = 0x2a, false, UnsupportedRequest;
    /// Interrupt remapping is required, and is off.
    RemappingRequired = 0x2b, false, UnsupportedRequest;

    /// RTA.1: the root-table pointer names a mode that is not supported.
    RootPointerInvalid = 0x30, false, CompleterAbort;
    /// RTA.2: a request with PASID in legacy mode.
    PasidInLegacyMode = 0x31, false, UnsupportedRequest;
    /// RTA.3: a page request in legacy mode.
    PageRequestInLegacyMode = 0x32, false, UnsupportedRequest;
    /// RTA.4: abort-DMA mode.
    AbortDmaMode = 0x33, false, UnsupportedRequest;
    /// RTA.5: an execute request with PASID.
    ExecuteRequest = 0x34, false, UnsupportedRequest;

    /// SRT.1: the root entry cannot be read.
    ScalableRootFetch = 0x38, false, CompleterAbort;
    /// SRT.2: the half of the root entry is not present.
    ScalableRootNotPresent = 0x39, false, UnsupportedRequest;
    /// SRT.3: reserved bits in the root entry.
    ScalableRootReserved = 0x3a, false, CompleterAbort;

    /// SCT.1: the context entry cannot be read.
    ScalableContextFetch = 0x40, false, CompleterAbort;
    /// SCT.2: the context entry is not present.
    ScalableContextNotPresent = 0x41, true, UnsupportedRequest;
    /// SCT.3: reserved bits in the context entry.
    ScalableContextReserved = 0x42, true, CompleterAbort;
    /// SCT.4: the context entry contradicts itself.
    ScalableContextInvalid = 0x43, true, CompleterAbort;
    /// SCT.5: translation and translated requests need DTE.
    DeviceTlbDisabled = 0x44, true, UnsupportedRequest;
    /// SCT.6: requests with PASID need PASIDE.
    PasidDisabled = 0x45, true, UnsupportedRequest;
    /// SCT.7: the PASID is beyond the directory.
    PasidBeyondDirectory = 0x46, true, UnsupportedRequest;
    /// SCT.8: page requests need PRE.
    PageRequestDisabled = 0x47, true, UnsupportedRequest;
    /// SCT.9: the PASID is the one reserved for requests without PASID.
    PasidIsRidPasid = 0x48, true, UnsupportedRequest;
    /// SCT.10: a translated request with PASID needs EPTR.
    PasidInTranslatedRequest = 0x49, true, UnsupportedRequest;

    /// SPD.1: the PASID directory entry cannot be read.
    DirectoryFetch = 0x50, false, CompleterAbort;
    /// SPD.2: the PASID directory entry is not present.
    DirectoryNotPresent = 0x51, true, NoAccess;
    /// SPD.3: reserved bits in the PASID directory entry.
    DirectoryReserved = 0x52, true, CompleterAbort;

    /// SPT.1: the PASID entry cannot be read.
    PasidFetch = 0x58, false, CompleterAbort;
    /// SPT.2: the PASID entry is not present.
    PasidNotPresent = 0x59, true, NoAccess;
    /// SPT.3: reserved bits in the PASID entry.
    PasidReserved = 0x5a, true, CompleterAbort;
    /// SPT.4: the PASID entry asks for what is not supported.
    PasidInvalid = 0x5b, true, CompleterAbort;
    /// SPT.5: an execute request, and execute requests are not enabled.
    ExecuteDisabled = 0x5c, true, NoAccess;
    /// SPT.6: a supervisor request, and supervisor requests are not enabled.
    SupervisorDisabled = 0x5d, true, NoAccess;

    /// SFS.1: a first-stage entry below the top cannot be read.
    FirstStageFetch = 0x70, true, NoAccess;
    /// SFS.2: a first-stage entry is not present.
    FirstStageNotPresent = 0x71, true, NoAccess;
    /// SFS.3: reserved bits in a first-stage entry.
    FirstStageReserved = 0x72, true, NoAccess;
    /// SFS.4: the top first-stage entry cannot be read.
    FirstStageTopFetch = 0x73, true, NoAccess;
    /// SFS.5: a first-stage entry names an address beyond the second stage.
    FirstStageBeyondSecond = 0x74, true, NoAccess;
    /// SFS.6: the second stage denies reading the top first-stage entry.
    FirstStageTopReadDenied = 0x75, true, NoAccess;
    /// SFS.7: the second stage denies reading a first-stage entry below the top.
    FirstStageReadDenied = 0x76, true, NoAccess;
    /// SFS.8: the second stage denies updating a first-stage entry.
    FirstStageUpdateDenied = 0x77, true, NoAccess;

    /// SSS.1: a second-stage entry below the top cannot be read.
    ScalableSecondStageFetch = 0x78, true, CompleterAbort;
    /// SSS.2: a second-stage entry grants nothing.
    ScalableSecondStageNotPresent = 0x79, true, NoAccess;
    /// SSS.3: reserved bits in a second-stage entry.
    ScalableSecondStageReserved = 0x7a, true, CompleterAbort;
    /// SSS.4: the top second-stage entry cannot be read.
    ScalableSecondStageTopFetch = 0x7b, true, CompleterAbort;
    /// SSS.5: accessed or dirty needs setting, and the walk is not snooped.
    SecondStageUpdateUnsnooped = 0x7c, true, CompleterAbort;
    /// SSS.6: accessed or dirty cannot be set.
    SecondStageUpdateFailed = 0x7d, true, CompleterAbort;

    /// SGN.1: the first-stage input address is not canonical.
    NotCanonical = 0x80, true, NoAccess;
    /// SGN.2: a user request to a supervisor page.
    UserDenied = 0x81, true, NoAccess;
    /// SGN.4: the address is beyond the host's width.
    BeyondHostWidth = 0x83, true, NoAccess;
    /// SGN.5: the second-stage input address is beyond the width of the tables.
    BeyondSecondStage = 0x84, true, NoAccess;
    /// SGN.6: no permission to write.
    ScalableWriteDenied = 0x85, true, NoAccess;
    /// SGN.7: no permission to read.
    ScalableReadDenied = 0x86, true, NoAccess;
    /// SGN.8: the output is in the interrupt address range.
    ScalableInterruptRange = 0x87, true, CompleterAbort;
    /// SGN.10: the PASID is wider than supported.
    PasidBeyondWidth = 0x89, true, UnsupportedRequest;

    /// SFS.9: accessed or dirty needs setting, and the walk is not snooped.
    FirstStageUpdateUnsnooped = 0x90, true, NoAccess;
    /// SFS.10: accessed or dirty cannot be set. Recorded although a translation request is answered with success.
    FirstStageUpdateFailed = 0x91, true, NoAccess;
}

impl FaultReason {
    /// The code in the FR field of a fault record.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Whether the condition is recoverable when a translation request meets it: answered with success and
    /// no permissions, and not recorded.
    pub const fn is_recoverable(self) -> bool {
        matches!(self.translation_reply(), Reply::NoAccess)
            && !matches!(self, Self::FirstStageUpdateFailed)
    }

    /// What a translated request is answered with.
    pub const fn translated_reply(self) -> Reply {
        match self {
            Self::DirectoryFetch
            | Self::DirectoryReserved
            | Self::PasidFetch
            | Self::PasidReserved
            | Self::PasidInvalid => Reply::CompleterAbort,
            _ => Reply::UnsupportedRequest,
        }
    }
}
