//! Scalable mode up to the PASID entry: codes 38h to 5Dh, and 89h.

use super::case::Told::{Aborted, NoAccess, Nothing, Unsupported};
use super::case::{AT_1000, Ask, CONTEXT, Case, DIRECTORY, PASID_5, SCALABLE};
use super::world::SOURCE;
use intel_vtd::spec::fault_reason::FaultReason as Reason;
use intel_vtd::{Access, Pasid, Request, RequestKind};

/// A request with PASID 5 for 1000h.
const WITH_PASID: Request = Request {
    pasid: Pasid::new(5),
    ..Request::untranslated(SOURCE, 0x1000, Access::Read)
};

pub(super) const CASES: &[Case] = &[
    Case {
        reason: Reason::ScalableRootFetch,
        when: "no memory at the root table",
        root: 0x7000_0400,
        record: [AT_1000, 0xC000_0038_0000_0018],
        told: Aborted,
        ..SCALABLE
    },
    Case {
        reason: Reason::ScalableRootNotPresent,
        when: "root entry with LP = 0",
        pokes: &[(0x1000, &[0, 0x2001])],
        record: [AT_1000, 0xC000_0039_0000_0018],
        told: Unsupported,
        ..SCALABLE
    },
    Case {
        reason: Reason::ScalableRootReserved,
        when: "lower half of the root entry with bit 1 set",
        pokes: &[(0x1000, &[0x2003])],
        record: [AT_1000, 0xC000_003A_0000_0018],
        told: Aborted,
        ..SCALABLE
    },
    Case {
        reason: Reason::ScalableContextFetch,
        when: "no memory at the context table",
        pokes: &[(0x1000, &[0x7000_0001])],
        record: [AT_1000, 0xC000_0040_0000_0018],
        told: Aborted,
        ..SCALABLE
    },
    Case {
        reason: Reason::ScalableContextNotPresent,
        when: "context entry with P = 0",
        pokes: &[(0x2300, &[0])],
        record: [AT_1000, 0xC000_0041_0000_0018],
        fpd: &[CONTEXT],
        told: Unsupported,
        ..SCALABLE
    },
    Case {
        reason: Reason::ScalableContextReserved,
        when: "context entry with bit 7 set",
        pokes: &[(0x2300, &[0x309D])],
        record: [AT_1000, 0xC000_0042_0000_0018],
        fpd: &[CONTEXT],
        told: Aborted,
        ..SCALABLE
    },
    Case {
        reason: Reason::ScalableContextInvalid,
        when: "PRE = 1 with DTE = 0",
        pokes: &[(0x2300, &[0x3019])],
        record: [AT_1000, 0xC000_0043_0000_0018],
        fpd: &[CONTEXT],
        told: Aborted,
        ..SCALABLE
    },
    Case {
        reason: Reason::ScalableContextInvalid,
        when: "RID_PASID beyond the directory",
        pokes: &[(0x2308, &[0x2000])],
        record: [AT_1000, 0xC000_0043_0000_0018],
        fpd: &[CONTEXT],
        told: Aborted,
        ..SCALABLE
    },
    Case {
        reason: Reason::DeviceTlbDisabled,
        when: "translation request, DTE = 0",
        pokes: &[(0x2300, &[0x3009])],
        ask: Ask::Translation(None, 0x1000),
        record: [AT_1000, 0xD000_0044_0000_0018],
        fpd: &[CONTEXT],
        told: Unsupported,
        ..SCALABLE
    },
    Case {
        reason: Reason::DeviceTlbDisabled,
        when: "translated request, DTE = 0",
        pokes: &[(0x2300, &[0x3009])],
        ask: Ask::ReadTranslated(0x1000),
        record: [AT_1000, 0xE000_0044_0000_0018],
        fpd: &[CONTEXT],
        told: Unsupported,
        ..SCALABLE
    },
    Case {
        reason: Reason::PasidDisabled,
        when: "request with PASID, PASIDE = 0",
        pokes: &[(0x2300, &[0x3015])],
        ask: Ask::Read(Some(5), 0x1000),
        record: [AT_1000, 0xC000_0545_8000_0018],
        fpd: &[CONTEXT],
        told: Unsupported,
        ..SCALABLE
    },
    Case {
        reason: Reason::PasidBeyondDirectory,
        when: "PASID 2000h, directory of 128 entries",
        ask: Ask::Read(Some(0x2000), 0x1000),
        record: [AT_1000, 0xC020_0046_8000_0018],
        fpd: &[CONTEXT],
        told: Unsupported,
        ..SCALABLE
    },
    Case {
        reason: Reason::PasidBeyondDirectory,
        when: "page request with PASID of 17 bits, PSS for 16",
        pasid_bits: 16,
        ask: Ask::Page(Some(0x1_0000), 0x1000),
        record: [AT_1000, 0x8100_0046_9000_0018],
        fpd: &[CONTEXT],
        ..SCALABLE
    },
    Case {
        reason: Reason::PageRequestDisabled,
        when: "page request, PRE = 0",
        pokes: &[(0x2300, &[0x300D])],
        ask: Ask::Page(Some(5), 0x1000),
        record: [AT_1000, 0x8000_0547_9000_0018],
        fpd: &[CONTEXT],
        ..SCALABLE
    },
    Case {
        reason: Reason::PasidIsRidPasid,
        when: "request with PASID 0, which is RID_PASID",
        ask: Ask::Write(Some(0), 0x1000),
        record: [AT_1000, 0x8000_0048_8000_0018],
        fpd: &[CONTEXT],
        told: Unsupported,
        ..SCALABLE
    },
    Case {
        reason: Reason::PasidInTranslatedRequest,
        when: "translated request with PASID",
        ask: Ask::Walk(Request {
            kind: RequestKind::Translated,
            ..WITH_PASID
        }),
        fpd: &[CONTEXT],
        ..SCALABLE
    },
    Case {
        reason: Reason::DirectoryFetch,
        when: "no memory at the PASID directory",
        pokes: &[(0x2300, &[0x7000_001D])],
        record: [AT_1000, 0xC000_0550_8000_0018],
        fpd: &[CONTEXT],
        told: Aborted,
        ..PASID_5
    },
    Case {
        reason: Reason::DirectoryNotPresent,
        when: "directory entry with P = 0",
        pokes: &[(0x3000, &[0])],
        record: [AT_1000, 0xC000_0551_8000_0018],
        fpd: &[CONTEXT, DIRECTORY],
        told: NoAccess,
        ..PASID_5
    },
    Case {
        reason: Reason::DirectoryReserved,
        when: "directory entry with bit 2 set",
        pokes: &[(0x3000, &[0x4005])],
        record: [AT_1000, 0xC000_0552_8000_0018],
        fpd: &[CONTEXT, DIRECTORY],
        told: Aborted,
        ..PASID_5
    },
    Case {
        reason: Reason::DirectoryReserved,
        when: "the same, page request",
        pokes: &[(0x3000, &[0x4005])],
        ask: Ask::Page(Some(5), 0x1000),
        record: [AT_1000, 0x8000_0552_9000_0018],
        fpd: &[CONTEXT, DIRECTORY],
        told: Nothing,
        ..PASID_5
    },
    Case {
        reason: Reason::PasidFetch,
        when: "no memory at the PASID table",
        pokes: &[(0x3000, &[0x7000_0001])],
        record: [AT_1000, 0xC000_0558_8000_0018],
        fpd: &[CONTEXT, DIRECTORY],
        told: Aborted,
        ..PASID_5
    },
    Case {
        reason: Reason::PasidNotPresent,
        when: "PASID entry with P = 0",
        pokes: &[(0x4140, &[0])],
        record: [AT_1000, 0xC000_0559_8000_0018],
        told: NoAccess,
        ..PASID_5
    },
    Case {
        reason: Reason::PasidReserved,
        when: "PASID entry with bit 10 set",
        pokes: &[(0x4140, &[0x0449])],
        record: [AT_1000, 0xC000_055A_8000_0018],
        told: Aborted,
        ..PASID_5
    },
    Case {
        reason: Reason::PasidInvalid,
        when: "PGTT 000",
        pokes: &[(0x4140, &[0x0009])],
        record: [AT_1000, 0xC000_055B_8000_0018],
        told: Aborted,
        ..PASID_5
    },
    Case {
        reason: Reason::PasidInvalid,
        when: "FSPM 01 without five levels",
        pokes: &[(0x4150, &[0x5004])],
        record: [AT_1000, 0xC000_055B_8000_0018],
        told: Aborted,
        ..PASID_5
    },
    Case {
        reason: Reason::SupervisorDisabled,
        when: "supervisor request, SRE = 0",
        ask: Ask::Supervisor(5, 0x1000),
        record: [AT_1000, 0xC000_055D_A000_0018],
        told: NoAccess,
        ..PASID_5
    },
    // Before any entry is read, so no FPD bit is known.
    Case {
        reason: Reason::PasidBeyondWidth,
        when: "PASID of 17 bits, PSS for 16",
        pasid_bits: 16,
        ask: Ask::Read(Some(0x1_0000), 0x1000),
        record: [AT_1000, 0xC100_0089_8000_0018],
        fpd: &[],
        told: Unsupported,
        ..PASID_5
    },
];
