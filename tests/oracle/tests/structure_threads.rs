//! Devices on several threads, while the driver replaces what leads to their pages: a table of
//! level 1, a PASID table, a PASID directory. After a completed wait, nobody touches the pages that
//! the replaced one leads to.
//!
//! There are two sides, each with a page for every input but the last, which is in another table
//! and always leads to the same. One word decides, or one for each device, which side is in use.
//! The pages of the other are filled with a value that no device writes, and have to stay so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use intel_vtd::{DmaPort, InlineBudget, Scalable, SourceId, Stages, Unit, UnitConfig};
use oracle::background::Background;
use oracle::bystanders::{
    DATA, FREE, Nowhere, SOURCES, beside, fill, is_filled, limits, mark, memory, which,
};
use oracle::driver::entries::{self, PasidEntry};
use oracle::driver::tables::{Pages, Space, Stage};
use oracle::driver::{Driver, command, queue};
use oracle::ram::Memory;
use oracle::rng::Rng;
use vm_memory::{Bytes, GuestAddress};

const INPUT: u64 = 0x4000_0000;
const INPUTS: u64 = 4;
/// Log2 of it.
const ORDER: u64 = 2;
/// Where the last input is, from the first one on.
const APART: u64 = 0x20_0000;
/// What the first stage makes of inputs where it is nested; the second side follows 64 KiB behind.
const MIDDLE: u64 = 0x8000_0000;
const DID: u64 = 5;
const FLAGS: u64 = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Legacy,
    Second,
    First,
    Nested,
}

/// What is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// By the entry of level 2 of the stage that translates inputs.
    Table,
    /// By the entry of level 2 of the second stage under data.
    TableBelow,
    /// By the entry of the PASID directory.
    PasidTable,
    /// By context entries.
    Directory,
}

/// Where an input is, from the first one on.
fn offset(number: u64) -> u64 {
    if number == INPUTS {
        APART
    } else {
        number * 0x1000
    }
}

fn page(side: u64, number: u64) -> u64 {
    if number == INPUTS {
        DATA + 2 * INPUTS * 0x1000
    } else {
        DATA + (side * INPUTS + number) * 0x1000
    }
}

fn middle(side: u64, number: u64) -> u64 {
    if number == INPUTS {
        MIDDLE + APART
    } else {
        MIDDLE + side * 0x1_0000 + offset(number)
    }
}

struct Setting {
    driver: Driver,
    kind: Kind,
    what: What,
    /// Where a word is to be replaced, and by what for each side.
    switches: Vec<(u64, [u64; 2])>,
}

/// Maps the inputs of a side; returns where the entry of level 2 is, and what it is.
fn map_inputs(
    space: &mut Space,
    target: impl Fn(u64) -> u64,
    at: u64,
    flags: u64,
    pages: &mut Pages,
    driver: &mut Driver,
) -> (u64, u64) {
    let mut upper = 0;
    for number in (0..=INPUTS).rev() {
        let slots = space.map(
            at + offset(number),
            target(number),
            1,
            flags,
            pages,
            &mut driver.ram,
        );
        upper = slots.expect("pages").get(2).expect("level 2").at;
    }
    (upper, driver.ram.load(upper))
}

impl Setting {
    fn new(kind: Kind, what: What, unit: &Arc<Unit<Memory>>, memory: &Memory) -> Self {
        let mut driver = Driver::new(unit.clone(), memory.clone(), 0x1000, 0x2000);
        let mut pages = Pages::new(0x2_0000, 0x10_0000);
        let nested = kind == Kind::Nested;
        let stage = match kind {
            Kind::Legacy | Kind::Second => Stage::Second,
            Kind::First | Kind::Nested => Stage::First,
        };
        let mut new = |stage, driver: &mut Driver| {
            Space::new(stage, 4, 0, &mut pages, &mut driver.ram).expect("a page")
        };
        let mut sides = [new(stage, &mut driver), new(stage, &mut driver)];
        let mut hosts = [
            new(Stage::Second, &mut driver),
            new(Stage::Second, &mut driver),
        ];
        let (mut tables, mut below) = (Vec::new(), Vec::new());
        for (side, space) in (0..).zip(&mut sides) {
            let target = |number| {
                if nested {
                    middle(side, number)
                } else {
                    page(side, number)
                }
            };
            let flags = if stage == Stage::First { FLAGS } else { 3 };
            tables.push(map_inputs(
                space,
                target,
                INPUT,
                flags,
                &mut pages,
                &mut driver,
            ));
        }
        for (side, host) in (0..).zip(&mut hosts) {
            if !nested {
                continue;
            }
            // Tables stay where they are.
            for at in (0..0x20_0000).step_by(0x1000) {
                let mapped = host.map(at, at, 1, 3, &mut pages, &mut driver.ram);
                mapped.expect("pages");
            }
            // The first host has both sides; the second has its own where the first one has the
            // other.
            let here = |number| page(side, number);
            below.push(map_inputs(host, here, MIDDLE, 3, &mut pages, &mut driver));
            let there = |number| page(1, number);
            map_inputs(host, there, middle(1, 0), 3, &mut pages, &mut driver);
        }
        let switches = if kind == Kind::Legacy {
            driver.ram.store(0x3000, &entries::root(0x5000));
            let contexts =
                [&sides[0], &sides[1]].map(|side| entries::context(0, side.pointer(), 2, DID));
            let places = SOURCES.map(|source| 0x5000 + u64::from(source) * 16);
            for at in places {
                driver.ram.store(at, &contexts[0]);
            }
            match what {
                What::Table => vec![(tables[0].0, [tables[0].1, tables[1].1])],
                _ => places
                    .map(|at| (at, [contexts[0][0], contexts[1][0]]))
                    .to_vec(),
            }
        } else {
            driver.ram.store(0x4000, &entries::scalable_root(0x6000, 0));
            for ((side, directory), table) in
                sides.iter().zip([0x8000, 0xa000]).zip([0x9000, 0xb000])
            {
                let entry = PasidEntry {
                    pgtt: match kind {
                        Kind::First => 1,
                        Kind::Second => 2,
                        _ => 3,
                    },
                    aw: 2,
                    second: match kind {
                        Kind::Second => side.top,
                        Kind::Nested => hosts[0].top,
                        _ => 0,
                    },
                    second_ad: kind != Kind::First,
                    snoop_walk: true,
                    did: DID,
                    first: if stage == Stage::First { side.top } else { 0 },
                    ..PasidEntry::default()
                };
                driver.ram.store(directory, &[entries::directory(table)]);
                driver.ram.store(table, &entry.words());
            }
            let contexts =
                [0x8000, 0xa000].map(|directory| entries::scalable_context(directory, 0));
            let places = SOURCES.map(|source| 0x6000 + u64::from(source) * 32);
            for at in places {
                driver.ram.store(at, &contexts[0]);
            }
            match what {
                What::Table => vec![(tables[0].0, [tables[0].1, tables[1].1])],
                What::TableBelow => vec![(below[0].0, [below[0].1, below[1].1])],
                What::PasidTable => vec![(0x8000, [0x9000, 0xb000].map(entries::directory))],
                What::Directory => places
                    .map(|at| (at, [contexts[0][0], contexts[1][0]]))
                    .to_vec(),
            }
        };
        let (root, mode) = if kind == Kind::Legacy {
            (0x3000, 0)
        } else {
            (0x4000, 1)
        };
        driver.set_root(root, mode);
        driver.start_queue(true);
        driver.set_command(command::TE, true);
        Self {
            driver,
            kind,
            what,
            switches,
        }
    }

    /// Puts `side` in use, and invalidates as narrowly as section 6.5.3 permits, or wider.
    fn switch(&mut self, side: usize, rng: &mut Rng) {
        for (at, words) in &self.switches {
            self.driver.ram.store(*at, &[words[side]]);
        }
        let mut commands = Vec::new();
        if self.what == What::Directory {
            if rng.chance(1, 2) {
                commands.push(queue::context_global());
            } else {
                let devices = SOURCES.map(|source| queue::context_device(DID, source.into(), 0));
                commands.extend(devices);
            }
        }
        if matches!(self.what, What::Directory | What::PasidTable) && self.kind != Kind::Legacy {
            commands.push(match rng.below(3) {
                0 => queue::pasid_cache_global(),
                1 => queue::pasid_cache_domain(DID),
                _ => queue::pasid_cache_pasid(DID, 0),
            });
        }
        let second = matches!(self.kind, Kind::Legacy | Kind::Second);
        commands.push(match (self.what, rng.below(3)) {
            (_, 0) => queue::iotlb_domain(DID),
            (What::Table, 1) if second => queue::iotlb_pages(DID, INPUT, ORDER, false),
            (What::TableBelow, 1) => queue::iotlb_pages(DID, MIDDLE, ORDER, false),
            (What::TableBelow, _) => queue::iotlb_domain(DID),
            (What::Table, 1) => queue::pasid_iotlb_pages(DID, 0, INPUT, ORDER, false),
            _ if second => queue::iotlb_domain(DID),
            _ => queue::pasid_iotlb(DID, 0),
        });
        self.driver.invalidate(&commands);
        self.driver.ram.take_journal();
    }
}

/// A device: reads and writes until told to stop, and once at least, as a busy machine may not let it
/// begin before that. Returns how many accesses it made.
fn device(port: &DmaPort<Memory>, seed: u64, stop: &AtomicBool) -> u64 {
    let mut view = port.view();
    let mut rng = Rng::new(seed);
    let mut made = 0;
    loop {
        if rng.chance(1, 4) {
            std::thread::yield_now();
        }
        let transaction = view.begin();
        for _ in 0..1 + rng.below(4) {
            let number = rng.below(INPUTS + 1);
            let at = GuestAddress(INPUT + offset(number) + rng.below(0x1000));
            if rng.chance(1, 2) {
                transaction.write_obj(mark(number), at).expect("a page");
            } else {
                let byte: u8 = transaction.read_obj(at).expect("a page");
                assert_eq!(
                    byte,
                    mark(number),
                    "{at:x?}: read from a page of the other side"
                );
            }
            made += 1;
        }
        if stop.load(Ordering::Relaxed) {
            return made;
        }
    }
}

/// Goes from side to side. Returns how often.
fn switch(setting: &mut Setting, memory: &Memory, rng: &mut Rng, until: Instant, most: u64) -> u64 {
    let (mut old, mut new, mut rounds) = (0, 1, 0);
    while rounds == 0 || (rounds < most && Instant::now() < until) {
        (0..INPUTS).for_each(|number| fill(memory, page(new, number), mark(number)));
        setting.switch(oracle::index(new), rng);
        (0..INPUTS).for_each(|number| fill(memory, page(old, number), FREE));
        for _ in 0..rng.below(4) {
            std::thread::yield_now();
        }
        for number in 0..INPUTS {
            assert!(
                is_filled(memory, page(old, number), FREE),
                "{:?}: a page was written though its {:?} was replaced",
                setting.kind,
                setting.what
            );
        }
        (old, new) = (new, old);
        rounds += 1;
    }
    rounds
}

#[test]
fn no_thread_goes_through_what_was_replaced_before_a_completed_wait() {
    let seed = oracle::seed("structure threads");
    for (kind, what) in [
        (Kind::Legacy, What::Table),
        (Kind::Legacy, What::Directory),
        (Kind::Second, What::Table),
        (Kind::Second, What::PasidTable),
        (Kind::Second, What::Directory),
        (Kind::First, What::Table),
        (Kind::First, What::PasidTable),
        (Kind::First, What::Directory),
        (Kind::Nested, What::Table),
        (Kind::Nested, What::TableBelow),
        (Kind::Nested, What::PasidTable),
        (Kind::Nested, What::Directory),
    ] {
        let config = UnitConfig::legacy(46).with_scalable(Scalable::new(Stages::Nested));
        let memory = memory();
        for number in 0..INPUTS {
            fill(&memory, page(1, number), FREE);
        }
        for number in 0..=INPUTS {
            fill(&memory, page(0, number), mark(number));
        }
        let unit = Unit::new(memory.clone(), &config, Arc::new(Nowhere)).expect("a unit");
        let _background = Background::start(&unit, InlineBudget::default());
        let mut setting = Setting::new(kind, what, &unit, &memory);
        let (rounds, accesses) = beside(
            |number, stop| {
                let port = unit.port(SourceId(SOURCES[which(number)]));
                device(&port, seed ^ number, stop)
            },
            || {
                let mut rng = Rng::new(seed ^ 0xff);
                let (until, most) = limits(Duration::from_millis(200));
                switch(&mut setting, &memory, &mut rng, until, most)
            },
        );
        let accesses: u64 = accesses.iter().sum();
        assert!(rounds > 0 && accesses > 0, "{kind:?}: nothing happened");
        println!("{kind:?}, {what:?}: replaced {rounds} times, {accesses} accesses");
    }
}
