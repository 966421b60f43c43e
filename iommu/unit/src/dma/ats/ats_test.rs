//! Translation requests, and requests with what they were answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::{AtsRefusal, AtsTranslation};
use crate::Pasid;
use crate::dma::dma_test::{Bench, bench};
use crate::dma::{DmaPort, DmaView};
use crate::translate::{Access, Latched};

fn ask(bench: &Bench, address: u64) -> Result<AtsTranslation, AtsRefusal> {
    bench.port.view().begin().translate(address, false)
}

const NOTHING: AtsTranslation = AtsTranslation {
    address: 0,
    page_shift: 12,
    readable: false,
    writable: false,
    untranslated_only: false,
    snooped: false,
    privileged: false,
};

#[test]
fn an_answer_tells_where_the_page_is_how_large_and_what_is_permitted() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x1000, 1, 0x20_3003);
    bench.world.map(&bench.paging, 0x2000, 1, 0x20_4001);
    bench.world.map(&bench.paging, 0x20_0000, 2, 0x80_0083);
    let both = AtsTranslation {
        address: 0x20_3678,
        readable: true,
        writable: true,
        ..NOTHING
    };
    assert_eq!(ask(&bench, 0x1678), Ok(both));
    let read_only = AtsTranslation {
        address: 0x20_4000,
        writable: false,
        ..both
    };
    assert_eq!(ask(&bench, 0x2000), Ok(read_only));
    let large = AtsTranslation {
        address: 0x81_2000,
        page_shift: 21,
        ..both
    };
    assert_eq!(ask(&bench, 0x21_2000), Ok(large));
    // PGSNP.
    bench.world.or(bench.world.pasid_entry(0) + 8, 0x100_0000);
    let snooped = AtsTranslation {
        snooped: true,
        ..both
    };
    assert_eq!(ask(&bench, 0x1678), Ok(snooped));
    assert!(bench.log.take().is_empty());
}

#[test]
fn what_is_not_mapped_is_an_answer_without_permissions_and_no_fault() {
    let bench = bench();
    let outcome = ask(&bench, 0x5000);
    assert_eq!(
        outcome,
        Ok(AtsTranslation {
            address: 0x5000,
            ..NOTHING
        })
    );
    // Beyond the tables, too.
    assert_eq!(
        ask(&bench, 1 << 50).map(|answer| answer.readable),
        Ok(false)
    );
    assert!(bench.log.take().is_empty());
}

#[test]
fn permission_to_write_comes_with_the_dirty_bit_and_not_when_it_is_not_asked_for() {
    let bench = bench();
    // PASID 5: first stage, walks snooped.
    let paging = bench.world.first_stage(4);
    bench.world.set_pasid(5, &[0x49, 0x80_0002, paging.top]);
    let leaf = bench.world.map(&paging, 0x1000, 1, 0x20_3007);
    let mut view = bench.port.view();
    let transaction = view.begin_pasid(Pasid::new(5));
    let answer = transaction.translate(0x1000, true).unwrap();
    assert!(answer.readable && !answer.writable);
    assert_eq!(bench.world.get(leaf), 0x20_3027);
    let answer = transaction.translate(0x1000, false).unwrap();
    assert!(answer.readable && answer.writable);
    assert_eq!(bench.world.get(leaf), 0x20_3067);
}

#[test]
fn the_interrupt_range_is_for_untranslated_requests_only() {
    let bench = bench();
    let answer = ask(&bench, 0xFEE0_1000).unwrap();
    assert!(answer.untranslated_only && answer.writable && !answer.readable);
    assert!(bench.log.take().is_empty());
}

#[test]
fn a_device_that_may_not_ask_is_refused_and_recorded() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x1000, 1, 0x20_3003);
    let mut view = bench.port.view();
    // The context entry is known to the view, for untranslated requests.
    view.begin().read_obj::<u8>(GuestAddress(0x1000)).unwrap();
    // DTE, and PRE that needs it.
    bench.world.clear(bench.world.scalable_context(), 0x14);
    let outcome = view.begin().translate(0x1000, false);
    assert_eq!(outcome, Err(AtsRefusal::UnsupportedRequest));
    assert_eq!(bench.log.take(), [(0x1000, Access::Read, 0x44, true)]);
    let outcome = view.begin_pasid(Pasid::new(0)).translate(0x1000, false);
    assert_eq!(outcome, Err(AtsRefusal::UnsupportedRequest));
    assert_eq!(bench.log.take(), [(0x1000, Access::Read, 0x44, true)]);
}

#[test]
fn tables_in_disorder_abort_the_request() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x1000, 1, 1 << 50 | 3);
    assert_eq!(ask(&bench, 0x1000), Err(AtsRefusal::CompleterAbort));
    assert_eq!(bench.log.take(), [(0x1000, Access::Read, 0x7a, true)]);
    // FPD is no matter of the answer, but of the record.
    bench.world.or(bench.world.pasid_entry(0), 2);
    assert_eq!(ask(&bench, 0x1000), Err(AtsRefusal::CompleterAbort));
    assert_eq!(bench.log.take(), [(0x1000, Access::Read, 0x7a, false)]);
}

#[test]
fn without_translation_there_is_nobody_to_ask() {
    let bench = bench();
    let direct = DmaPort::direct(Arc::clone(&bench.world.memory));
    let outcome = direct.view().begin().translate(0x1000, false);
    assert_eq!(outcome, Err(AtsRefusal::UnsupportedRequest));
    let enable = Arc::new(AtomicBool::new(false));
    let gated = bench.port.clone().gated(Arc::clone(&enable));
    let outcome = gated.view().begin().translate(0x1000, false);
    assert_eq!(outcome, Err(AtsRefusal::Gated));
    enable.store(true, Ordering::SeqCst);
    assert!(gated.view().begin().translate(0x1000, false).is_ok());
    let mut view = gated.view();
    let read = |view: &mut DmaView<_>| {
        let transaction = view.begin_translated();
        transaction.read_obj::<u8>(GuestAddress(0x20_0000)).is_ok()
    };
    assert!(read(&mut view));
    enable.store(false, Ordering::SeqCst);
    assert!(!read(&mut view));
    bench.state.set_latched(Latched::default());
    assert_eq!(ask(&bench, 0x1000), Err(AtsRefusal::UnsupportedRequest));
    assert!(bench.log.take().is_empty());
}

#[test]
fn translated_requests_go_where_they_say_and_share_nothing_with_untranslated_ones() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x1000, 1, 0x20_3003);
    bench.world.map(&bench.paging, 0x20_3000, 1, 0x20_5003);
    let mut view = bench.port.view();
    for round in 1..3_u64 {
        let transaction = view.begin_translated();
        transaction
            .write_obj(round, GuestAddress(0x20_3008))
            .unwrap();
        assert!(transaction.physical_memory().is_none());
        assert!(transaction.check_range(GuestAddress(0x20_3000), 0x3000, Permissions::ReadWrite));
        drop(transaction);
        assert_eq!(bench.world.get(0x20_3008), round);
        let transaction = view.begin();
        assert_eq!(
            transaction.read_obj::<u64>(GuestAddress(0x1008)).unwrap(),
            round
        );
        transaction
            .write_obj(9_u64, GuestAddress(0x20_3008))
            .unwrap();
        drop(transaction);
        assert_eq!(bench.world.get(0x20_5008), 9);
        assert_eq!(bench.world.get(0x20_3008), round);
    }
    assert!(bench.log.take().is_empty());
}

#[test]
fn translated_requests_are_checked_against_the_context_entry_and_the_address() {
    let bench = bench();
    let mut view = bench.port.view();
    let mut blocked = |address: u64| {
        let transaction = view.begin_translated();
        assert!(transaction.write_obj(1_u8, GuestAddress(address)).is_err());
        assert!(!transaction.check_range(GuestAddress(address), 1, Permissions::Write));
        drop(transaction);
        bench.log.take()
    };
    assert_eq!(
        blocked(0xFEE0_0000),
        [(0xFEE0_0000, Access::Write, 0x87, true)]
    );
    assert_eq!(blocked(1 << 46), [(1 << 46, Access::Write, 0x83, true)]);
    bench.world.clear(bench.world.scalable_context(), 0x14);
    assert_eq!(blocked(0x20_0000), [(0x20_0000, Access::Write, 0x44, true)]);
    // Unsupported, and nothing to record.
    bench.state.set_latched(Latched::default());
    assert_eq!(blocked(0x20_0000), []);
    let direct = DmaPort::direct(Arc::clone(&bench.world.memory));
    let mut view = direct.view();
    assert!(
        view.begin_translated()
            .read_obj::<u8>(GuestAddress(0x20_0000))
            .is_err()
    );
}

#[test]
fn a_supervisor_is_told_what_it_may_and_that_it_is_told_so() {
    let bench = bench();
    let first = bench.world.first_stage(4);
    bench.world.set_pasid(3, &[0x41, 0x80_0009, first.top | 1]);
    bench.world.map(&first, 0x1000, 1, 0x20_1063);
    bench.world.map(&first, 0x2000, 1, 0x20_2065);
    let mut view = bench.port.view();
    let pasid = Pasid::new(3).unwrap();
    let transaction = view.begin_supervisor(pasid);
    for (at, address) in [(0x1000, 0x20_1000), (0x2000, 0x20_2000)] {
        let expected = AtsTranslation {
            address,
            page_shift: 12,
            readable: true,
            writable: true,
            privileged: true,
            ..NOTHING
        };
        assert_eq!(transaction.translate(at, false), Ok(expected));
    }
    let missing = transaction.translate(0x3000, false).unwrap();
    assert_eq!((missing.readable, missing.privileged), (false, false));
    drop(transaction);
    let transaction = view.begin_pasid(Some(pasid));
    assert!(!transaction.translate(0x1000, false).unwrap().readable);
    let answer = transaction.translate(0x2000, false).unwrap();
    assert_eq!(
        (answer.readable, answer.writable, answer.privileged),
        (true, false, false)
    );
}
