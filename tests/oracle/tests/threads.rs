//! Devices on several threads, while the driver takes pages away from them: after a completed wait,
//! nobody touches what was taken.
//!
//! Each input page has a byte value of its own, which fills whatever physical page it maps to.
//! Devices only ever write that value, and must only ever read it. A page that was taken away is
//! filled with another value, and has to stay so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use intel_vtd::{DmaPort, InlineBudget, Interrupts, Scalable, SourceId, Stages, Unit, UnitConfig};
use oracle::background::{Background, with_backgrounds};
use oracle::bystanders::{
    DATA, FREE, INPUTS, Nowhere, PHYSICAL, SOURCES, beside, fill, input, is_filled, limits, mark,
    memory, which,
};
use oracle::driver::entries::{self, PasidEntry};
use oracle::driver::tables::{Pages, Slot, Space, Stage};
use oracle::driver::{Driver, command, queue};
use oracle::ram::Memory;
use oracle::rng::Rng;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where a nested guest sees its memory.
const NESTED_SHIFT: u64 = 1 << 32;

/// How requests are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Legacy,
    Second,
    First,
    Nested,
}

struct Setting {
    driver: Driver,
    leaves: Vec<Slot>,
    kind: Kind,
    did: u64,
}

impl Setting {
    fn new(kind: Kind, unit: &Arc<Unit<Memory>>, memory: &Memory) -> Self {
        let mut driver = Driver::new(unit.clone(), memory.clone(), 0x1000, 0x2000);
        let mut pages = Pages::new(0x2_0000, 0x10_0000);
        let stage = match kind {
            Kind::Legacy | Kind::Second => Stage::Second,
            Kind::First | Kind::Nested => Stage::First,
        };
        let shift = if kind == Kind::Nested {
            NESTED_SHIFT
        } else {
            0
        };
        let ram = &mut driver.ram;
        let mut space = Space::new(stage, 4, shift, &mut pages, ram).expect("a page");
        let mut host = Space::new(Stage::Second, 4, 0, &mut pages, ram).expect("a page");
        if kind == Kind::Nested {
            for page in (0..0x20_0000).step_by(0x1000) {
                host.map(page + shift, page, 1, 3, &mut pages, ram);
            }
        }
        let leaves = (0..INPUTS)
            .map(|number| {
                let slots = space.map(input(number), 0, 1, 0, &mut pages, ram);
                *slots.expect("pages").last().expect("a leaf")
            })
            .collect();
        let did = 5;
        let (root, mode) = if kind == Kind::Legacy {
            ram.store(0x3000, &entries::root(0x5000));
            for source in SOURCES {
                let at = 0x5000 + u64::from(source) * 16;
                ram.store(at, &entries::context(0, space.pointer(), 2, did));
            }
            (0x3000, 0)
        } else {
            ram.store(0x4000, &entries::scalable_root(0x6000, 0));
            let entry = PasidEntry {
                pgtt: match kind {
                    Kind::First => 1,
                    Kind::Second => 2,
                    _ => 3,
                },
                aw: 2,
                second: match kind {
                    Kind::Second => space.top,
                    Kind::Nested => host.top,
                    _ => 0,
                },
                second_ad: kind != Kind::First,
                snoop_walk: true,
                did,
                first: if stage == Stage::First {
                    space.pointer()
                } else {
                    0
                },
                fspm: 0,
                ..PasidEntry::default()
            };
            ram.store(0x8000, &[entries::directory(0x9000)]);
            ram.store(0x9000, &entry.words());
            for source in SOURCES {
                let at = 0x6000 + u64::from(source) * 32;
                ram.store(at, &entries::scalable_context(0x8000, 0));
            }
            (0x4000, 1)
        };
        driver.set_root(root, mode);
        driver.start_queue(true);
        driver.invalidate(&[queue::context_global(), queue::iotlb_global()]);
        driver.set_command(command::TE, true);
        Self {
            driver,
            leaves,
            kind,
            did,
        }
    }

    fn leaf(&self, page: u64) -> u64 {
        match self.kind {
            Kind::Legacy | Kind::Second => page | 3,
            Kind::First => page | 7,
            Kind::Nested => (page + NESTED_SHIFT) | 7,
        }
    }

    /// The narrowest invalidation that section 6.5.3 has for one input, or a wider one.
    fn invalidate(&mut self, number: u64, rng: &mut Rng) {
        let at = input(number);
        let words = match (self.kind, rng.below(4)) {
            (_, 0) => queue::iotlb_domain(self.did),
            (_, 1) if rng.chance(1, 8) => queue::iotlb_global(),
            (Kind::Legacy | Kind::Second, _) => queue::iotlb_pages(self.did, at, 0, true),
            (_, 2) => queue::pasid_iotlb(self.did, 0),
            _ => queue::pasid_iotlb_pages(self.did, 0, at, 0, true),
        };
        self.driver.invalidate(&[words]);
        self.driver.ram.take_journal();
    }
}

/// A device: reads and writes until told to stop. Returns how many accesses got through.
fn device(port: &DmaPort<Memory>, seed: u64, stop: &AtomicBool, broken: &AtomicU64) -> u64 {
    let mut view = port.view();
    let mut rng = Rng::new(seed);
    let mut through = 0;
    while !stop.load(Ordering::Relaxed) {
        if rng.chance(1, 4) {
            std::thread::yield_now();
        }
        let transaction = view.begin();
        for _ in 0..1 + rng.below(4) {
            let number = rng.below(INPUTS);
            let length = oracle::index(1 + rng.below(96));
            let offset = rng.below(4096 - 96);
            let at = GuestAddress(input(number) + offset);
            if rng.chance(1, 2) {
                let data = [mark(number); 96];
                through += u64::from(transaction.write_slice(&data[..length], at).is_ok());
            } else {
                let mut data = [0; 96];
                if transaction.read_slice(&mut data[..length], at).is_ok() {
                    through += 1;
                    if data[..length].iter().any(|byte| *byte != mark(number)) {
                        broken.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
    }
    through
}

/// Moves pages between inputs and the driver. Returns how often.
fn reclaim(
    setting: &mut Setting,
    memory: &Memory,
    rng: &mut Rng,
    until: Instant,
    most: u64,
) -> u64 {
    let mut free: Vec<u64> = (0..PHYSICAL).map(|page| DATA + page * 0x1000).collect();
    for page in &free {
        fill(memory, *page, FREE);
    }
    let mut mapped: Vec<Option<u64>> = (0..INPUTS).map(|_| None).collect();
    let mut moves = 0;
    while moves < most && Instant::now() < until {
        let number = rng.below(INPUTS);
        let leaf = setting.leaves[oracle::index(number)];
        if let Some(page) = mapped[oracle::index(number)].take() {
            if rng.chance(1, 3) {
                // Straight to another page, with no moment of absence.
                let other = free.swap_remove(oracle::index(rng.below(free.len() as u64)));
                assert!(
                    is_filled(memory, other, FREE),
                    "a page was used while it was free"
                );
                fill(memory, other, mark(number));
                setting.driver.ram.store(leaf.at, &[setting.leaf(other)]);
                mapped[oracle::index(number)] = Some(other);
            } else {
                setting.driver.ram.store(leaf.at, &[0]);
            }
            setting.invalidate(number, rng);
            fill(memory, page, FREE);
            if mapped[oracle::index(number)].is_none() {
                assert_eq!(
                    setting.driver.ram.load(leaf.at),
                    0,
                    "a cleared entry came back"
                );
            }
            for _ in 0..rng.below(4) {
                std::thread::yield_now();
            }
            assert!(
                is_filled(memory, page, FREE),
                "{:?}: page {page:#x} was written after a completed wait",
                setting.kind
            );
            free.push(page);
        } else {
            let page = free.swap_remove(oracle::index(rng.below(free.len() as u64)));
            assert!(
                is_filled(memory, page, FREE),
                "a page was used while it was free"
            );
            fill(memory, page, mark(number));
            setting.driver.ram.store(leaf.at, &[setting.leaf(page)]);
            mapped[oracle::index(number)] = Some(page);
            // In caching mode, also what becomes present is announced.
            setting.invalidate(number, rng);
        }
        moves += 1;
        if moves % 64 == 0 {
            for index in 0..setting.driver.record_count() {
                setting.driver.clear_record(index);
            }
            setting.driver.clear_overflow();
        }
    }
    for page in free {
        assert!(
            is_filled(memory, page, FREE),
            "a page was used while it was free"
        );
    }
    moves
}

#[test]
fn no_thread_touches_a_page_after_the_wait_that_took_it_away() {
    let seed = oracle::seed("threads");
    let kinds = [Kind::Legacy, Kind::Second, Kind::First, Kind::Nested];
    for (kind, inline) in with_backgrounds(kinds) {
        let config = UnitConfig::legacy(46)
            .with_scalable(Scalable::new(Stages::Nested))
            .with_caching_mode(true);
        let memory = memory();
        let unit = Unit::new(memory.clone(), &config, Arc::new(Nowhere)).expect("a unit");
        let _background = inline.map(|inline| Background::start(&unit, inline));
        let mut setting = Setting::new(kind, &unit, &memory);
        let broken = AtomicU64::new(0);
        let (moves, through) = beside(
            |number, stop| {
                let port = unit.port(SourceId(SOURCES[which(number)]));
                device(&port, seed ^ number, stop, &broken)
            },
            || {
                let mut rng = Rng::new(seed ^ 0xff);
                let (until, most) = limits(Duration::from_millis(500));
                reclaim(&mut setting, &memory, &mut rng, until, most)
            },
        );
        let through: u64 = through.iter().sum();
        assert_eq!(
            broken.load(Ordering::Relaxed),
            0,
            "{kind:?}: a device read what is not its own (seed {seed})"
        );
        assert!(through > 0, "{kind:?}: nothing got through");
        println!("threads, {kind:?}: {moves} moves of pages, {through} accesses");
    }
}

#[test]
fn no_interrupt_is_delivered_by_an_entry_after_the_wait_that_replaced_it() {
    for ((), inline) in with_backgrounds([()]) {
        replace_interrupt_entries(inline);
    }
}

fn replace_interrupt_entries(inline: Option<InlineBudget>) {
    let config = UnitConfig::legacy(46)
        .with_scalable(Scalable::new(Stages::Second))
        .with_interrupts(Interrupts::Remapped { x2apic: true });
    let memory: Memory = Arc::new(
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2_0000)]).expect("guest memory"),
    );
    let unit = Unit::new(memory.clone(), &config, Arc::new(Nowhere)).expect("a unit");
    let _background = inline.map(|inline| Background::start(&unit, inline));
    let mut driver = Driver::new(unit.clone(), memory.clone(), 0x1000, 0x2000);
    driver.start_queue(true);
    // The destination counts the versions of the entry; each half of the entry is stored at once.
    let version = |number: u64| entries::Irte {
        vector: 0x30,
        destination: number,
        ..entries::Irte::default()
    };
    driver.ram.store(0x1_0000 + 5 * 16, &version(1).words());
    driver.set_interrupt_table(0x1_0000, 7, true);
    driver.set_command(command::IRE, true);
    let oldest = AtomicU64::new(1);
    let (stop, stale, delivered) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let versions = std::thread::scope(|scope| {
        for _ in 0..2 {
            let (unit, oldest, stop, stale, delivered) =
                (&unit, &oldest, &stop, &stale, &delivered);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let sent = unit.remap_with(SourceId(8), 0xfee0_0010 | 5 << 5, 0, |message| {
                        let number = message.address >> 40 << 8 | message.address >> 12 & 0xff;
                        // No wait can complete while this runs.
                        if number < oldest.load(Ordering::SeqCst) {
                            stale.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                    delivered.fetch_add(u64::from(sent.is_ok()), Ordering::Relaxed);
                    std::thread::yield_now();
                }
            });
        }
        let until = Instant::now() + Duration::from_millis(500);
        let mut number = 1;
        while Instant::now() < until {
            number += 1;
            driver
                .ram
                .store(0x1_0000 + 5 * 16, &version(number).words()[..1]);
            driver.invalidate(&[queue::interrupt_entries(5, 0)]);
            driver.ram.take_journal();
            oldest.store(number, Ordering::SeqCst);
        }
        stop.store(true, Ordering::Relaxed);
        number
    });
    assert_eq!(stale.load(Ordering::Relaxed), 0, "old entries were used");
    assert!(delivered.load(Ordering::Relaxed) > 0);
    println!(
        "interrupts: {versions} versions of an entry, {} delivered",
        delivered.load(Ordering::Relaxed)
    );
}
