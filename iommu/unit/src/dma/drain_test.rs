//! After an invalidation and a drain, nothing old is in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::dma_test::bench;
use crate::translate::Latched;

const FIRST: u64 = 0x20_0000;
const SECOND: u64 = 0x20_1000;

/// Up to a thousand rounds, or as many as a busy machine does in a second.
struct Rounds {
    done: u32,
    since: Instant,
}

impl Default for Rounds {
    fn default() -> Self {
        Self {
            done: 0,
            since: Instant::now(),
        }
    }
}

impl Rounds {
    fn is_over(&mut self) -> bool {
        self.done += 1;
        self.done > 1000 || self.done > 10 && self.since.elapsed() > Duration::from_secs(1)
    }
}

#[test]
fn after_invalidation_and_drain_no_write_goes_to_the_old_page() {
    let bench = bench();
    let leaf = bench.world.map(&bench.paging, 0x1000, 1, FIRST | 3);
    let stop = AtomicBool::new(false);
    let writes = AtomicU64::new(0);
    thread::scope(|scope| {
        for word in 0..2_u64 {
            let port = bench.port.clone();
            let (stop, writes) = (&stop, &writes);
            scope.spawn(move || {
                let mut view = port.view();
                // Once at least: on a busy machine the rounds may be over before this begins.
                loop {
                    let transaction = view.begin();
                    for _ in 0..8 {
                        transaction
                            .store(1_u64, GuestAddress(0x1000 + word * 8), Ordering::Relaxed)
                            .unwrap();
                    }
                    drop(transaction);
                    writes.fetch_add(1, Ordering::Relaxed);
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        let mut enough = Rounds::default();
        let (mut old, mut new) = (FIRST, SECOND);
        while !enough.is_over() {
            bench.world.set(leaf, new | 3);
            bench.state.invalidate_all();
            bench.state.drain();
            for word in 0..2 {
                bench.world.set(old + word * 8, 0);
            }
            thread::yield_now();
            for word in 0..2 {
                assert_eq!(
                    bench.world.get(old + word * 8),
                    0,
                    "the old page was written"
                );
            }
            (old, new) = (new, old);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(writes.load(Ordering::Relaxed) > 0);
}

#[test]
fn after_enabling_and_drain_no_write_goes_to_the_untranslated_address() {
    let bench = bench();
    bench.world.map(&bench.paging, FIRST, 1, SECOND | 3);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let port = bench.port.clone();
        let stopping = &stop;
        scope.spawn(move || {
            let mut view = port.view();
            while !stopping.load(Ordering::Relaxed) {
                view.begin()
                    .store(1_u64, GuestAddress(FIRST), Ordering::Relaxed)
                    .unwrap();
            }
        });
        let mut enough = Rounds::default();
        while !enough.is_over() {
            bench.state.set_latched(bench.world.latched);
            bench.state.drain();
            bench.world.set(FIRST, 0);
            thread::yield_now();
            assert_eq!(bench.world.get(FIRST), 0, "an untranslated write");
            bench.state.set_latched(Latched {
                enabled: false,
                ..bench.world.latched
            });
            bench.state.drain();
            bench.world.set(SECOND, 0);
            thread::yield_now();
            assert_eq!(bench.world.get(SECOND), 0, "a translated write");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_drain_waits_for_a_transaction_that_began_before_and_for_no_other() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x1000, 1, FIRST | 3);
    let mut early = bench.port.view();
    let mut late = bench.port.view();
    let drained = AtomicBool::new(false);
    let transaction = early.begin();
    bench.state.invalidate_all();
    let _newer = late.begin();
    thread::scope(|scope| {
        let (state, drained) = (Arc::clone(&bench.state), &drained);
        scope.spawn(move || {
            state.drain();
            drained.store(true, Ordering::Release);
        });
        thread::sleep(Duration::from_millis(30));
        assert!(!drained.load(Ordering::Acquire));
        drop(transaction);
    });
    assert!(drained.load(Ordering::Acquire));
}

#[test]
fn views_that_are_gone_or_idle_do_not_hold_a_drain() {
    let bench = bench();
    let mut idle = bench.port.view();
    drop(idle.begin());
    for _ in 0..100 {
        let mut view = bench.port.view();
        drop(view.begin());
    }
    bench.state.invalidate_all();
    bench.state.drain();
    assert_eq!(bench.state.view_count(), 1);
}

#[test]
fn a_view_moves_to_another_thread_and_keeps_working() {
    let bench = bench();
    bench.world.map(&bench.paging, 0x1000, 1, FIRST | 3);
    let mut view = bench.port.view();
    view.begin().write_obj(1_u64, GuestAddress(0x1000)).unwrap();
    let view = thread::spawn(move || {
        view.begin().write_obj(2_u64, GuestAddress(0x1008)).unwrap();
        view
    });
    assert_eq!(view.join().unwrap().walks(), 1);
    assert_eq!(bench.world.get(FIRST + 8), 2);
}
