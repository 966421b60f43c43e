//! The walks of scalable mode: codes 70h to 91h.

use super::case::Told::{Aborted, NoAccess, NoAccessRecorded, WhatIsPermitted};
use super::case::{
    AT_1000, Ask, BIT_50, CONTEXT, Case, DIRECTORY, ENTRY_0, PASID_5, PASID_6, PASID_7, SCALABLE,
};
use intel_vtd::Stages;
use intel_vtd::spec::fault_reason::FaultReason as Reason;

pub(super) const CASES: &[Case] = &[
    Case {
        reason: Reason::FirstStageFetch,
        when: "no memory at the second table",
        pokes: &[(0x5000, &[0x7000_0027])],
        record: [AT_1000, 0xC000_0570_8000_0018],
        told: NoAccess,
        ..PASID_5
    },
    Case {
        reason: Reason::FirstStageNotPresent,
        when: "leaf with P = 0",
        pokes: &[(0x8008, &[0])],
        record: [AT_1000, 0xC000_0571_8000_0018],
        told: NoAccess,
        ..PASID_5
    },
    Case {
        reason: Reason::FirstStageReserved,
        when: "leaf with an address beyond HAW",
        pokes: &[(0x8008, &[BIT_50 | 0x1_0067])],
        record: [AT_1000, 0xC000_0572_8000_0018],
        told: NoAccess,
        ..PASID_5
    },
    Case {
        reason: Reason::FirstStageTopFetch,
        when: "no memory at FSPTPTR",
        pokes: &[(0x4150, &[0x7000_0000])],
        record: [AT_1000, 0xC000_0573_8000_0018],
        told: NoAccess,
        ..PASID_5
    },
    Case {
        reason: Reason::FirstStageBeyondSecond,
        when: "nested: leaf with an address of 40 bits, second stage for 39",
        pokes: &[(0x8008, &[0x80_0000_0067])],
        record: [AT_1000, 0xC000_0774_8000_0018],
        told: NoAccess,
        ..PASID_7
    },
    Case {
        reason: Reason::FirstStageTopReadDenied,
        when: "nested: second stage with R = 0 for the top table",
        pokes: &[(0xE028, &[0x5002])],
        record: [AT_1000, 0xC000_0775_8000_0018],
        told: NoAccess,
        ..PASID_7
    },
    Case {
        reason: Reason::FirstStageReadDenied,
        when: "nested: second stage with R = 0 for the second table",
        pokes: &[(0xE030, &[0x6002])],
        record: [AT_1000, 0xC000_0776_8000_0018],
        told: NoAccess,
        ..PASID_7
    },
    Case {
        reason: Reason::FirstStageUpdateDenied,
        when: "nested: leaf with A = 0, second stage with W = 0 for its table",
        pokes: &[(0xE040, &[0x8001]), (0x8008, &[0x1_0007])],
        record: [AT_1000, 0xC000_0777_8000_0018],
        told: NoAccess,
        ..PASID_7
    },
    Case {
        reason: Reason::ScalableSecondStageFetch,
        when: "no memory at the second table",
        pokes: &[(0x9000, &[0x7000_0003])],
        record: [AT_1000, 0xC000_0678_8000_0018],
        told: Aborted,
        ..PASID_6
    },
    Case {
        reason: Reason::ScalableSecondStageNotPresent,
        when: "leaf with R = W = 0",
        pokes: &[(0xB008, &[0])],
        record: [AT_1000, 0xC000_0679_8000_0018],
        told: NoAccess,
        ..PASID_6
    },
    Case {
        reason: Reason::ScalableSecondStageNotPresent,
        when: "nested: the same for the page",
        pokes: &[(0xE080, &[0])],
        record: [AT_1000, 0xC000_0779_8000_0018],
        told: NoAccess,
        ..PASID_7
    },
    Case {
        reason: Reason::ScalableSecondStageReserved,
        when: "leaf with an address beyond HAW",
        pokes: &[(0xB008, &[BIT_50 | 0x60_0003])],
        record: [AT_1000, 0xC000_067A_8000_0018],
        told: Aborted,
        ..PASID_6
    },
    Case {
        reason: Reason::ScalableSecondStageTopFetch,
        when: "no memory at SSPTPTR",
        pokes: &[(0x4180, &[0x7000_0085])],
        record: [AT_1000, 0xC000_067B_8000_0018],
        told: Aborted,
        ..PASID_6
    },
    Case {
        reason: Reason::SecondStageUpdateUnsnooped,
        when: "A = 0 with SSADE = 1, PWSNP = 0",
        pokes: &[(0x4180, &[0x9285, 3])],
        record: [AT_1000, 0xC000_067C_8000_0018],
        told: Aborted,
        ..PASID_6
    },
    Case {
        reason: Reason::SecondStageUpdateFailed,
        when: "A = 0 with SSADE = 1; memory goes away under the walk",
        pokes: &[(0x4180, &[0x9285])],
        loses: Some(0xB008),
        record: [AT_1000, 0xC000_067D_8000_0018],
        told: Aborted,
        ..PASID_6
    },
    Case {
        reason: Reason::NotCanonical,
        when: "address with bit 47 and without bit 48",
        ask: Ask::Read(Some(5), 0x8000_0000_0000),
        record: [0x8000_0000_0000, 0xC000_0580_8000_0018],
        told: NoAccess,
        ..PASID_5
    },
    Case {
        reason: Reason::UserDenied,
        when: "leaf with U/S = 0",
        pokes: &[(0x8008, &[0x1_0063])],
        record: [AT_1000, 0xC000_0581_8000_0018],
        told: NoAccess,
        ..PASID_5
    },
    Case {
        reason: Reason::BeyondHostWidth,
        when: "pass-through, address beyond HAW",
        ask: Ask::Write(None, 0x4000_0000_0000),
        record: [0x4000_0000_0000, 0x8000_0083_0000_0018],
        fpd: &[CONTEXT, DIRECTORY, ENTRY_0],
        told: NoAccess,
        ..SCALABLE
    },
    Case {
        reason: Reason::BeyondHostWidth,
        when: "pass-through, address beyond MGAW",
        address_bits: 39,
        stages: Stages::Second,
        ask: Ask::Write(None, 0x80_0000_0000),
        // FI has no bits beyond the deepest tables.
        record: [0, 0x8000_0083_0000_0018],
        fpd: &[CONTEXT, DIRECTORY, ENTRY_0],
        told: NoAccess,
        ..SCALABLE
    },
    Case {
        reason: Reason::BeyondHostWidth,
        when: "translated request, address beyond HAW",
        ask: Ask::ReadTranslated(0x4000_0000_0000),
        record: [0x4000_0000_0000, 0xE000_0083_0000_0018],
        fpd: &[CONTEXT],
        ..SCALABLE
    },
    Case {
        reason: Reason::BeyondSecondStage,
        when: "address of 40 bits, tables for 39",
        ask: Ask::Read(Some(6), 0x80_0000_0000),
        record: [0x80_0000_0000, 0xC000_0684_8000_0018],
        told: NoAccess,
        ..PASID_6
    },
    Case {
        reason: Reason::ScalableWriteDenied,
        when: "write, first-stage leaf with R/W = 0",
        pokes: &[(0x8008, &[0x1_0065])],
        ask: Ask::Write(Some(5), 0x1000),
        record: [AT_1000, 0x8000_0585_8000_0018],
        told: WhatIsPermitted,
        ..PASID_5
    },
    Case {
        reason: Reason::ScalableWriteDenied,
        when: "nested: write, second-stage leaf with W = 0",
        pokes: &[(0xE080, &[0x60_0001])],
        ask: Ask::Write(Some(7), 0x1000),
        record: [AT_1000, 0x8000_0785_8000_0018],
        told: WhatIsPermitted,
        ..PASID_7
    },
    Case {
        reason: Reason::ScalableReadDenied,
        when: "read, leaf with R = 0",
        pokes: &[(0xB008, &[0x60_0002])],
        record: [AT_1000, 0xC000_0686_8000_0018],
        told: WhatIsPermitted,
        ..PASID_6
    },
    Case {
        reason: Reason::ScalableInterruptRange,
        when: "leaf that leads to FEE0_0000h",
        pokes: &[(0x8008, &[0xFEE0_0067])],
        record: [AT_1000, 0xC000_0587_8000_0018],
        told: Aborted,
        ..PASID_5
    },
    Case {
        reason: Reason::ScalableInterruptRange,
        when: "translated request for FEE0_0000h",
        ask: Ask::ReadTranslated(0xFEE0_0000),
        record: [0xFEE0_0000, 0xE000_0087_0000_0018],
        fpd: &[CONTEXT],
        ..SCALABLE
    },
    Case {
        reason: Reason::FirstStageUpdateUnsnooped,
        when: "leaf with A = 0, PWSNP = 0",
        pokes: &[(0x4148, &[2]), (0x8008, &[0x1_0007])],
        record: [AT_1000, 0xC000_0590_8000_0018],
        told: NoAccess,
        ..PASID_5
    },
    Case {
        reason: Reason::FirstStageUpdateFailed,
        when: "leaf with A = 0; memory goes away under the walk",
        pokes: &[(0x8008, &[0x1_0007])],
        loses: Some(0x8008),
        record: [AT_1000, 0xC000_0591_8000_0018],
        told: NoAccessRecorded,
        ..PASID_5
    },
];
