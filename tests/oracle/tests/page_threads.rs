//! Threads of devices that make page requests while a driver answers them: every request that the
//! unit took is in the queue once, and its answer arrives once (sections 7.4 to 7.10).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use intel_vtd::{
    DeviceTlb, DeviceTlbInvalidation, EventSink, InlineBudget, InterruptMessage, Interrupts,
    PageRequest, PageRequestRefusal, PageResponse, Pasid, ResponseCode, SourceId, Unit, UnitConfig,
};
use oracle::background::Background;
use oracle::bystanders::{SOURCES, beside, which};
use oracle::driver::entries::{self, PasidEntry};
use oracle::driver::{Driver, command, queue};
use oracle::ram::Memory;
use oracle::rng::Rng;
use vm_memory::{GuestAddress, GuestMemoryMmap};

const PAGE_QUEUE: u64 = 0xa000;
const PASID: u64 = 3;

#[derive(Default)]
struct Events(AtomicU64);

impl EventSink for Events {
    fn deliver(&self, _: InterruptMessage) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// How many answers of each kind are due: (group, PASID).
#[derive(Default)]
struct Device {
    due: Mutex<BTreeMap<(u16, Option<Pasid>), i64>>,
    answers: AtomicU64,
}

impl DeviceTlb for Device {
    fn invalidate(&self, _: DeviceTlbInvalidation) {}

    fn page_response(&self, response: PageResponse) {
        assert_eq!(response.code, ResponseCode::InvalidRequest);
        let key = (response.group, response.pasid);
        *self.due.lock().expect("a device").entry(key).or_default() -= 1;
        self.answers.fetch_add(1, Ordering::Relaxed);
    }
}

fn start(unit: &Arc<Unit<Memory>>, memory: &Memory) -> Driver {
    let mut driver = Driver::new(unit.clone(), memory.clone(), 0x1000, 0x2000);
    let ram = &mut driver.ram;
    ram.store(0x4000, &entries::scalable_root(0x6000, 0));
    let entry = PasidEntry {
        pgtt: 4,
        did: 5,
        ..PasidEntry::default()
    };
    ram.store(0x8000, &[entries::directory(0x9000)]);
    ram.store(0x9000, &entry.words());
    ram.store(0x9000 + PASID * 64, &entry.words());
    for source in SOURCES {
        let mut words = entries::scalable_context(0x8000, 0);
        words[0] |= entries::DEVICE_TLB | entries::PASIDS | entries::PAGE_REQUESTS;
        ram.store(0x6000 + u64::from(source) * 32, &words);
    }
    driver.registers.write64(0xd0, PAGE_QUEUE);
    driver.registers.write32(0xe8, 0xfee0_2000);
    driver.registers.write32(0xe0, 0);
    driver.set_root(0x4000, 1);
    driver.start_queue(true);
    driver.set_command(command::TE, true);
    driver
}

/// Makes requests until told to stop. Returns how many last ones of a group were taken, and how
/// many dropped.
fn request(
    unit: &Unit<Memory>,
    source: u16,
    device: &Device,
    seed: u64,
    stop: &AtomicBool,
) -> [u64; 2] {
    let mut rng = Rng::new(seed);
    let mut counts = [0, 0];
    while !stop.load(Ordering::Relaxed) {
        let pasid = rng.chance(1, 2).then(|| Pasid::new(3)).flatten();
        let group = u16::try_from(rng.below(512)).expect("9 bits");
        let page = PageRequest {
            pasid,
            address: rng.word() & 0xffff_f000,
            read: true,
            write: rng.chance(1, 2),
            execute: false,
            privileged: false,
            group,
            last: rng.chance(3, 4),
        };
        // The answer may come before the call returns.
        let key = (group, pasid);
        let count = |by: i64| {
            if page.last {
                *device.due.lock().expect("a device").entry(key).or_default() += by;
            }
        };
        count(1);
        match unit.request_page(SourceId(source), &page) {
            Ok(()) => counts[0] += u64::from(page.last),
            Err(PageRequestRefusal::Answered(ResponseCode::Success)) if page.last => {
                count(-1);
                counts[1] += 1;
            }
            Err(PageRequestRefusal::Dropped) if !page.last => counts[1] += 1,
            Err(other) => panic!("{page:x?}: {other:?}"),
        }
        if rng.chance(1, 8) {
            std::thread::yield_now();
        }
    }
    counts
}

/// Answers everything that is in the queue.
fn serve(driver: &mut Driver) {
    // PPR first: what comes after that is announced again.
    driver.registers.write32(0xdc, 1);
    let tail = driver.registers.read64(0xc8);
    let mut head = driver.registers.read64(0xc0);
    let mut responses = Vec::new();
    while head != tail {
        let [low, high] = [0, 8].map(|word| driver.ram.load(PAGE_QUEUE + head + word));
        assert_eq!(low & 0xff, 1, "a descriptor at {head:#x}");
        if high & 4 != 0 {
            let pasid = (low >> 8 & 1 != 0).then_some(low >> 32 & 0xf_ffff);
            let source = low >> 16 & 0xffff;
            responses.push(queue::page_response(source, pasid, high >> 3 & 0x1ff, 1));
        }
        // It is not to be served twice.
        driver.ram.store(PAGE_QUEUE + head, &[0]);
        head = (head + 32) % 4096;
    }
    driver.registers.write64(0xc0, head);
    driver.registers.write32(0xdc, 2);
    for batch in responses.chunks(50) {
        driver.invalidate(batch);
    }
    driver.ram.take_journal();
}

#[test]
fn every_page_request_that_was_taken_is_answered_once() {
    let seed = oracle::seed("page_threads");
    let config = UnitConfig::svm(46)
        .with_interrupts(Interrupts::Off)
        .with_snoop_control(false);
    let memory: Memory = Arc::new(
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2_0000)]).expect("guest memory"),
    );
    let events = Arc::new(Events::default());
    let unit = Unit::new(memory.clone(), &config, events.clone()).expect("a unit");
    // All is done by the background, which devices' requests meet.
    let _background = Background::start(&unit, InlineBudget::NOTHING);
    let devices = SOURCES.map(|source| {
        let device = Arc::new(Device::default());
        unit.attach_device_tlb(SourceId(source), device.clone());
        device
    });
    let mut driver = start(&unit, &memory);
    let (served, counts) = beside(
        |number, stop| {
            let which = which(number);
            request(&unit, SOURCES[which], &devices[which], seed ^ number, stop)
        },
        || {
            let until = Instant::now() + Duration::from_secs(1);
            let (mut seen, mut served) = (0, 0_u64);
            while Instant::now() < until {
                // Served only when an event says so: none may be lost.
                let now = events.0.load(Ordering::SeqCst);
                if now == seen {
                    std::thread::yield_now();
                    continue;
                }
                seen = now;
                served += 1;
                serve(&mut driver);
            }
            served
        },
    );
    serve(&mut driver);
    assert_eq!(
        driver.registers.read64(0xc0),
        driver.registers.read64(0xc8),
        "the queue is empty"
    );
    for device in &devices {
        let due = device.due.lock().expect("a device");
        let wrong: Vec<_> = due.iter().filter(|(_, count)| **count != 0).collect();
        assert!(wrong.is_empty(), "answers missing or twice: {wrong:?}");
    }
    let [taken, dropped] = [0, 1].map(|which| counts.iter().map(|one| one[which]).sum::<u64>());
    let answers: u64 = devices
        .iter()
        .map(|device| device.answers.load(Ordering::Relaxed))
        .sum();
    assert_eq!(taken, answers);
    assert!(
        taken > 0 && served > 1,
        "{taken} requests, served {served} times"
    );
    println!("page requests: {taken} answered, {dropped} dropped, the queue served {served} times");
}
