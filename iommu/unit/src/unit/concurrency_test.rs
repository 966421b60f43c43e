//! Several vCPUs and device threads at once.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use vm_memory::{Bytes, GuestAddress};

use crate::dma::DmaPort;
use crate::spec::ids::{Pasid, SourceId};
use crate::unit::InlineBudget;
use crate::unit::testing::{Background, Bench, QUEUE, STATUS, TABLE, eventually, full, sharing};

const SOURCE: SourceId = SourceId(0x0018);

/// Ends the threads beside a test, also when an assertion fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What runs beside a test until it is told to stop.
type Body<'a> = &'a (dyn Fn(&Bench, &AtomicBool) + Sync);

fn beside(bench: &Bench, bodies: &[Body<'_>], work: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    // On a busy machine the work could be done before the threads begin.
    let begun = Barrier::new(bodies.len() + 1);
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        for body in bodies {
            let (stop, begun) = (&stop, &begun);
            scope.spawn(move || {
                begun.wait();
                body(bench, stop);
            });
        }
        begun.wait();
        work();
    });
}

#[test]
fn once_a_wait_has_completed_no_device_uses_the_old_mapping() {
    let bench = Bench::new(&full());
    bench.map_legacy(0x60_0000);
    bench.enable_wide_queue();
    // A device writes the same page over and over; the driver moves the mapping, waits, and checks the page it freed.
    let device = |bench: &Bench, stop: &AtomicBool| {
        let port = DmaPort::behind(Arc::clone(bench.unit.dma_state()), SOURCE);
        let mut view = port.view();
        let mut value = 0_u64;
        while !stop.load(Ordering::SeqCst) {
            value += 1;
            let transaction = view.begin();
            transaction
                .write_obj(value | 1, GuestAddress(0x10))
                .unwrap();
            // Long enough for an invalidation to come in between.
            thread::yield_now();
            transaction
                .write_obj(value | 1, GuestAddress(0x10))
                .unwrap();
        }
    };
    beside(&bench, &[&device, &device], || {
        for round in 0..500_u64 {
            let (old, new) = if round % 2 == 0 {
                (0x60_0000, 0x61_0000)
            } else {
                (0x61_0000, 0x60_0000)
            };
            bench
                .memory
                .store(new | 3, GuestAddress(0x5000), Ordering::SeqCst)
                .unwrap();
            bench.submit_wide(&[
                [0x0001_00E2, 0, 0, 0],
                [round << 32 | 0x25, 0x30_0000, 0, 0],
            ]);
            assert_eq!(u64::from(bench.peek32(STATUS)), round);
            bench
                .memory
                .store(0_u64, GuestAddress(old + 0x10), Ordering::SeqCst)
                .unwrap();
            for _ in 0..20 {
                assert_eq!(bench.peek32(old + 0x10), 0, "round {round}");
                thread::yield_now();
            }
            // The devices are at it again before the next round.
            let written = eventually(|| bench.peek32(new + 0x10) != 0);
            assert!(written, "the devices have stopped");
        }
    });
}

/// Whether the wait completes that follows `descriptor`, while a device with PASID 5, which is of domain 2, is in the
/// midst of a transaction. It completes in any case when that is over.
fn completes_beside_domain_2(descriptor: [u64; 4]) -> bool {
    let bench = Bench::new(&sharing());
    bench.share(0x60_0000);
    bench.enable_wide_queue();
    let mut view = DmaPort::behind(Arc::clone(bench.unit.dma_state()), SOURCE).view();
    let transaction = view.begin_pasid(Pasid::new(5));
    transaction.write_obj(1_u64, GuestAddress(0x1000)).unwrap();
    thread::scope(|scope| {
        let bench = &bench;
        scope.spawn(move || {
            bench.submit_wide(&[descriptor, [1 << 32 | 0x25, 0x30_0000, 0, 0]]);
            assert_eq!(bench.peek32(0x30_0000), 1);
        });
        let settled =
            eventually(|| bench.peek32(0x30_0000) == 1 || bench.unit.dma_state().is_awaited());
        assert!(settled);
        let completed = bench.peek32(0x30_0000) == 1;
        drop(transaction);
        completed
    })
}

#[test]
fn a_device_in_a_transaction_holds_invalidations_of_its_own_domain_and_source_only() {
    // IOTLB of domain 1; PASID-based of domain 1, PASID 5; context entry of 00:04.0.
    for stranger in [0x0001_0022, 0x0005_0001_0026, 0x0020_0000_0031] {
        assert!(
            completes_beside_domain_2([stranger, 0, 0, 0]),
            "{stranger:#x}"
        );
    }
    // The same of domain 2 and of 00:03.0, and the global IOTLB.
    for own in [0x0002_0022, 0x0005_0002_0026, 0x0018_0000_0031, 0x12] {
        assert!(!completes_beside_domain_2([own, 0, 0, 0]), "{own:#x}");
    }
}

#[test]
fn vcpus_that_submit_in_turn_each_see_their_own_wait_complete() {
    let bench = Bench::new(&full());
    bench.map_legacy(0x60_0000);
    bench.enable_wide_queue();
    let device = |bench: &Bench, stop: &AtomicBool| {
        let mut view = DmaPort::behind(Arc::clone(bench.unit.dma_state()), SOURCE).view();
        while !stop.load(Ordering::SeqCst) {
            let transaction = view.begin();
            transaction.write_obj(1_u64, GuestAddress(8)).unwrap();
            // Faults, too: nothing is mapped there.
            assert!(transaction.read_obj::<u64>(GuestAddress(0x8000)).is_err());
            drop(transaction);
            thread::yield_now();
        }
    };
    // Software serializes tails, as Linux does; reads and other registers are not serialized.
    let tail = Mutex::new(());
    beside(&bench, &[&device, &device], || {
        thread::scope(|scope| {
            for slot in [0x30_0000, 0x30_0008] {
                let (bench, tail) = (&bench, &tail);
                scope.spawn(move || {
                    for round in 1..300_u64 {
                        {
                            let _turn = tail.lock().unwrap();
                            bench.submit_wide(&[
                                [0x0001_00E2, 0, 0, 0],
                                [round << 32 | 0x25, slot, 0, 0],
                            ]);
                        }
                        assert_eq!(u64::from(bench.peek32(slot)), round);
                        assert_eq!(bench.read32(0x34) & 0x10, 0);
                    }
                });
            }
        });
        // The devices may come to it only now, on a busy machine.
        let reported = eventually(|| bench.read32(0x34) & 3 != 0);
        assert!(reported, "no device has met a fault");
    });
    assert_eq!(bench.unit.stats().waits, 598);
}

/// As often as threads may be asked to yield before something is late: this is no matter of speed.
fn completes(bench: &Bench, slot: u64, round: u64) -> bool {
    eventually(|| u64::from(bench.peek32(slot)) == round)
}

#[test]
fn no_work_is_left_lying_whoever_executes_when_a_tail_is_written() {
    for settles in [0, 1, 64] {
        let bench = Bench::new(&full());
        bench.map_legacy(0x60_0000);
        bench.enable_wide_queue();
        let inline = InlineBudget {
            settles,
            ..InlineBudget::default()
        };
        let _background = Background::start(&bench.unit, inline);
        let tail = Mutex::new(());
        thread::scope(|scope| {
            for slot in [0x30_0000, 0x30_0008, 0x30_0010] {
                let (bench, tail) = (&bench, &tail);
                scope.spawn(move || {
                    for round in 1..400_u64 {
                        {
                            let _turn = tail.lock().unwrap();
                            bench.submit_wide(&[
                                [0x0001_00E2, 0, 0, 0],
                                [round << 32 | 0x65, slot, 0, 0],
                            ]);
                        }
                        // Nobody writes a register here until it is done.
                        assert!(completes(bench, slot, round), "{slot:#x}, round {round}");
                    }
                });
            }
        });
        assert_eq!(bench.unit.stats().waits, 3 * 399);
    }
}

#[test]
fn statuses_are_written_in_the_order_of_the_queue_and_mean_what_they_say_in_the_background() {
    for settles in [0, 2] {
        let bench = Bench::new(&full());
        bench.map_legacy(0x60_0000);
        bench.enable_wide_queue();
        let inline = InlineBudget {
            settles,
            ..InlineBudget::default()
        };
        let _background = Background::start(&bench.unit, inline);
        let device = |bench: &Bench, stop: &AtomicBool| {
            let mut view = DmaPort::behind(Arc::clone(bench.unit.dma_state()), SOURCE).view();
            while !stop.load(Ordering::SeqCst) {
                let transaction = view.begin();
                transaction.write_obj(1_u64, GuestAddress(0x10)).unwrap();
                thread::yield_now();
                transaction.write_obj(1_u64, GuestAddress(0x10)).unwrap();
            }
        };
        beside(&bench, &[&device], || {
            for round in 1..200_u64 {
                let (old, new) = if round % 2 == 0 {
                    (0x60_0000, 0x61_0000)
                } else {
                    (0x61_0000, 0x60_0000)
                };
                bench
                    .memory
                    .store(new | 3, GuestAddress(0x5000), Ordering::SeqCst)
                    .unwrap();
                let wait = |place: u64| [round << 32 | 0x65, STATUS + 4 * place, 0, 0];
                bench.submit_wide(&[[0x0001_00E2, 0, 0, 0], wait(0), wait(1), wait(2), wait(3)]);
                loop {
                    // The last one first: whoever sees it sees those before it.
                    let seen =
                        [3, 2, 1, 0].map(|place| u64::from(bench.peek32(STATUS + 4 * place)));
                    assert!(seen.is_sorted(), "{seen:?}");
                    if seen[3] == round {
                        break;
                    }
                    thread::yield_now();
                }
                // The first wait says that nobody writes there any more.
                bench
                    .memory
                    .store(0_u64, GuestAddress(old + 0x10), Ordering::SeqCst)
                    .unwrap();
                for _ in 0..20 {
                    assert_eq!(bench.peek32(old + 0x10), 0, "round {round}");
                    thread::yield_now();
                }
                assert!(completes(&bench, STATUS + 12, round));
                assert_eq!(
                    bench.read32(0x80),
                    bench.read32(0x88),
                    "the head is behind all"
                );
            }
        });
    }
}

#[test]
fn unserialized_tails_neither_deadlock_nor_run_away() {
    let bench = Bench::new(&full());
    bench.enable_wide_queue();
    for at in (0..0x2000).step_by(32) {
        bench.poke(QUEUE + at, &[0xD2, 0, 0, 0]);
    }
    thread::scope(|scope| {
        for vcpu in 0..2_u32 {
            let bench = &bench;
            scope.spawn(move || {
                for round in 0..200_u32 {
                    bench.write32(0x88, (round * 7 + vcpu * 131) % 256 * 32);
                    bench.write32(0x34, 0x10);
                    if round % 16 == 0 {
                        bench.write32(0x18, 0);
                        bench.write32(0x18, 0x0400_0000);
                    }
                }
            });
        }
    });
    assert!(bench.unit.stats().iotlb_invalidations <= 2 * 2 * 256 * 226);
}

#[test]
fn once_a_wait_has_completed_no_interrupt_of_the_old_entry_is_delivered() {
    let bench = Bench::new(&full());
    bench.enable_interrupts(true);
    bench.enable_wide_queue();
    bench.poke(TABLE, &[0x0000_0007_0040_0001, 0]);
    // The vector that the driver has just retired; a delivery of it is the error.
    let retired = AtomicU32::new(0);
    let delivered = AtomicU64::new(0);
    let device = |bench: &Bench, stop: &AtomicBool| {
        while !stop.load(Ordering::SeqCst) {
            let outcome = bench.unit.remap_with(SOURCE, 0xFEE0_0010, 0, |message| {
                thread::yield_now();
                assert_ne!(message.data, retired.load(Ordering::SeqCst));
                delivered.fetch_add(1, Ordering::SeqCst);
            });
            outcome.unwrap();
        }
    };
    beside(&bench, &[&device, &device], || {
        for round in 0..500_u64 {
            let (old, new) = if round % 2 == 0 {
                (0x40, 0x41)
            } else {
                (0x41, 0x40)
            };
            retired.store(0, Ordering::SeqCst);
            let entry = 0x0000_0007_0000_0001_u64 | new << 16;
            bench
                .memory
                .store(entry, GuestAddress(TABLE), Ordering::SeqCst)
                .unwrap();
            bench.submit_wide(&[[0x14, 0, 0, 0], [round << 32 | 0x25, 0x30_0000, 0, 0]]);
            retired.store(old, Ordering::SeqCst);
            thread::yield_now();
        }
        let sent = eventually(|| delivered.load(Ordering::SeqCst) != 0);
        assert!(sent, "the devices send nothing");
    });
}

#[test]
fn reset_while_devices_run_leaves_addresses_untranslated() {
    let bench = Bench::new(&full());
    let device = |bench: &Bench, stop: &AtomicBool| {
        let mut view = DmaPort::behind(Arc::clone(bench.unit.dma_state()), SOURCE).view();
        while !stop.load(Ordering::SeqCst) {
            // Faults in between: nothing is mapped at 0x7000 while translation is on.
            let _ = view.begin().write_obj(7_u64, GuestAddress(0x7000));
        }
    };
    beside(&bench, &[&device], || {
        for _ in 0..200 {
            bench.map_legacy(0x60_0000);
            bench.unit.reset();
        }
    });
    assert_eq!(bench.read32(0x1C), 0);
    let mut view = DmaPort::behind(Arc::clone(bench.unit.dma_state()), SOURCE).view();
    view.begin().write_obj(9_u64, GuestAddress(0x7000)).unwrap();
    assert_eq!(bench.peek32(0x7000), 9);
}
