//! What observers of translations hear, when, and in what order with what the guest sees.

use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use crate::dma::DmaState;
use crate::spec::descriptors::{
    ContextScope, IotlbScope, PageBlock, PasidCacheScope, PasidIotlbScope,
};
use crate::unit::testing::{Bench, Memory, STATUS, full, plain, sharing};
use crate::unit::{Invalidation, Patience, TranslationObserver, Unfinished, Unit};

/// Wait with status 2 at STATUS, as Linux encodes it.
const WAIT: [u64; 4] = [0x0000_0002_0000_0025, 0x30_0000, 0, 0];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Heard {
    /// Translation was on, and GSTS was, during the call.
    Changed {
        enabled: bool,
        table: u64,
    },
    Begins,
    /// The dword at STATUS was, during the call.
    Invalidated {
        list: Vec<Invalidation>,
        status: u32,
    },
}

struct Recorder {
    memory: Memory,
    dma: Arc<DmaState<Memory>>,
    heard: Mutex<Vec<Heard>>,
}

impl TranslationObserver for Recorder {
    fn translation_changed(&self, _: &Patience) -> Result<(), Unfinished> {
        let latched = self.dma.latched();
        self.heard.lock().unwrap().push(Heard::Changed {
            enabled: latched.enabled,
            table: latched.root.address,
        });
        Ok(())
    }

    fn run_begins(&self) {
        self.heard.lock().unwrap().push(Heard::Begins);
    }

    fn invalidated(&self, invalidations: &[Invalidation], _: &Patience) -> Result<(), Unfinished> {
        self.heard.lock().unwrap().push(Heard::Invalidated {
            list: invalidations.to_vec(),
            status: self.memory.read_obj(GuestAddress(STATUS)).unwrap(),
        });
        Ok(())
    }
}

impl Recorder {
    fn new(bench: &Bench) -> Arc<Self> {
        let recorder = Arc::new(Self {
            memory: Arc::clone(&bench.memory),
            dma: Arc::clone(bench.unit.dma_state()),
            heard: Mutex::default(),
        });
        bench
            .unit
            .observe_translations(Arc::clone(&recorder) as Arc<dyn TranslationObserver>);
        recorder
    }

    fn take(&self) -> Vec<Heard> {
        std::mem::take(&mut *self.heard.lock().unwrap())
    }
}

fn told(list: &[Invalidation], status: u32) -> Heard {
    Heard::Invalidated {
        list: list.to_vec(),
        status,
    }
}

fn scalable() -> (Bench, Arc<Recorder>) {
    let bench = Bench::new(&sharing());
    bench.scalable_mode();
    bench.enable_wide_queue();
    let recorder = Recorder::new(&bench);
    (bench, recorder)
}

#[test]
fn every_queued_invalidation_is_told_with_its_scope_before_the_wait_completes() {
    let (bench, recorder) = scalable();
    bench.submit_wide(&[
        [0x11, 0, 0, 0],
        [0x0007_0021, 0, 0, 0],
        [0x0002_1234_0000_0031, 0, 0, 0],
        [0x37, 0, 0, 0],
        [0x0005_0007, 0, 0, 0],
        [0x0000_0009_0002_0017, 0, 0, 0],
        [0xD2, 0, 0, 0],
        [0x0003_00E2, 0, 0, 0],
        [0x0003_00F2, 0x1234_5041, 0, 0],
        [0x0000_0009_0002_0026, 0, 0, 0],
        [0x0000_0009_0003_0036, 0x1234_7002, 0, 0],
        [0x0000_0005_0000_0014, 0, 0, 0],
        WAIT,
    ]);
    let list = [
        Invalidation::Context(ContextScope::Global),
        Invalidation::Context(ContextScope::Domain(7)),
        Invalidation::Context(ContextScope::Device {
            source: 0x1234,
            function_mask: 2,
        }),
        Invalidation::PasidCache(PasidCacheScope::Global),
        Invalidation::PasidCache(PasidCacheScope::Domain(5)),
        Invalidation::PasidCache(PasidCacheScope::Pasid(2, 9)),
        Invalidation::Iotlb(IotlbScope::Global),
        Invalidation::Iotlb(IotlbScope::Domain(3)),
        Invalidation::Iotlb(IotlbScope::Pages(
            3,
            PageBlock {
                address: 0x1234_4000,
                mask: 1,
                leaf_only: true,
            },
        )),
        Invalidation::PasidIotlb {
            domain: 2,
            pasid: 9,
            scope: PasidIotlbScope::Pasid,
        },
        Invalidation::PasidIotlb {
            domain: 3,
            pasid: 9,
            scope: PasidIotlbScope::Pages(PageBlock {
                address: 0x1234_4000,
                mask: 2,
                leaf_only: false,
            }),
        },
    ];
    assert_eq!(recorder.take(), [Heard::Begins, told(&list, 0)]);
    assert_eq!(bench.peek32(STATUS), 2);
}

#[test]
fn each_wait_that_must_come_first_splits_what_is_told() {
    let (bench, recorder) = scalable();
    bench.submit_wide(&[
        [0x0001_00E2, 0, 0, 0],
        // With a fence: completes before the next descriptor begins.
        [0x0000_0005_0000_0065, 0x30_0000, 0, 0],
        [0x0002_00E2, 0, 0, 0],
        WAIT,
        [0x0003_00E2, 0, 0, 0],
    ]);
    let domain = |domain| Invalidation::Iotlb(IotlbScope::Domain(domain));
    assert_eq!(
        recorder.take(),
        [
            Heard::Begins,
            told(&[domain(1)], 0),
            told(&[domain(2), domain(3)], 5)
        ]
    );
    // The next run is another exit.
    bench.submit_wide(&[WAIT]);
    assert_eq!(recorder.take(), [Heard::Begins]);
}

#[test]
fn an_invalidation_without_a_wait_is_told_before_the_tail_write_returns() {
    let (bench, recorder) = scalable();
    bench.submit_wide(&[[0x0001_00E2, 0, 0, 0]]);
    let list = [Invalidation::Iotlb(IotlbScope::Domain(1))];
    assert_eq!(recorder.take(), [Heard::Begins, told(&list, 0)]);
    // So is what came before an error.
    bench.submit_wide(&[[0x0001_00E2, 0, 0, 0], [0, 0, 0, 0]]);
    assert_eq!(recorder.take(), [Heard::Begins, told(&list, 0)]);
}

#[test]
fn a_repetition_is_told_once() {
    let (bench, recorder) = scalable();
    let (one, two) = ([0x0001_00E2, 0, 0, 0], [0x0002_00E2, 0, 0, 0]);
    bench.submit_wide(&[one, one, one, two, two, one, WAIT]);
    let domain = |domain| Invalidation::Iotlb(IotlbScope::Domain(domain));
    assert_eq!(
        recorder.take(),
        [Heard::Begins, told(&[domain(1), domain(2), domain(1)], 0)]
    );
}

#[test]
fn a_batch_of_128_invalidations_is_listed_and_more_are_told_as_all() {
    let (bench, recorder) = scalable();
    let batch = |count: u64| {
        let mut descriptors: Vec<[u64; 4]> =
            (1..=count).map(|did| [did << 16 | 0xE2, 0, 0, 0]).collect();
        descriptors.push(WAIT);
        bench.submit_wide(&descriptors);
    };
    batch(128);
    let heard = recorder.take();
    let [Heard::Begins, Heard::Invalidated { list, status: 0 }] = heard.as_slice() else {
        panic!("{heard:?}");
    };
    assert_eq!(list.len(), 128);
    assert_eq!(list[127], Invalidation::Iotlb(IotlbScope::Domain(128)));
    for count in [129, 130, 250] {
        batch(count);
        assert_eq!(
            recorder.take(),
            [Heard::Begins, told(&[Invalidation::All], 2)]
        );
    }
    // What follows is listed again.
    batch(1);
    let list = [Invalidation::Iotlb(IotlbScope::Domain(1))];
    assert_eq!(recorder.take(), [Heard::Begins, told(&list, 2)]);
}

#[test]
fn device_tlb_invalidations_and_waits_alone_are_not_told() {
    let (bench, recorder) = scalable();
    bench.submit_wide(&[
        [0x0000_0018_0000_0003, 0x7FFF_FFFF_FFFF_F001, 0, 0],
        [0x0000_0005_0000_0014, 0, 0, 0],
        WAIT,
    ]);
    assert_eq!(recorder.take(), [Heard::Begins]);
}

#[test]
fn what_came_before_a_device_tlb_invalidation_is_told_before_the_device_is() {
    let (bench, recorder) = scalable();
    bench.submit_wide(&[
        [0x0001_00E2, 0, 0, 0],
        [0x0000_0018_0000_0003, 0x7FFF_FFFF_FFFF_F001, 0, 0],
        [0x0002_00E2, 0, 0, 0],
    ]);
    let domain = |domain| Invalidation::Iotlb(IotlbScope::Domain(domain));
    assert_eq!(
        recorder.take(),
        [Heard::Begins, told(&[domain(1)], 0), told(&[domain(2)], 0)]
    );
}

#[test]
fn a_stopped_or_disabled_queue_begins_no_run() {
    let bench = Bench::new(&full());
    let recorder = Recorder::new(&bench);
    bench.write64(0x90, 0x10_0801);
    bench.submit_wide(&[WAIT]);
    assert_eq!(recorder.take(), []);
    bench.poke(0x10_0000, &[0, 0]);
    bench.write32(0x18, 0x0400_0000);
    assert_eq!(recorder.take(), [Heard::Begins]);
    bench.submit_wide(&[WAIT]);
    assert_eq!(recorder.take(), []);
}

#[test]
fn invalidation_through_registers_is_told_with_its_scope() {
    let bench = Bench::new(&plain());
    let recorder = Recorder::new(&bench);
    let context = |command: u64| {
        bench.write64(0x28, command);
        recorder.take()
    };
    let one = |invalidation| vec![Heard::Begins, told(&[invalidation], 0)];
    assert_eq!(
        context(0xA000_0000_0000_0000),
        one(Invalidation::Context(ContextScope::Global))
    );
    assert_eq!(
        context(0xC000_0000_0000_0007),
        one(Invalidation::Context(ContextScope::Domain(7)))
    );
    assert_eq!(
        context(0xE000_0003_1234_0007),
        one(Invalidation::Context(ContextScope::Device {
            source: 0x1234,
            function_mask: 3
        }))
    );
    // No granularity: an error, and nothing is invalidated.
    assert_eq!(context(0x8000_0000_0000_0000), []);

    let iotlb = |command: u64, address: u64| {
        bench.write64(0xF0, address);
        bench.write64(0xF8, command);
        recorder.take()
    };
    assert_eq!(
        iotlb(0x9000_0000_0000_0000, 0),
        one(Invalidation::Iotlb(IotlbScope::Global))
    );
    assert_eq!(
        iotlb(0xA000_0004_0000_0000, 0),
        one(Invalidation::Iotlb(IotlbScope::Domain(4)))
    );
    assert_eq!(
        iotlb(0xB000_0004_0000_0000, 0x7_7043),
        one(Invalidation::Iotlb(IotlbScope::Pages(
            4,
            PageBlock {
                address: 0x7_0000,
                mask: 3,
                leaf_only: true
            }
        )))
    );
    // A mask beyond MAMV.
    assert_eq!(iotlb(0xB000_0004_0000_0000, 0x13), []);
    // Not beside a queue.
    bench.enable_narrow_queue();
    recorder.take();
    assert_eq!(iotlb(0x9000_0000_0000_0000, 0), []);
}

#[test]
fn changes_of_translation_are_told_with_the_new_state_in_place() {
    let bench = Bench::new(&full());
    let recorder = Recorder::new(&bench);
    let changed = |enabled, table| vec![Heard::Changed { enabled, table }];
    bench.write64(0x20, 0x1400);
    assert_eq!(recorder.take(), []);
    bench.write32(0x18, 0x4000_0000);
    assert_eq!(recorder.take(), changed(false, 0x1000));
    bench.write32(0x18, 0x8000_0000);
    assert_eq!(recorder.take(), changed(true, 0x1000));
    // Already on.
    bench.write32(0x18, 0x8000_0000);
    assert_eq!(recorder.take(), []);
    let state = bench.unit.save().unwrap();
    bench.write32(0x18, 0);
    assert_eq!(recorder.take(), changed(false, 0x1000));
    bench.unit.reset();
    assert_eq!(recorder.take(), changed(false, 0));
    bench.unit.restore(&state).unwrap();
    assert_eq!(recorder.take(), changed(true, 0x1000));
}

#[test]
fn gsts_does_not_show_a_change_while_observers_are_told_of_it() {
    struct Peek {
        unit: Arc<Unit<Memory>>,
        seen: Mutex<Vec<u32>>,
    }
    impl TranslationObserver for Peek {
        fn translation_changed(&self, _: &Patience) -> Result<(), Unfinished> {
            // GSTS can be polled while a command runs.
            let mut status = [0; 4];
            self.unit.read(0x1C, &mut status);
            self.seen.lock().unwrap().push(u32::from_le_bytes(status));
            Ok(())
        }
        fn invalidated(&self, _: &[Invalidation], _: &Patience) -> Result<(), Unfinished> {
            Ok(())
        }
    }
    let bench = Bench::new(&full());
    let peek = Arc::new(Peek {
        unit: Arc::clone(&bench.unit),
        seen: Mutex::default(),
    });
    bench
        .unit
        .observe_translations(Arc::clone(&peek) as Arc<dyn TranslationObserver>);
    bench.write64(0x20, 0x1400);
    for command in [0x4000_0000, 0x8000_0000, 0] {
        bench.write32(0x18, command);
    }
    bench.unit.reset();
    let seen = peek.seen.lock().unwrap().clone();
    assert_eq!(seen, [0, 0x4000_0000, 0xC000_0000, 0x4000_0000]);
}

#[test]
fn all_observers_are_told() {
    let (bench, first) = scalable();
    let second = Recorder::new(&bench);
    bench.submit_wide(&[[0x11, 0, 0, 0], WAIT]);
    assert_eq!(first.take().len(), 2);
    assert_eq!(second.take().len(), 2);
}
