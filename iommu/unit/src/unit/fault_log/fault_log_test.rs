//! Fault records, overflow, and the rules of the fault event.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use crate::dma::{DmaPort, FaultSink};
use crate::spec::fault_reason::FaultReason;
use crate::spec::ids::{Pasid, SourceId};
use crate::translate::{Access, Fault, Request, RequestKind};
use crate::unit::testing::{Bench, full, sharing};

const EVENT: (u64, u32) = (0xFEE0_5000, 0x31);

/// A fault of `source` that writes to 0x1234_5678, for code 5.
fn fault(bench: &Bench, source: u16) {
    report(bench, source, Access::Write, true);
}

fn report(bench: &Bench, source: u16, access: Access, record: bool) {
    let request = Request::untranslated(SourceId(source), 0x1234_5678, access);
    let fault = Fault {
        record,
        ..Fault::new(FaultReason::WriteDenied, false, RequestKind::Untranslated)
    };
    bench.unit.faults.dma_fault(&request, &fault);
}

/// F of record `index`.
fn occupied(bench: &Bench, index: u64) -> bool {
    bench.read32(0x22C + 16 * index) & 0x8000_0000 != 0
}

fn clear(bench: &Bench, index: u64) {
    bench.write32(0x22C + 16 * index, 0x8000_0000);
}

#[test]
fn a_record_tells_the_page_the_source_the_kind_and_the_reason() {
    let bench = Bench::new(&full());
    fault(&bench, 0x0102);
    assert_eq!(bench.read64(0x220), 0x0000_0000_1234_5000);
    assert_eq!(bench.read64(0x228), 0x8000_0005_0000_0102);
    report(&bench, 0x0102, Access::Read, true);
    assert_eq!(bench.read64(0x238), 0xC000_0005_0000_0102);
    report(&bench, 0x0102, Access::Atomic, true);
    assert_eq!(bench.read64(0x248), 0xC000_0005_1000_0102);
    report(&bench, 0x0102, Access::ZeroLengthRead, true);
    assert_eq!(bench.read64(0x258), 0xC000_0005_0000_0102);
}

#[test]
fn fields_of_absent_features_and_bits_beyond_the_widest_tables_stay_zero() {
    let request = Request {
        source: SourceId(1),
        pasid: Pasid::new(0xABCDE),
        address: 0xFFFF_8000_0000_1FFF,
        access: Access::Read,
        privileged: true,
        kind: RequestKind::Translated,
    };
    let fault = Fault::new(
        FaultReason::PasidInLegacyMode,
        false,
        RequestKind::Translated,
    );
    // MGAW has no say in that.
    for config in [full(), full().with_guest_address_width(46)] {
        let bench = Bench::new(&config);
        bench.unit.faults.dma_fault(&request, &fault);
        assert_eq!(bench.read64(0x220), 0x0000_8000_0000_1000);
        assert_eq!(bench.read64(0x228), 0xC000_0031_0000_0001);
    }
}

#[test]
fn with_pasids_and_device_tlbs_a_record_tells_them_too() {
    let bench = Bench::new(&sharing());
    let request = Request {
        source: SourceId(1),
        pasid: Pasid::new(0xABCDE),
        address: 0x5000,
        access: Access::Read,
        privileged: true,
        kind: RequestKind::Translated,
    };
    let mut record = 0x228;
    let mut told = |request: &Request| {
        let fault = Fault::new(FaultReason::PasidInTranslatedRequest, false, request.kind);
        bench.unit.faults.dma_fault(request, &fault);
        let word = bench.read64(record);
        record += 16;
        word
    };
    assert_eq!(told(&request), 0xEABC_DE49_A000_0001);
    let asks = Request {
        kind: RequestKind::TranslationRequest { no_write: false },
        privileged: false,
        ..request
    };
    assert_eq!(told(&asks), 0xDABC_DE49_8000_0001);
    let untranslated = Request {
        kind: RequestKind::Untranslated,
        access: Access::Write,
        ..request
    };
    assert_eq!(told(&untranslated), 0x8ABC_DE49_A000_0001);
    let without_pasid = Request {
        pasid: None,
        ..request
    };
    assert_eq!(told(&without_pasid), 0xE000_0049_0000_0001);
}

#[test]
fn fpd_of_a_pasid_entry_silences_the_requests_with_that_pasid() {
    let bench = Bench::new(&sharing());
    bench.share(0x60_0000);
    // PASID 6 is not present, and FPD is set; PASID 7 is not present either.
    bench.poke(0x4180, &[2]);
    let port = DmaPort::behind(Arc::clone(bench.unit.dma_state()), SourceId(0x0018));
    let mut view = port.view();
    for pasid in [6, 7] {
        let transaction = view.begin_pasid(Pasid::new(pasid));
        assert!(transaction.write_obj(1_u8, GuestAddress(0x1000)).is_err());
    }
    let stats = bench.unit.stats();
    assert_eq!((stats.faults_suppressed, stats.faults_recorded), (1, 1));
    assert_eq!(bench.read64(0x228), 0x8000_0759_8000_0018);
}

#[test]
fn a_suppressed_fault_leaves_no_trace_but_a_count() {
    let bench = Bench::new(&full());
    report(&bench, 1, Access::Write, false);
    assert_eq!(bench.read32(0x34), 0);
    assert!(!occupied(&bench, 0));
    assert_eq!(bench.unit.stats().faults_suppressed, 1);
}

#[test]
fn the_status_names_the_first_record_that_is_pending() {
    let bench = Bench::new(&full());
    fault(&bench, 1);
    fault(&bench, 2);
    assert_eq!(bench.read32(0x34), 0x0000_0002);
    clear(&bench, 0);
    assert_eq!(
        bench.read32(0x34),
        0x0000_0002,
        "FRI stays while something is pending"
    );
    clear(&bench, 1);
    assert_eq!(bench.read32(0x34) & 2, 0);
    fault(&bench, 3);
    assert_eq!(bench.read32(0x34), 0x0000_0202);
    assert!(occupied(&bench, 2));
}

#[test]
fn pending_is_read_only_and_a_record_is_cleared_by_writing_one_to_f() {
    let bench = Bench::new(&full());
    fault(&bench, 7);
    bench.write32(0x34, 0xFFFF_FFFF);
    assert_eq!(bench.read32(0x34), 2);
    bench.write64(0x228, 0x7FFF_FFFF_FFFF_FFFF);
    bench.write64(0x220, 0);
    assert_eq!(bench.read64(0x228), 0x8000_0005_0000_0007);
    bench.write64(0x228, 0x8000_0000_0000_0000);
    assert_eq!(bench.read64(0x228), 0x0000_0005_0000_0007, "only F goes");
    assert_eq!(bench.read32(0x34), 0);
}

#[test]
fn the_ninth_fault_overflows_and_later_ones_are_lost_until_overflow_is_cleared() {
    let bench = Bench::new(&full());
    for source in 0..8 {
        fault(&bench, source);
        assert_eq!(bench.read32(0x34), 2);
    }
    fault(&bench, 8);
    assert_eq!(bench.read32(0x34), 3);
    for index in 0..8 {
        assert_eq!(
            bench.read64(0x228 + 16 * index),
            0x8000_0005_0000_0000 | index
        );
        clear(&bench, index);
    }
    assert_eq!(bench.read32(0x34), 1);
    fault(&bench, 9);
    assert!(!occupied(&bench, 0), "overflow itself blocks");
    bench.write32(0x34, 1);
    assert_eq!(bench.read32(0x34), 0);
    fault(&bench, 10);
    assert!(occupied(&bench, 0));
    let stats = bench.unit.stats();
    assert_eq!((stats.faults_recorded, stats.faults_lost), (9, 2));
}

#[test]
fn an_occupied_record_overflows_although_others_are_free() {
    let bench = Bench::new(&full());
    for source in 0..8 {
        fault(&bench, source);
    }
    for index in 1..8 {
        clear(&bench, index);
    }
    fault(&bench, 8);
    assert_eq!(bench.read32(0x34), 3);
    assert!(!occupied(&bench, 1));
}

#[test]
fn logging_goes_on_at_the_next_record_and_starts_over_when_remapping_is_off() {
    let bench = Bench::new(&full());
    bench.write32(0x18, 0x8200_0000);
    fault(&bench, 1);
    clear(&bench, 0);
    bench.write32(0x18, 0x0200_0000);
    fault(&bench, 2);
    assert!(occupied(&bench, 1));
    clear(&bench, 1);
    bench.write32(0x18, 0);
    fault(&bench, 3);
    assert!(occupied(&bench, 0));
}

#[test]
fn a_fault_sends_the_event_once_until_it_is_dealt_with() {
    let bench = Bench::new(&full());
    bench.unmask_faults();
    fault(&bench, 1);
    assert_eq!(bench.sink.take(), [EVENT]);
    assert_eq!(bench.read32(0x38), 0);
    fault(&bench, 2);
    clear(&bench, 0);
    fault(&bench, 3);
    assert_eq!(bench.sink.take(), [], "something was pending all the time");
    clear(&bench, 1);
    clear(&bench, 2);
    fault(&bench, 4);
    assert_eq!(bench.sink.take(), [EVENT]);
}

#[test]
fn the_event_carries_a_wide_destination() {
    let bench = Bench::new(&full());
    bench.unmask_faults();
    bench.write32(0x44, 0x1234_56FF);
    fault(&bench, 1);
    assert_eq!(bench.sink.take(), [(0x1234_5600_FEE0_5000, 0x31)]);
}

#[test]
fn a_masked_event_is_kept_and_sent_when_it_is_unmasked() {
    let bench = Bench::new(&full());
    bench.unmask_faults();
    bench.write32(0x38, 0x8000_0000);
    fault(&bench, 1);
    assert_eq!(bench.sink.take(), []);
    assert_eq!(bench.read32(0x38), 0xC000_0000);
    bench.write32(0x38, 0xC000_0000);
    assert_eq!(bench.sink.take(), []);
    bench.write32(0x38, 0);
    assert_eq!(bench.sink.take(), [EVENT]);
    assert_eq!(bench.read32(0x38), 0);
    bench.write32(0x38, 0x8000_0000);
    bench.write32(0x38, 0);
    assert_eq!(bench.sink.take(), [], "it is sent once");
}

#[test]
fn a_kept_event_is_withdrawn_once_software_has_dealt_with_everything() {
    let bench = Bench::new(&full());
    fault(&bench, 1);
    assert_eq!(bench.read32(0x38), 0xC000_0000);
    clear(&bench, 0);
    assert_eq!(bench.read32(0x38), 0x8000_0000);
    bench.unmask_faults();
    assert_eq!(bench.sink.take(), []);
}

#[test]
fn overflow_is_no_event_and_keeps_later_ones_from_being_one() {
    let bench = Bench::new(&full());
    bench.unmask_faults();
    for source in 0..9 {
        fault(&bench, source);
    }
    assert_eq!(bench.sink.take(), [EVENT]);
    for index in 0..8 {
        clear(&bench, index);
    }
    // The queue fails while only overflow is left.
    bench.enable_wide_queue();
    bench.submit_wide(&[[0; 4]]);
    assert_eq!(bench.read32(0x34), 0x11);
    assert_eq!(bench.sink.take(), []);
}

#[test]
fn a_queue_error_is_a_fault_event_and_a_fault_beside_it_is_none() {
    let bench = Bench::new(&full());
    bench.unmask_faults();
    bench.enable_wide_queue();
    bench.submit_wide(&[[0; 4]]);
    assert_eq!(bench.read32(0x34), 0x10);
    assert_eq!(bench.sink.take(), [EVENT]);
    fault(&bench, 1);
    assert_eq!(bench.read32(0x34), 0x12);
    assert_eq!(bench.sink.take(), []);
}
