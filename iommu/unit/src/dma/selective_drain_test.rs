//! A drain waits for those whom an invalidation concerns, and for nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::dma_test::{Bench, bench};
use super::{DmaPort, DrainScope};
use crate::spec::descriptors::{ContextScope, IotlbScope, PasidCacheScope};
use crate::spec::ids::Pasid;
use crate::spec::invalidation::Invalidation;
use crate::translate::testing::{Paging, SOURCE};

const INPUT: GuestAddress = GuestAddress(0x1000);
const PAGES: u64 = 0x200_0000;

fn pasid(number: u32) -> Option<Pasid> {
    Pasid::new(number)
}

fn domain(domain: u16) -> DrainScope {
    [Invalidation::Iotlb(IotlbScope::Domain(domain))]
        .iter()
        .collect()
}

fn entry(source: u16) -> DrainScope {
    [Invalidation::Context(ContextScope::Device {
        source,
        function_mask: 0,
    })]
    .iter()
    .collect()
}

/// Gives PASID `number` a second stage of `domain` in which the page at 0x1000 is `page`. Returns
/// where the leaf is.
fn bind(bench: &Bench, number: u64, domain: u64, page: u64) -> u64 {
    let paging: Paging = bench.world.second_stage(4);
    let leaf = bench.world.map(&paging, 0x1000, 1, page | 3);
    bench.world.set_pasid(number, &[paging.top | 0x89, domain]);
    leaf
}

/// Whether the drain of an invalidation would wait.
fn is_held(bench: &Bench, scope: &DrainScope) -> bool {
    bench.state.would_hold(scope)
}

/// Drains, which is to return at once.
fn drain(bench: &Bench, scope: &DrainScope) {
    assert!(!is_held(bench, scope));
    bench.state.invalidate_all();
    bench.state.drain_for(scope);
}

#[test]
fn a_stranger_in_an_open_transaction_holds_no_invalidation_of_another_domain() {
    let bench = bench();
    bind(&bench, 1, 8, PAGES);
    let mut view = bench.port.view();
    let transaction = view.begin_pasid(pasid(1));
    transaction.write_obj(1_u64, INPUT).unwrap();
    drain(&bench, &domain(7));
    drain(&bench, &entry(SOURCE.0 + 8));
    assert!(is_held(&bench, &domain(8)));
    assert!(is_held(&bench, &entry(SOURCE.0)));
    assert!(is_held(&bench, &DrainScope::ALL));
    // What it used it may use again, also under an old generation.
    transaction.write_obj(2_u64, INPUT).unwrap();
    assert!(is_held(&bench, &domain(8)));
    drop(transaction);
    drain(&bench, &DrainScope::ALL);
}

#[test]
fn a_view_with_translations_of_two_domains_holds_those_of_any() {
    let bench = bench();
    bind(&bench, 1, 8, PAGES);
    bind(&bench, 2, 9, PAGES + 0x1000);
    bind(&bench, 3, 8, PAGES + 0x2000);
    let mut view = bench.port.view();
    for (number, held) in [(1, [true, false]), (3, [true, false]), (2, [true, true])] {
        let transaction = view.begin_pasid(pasid(number));
        transaction.write_obj(1_u64, INPUT).unwrap();
        let found = [8, 9].map(|number| is_held(&bench, &domain(number)));
        assert_eq!(found, held, "PASID {number}");
    }
    // It is of any until its caches are emptied.
    let transaction = view.begin_pasid(pasid(1));
    transaction.write_obj(1_u64, INPUT).unwrap();
    assert!(is_held(&bench, &domain(100)));
    drop(transaction);
    bench.state.invalidate_all();
    let transaction = view.begin_pasid(pasid(1));
    transaction.write_obj(1_u64, INPUT).unwrap();
    assert!(!is_held(&bench, &domain(100)));
}

#[test]
fn a_transaction_that_was_skipped_finds_the_new_table() {
    let bench = bench();
    let leaf = bind(&bench, 1, 8, PAGES);
    let mut view = bench.port.view();
    let transaction = view.begin_pasid(pasid(1));
    bench.world.set(leaf, (PAGES + 0x1000) | 3);
    drain(&bench, &domain(8));
    transaction.write_obj(5_u64, INPUT).unwrap();
    assert_eq!(
        [0, 0x1000].map(|page| bench.world.get(PAGES + page)),
        [0, 5]
    );
    assert!(is_held(&bench, &domain(8)));
}

#[test]
fn a_fault_leaves_it_open_which_domain_the_view_uses() {
    let bench = bench();
    let mut view = bench.port.view();
    let transaction = view.begin_pasid(pasid(4));
    assert!(transaction.read_obj::<u64>(INPUT).is_err());
    assert!(is_held(&bench, &domain(100)));
    assert!(!is_held(&bench, &entry(SOURCE.0 + 8)));
}

#[test]
fn translated_requests_and_answers_to_a_device_are_waited_for_whatever_is_named() {
    let bench = bench();
    bind(&bench, 0, 7, PAGES);
    let mut view = bench.port.view();
    let transaction = view.begin();
    transaction.translate(0x1000, false).unwrap();
    assert!(is_held(&bench, &domain(100)));
    drop(transaction);
    let transaction = view.begin_translated();
    transaction.write_obj(1_u64, GuestAddress(PAGES)).unwrap();
    assert!(is_held(&bench, &domain(100)));
}

#[test]
fn a_drain_of_the_same_domain_sleeps_until_the_transaction_is_over() {
    let bench = bench();
    bind(&bench, 1, 8, PAGES);
    let mut view = bench.port.view();
    let over = AtomicBool::new(false);
    let transaction = view.begin_pasid(pasid(1));
    transaction.write_obj(1_u64, INPUT).unwrap();
    bench.state.invalidate_all();
    thread::scope(|scope| {
        let (state, over) = (Arc::clone(&bench.state), &over);
        scope.spawn(move || {
            state.drain_for(&domain(8));
            assert!(over.load(Ordering::SeqCst), "it did not wait");
        });
        while !bench.state.is_awaited() {
            thread::yield_now();
        }
        over.store(true, Ordering::SeqCst);
        drop(transaction);
    });
}

/// What the devices of the test below may reach, by PASID: four domains, of which the last two
/// PASIDs share one, each with a pool of pages that are mapped in turn.
const DOMAINS: [u16; 5] = [11, 12, 13, 14, 14];
const POOL: u64 = 16;

const fn page(pasid: u64, turn: u64) -> u64 {
    PAGES + (pasid * POOL + turn % POOL) * 0x1000
}

/// A device of several PASIDs: writes, and makes room for an invalidation in between.
fn device(port: &DmaPort<Arc<vm_memory::GuestMemoryMmap<()>>>, mut random: u64, stop: &AtomicBool) {
    let mut view = port.view();
    while !stop.load(Ordering::Relaxed) {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let number = u32::try_from(random >> 33).unwrap() % 5 + 1;
        // Mostly one of its own, so that it is known what it uses.
        let number = if random >> 60 == 0 { number } else { 1 };
        let transaction = view.begin_pasid(pasid(number));
        for _ in 0..random >> 40 & 7 {
            if random >> 50 & 1 == 0 {
                thread::yield_now();
            }
            transaction
                .store(1_u64, INPUT, Ordering::Relaxed)
                .expect("each page is mapped at any time");
            thread::yield_now();
        }
    }
}

/// Software with one table for each PASID. It moves the page, or replaces the whole table.
struct Software<'a> {
    bench: &'a Bench,
    /// By PASID: the two tables, with their leaves, that take turns.
    tables: Vec<[(u64, u64); 2]>,
    turns: [u64; 5],
}

impl<'a> Software<'a> {
    fn new(bench: &'a Bench) -> Self {
        let tables = DOMAINS.iter().zip(0..).map(|(_, index)| {
            [0, 1].map(|_| {
                let paging = bench.world.second_stage(4);
                let leaf = bench.world.map(&paging, 0x1000, 1, page(index, 0) | 3);
                (paging.top, leaf)
            })
        });
        let software = Self {
            bench,
            tables: tables.collect(),
            turns: [0; 5],
        };
        for index in 0..5 {
            software.point(index, 0);
        }
        software
    }

    fn point(&self, index: usize, table: usize) {
        let number = index as u64 + 1;
        let entry = [
            self.tables[index][table].0 | 0x89,
            u64::from(DOMAINS[index]),
        ];
        // The second word stays as it is but for the first time.
        self.bench
            .world
            .set(self.bench.world.pasid_entry(number) + 8, entry[1]);
        self.bench
            .world
            .set(self.bench.world.pasid_entry(number), entry[0]);
    }

    /// Takes the page of a PASID away, gives it another one, and checks what it took.
    fn turn(&mut self, index: usize, replace: bool) {
        let (world, state) = (&self.bench.world, &self.bench.state);
        let (number, turn) = (index as u64, self.turns[index] + 1);
        let current = usize::from(
            world.get(world.pasid_entry(number + 1)) & !0xfff != self.tables[index][0].0,
        );
        let new = page(number, turn);
        assert_eq!(
            world.get(new),
            0,
            "page {turn} of PASID {index} was written"
        );
        let domain = DOMAINS[index];
        let mut named = vec![Invalidation::Iotlb(IotlbScope::Domain(domain))];
        if replace {
            world.set(self.tables[index][1 - current].1, new | 3);
            self.point(index, 1 - current);
            let number = u32::try_from(index + 1).unwrap();
            named.push(Invalidation::PasidCache(PasidCacheScope::Pasid(
                domain, number,
            )));
        } else {
            world.set(self.tables[index][current].1, new | 3);
        }
        state.invalidate_all();
        state.drain_for(&named.iter().collect());
        let old = page(number, turn - 1);
        world.set(old, 0);
        // All but the present one are free, for a time.
        for earlier in turn.saturating_sub(POOL - 2)..turn {
            let free = world.get(page(number, earlier));
            assert_eq!(free, 0, "page {earlier} of PASID {index} was written");
        }
        self.turns[index] = turn;
    }
}

fn software_beside_devices(seed: u64, enough: impl Fn(u32) -> bool) {
    let bench = bench();
    let mut software = Software::new(&bench);
    let stop = AtomicBool::new(false);
    let begun = AtomicU64::new(0);
    thread::scope(|scope| {
        for number in 0..3 {
            let (port, stop, begun) = (bench.port.clone(), &stop, &begun);
            scope.spawn(move || {
                begun.fetch_add(1, Ordering::SeqCst);
                device(&port, seed.wrapping_add(number << 20), stop);
            });
        }
        let _stop = Stop(&stop);
        while begun.load(Ordering::SeqCst) != 3 {
            thread::yield_now();
        }
        let (mut random, mut rounds) = (seed, 0);
        while !enough(rounds) {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(3);
            software.turn((random >> 35) as usize % 5, random >> 62 == 0);
            rounds += 1;
            if random >> 58 & 7 == 0 {
                thread::yield_now();
            }
        }
    });
}

/// Ends the threads beside a test, also when an assertion fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4) })]

    #[test]
    fn after_a_selective_drain_no_device_uses_what_was_taken_away(seed in any::<u64>()) {
        software_beside_devices(seed, |rounds| rounds == 1500);
    }
}

#[test]
#[ignore = "takes a minute"]
fn after_a_selective_drain_no_device_uses_what_was_taken_away_at_length() {
    let since = Instant::now();
    let mut seed = 1;
    while since.elapsed() < Duration::from_secs(60) {
        software_beside_devices(seed, |rounds| rounds == 20_000);
        seed += 1;
    }
}
