//! Device-TLBs as a driver and as a device see them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use crate::dma::{AtsRefusal, DmaPort, DmaView};
use crate::spec::device_tlb::{DeviceTlbInvalidation, DeviceTlbTarget};
use crate::spec::ids::{Pasid, SourceId};
use crate::spec::page_request::{PageResponse, ResponseCode};
use crate::unit::DeviceTlb;
use crate::unit::testing::{Bench, Memory, QUEUE, STATUS, eventually, full, sharing};

const SOURCE: SourceId = SourceId(0x0018);
const PAGE: u64 = 0x1000;

/// Wait with status 2 at STATUS.
const WAIT: [u64; 4] = [0x0000_0002_0000_0025, 0x30_0000, 0, 0];
/// PASID IOTLB invalidation, domain 2, PASID 5.
const FORGET: [u64; 4] = [0x0000_0005_0002_0026, 0, 0, 0];
/// Device-TLB invalidation of 00:03.0, PASID 5, the page at 0x1000.
const TELL: [u64; 4] = [0x0000_0005_0018_0008, 0x1000, 0, 0];
/// Device-TLB invalidation of 00:04.0, which is not there.
const NOBODY: [u64; 4] = [0x0000_0020_0000_0003, 0x1000, 0, 0];

/// Keeps what it is told.
#[derive(Default)]
struct Recorder {
    invalidations: Mutex<Vec<DeviceTlbInvalidation>>,
    responses: Mutex<Vec<PageResponse>>,
}

impl DeviceTlb for Recorder {
    fn invalidate(&self, invalidation: DeviceTlbInvalidation) {
        self.invalidations.lock().unwrap().push(invalidation);
    }

    fn page_response(&self, response: PageResponse) {
        self.responses.lock().unwrap().push(response);
    }
}

fn bench() -> (Bench, Arc<Recorder>) {
    let bench = Bench::new(&sharing());
    bench.share(0x60_0000);
    bench.enable_wide_queue();
    let recorder = Arc::new(Recorder::default());
    bench
        .unit
        .attach_device_tlb(SOURCE, Arc::clone(&recorder) as _);
    (bench, recorder)
}

fn view(bench: &Bench) -> DmaView<Memory> {
    DmaPort::behind(Arc::clone(bench.unit.dma_state()), SOURCE).view()
}

/// (IQH, IQERCD, IQE and ITE in FSTS)
fn state(bench: &Bench) -> (u64, u64, u32) {
    (
        bench.read64(0x80),
        bench.read64(0xB0),
        bench.read32(0x34) & 0x50,
    )
}

#[test]
fn invalidations_reach_the_device_that_they_name() {
    let (bench, recorder) = bench();
    let other = Arc::new(Recorder::default());
    bench
        .unit
        .attach_device_tlb(SourceId(0x0102), Arc::clone(&other) as _);
    bench.submit_wide(&[
        [0x0000_0018_0000_0003, 0x7FFF_FFFF_FFFF_F001, 0, 0],
        TELL,
        // MIP 31, global, 8 KiB.
        [0x000F_FFFF_0018_01F8, 0x4000_0801, 0, 0],
        [0x0000_0102_001F_0003, 0x2000, 0, 0],
        WAIT,
    ]);
    assert_eq!(bench.peek32(STATUS), 2);
    assert_eq!(state(&bench), (160, 0, 0));
    let told = |target, address, shift| DeviceTlbInvalidation {
        target,
        address,
        shift,
    };
    assert_eq!(
        *recorder.invalidations.lock().unwrap(),
        [
            told(DeviceTlbTarget::WithoutPasid, 0, 64),
            told(DeviceTlbTarget::Pasid(Pasid::new(5).unwrap()), 0x1000, 12),
            told(DeviceTlbTarget::AllPasids, 0x4000_0000, 13),
        ]
    );
    assert_eq!(
        *other.invalidations.lock().unwrap(),
        [told(DeviceTlbTarget::WithoutPasid, 0x2000, 12)]
    );
    assert_eq!(bench.unit.stats().device_tlb_invalidations, 4);
}

#[test]
fn responses_reach_the_device_that_they_name_and_others_are_lost() {
    let (bench, recorder) = bench();
    bench.submit_wide(&[
        [0x0000_0005_0018_1019, 0x0D28, 0, 0],
        // Without PASID, whatever stands in its place; bit 66 is ignored.
        [0x000F_FFFF_0018_F009, 0x0FFC, 0, 0],
        [0x0000_0000_0018_2009, 0, 0, 0],
        [0x0000_0000_0020_0009, 0, 0, 0],
        WAIT,
    ]);
    assert_eq!(state(&bench), (160, 0, 0));
    let answer = |pasid, group, code| PageResponse { pasid, group, code };
    assert_eq!(
        *recorder.responses.lock().unwrap(),
        [
            answer(Pasid::new(5), 0x1A5, ResponseCode::InvalidRequest),
            answer(None, 0x1FF, ResponseCode::ResponseFailure),
            answer(None, 0, ResponseCode::Reserved(2)),
        ]
    );
    assert_eq!(bench.unit.stats().page_responses, 4);
}

#[test]
fn a_legacy_queue_has_device_tlbs_but_no_pasids_and_no_responses() {
    let bench = Bench::new(&sharing());
    bench.enable_narrow_queue();
    let recorder = Arc::new(Recorder::default());
    bench
        .unit
        .attach_device_tlb(SOURCE, Arc::clone(&recorder) as _);
    bench.submit_narrow(&[[0x0000_0018_0000_0003, 0x5000], [0x25, STATUS]]);
    assert_eq!(state(&bench), (32, 0, 0));
    assert_eq!(recorder.invalidations.lock().unwrap().len(), 1);
    for kind in [8, 9] {
        let bench = Bench::new(&sharing());
        bench.enable_wide_queue();
        bench.submit_wide(&[[kind, 0, 0, 0]]);
        assert_eq!(state(&bench), (0, 3, 0x10), "{kind}");
    }
}

#[test]
fn reserved_fields_and_absent_capabilities_stop_the_queue_before_a_device_hears_anything() {
    for words in [
        [0x0000_0018_0000_1003, 0x1000, 0, 0], // PFSID without DIT.
        [0x0010_0018_0000_0003, 0x1000, 0, 0],
        [0x0001_0018_0000_0003, 0x1000, 0, 0],
        [0x0000_0018_0000_0013, 0x1000, 0, 0],
        [0x0000_0018_0020_0003, 0x1000, 0, 0],
        [0x0000_0018_0000_0003, 0x1002, 0, 0],
        [0x0000_0018_0000_0003, 0x1000, 1, 0],
        [0x0000_0005_0018_1008, 0x1000, 0, 0],
        [0x0010_0005_0018_0008, 0x1000, 0, 0],
        [0x0000_0005_0018_0008, 0x1002, 0, 0],
        [0x0000_0005_0018_0008, 0x1400, 0, 0],
        [0x0000_0005_0018_0008, 0x1000, 0, 1],
        [0x0000_0005_0018_0029, 0, 0, 0],
        [0x0010_0005_0018_0019, 0, 0, 0],
        [0x0000_0005_0018_0019, 1, 0, 0],
        [0x0000_0005_0018_0019, 0x1000, 0, 0],
        [0x0000_0005_0018_0019, 0, 1, 0],
    ] {
        let (bench, recorder) = bench();
        bench.submit_wide(&[words]);
        assert_eq!(state(&bench), (0, 4, 0x10), "{words:x?}");
        assert!(recorder.invalidations.lock().unwrap().is_empty());
        assert!(recorder.responses.lock().unwrap().is_empty());
    }
    let bench = Bench::new(&full());
    bench
        .unit
        .attach_device_tlb(SOURCE, Arc::<Recorder>::default());
    bench.scalable_mode();
    bench.enable_wide_queue();
    bench.submit_wide(&[TELL]);
    assert_eq!(state(&bench), (0, 3, 0x10));
}

#[test]
fn a_device_that_is_not_there_times_out_at_once_and_aborts_the_wait() {
    let (bench, _recorder) = bench();
    bench.unmask_faults();
    bench.submit_wide(&[NOBODY, WAIT]);
    assert_eq!(bench.peek32(STATUS), 0);
    assert_eq!(state(&bench), (64, 0x0020_0000_0000, 0x40));
    assert_eq!(bench.sink.take(), [(0xFEE0_5000, 0x31)]);
    // As Linux does: clear the error and submit again.
    bench.submit_wide(&[WAIT]);
    assert_eq!(bench.peek32(STATUS), 0, "nothing is fetched meanwhile");
    bench.write32(0x34, 0x40);
    assert_eq!(bench.peek32(STATUS), 2);
    assert_eq!(state(&bench), (96, 0, 0));
    assert_eq!(bench.unit.stats().device_tlb_timeouts, 1);
}

#[test]
fn behind_a_fence_nothing_is_started_until_the_time_out_is_cleared() {
    let (bench, recorder) = bench();
    bench.submit_wide(&[
        NOBODY,
        TELL,
        [0x0000_0007_0000_0065, 0x30_0004, 0, 0],
        TELL,
        WAIT,
    ]);
    assert_eq!(state(&bench), (96, 0x0020_0000_0000, 0x40));
    assert_eq!(recorder.invalidations.lock().unwrap().len(), 1);
    bench.write32(0x34, 0x40);
    assert_eq!(state(&bench), (160, 0, 0));
    assert_eq!((bench.peek32(STATUS), bench.peek32(STATUS + 4)), (2, 0));
    assert_eq!(recorder.invalidations.lock().unwrap().len(), 2);
}

#[test]
fn a_time_out_and_a_bad_descriptor_are_both_told_and_both_to_be_cleared() {
    let (bench, _recorder) = bench();
    bench.submit_wide(&[NOBODY, [0; 4]]);
    assert_eq!(state(&bench), (32, 0x0020_0000_0003, 0x50));
    bench.poke(QUEUE + 32, &WAIT);
    bench.write32(0x34, 0x40);
    assert_eq!(bench.peek32(STATUS), 0);
    bench.write32(0x34, 0x10);
    assert_eq!(bench.peek32(STATUS), 2);
    assert_eq!(state(&bench), (64, 0, 0));
}

#[test]
fn a_detached_device_times_out_and_reset_detaches_none() {
    let (bench, recorder) = bench();
    bench.unit.reset();
    bench.share(0x60_0000);
    bench.enable_wide_queue();
    bench.submit_wide(&[TELL]);
    assert_eq!(recorder.invalidations.lock().unwrap().len(), 1);
    bench.unit.detach_device_tlb(SOURCE);
    assert_eq!(Arc::strong_count(&recorder), 1);
    bench.submit_wide(&[TELL]);
    assert_eq!(state(&bench), (64, 0x0018_0000_0000, 0x40));
}

#[test]
fn in_legacy_mode_the_translation_type_lets_a_device_keep_translations() {
    let bench = Bench::new(&sharing());
    bench.map_legacy(0x60_0000);
    bench.enable_wide_queue();
    let mut view = view(&bench);
    let refused = view.begin().translate(0x10, false);
    assert_eq!(refused, Err(AtsRefusal::UnsupportedRequest));
    // Code 0D, a translation request.
    assert_eq!(bench.read64(0x228), 0xD000_000D_0000_0018);
    assert!(
        view.begin_translated()
            .write_obj(1_u8, GuestAddress(0x60_0000))
            .is_err()
    );
    assert_eq!(bench.read64(0x238), 0xA000_000D_0000_0018);
    bench.poke(0x2180, &[0x3005]);
    bench.submit_wide(&[[0x11, 0, 0, 0], [0xD2, 0, 0, 0], WAIT]);
    let answer = view.begin().translate(0x10, false).unwrap();
    assert_eq!((answer.address, answer.page_shift), (0x60_0010, 12));
    assert!(answer.readable && answer.writable);
    let transaction = view.begin_translated();
    transaction
        .write_obj(7_u8, GuestAddress(answer.address))
        .unwrap();
    assert_eq!(bench.peek32(0x60_0010), 7);
    // There are no PASIDs in legacy mode: code 31, with the PASID.
    drop(transaction);
    let refused = view.begin_pasid(Pasid::new(5)).translate(0x10, false);
    assert_eq!(refused, Err(AtsRefusal::UnsupportedRequest));
    assert_eq!(bench.read64(0x248), 0xD000_0531_8000_0018);
}

/// Reads through its view when it is told to forget.
struct Reader(Mutex<(DmaView<Memory>, Vec<u8>)>);

impl DeviceTlb for Reader {
    fn invalidate(&self, _invalidation: DeviceTlbInvalidation) {
        let mut inner = self.0.lock().unwrap();
        let (view, seen) = &mut *inner;
        let transaction = view.begin_pasid(Pasid::new(5));
        seen.push(transaction.read_obj(GuestAddress(PAGE)).unwrap());
        let answer = transaction.translate(PAGE, false).unwrap();
        seen.push(answer.address.to_le_bytes()[2]);
    }

    fn page_response(&self, _response: PageResponse) {}
}

#[test]
fn a_device_that_is_told_to_forget_finds_new_tables() {
    let bench = Bench::new(&sharing());
    bench.share(0x60_0000);
    bench.enable_wide_queue();
    bench
        .memory
        .write_obj(6_u8, GuestAddress(0x60_0000))
        .unwrap();
    bench
        .memory
        .write_obj(7_u8, GuestAddress(0x61_0000))
        .unwrap();
    let reader = Arc::new(Reader(Mutex::new((view(&bench), Vec::new()))));
    bench
        .unit
        .attach_device_tlb(SOURCE, Arc::clone(&reader) as _);
    // Its view knows the page when it is told.
    reader.invalidate(DeviceTlbInvalidation {
        target: DeviceTlbTarget::AllPasids,
        address: 0,
        shift: 64,
    });
    bench.poke(0x8008, &[0x61_0007]);
    bench.submit_wide(&[FORGET, TELL]);
    assert_eq!(reader.0.lock().unwrap().1, [6, 0x60, 7, 0x61]);
    assert_eq!(bench.unit.stats().translation_requests, 2);
}

#[test]
fn a_wait_completes_only_when_no_translated_request_from_before_is_in_flight() {
    let (bench, _recorder) = bench();
    let mut view = view(&bench);
    let transaction = view.begin_translated();
    let (done, finished) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            bench.submit_wide(&[TELL, WAIT]);
            done.send(()).unwrap();
        });
        thread::sleep(Duration::from_millis(50));
        transaction
            .write_obj(1_u8, GuestAddress(0x60_0000))
            .unwrap();
        assert_eq!(bench.peek32(STATUS), 0);
        drop(transaction);
        finished.recv_timeout(Duration::from_secs(10)).unwrap();
    });
    assert_eq!(bench.peek32(STATUS), 2);
}

/// One entry: where the page at 0x1000 is.
#[derive(Default)]
struct OneEntry(Mutex<Option<u64>>);

impl DeviceTlb for OneEntry {
    fn invalidate(&self, invalidation: DeviceTlbInvalidation) {
        assert!(invalidation.overlaps(PAGE, 12) && invalidation.concerns(Pasid::new(5)));
        *self.0.lock().unwrap() = None;
    }

    fn page_response(&self, _response: PageResponse) {}
}

#[test]
fn once_a_wait_has_completed_no_device_uses_what_it_was_to_forget() {
    let bench = Bench::new(&sharing());
    bench.share(0x60_0000);
    bench.enable_wide_queue();
    let tlb = Arc::new(OneEntry::default());
    bench.unit.attach_device_tlb(SOURCE, Arc::clone(&tlb) as _);
    let stop = AtomicBool::new(false);
    let writes = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut view = view(&bench);
                while !stop.load(Ordering::SeqCst) {
                    let transaction = view.begin_translated();
                    let entry = *tlb.0.lock().unwrap();
                    if let Some(page) = entry {
                        thread::yield_now();
                        transaction
                            .write_obj(1_u64, GuestAddress(page + 0x10))
                            .unwrap();
                        writes.fetch_add(1, Ordering::SeqCst);
                        continue;
                    }
                    drop(transaction);
                    let transaction = view.begin_pasid(Pasid::new(5));
                    let answer = transaction.translate(PAGE, false).unwrap();
                    thread::yield_now();
                    *tlb.0.lock().unwrap() = Some(answer.address);
                }
            });
        }
        // Ends the threads also when an assertion fails.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let _stop = Stop(&stop);
        // On a busy machine all rounds could be over before the threads begin.
        let begun = eventually(|| writes.load(Ordering::SeqCst) != 0);
        assert!(begun, "the devices do not write");
        let (mut old, mut new) = (0x60_0000, 0x61_0000);
        for round in 1..200_u64 {
            bench
                .memory
                .store(new | 7, GuestAddress(0x8008), Ordering::SeqCst)
                .unwrap();
            bench.submit_wide(&[FORGET, TELL, [round << 32 | 0x25, STATUS, 0, 0]]);
            assert_eq!(u64::from(bench.peek32(STATUS)), round);
            bench
                .memory
                .store(0_u64, GuestAddress(old + 0x10), Ordering::SeqCst)
                .unwrap();
            for _ in 0..20 {
                thread::yield_now();
                assert_eq!(bench.peek32(old + 0x10), 0, "round {round}");
            }
            (old, new) = (new, old);
        }
    });
}

#[test]
fn waits_before_a_device_that_does_not_answer_complete_and_those_behind_it_do_not() {
    let (bench, _recorder) = bench();
    let before = [0x0000_0007_0000_0025, STATUS + 8, 0, 0];
    bench.submit_wide(&[before, before, NOBODY, WAIT]);
    assert_eq!(bench.peek32(STATUS + 8), 7);
    assert_eq!(bench.peek32(STATUS), 0);
    assert_eq!(state(&bench).2, 0x40);
}

#[test]
fn waits_complete_in_order_however_many_there_are() {
    let (bench, recorder) = bench();
    let waits: Vec<[u64; 4]> = (1..=200_u64)
        .flat_map(|status| [TELL, [status << 32 | 0x25, STATUS, 0, 0]])
        .take(250)
        .collect();
    bench.submit_wide(&waits);
    assert_eq!(bench.peek32(STATUS), 125);
    assert_eq!(recorder.invalidations.lock().unwrap().len(), 125);
    assert_eq!(bench.unit.stats().waits, 125);
}
