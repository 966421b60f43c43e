//! Every fault reason that this unit can give is provoked here, through the same doors as by a guest and a device: tables in
//! guest memory, registers, and requests of a port. `FAULTS.md` is made of the same cases.

mod case;
mod legacy;
mod memory;
mod page;
mod scalable;
mod walk;
mod world;

use case::{Ask, Case, Told};
use intel_vtd::spec::fault_reason::FaultReason;
use intel_vtd::{AtsRefusal, PageRequestRefusal, ResponseCode};
use world::World;

fn cases() -> impl Iterator<Item = &'static Case> {
    [legacy::CASES, scalable::CASES, walk::CASES]
        .into_iter()
        .flatten()
}

/// Reasons that no guest and no device can provoke with a unit of this crate, and why.
const NOT_PROVOKED: &[(FaultReason, &str)] = &[
    (
        FaultReason::PostedDescriptorAccess,
        "posted interrupts (CAP.PI) are not offered; an IRTE in the posted format is code 24h",
    ),
    (
        FaultReason::PostedDescriptorReserved,
        "posted interrupts (CAP.PI) are not offered; an IRTE in the posted format is code 24h",
    ),
    (
        FaultReason::ExtendedModeRequired,
        "the unit does not require extended interrupt mode (ECAP.EIMER = 0)",
    ),
    (
        FaultReason::RemappingRequired,
        "the unit does not require interrupt remapping (ECAP.IRREQ = 0)",
    ),
    (
        FaultReason::AbortDmaMode,
        "abort-DMA mode (ECAP.ADMS) is not offered; RTADDR.TTM = 11 is code 30h",
    ),
    (
        FaultReason::ExecuteRequest,
        "VER is 5.0, and the reason exists from 8.0 on; the crate's requests cannot ask to execute",
    ),
    (
        FaultReason::ExecuteDisabled,
        "execute requests (ECAP.ERS) are not offered, and the crate's requests cannot ask to execute",
    ),
];

/// Codes that no FPD bit suppresses (section 7.1), those included that do not apply.
const UNQUALIFIED: &[u8] = &[
    0x01, 0x08, 0x09, 0x0A, 0x20, 0x21, 0x23, 0x25, 0x29, 0x2A, 0x2B, 0x30, 0x31, 0x32, 0x33, 0x34,
    0x38, 0x39, 0x3A, 0x40, 0x50, 0x58,
];

/// Codes of scalable mode that page requests meet, too (section 7.4).
const ASKED_FOR_PAGES: &[u8] = &[
    0x38, 0x39, 0x3A, 0x40, 0x41, 0x42, 0x43, 0x45, 0x46, 0x47, 0x48, 0x50, 0x51, 0x52, 0x58, 0x59,
    0x5A, 0x5B,
];

fn is_qualified(reason: FaultReason) -> bool {
    !UNQUALIFIED.contains(&reason.code())
}

/// A case by name, for messages.
fn name(case: &Case) -> String {
    format!(
        "{:02X}h {:?}, {}",
        case.reason.code(),
        case.reason,
        case.when
    )
}

#[test]
fn a_reason_is_either_provoked_or_explained() {
    for reason in FaultReason::ALL {
        let provoked = cases().any(|case| case.reason == *reason);
        let explained = NOT_PROVOKED
            .iter()
            .filter(|(other, _)| other == reason)
            .count();
        assert_eq!(usize::from(!provoked), explained, "{reason:?}");
    }
}

#[test]
fn every_case_is_blocked_and_recorded_as_the_specification_says() {
    for case in cases() {
        let world = World::of(case, None);
        if let Ask::Walk(request) = case.ask {
            assert_eq!(
                world.walk(&request),
                Err((case.reason, true)),
                "{}",
                name(case)
            );
            continue;
        }
        assert!(!world.ask(case.ask), "{}", name(case));
        assert_recorded(&world, case, case.record);
    }
}

#[test]
fn fpd_of_an_entry_on_the_way_suppresses_the_records_of_qualified_reasons_and_of_no_others() {
    for case in cases() {
        for place in case.fpd {
            let world = World::of(case, Some(place.1));
            let why = format!("{}, FPD of {}", name(case), place.0);
            let qualified = is_qualified(case.reason);
            if let Ask::Walk(request) = case.ask {
                assert_eq!(
                    world.walk(&request),
                    Err((case.reason, !qualified)),
                    "{why}"
                );
                continue;
            }
            assert!(!world.ask(case.ask), "{why}");
            if qualified {
                assert_eq!(world.fault_status(), 0, "{why}");
                assert_eq!(world.record(), [0, 0], "{why}");
                let stats = world.unit.stats();
                assert_eq!(
                    (stats.faults_recorded, stats.faults_suppressed),
                    (0, 1),
                    "{why}"
                );
            } else {
                assert_recorded(&world, case, case.record);
            }
        }
    }
}

#[test]
fn every_qualified_reason_is_tried_with_fpd() {
    for reason in FaultReason::ALL {
        assert_eq!(reason.is_qualified(), is_qualified(*reason), "{reason:?}");
    }
    for case in cases().filter(|case| is_qualified(case.reason)) {
        // The PASID's width is checked before any entry is read.
        let none = case.reason == FaultReason::PasidBeyondWidth;
        assert_eq!(case.fpd.is_empty(), none, "{}", name(case));
    }
}

#[test]
fn a_translation_request_is_told_what_the_specification_says() {
    for case in cases().filter(|case| case.told != Told::Nothing) {
        let world = World::of(case, None);
        let answer = match case.ask {
            Ask::Read(pasid, address)
            | Ask::Write(pasid, address)
            | Ask::Translation(pasid, address) => world.translate(pasid, address),
            Ask::ReadTranslated(address) => world.translate(None, address),
            Ask::Supervisor(pasid, address) => world.translate_supervisor(pasid, address),
            _ => panic!("{}: there is no such translation request", name(case)),
        };
        let granted = answer
            .as_ref()
            .map(|answer| (answer.readable, answer.writable));
        let why = name(case);
        match case.told {
            Told::Nothing => {}
            Told::Unsupported => {
                assert_eq!(granted, Err(&AtsRefusal::UnsupportedRequest), "{why}");
            }
            Told::Aborted => assert_eq!(granted, Err(&AtsRefusal::CompleterAbort), "{why}"),
            Told::NoAccess | Told::NoAccessRecorded => {
                assert_eq!(granted, Ok((false, false)), "{why}");
            }
            Told::WhatIsPermitted => match case.ask {
                Ask::Write(..) => assert_eq!(granted, Ok((true, false)), "{why}"),
                _ => assert_eq!(granted, Ok((false, true)), "{why}"),
            },
        }
        if matches!(case.told, Told::NoAccess | Told::WhatIsPermitted) {
            assert_eq!(world.fault_status(), 0, "{why}");
        } else {
            // AT 01, a read, and otherwise the same.
            let [low, high] = case.record;
            let high = high & !0x7000_0000_1000_0000 | 0x5000_0000_0000_0000;
            assert_recorded(&world, case, [low, high]);
        }
    }
}

#[test]
fn a_page_request_fails_for_what_is_wrong_up_to_the_pasid_entry_and_for_nothing_beyond() {
    let walks = walk::CASES.iter().map(|case| (case, false));
    let structures = scalable::CASES
        .iter()
        .map(|case| (case, ASKED_FOR_PAGES.contains(&case.reason.code())));
    for (case, blocked) in structures.filter(|(_, blocked)| *blocked).chain(walks) {
        let (Ask::Read(pasid, address) | Ask::Write(pasid, address) | Ask::Page(pasid, address)) =
            case.ask
        else {
            continue;
        };
        let why = name(case);
        let world = World::of(case, None);
        let outcome = world.request_page(pasid, address);
        if !blocked {
            assert_eq!((outcome, world.fault_status()), (Ok(()), 0), "{why}");
            continue;
        }
        let answer = PageRequestRefusal::Answered(ResponseCode::InvalidRequest);
        assert_eq!(outcome, Err(answer), "{why}");
        // T1 0 and T2 1, and otherwise the same.
        let [low, high] = case.record;
        let high = high & !0x4000_0000_0000_0000 | 0x1000_0000;
        assert_recorded(&world, case, [low, high]);
    }
}

#[track_caller]
fn assert_recorded(world: &World, case: &Case, expected: [u64; 2]) {
    let why = name(case);
    let [low, high] = world.record();
    assert_eq!(
        (low, format!("{high:#x}")),
        (expected[0], format!("{:#x}", expected[1])),
        "{why}"
    );
    assert_eq!(high >> 32 & 0xFF, u64::from(case.reason.code()), "{why}");
    // PPF, and FRI 0.
    assert_eq!(world.fault_status(), 2, "{why}");
    assert_eq!(world.read64(0x238) >> 63, 0, "{why}: one record only");
}
