//! Threads of DMA with PASIDs and device-TLBs, while the driver takes pages away, switches
//! translation off, changes the root table or resets the unit: nothing arrives where it may not
//! arrive any more.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use intel_vtd::{
    DeviceTlb, DeviceTlbInvalidation, DeviceTlbTarget, DmaPort, InlineBudget, Interrupts,
    PageResponse, Pasid, SourceId, Unit, UnitConfig,
};
use oracle::background::Background;
use oracle::bystanders::{
    DATA, FREE, INPUTS, Nowhere, PHYSICAL, SOURCES, beside, fill, input, is_filled, limits, mark,
    memory, which,
};
use oracle::driver::entries::{self, PasidEntry};
use oracle::driver::tables::{Pages, Slot, Space, Stage};
use oracle::driver::{Driver, command, queue};
use oracle::ram::Memory;
use oracle::rng::Rng;
use vm_memory::{Bytes, GuestAddress};

const PASID: u64 = 3;
const EMPTY_ROOT: u64 = 0xb000;

/// How requests are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Legacy,
    Second,
    First,
}

/// PASID and input page.
type Key = (Option<u64>, u64);

/// Physical page, readable, writable.
type Kept = (u64, bool, bool);

/// What a device was told.
#[derive(Default)]
struct Tlb(Mutex<HashMap<Key, Kept>>);

impl DeviceTlb for Tlb {
    fn invalidate(&self, invalidation: DeviceTlbInvalidation) {
        let first = invalidation.address;
        let last = first
            | 1_u64
                .checked_shl(invalidation.shift.into())
                .map_or(u64::MAX, |size| size - 1);
        let mut kept = self.0.lock().expect("a device-TLB");
        kept.retain(|(pasid, input), _| {
            let concerns = match invalidation.target {
                DeviceTlbTarget::WithoutPasid => pasid.is_none(),
                DeviceTlbTarget::Pasid(target) => *pasid == Some(target.get().into()),
                DeviceTlbTarget::AllPasids => pasid.is_some(),
            };
            !(concerns && (first..=last).contains(input))
        });
    }

    fn page_response(&self, _: PageResponse) {}
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
        let ram = &mut driver.ram;
        let stage = if kind == Kind::First {
            Stage::First
        } else {
            Stage::Second
        };
        let mut space = Space::new(stage, 4, 0, &mut pages, ram).expect("a page");
        let leaves = (0..INPUTS)
            .map(|number| {
                let slots = space.map(input(number), 0, 1, 0, &mut pages, ram);
                *slots.expect("pages").last().expect("a leaf")
            })
            .collect();
        let did = 5;
        if kind == Kind::Legacy {
            ram.store(0x3000, &entries::root(0x5000));
            for source in SOURCES {
                let at = 0x5000 + u64::from(source) * 16;
                ram.store(at, &entries::context(1, space.pointer(), 2, did));
            }
        } else {
            ram.store(0x4000, &entries::scalable_root(0x6000, 0));
            let first = kind == Kind::First;
            let entry = PasidEntry {
                pgtt: if first { 1 } else { 2 },
                aw: 2,
                second: if first { 0 } else { space.top },
                second_ad: !first,
                snoop_walk: true,
                did,
                first: if first { space.pointer() } else { 0 },
                extended_accessed: first,
                ..PasidEntry::default()
            };
            ram.store(0x8000, &[entries::directory(0x9000)]);
            ram.store(0x9000, &entry.words());
            ram.store(0x9000 + PASID * 64, &entry.words());
            for source in SOURCES {
                let at = 0x6000 + u64::from(source) * 32;
                let mut words = entries::scalable_context(0x8000, 0);
                words[0] |= entries::DEVICE_TLB | entries::PASIDS;
                ram.store(at, &words);
            }
        }
        let mut setting = Self {
            driver,
            leaves,
            kind,
            did,
        };
        setting.start();
        setting
    }

    fn set_root(&self) {
        let (root, mode) = if self.kind == Kind::Legacy {
            (0x3000, 0)
        } else {
            (0x4000, 1)
        };
        self.driver.set_root(root, mode);
    }

    fn start(&mut self) {
        self.set_root();
        self.driver.start_queue(true);
        self.driver
            .invalidate(&[queue::context_global(), queue::iotlb_global()]);
        self.driver.set_command(command::TE, true);
    }

    fn leaf(&self, page: u64) -> u64 {
        page | if self.kind == Kind::First { 7 } else { 3 }
    }

    fn write_leaf(&mut self, number: u64, word: u64) {
        let at = self.leaves[oracle::index(number)].at;
        self.driver.ram.store(at, &[word]);
    }

    /// Invalidates one input as section 6.5.3 says: the unit's caches, then those of the devices.
    fn invalidate(&mut self, number: u64, rng: &mut Rng) {
        let at = input(number);
        let mut words = match (self.kind, rng.below(3)) {
            (_, 0) => vec![queue::iotlb_domain(self.did)],
            (Kind::First, 1) => [0, PASID]
                .map(|pasid| queue::pasid_iotlb(self.did, pasid))
                .to_vec(),
            (Kind::First, _) => [0, PASID]
                .map(|pasid| queue::pasid_iotlb_pages(self.did, pasid, at, 0, true))
                .to_vec(),
            _ => vec![queue::iotlb_pages(self.did, at, 0, true)],
        };
        let shift = rng.pick(&[12, 12, 13, 21, 64]);
        for source in SOURCES.map(u64::from) {
            words.push(queue::device_tlb(source, at, shift));
            if self.kind != Kind::Legacy {
                let pasid = rng.chance(3, 4).then_some(PASID);
                words.push(queue::pasid_device_tlb(source, pasid, at, shift));
            }
        }
        self.driver.invalidate(&words);
        self.driver.ram.take_journal();
    }

    fn clear_log(&self) {
        for index in 0..self.driver.record_count() {
            self.driver.clear_record(index);
        }
        self.driver.clear_overflow();
    }
}

/// What the threads share.
struct Shared<'a> {
    stop: &'a AtomicBool,
    broken: &'a AtomicU64,
    kind: Kind,
}

/// A device: asks, keeps, uses; or makes untranslated requests. Returns how much got through:
/// untranslated, translated.
fn device(port: &DmaPort<Memory>, tlb: &Tlb, seed: u64, shared: &Shared<'_>) -> [u64; 2] {
    let mut view = port.view();
    let mut rng = Rng::new(seed);
    let mut through = [0, 0];
    while !shared.stop.load(Ordering::Relaxed) {
        if rng.chance(1, 4) {
            std::thread::yield_now();
        }
        let pasid = (shared.kind != Kind::Legacy && rng.chance(1, 2)).then_some(PASID);
        let number = rng.below(INPUTS);
        let key = (pasid, input(number));
        let name = pasid.and_then(|pasid| Pasid::new(u32::try_from(pasid).unwrap_or(0)));
        let length = oracle::index(1 + rng.below(96));
        let offset = rng.below(4096 - 96);
        let translated = rng.chance(2, 3);
        let mut write = rng.chance(1, 2);
        let (transaction, at) = if translated {
            let known = tlb.0.lock().expect("a device-TLB").contains_key(&key);
            if !known {
                let transaction = view.begin_pasid(name);
                let no_write = rng.chance(1, 3);
                if let Ok(answer) = transaction.translate(input(number), no_write)
                    && (answer.readable || answer.writable)
                {
                    let value = (answer.address, answer.readable, answer.writable);
                    tlb.0.lock().expect("a device-TLB").insert(key, value);
                }
            }
            let transaction = view.begin_translated();
            let kept = tlb.0.lock().expect("a device-TLB").get(&key).copied();
            let Some((page, readable, writable)) = kept else {
                continue;
            };
            write = writable && (write || !readable);
            (transaction, GuestAddress(page + offset))
        } else {
            (view.begin_pasid(name), GuestAddress(input(number) + offset))
        };
        let counter = &mut through[usize::from(translated)];
        if write {
            let data = [mark(number); 96];
            *counter += u64::from(transaction.write_slice(&data[..length], at).is_ok());
        } else {
            let mut data = [0; 96];
            if transaction.read_slice(&mut data[..length], at).is_ok() {
                *counter += 1;
                if data[..length].iter().any(|byte| *byte != mark(number)) {
                    shared.broken.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
    through
}

/// Runs devices while `driver` does what it does, and returns what that returned.
fn with_devices<R>(
    kind: Kind,
    seed: u64,
    driver: impl FnOnce(&mut Setting, &Memory, &Arc<Unit<Memory>>, &[Arc<Tlb>]) -> R,
) -> R {
    let config = UnitConfig::svm(46)
        .with_interrupts(Interrupts::Off)
        .with_caching_mode(true)
        .with_snoop_control(false);
    let memory = memory();
    let unit = Unit::new(memory.clone(), &config, Arc::new(Nowhere)).expect("a unit");
    let tlbs: Vec<Arc<Tlb>> = SOURCES
        .iter()
        .map(|source| {
            let tlb = Arc::new(Tlb::default());
            unit.attach_device_tlb(SourceId(*source), tlb.clone());
            tlb
        })
        .collect();
    let _background = Background::start(&unit, InlineBudget::default());
    let mut setting = Setting::new(kind, &unit, &memory);
    let broken = AtomicU64::new(0);
    let (result, through) = beside(
        |number, stop| {
            let which = which(number);
            let port = unit.port(SourceId(SOURCES[which]));
            let shared = Shared {
                stop,
                broken: &broken,
                kind,
            };
            device(&port, &tlbs[which], seed ^ number, &shared)
        },
        || driver(&mut setting, &memory, &unit, &tlbs),
    );
    assert_eq!(
        broken.load(Ordering::Relaxed),
        0,
        "{kind:?}: a device read what is not its own (seed {seed})"
    );
    let sums = [0, 1].map(|which| through.iter().map(|one| one[which]).sum::<u64>());
    assert!(
        sums.iter().all(|sum| *sum > 0),
        "{kind:?}: nothing got through: {sums:?}"
    );
    println!("device threads, {kind:?}: untranslated and translated accesses {sums:?}");
    result
}

#[test]
fn no_device_uses_a_page_after_the_wait_that_took_it_away() {
    let seed = oracle::seed("device_threads");
    for kind in [Kind::Legacy, Kind::Second, Kind::First] {
        let moves = with_devices(kind, seed, |setting, memory, _, _| {
            let (until, most) = limits(Duration::from_millis(800));
            let mut rng = Rng::new(seed ^ 0xff);
            let mut free: Vec<u64> = (0..PHYSICAL).map(|page| DATA + page * 0x1000).collect();
            for page in &free {
                fill(memory, *page, FREE);
            }
            let leaves = setting.leaves.len();
            let mut mapped = vec![None; leaves];
            let mut moves = 0_u64;
            while moves < most && Instant::now() < until {
                let number = rng.below(INPUTS);
                let place = &mut mapped[oracle::index(number)];
                let old: Option<u64> = place.take();
                if old.is_none() || rng.chance(1, 3) {
                    let page = free.swap_remove(oracle::index(rng.below(free.len() as u64)));
                    assert!(
                        is_filled(memory, page, FREE),
                        "{kind:?}: a free page was used"
                    );
                    fill(memory, page, mark(number));
                    *place = Some(page);
                }
                let word = place.map_or(0, |page| setting.leaf(page));
                setting.write_leaf(number, word);
                setting.invalidate(number, &mut rng);
                if let Some(page) = old {
                    fill(memory, page, FREE);
                    for _ in 0..rng.below(4) {
                        std::thread::yield_now();
                    }
                    assert!(
                        is_filled(memory, page, FREE),
                        "{kind:?}: page {page:#x} was written after a completed wait (seed {seed})"
                    );
                    free.push(page);
                }
                moves += 1;
                if moves.is_multiple_of(64) {
                    setting.clear_log();
                }
            }
            for page in free {
                assert!(
                    is_filled(memory, page, FREE),
                    "{kind:?}: a free page was used"
                );
            }
            moves
        });
        println!("device threads, {kind:?}: {moves} moves of pages");
    }
}

#[test]
fn nothing_arrives_once_translation_is_off_or_has_another_root_or_the_unit_is_reset() {
    let seed = oracle::seed("device_threads");
    for kind in [Kind::Legacy, Kind::Second, Kind::First] {
        let rounds = with_devices(kind, seed, |setting, memory, unit, tlbs| {
            let (until, most) = limits(Duration::from_millis(500));
            let mut rng = Rng::new(seed ^ 0xfe);
            let page = |number: u64| DATA + number * 0x1000;
            for number in 0..INPUTS {
                fill(memory, page(number), mark(number));
                setting.write_leaf(number, setting.leaf(page(number)));
                setting.invalidate(number, &mut rng);
            }
            let mut rounds = 0_u64;
            while rounds < most && Instant::now() < until {
                let what = rng.below(4);
                match what {
                    0 => setting.driver.set_command(command::TE, false),
                    1 => setting.driver.set_root(EMPTY_ROOT, 0),
                    2 => setting.driver.set_root(EMPTY_ROOT, 1),
                    _ => unit.reset(),
                }
                for number in 0..INPUTS {
                    fill(memory, page(number), FREE);
                }
                for _ in 0..rng.below(6) {
                    std::thread::yield_now();
                }
                for number in 0..INPUTS {
                    assert!(
                        is_filled(memory, page(number), FREE),
                        "{kind:?}: page {number} was written after command {what} (seed {seed})"
                    );
                    fill(memory, page(number), mark(number));
                }
                match what {
                    0 => setting.driver.set_command(command::TE, true),
                    1 | 2 => setting.set_root(),
                    _ => {
                        setting.driver.check_reset().expect("reset values");
                        for tlb in tlbs {
                            tlb.0.lock().expect("a device-TLB").clear();
                        }
                        setting.start();
                    }
                }
                for _ in 0..rng.below(6) {
                    std::thread::yield_now();
                }
                rounds += 1;
                setting.driver.ram.take_journal();
                if rounds.is_multiple_of(16) {
                    setting.clear_log();
                }
            }
            rounds
        });
        println!("device threads, {kind:?}: {rounds} times off and on");
    }
}
