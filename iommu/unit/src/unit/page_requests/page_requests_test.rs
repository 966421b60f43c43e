//! Page requests as a device makes them and as a driver sees them.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use crate::config::{Scalable, Stages};
use crate::dma::DmaPort;
use crate::spec::ids::{Pasid, SourceId};
use crate::spec::page_request::{PageRequest, ResponseCode};
use crate::unit::PageRequestRefusal::{Answered, Dropped, Unsupported};
use crate::unit::testing::{Bench, END, STATUS, full, sharing};

const SOURCE: SourceId = SourceId(0x0018);
const RING: u64 = 0x40_0000;
const EVENT: (u64, u32) = (0xFEE0_7000, 0x55);
/// All but the last slot of a page.
const ROOM: usize = 127;

/// Translation is on; a ring of 128 slots is at RING, and its event aimed at vector 0x55 of APIC 7.
fn bench() -> Bench {
    let bench = Bench::new(&sharing());
    bench.share(0x60_0000);
    bench.enable_wide_queue();
    bench.write64(0xD0, RING);
    bench.write32(0xE4, EVENT.1);
    bench.write64(0xE8, EVENT.0);
    bench.write32(0xE0, 0);
    bench
}

fn request(last: bool) -> PageRequest {
    PageRequest {
        pasid: Pasid::new(5),
        address: 0x1234_5678,
        write: true,
        group: 7,
        last,
        ..PageRequest::default()
    }
}

fn slot(bench: &Bench, index: u64) -> [u32; 8] {
    let start = RING + 32 * index;
    [0, 4, 8, 12, 16, 20, 24, 28].map(|at| bench.peek32(start + at))
}

fn fill(bench: &Bench) {
    for _ in 0..ROOM {
        assert_eq!(bench.unit.request_page(SOURCE, &request(true)), Ok(()));
    }
}

#[test]
fn a_request_is_in_the_queue_when_the_call_returns() {
    let bench = bench();
    bench.poke(RING, &[u64::MAX; 8]);
    assert_eq!(bench.unit.request_page(SOURCE, &request(true)), Ok(()));
    let written = [0x0018_0101, 5, 0x1234_503E, 0, 0, 0, 0, 0];
    assert_eq!(slot(&bench, 0), written);
    assert_eq!(bench.read64(0xC8), 0x20);
    assert_eq!(bench.read32(0xDC), 1);
    assert_eq!(bench.sink.take(), [EVENT]);
    let without_pasid = PageRequest {
        pasid: None,
        read: true,
        ..request(false)
    };
    assert_eq!(bench.unit.request_page(SOURCE, &without_pasid), Ok(()));
    assert_eq!(
        slot(&bench, 1),
        [0x0018_0001, 0, 0x1234_503B, 0, 0, 0, 0, 0]
    );
    assert_eq!(bench.read64(0xC8), 0x40);
    assert_eq!(bench.sink.take(), [], "PPR is still set");
    let stats = bench.unit.stats();
    assert_eq!((stats.page_requests, stats.page_requests_lost), (2, 0));
}

#[test]
fn the_event_follows_mask_and_status() {
    let bench = bench();
    bench.write32(0xE0, 0x8000_0000);
    assert_eq!(bench.unit.request_page(SOURCE, &request(true)), Ok(()));
    assert_eq!(bench.sink.take(), []);
    assert_eq!(bench.read32(0xE0), 0xC000_0000);
    bench.write32(0xE0, 0);
    assert_eq!(bench.sink.take(), [EVENT]);
    assert_eq!(bench.read32(0xE0), 0);
    bench.write32(0xDC, 1);
    assert_eq!(bench.read32(0xDC), 0);
    bench.write32(0xE0, 0x8000_0000);
    assert_eq!(bench.unit.request_page(SOURCE, &request(true)), Ok(()));
    // Dealt with before the event was unmasked.
    bench.write32(0xDC, 1);
    assert_eq!(bench.read32(0xE0), 0x8000_0000);
    bench.write32(0xE0, 0);
    assert_eq!(bench.sink.take(), []);
}

#[test]
fn a_full_queue_overflows_and_answers_for_software_until_it_is_cleared() {
    let bench = bench();
    fill(&bench);
    assert_eq!(bench.read64(0xC8), 0xFE0);
    assert_eq!(bench.read32(0xDC), 1);
    bench.write32(0xDC, 1);
    assert_eq!(bench.sink.take(), [EVENT]);
    let outcome = bench.unit.request_page(SOURCE, &request(true));
    assert_eq!(outcome, Err(Answered(ResponseCode::Success)));
    assert_eq!(bench.read32(0xDC), 2);
    assert_eq!(bench.sink.take(), [EVENT]);
    assert_eq!(slot(&bench, 127), [0; 8]);
    // Room alone does not help.
    bench.write64(0xC0, 0xFE0);
    let outcome = bench.unit.request_page(SOURCE, &request(true));
    assert_eq!(outcome, Err(Answered(ResponseCode::Success)));
    let outcome = bench.unit.request_page(SOURCE, &request(false));
    assert_eq!(outcome, Err(Dropped));
    assert_eq!(bench.read64(0xC8), 0xFE0);
    assert_eq!(bench.sink.take(), []);
    bench.write32(0xDC, 2);
    assert_eq!(bench.unit.request_page(SOURCE, &request(true)), Ok(()));
    assert_eq!(slot(&bench, 127)[0], 0x0018_0101);
    assert_eq!(bench.read64(0xC8), 0);
    assert_eq!(bench.unit.stats().page_requests_refused, 3);
    // Nothing was a fault.
    assert_eq!(bench.read32(0x34), 0);
}

#[test]
fn registers_have_their_masks_and_reset_values() {
    let bench = bench();
    bench.unit.reset();
    assert_eq!(bench.read32(0xE0), 0x8000_0000);
    for at in [
        0xC0, 0xC4, 0xC8, 0xCC, 0xD0, 0xD4, 0xD8, 0xDC, 0xE4, 0xE8, 0xEC,
    ] {
        assert_eq!(bench.read32(at), 0, "{at:#x}");
    }
    for (at, kept) in [
        (0xC0, 0x7_FFE0),
        (0xC8, 0x7_FFE0),
        (0xD0, 0xFFFF_FFFF_FFFF_F007),
        (0xD8, 0),
        (0xE0, 0xFFFF_8000_0000),
        (0xE8, 0xFFFF_FFFF_FFFF_FFFC),
    ] {
        bench.write64(at, u64::MAX);
        assert_eq!(bench.read64(at), kept, "{at:#x}");
    }
}

#[test]
fn without_the_capability_there_are_no_registers_and_no_requests() {
    for config in [
        full(),
        sharing().with_scalable(Scalable::new(Stages::Nested).with_pasid_bits(20)),
    ] {
        let bench = Bench::new(&config);
        for at in (0xC0..0xF0).step_by(8) {
            bench.write64(at, u64::MAX);
            assert_eq!(bench.read64(at), 0, "{at:#x}");
        }
        let outcome = bench.unit.request_page(SOURCE, &request(true));
        assert_eq!(outcome, Err(Unsupported));
    }
}

#[test]
fn without_translation_requests_are_not_supported_and_not_recorded() {
    let bench = bench();
    bench.write32(0x18, 0x0400_0000);
    let outcome = bench.unit.request_page(SOURCE, &request(true));
    assert_eq!(outcome, Err(Unsupported));
    assert_eq!((bench.read32(0x34), bench.read32(0xDC)), (0, 0));
}

#[test]
fn tables_that_do_not_permit_a_request_are_a_fault_and_an_invalid_request() {
    let bench = bench();
    // PRE off.
    bench.poke(0x2300, &[0x300D]);
    let outcome = bench.unit.request_page(SOURCE, &request(true));
    assert_eq!(outcome, Err(Answered(ResponseCode::InvalidRequest)));
    assert_eq!(bench.read64(0x220), 0x1234_5000);
    assert_eq!(bench.read64(0x228), 0x8000_0547_9000_0018);
    let outcome = bench.unit.request_page(SOURCE, &request(false));
    assert_eq!(outcome, Err(Dropped));
    // FPD suppresses the record and not the answer.
    bench.poke(0x2300, &[0x300F]);
    let outcome = bench.unit.request_page(SOURCE, &request(true));
    assert_eq!(outcome, Err(Answered(ResponseCode::InvalidRequest)));
    let stats = bench.unit.stats();
    assert_eq!((stats.faults_recorded, stats.faults_suppressed), (2, 1));
    // The PASID entry counts, its tables do not.
    bench.poke(0x2300, &[0x301D]);
    bench.poke(0x5000, &[0]);
    assert_eq!(bench.unit.request_page(SOURCE, &request(true)), Ok(()));
    bench.poke(0x4140, &[0]);
    let outcome = bench.unit.request_page(SOURCE, &request(true));
    assert_eq!(outcome, Err(Answered(ResponseCode::InvalidRequest)));
    assert_eq!(bench.read64(0x248), 0x8000_0559_9000_0018);
    assert_eq!(bench.read64(0xC8), 0x20);
}

#[test]
fn a_stop_marker_gets_no_response() {
    let bench = bench();
    let marker = PageRequest {
        read: false,
        write: false,
        ..request(true)
    };
    fill(&bench);
    // The queue is full, has overflowed, and does not take it from the tables.
    for _ in 0..2 {
        assert_eq!(bench.unit.request_page(SOURCE, &marker), Err(Dropped));
    }
    bench.poke(0x4140, &[0]);
    assert_eq!(bench.unit.request_page(SOURCE, &marker), Err(Dropped));
}

#[test]
fn legacy_mode_has_no_page_requests() {
    let bench = Bench::new(&sharing());
    bench.map_legacy(0x60_0000);
    let without_pasid = PageRequest {
        pasid: None,
        ..request(true)
    };
    let outcome = bench.unit.request_page(SOURCE, &without_pasid);
    assert_eq!(outcome, Err(Answered(ResponseCode::InvalidRequest)));
    assert_eq!(bench.read64(0x228), 0x8000_0032_1000_0018);
}

#[test]
fn pointers_beyond_the_queue_are_taken_modulo_its_size() {
    let bench = bench();
    bench.write64(0xC8, 0x1_0020);
    bench.write64(0xC0, 0x7_F020);
    assert_eq!(bench.unit.request_page(SOURCE, &request(true)), Ok(()));
    assert_eq!(slot(&bench, 1)[0], 0x0018_0101);
    assert_eq!(bench.read64(0xC8), 0x40);
    // Low bits do not exist.
    bench.write64(0xC0, 0x7F);
    assert_eq!(bench.read64(0xC0), 0x60);
    let outcome = bench.unit.request_page(SOURCE, &request(true));
    assert_eq!(outcome, Err(Answered(ResponseCode::Success)));
}

#[test]
fn the_greatest_queue_wraps_at_its_end() {
    let bench = bench();
    bench.write64(0xD0, RING | 7);
    bench.write64(0xC8, 0x7_FFE0);
    bench.write64(0xC0, 0x40);
    assert_eq!(bench.unit.request_page(SOURCE, &request(true)), Ok(()));
    assert_eq!(slot(&bench, 16383)[0], 0x0018_0101);
    assert_eq!(bench.read64(0xC8), 0);
}

#[test]
fn a_queue_that_is_not_in_memory_loses_requests_and_nothing_else() {
    let bench = bench();
    for base in [END, 0x0000_4000_0000_0000, 0xFFFF_FFFF_FFFF_F007] {
        bench.write64(0xD0, base);
        assert_eq!(bench.unit.request_page(SOURCE, &request(true)), Ok(()));
        assert_eq!(bench.read32(0xDC), 1);
    }
    assert_eq!(bench.read64(0xC8), 0x60);
    let stats = bench.unit.stats();
    assert_eq!((stats.page_requests, stats.page_requests_lost), (3, 3));
}

#[test]
fn a_request_makes_devices_walk_again() {
    let bench = bench();
    let port = DmaPort::behind(Arc::clone(bench.unit.dma_state()), SOURCE);
    let mut view = port.view();
    let mut walk = || {
        let before = view.walks();
        let transaction = view.begin_pasid(Pasid::new(5));
        transaction.write_obj(1_u8, GuestAddress(0x1000)).unwrap();
        drop(transaction);
        view.walks() - before
    };
    assert_eq!((walk(), walk()), (1, 0));
    assert_eq!(bench.unit.request_page(SOURCE, &request(true)), Ok(()));
    assert_eq!((walk(), walk()), (1, 0));
    // A request that is refused invalidates nothing.
    bench.write64(0xC0, 0x40);
    assert!(bench.unit.request_page(SOURCE, &request(true)).is_err());
    assert_eq!(walk(), 0);
}

#[test]
fn waits_wait_for_requests_in_flight() {
    // One that drains page requests, and one behind an invalidation.
    for first in [0x0000_0000_0000_0005, 0x0000_0005_0002_0026] {
        let bench = bench();
        let in_flight = bench.unit.page_requests_in_flight.read();
        let (done, finished) = mpsc::channel();
        let drain = if first == 5 { 0x80 } else { 0 };
        thread::scope(|scope| {
            scope.spawn(|| {
                let wait = [0x0000_0002_0000_0025 | drain, STATUS, 0, 0];
                bench.submit_wide(&[[first, 0, 0, 0], wait]);
                done.send(()).unwrap();
            });
            thread::sleep(Duration::from_millis(30));
            assert_eq!(bench.peek32(STATUS), 0);
            drop(in_flight);
            finished.recv_timeout(Duration::from_secs(10)).unwrap();
        });
        assert_eq!(bench.peek32(STATUS), 2);
    }
}

#[test]
fn whatever_is_written_to_the_registers_requests_stay_within_the_queue() {
    let bench = bench();
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..2000 {
        let size = next() % 8;
        let bytes = 0x1000_u64 << size;
        bench.write64(0xD0, RING | size);
        for at in [0xC0, 0xC8, 0xDC, 0xE0] {
            match next() % 3 {
                0 => bench.write64(at & !7, next()),
                1 => bench.write32(at, next().to_le_bytes()[0].into()),
                _ => {}
            }
        }
        // Beside the queue there is nothing of it.
        bench.poke(RING - 8, &[0xAAAA]);
        bench.poke(RING + bytes, &[0xBBBB]);
        let before = bench.read64(0xC8) % bytes;
        let outcome = bench.unit.request_page(SOURCE, &request(next() % 2 == 0));
        let after = bench.read64(0xC8);
        match outcome {
            Ok(()) => assert_eq!(after, (before + 32) % bytes),
            Err(_) => assert_eq!(after % bytes, before),
        }
        assert_eq!(bench.peek32(RING - 8), 0xAAAA);
        assert_eq!(bench.peek32(RING + bytes), 0xBBBB);
    }
    let stats = bench.unit.stats();
    assert_eq!(stats.page_requests + stats.page_requests_refused, 2000);
    assert!(stats.page_requests > 100 && stats.page_requests_refused > 100);
}

#[test]
fn many_devices_and_a_driver_at_once_lose_nothing() {
    let bench = bench();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..300 {
                    while bench.unit.request_page(SOURCE, &request(true)).is_err() {
                        thread::yield_now();
                    }
                }
            });
        }
        let mut seen = 0;
        while seen < 600 {
            let (head, tail) = (bench.read64(0xC0), bench.read64(0xC8));
            seen += (tail + 0x1000 - head) % 0x1000 / 32;
            bench.write64(0xC0, tail);
            bench.write32(0xDC, 3);
            bench.submit_wide(&[[0xA5, STATUS, 0, 0]]);
            thread::yield_now();
        }
        assert_eq!(seen, 600);
    });
    assert_eq!(bench.unit.stats().page_requests, 600);
}
