//! Commands, events and single requests that the random guest does not make.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use intel_vtd::{EventSink, InterruptMessage, Pasid, SourceId, Unit, UnitConfig};
use oracle::driver::entries::{self, PasidEntry};
use oracle::driver::{Driver, command};
use oracle::machine::guest::configuration;
use oracle::ram::Memory;
use oracle::rng::Rng;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

#[derive(Default)]
struct Events {
    count: AtomicU64,
    last: Mutex<Option<InterruptMessage>>,
}

impl EventSink for Events {
    fn deliver(&self, message: InterruptMessage) {
        self.count.fetch_add(1, Ordering::Relaxed);
        *self.last.lock().expect("events") = Some(message);
    }
}

fn machine(config: &UnitConfig) -> (Driver, Memory, Arc<Events>, Arc<Unit<Memory>>) {
    let memory: Memory = Arc::new(
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).expect("guest memory"),
    );
    let events = Arc::new(Events::default());
    let unit = Unit::new(memory.clone(), config, events.clone()).expect("a configuration");
    let driver = Driver::new(unit.clone(), memory.clone(), 0x1000, 0x2000);
    (driver, memory, events, unit)
}

fn full() -> UnitConfig {
    UnitConfig::scalable(46)
}

#[test]
fn every_configuration_starts_with_the_specified_values_and_returns_to_them() {
    let mut rng = Rng::new(2);
    for _ in 0..100 {
        let config = configuration(&mut rng);
        let (mut driver, _memory, _events, unit) = machine(&config);
        driver.check_reset().expect("reset values");
        driver.set_root(0x3000, u64::from(config.scalable.is_some()));
        driver.start_queue(config.scalable.is_some());
        driver.set_command(command::TE, true);
        if config.interrupts.remapped() {
            driver.set_interrupt_table(0x4000, 3, config.interrupts.x2apic());
            driver.set_command(command::IRE, true);
        }
        for _ in 0..20 {
            let mut view = unit.port(SourceId(8)).view();
            assert!(view.begin().read_obj::<u32>(GuestAddress(0x5000)).is_err());
        }
        driver.registers.write32(0x38, 0);
        if config.page_requests() {
            for (offset, value) in [(0xc0, 0x20), (0xc8, 0x40), (0xd0, 0x5000)] {
                driver.registers.write64(offset, value);
            }
            driver.registers.write32(0xe0, 0);
            driver.registers.write32(0xe4, 0x77);
        }
        unit.reset();
        driver.check_reset().expect("values after reset");
        // Without translation, a device sees memory itself.
        let mut view = unit.port(SourceId(8)).view();
        assert!(view.begin().read_obj::<u32>(GuestAddress(0x5000)).is_ok());
    }
}

#[test]
fn one_shot_commands_keep_their_status_and_level_commands_follow() {
    let (mut driver, ..) = machine(&full());
    let status = |driver: &Driver| driver.registers.read32(0x1c);
    assert_eq!(status(&driver), 0);
    driver.set_root(0x3000, 1);
    assert_eq!(status(&driver), 1 << 30);
    driver.start_queue(true);
    assert_eq!(status(&driver), 1 << 30 | 1 << 26);
    driver.set_interrupt_table(0x4000, 3, true);
    assert_eq!(status(&driver), 1 << 30 | 1 << 26 | 1 << 24);
    driver.set_command(command::TE, true);
    driver.set_command(command::IRE, true);
    driver.set_command(command::CFI, true);
    assert_eq!(
        status(&driver),
        1 << 31 | 1 << 30 | 1 << 26 | 1 << 25 | 1 << 24 | 1 << 23
    );
    // A write-buffer flush is not needed, so it is ignored; the rest is a level.
    driver
        .registers
        .write32(0x18, 1 << 31 | 1 << 27 | 1 << 26 | 1 << 25 | 1 << 23);
    assert_eq!(
        status(&driver),
        1 << 31 | 1 << 30 | 1 << 26 | 1 << 25 | 1 << 24 | 1 << 23
    );
    driver.registers.write32(0x18, 0);
    assert_eq!(status(&driver) & !(1 << 30 | 1 << 24), 0);
}

#[test]
fn a_wait_writes_its_status_and_sends_one_event_until_it_is_acknowledged() {
    let (mut driver, memory, events, _unit) = machine(&full());
    driver.set_root(0x3000, 1);
    driver.start_queue(true);
    driver.registers.write32(0xa4, 0x55);
    driver.registers.write32(0xa8, 0xfee0_3000);
    driver.registers.write32(0xac, 0x1200);
    let submit = |driver: &mut Driver, words: [u64; 4]| {
        driver.queue.push(&mut driver.ram, &words);
        driver.registers.write64(0x88, driver.queue.tail());
    };
    // IF alone, masked: IWC and IP.
    submit(&mut driver, [0x15, 0, 0, 0]);
    assert_eq!(driver.registers.read32(0x9c), 1);
    assert_eq!(driver.registers.read32(0xa0), 0xc000_0000);
    assert_eq!(events.count.load(Ordering::Relaxed), 0);
    driver.registers.write32(0xa0, 0);
    assert_eq!(events.count.load(Ordering::Relaxed), 1);
    assert_eq!(driver.registers.read32(0xa0), 0);
    let message = events.last.lock().expect("events").expect("an event");
    assert_eq!((message.address, message.data), (0x1200_fee0_3000, 0x55));
    // IWC is still set: the next completion sends nothing.
    submit(&mut driver, [0x35 | 0xabcd_0123 << 32, 0x5000, 0, 0]);
    assert_eq!(events.count.load(Ordering::Relaxed), 1);
    let written: u64 = memory.read_obj(GuestAddress(0x5000)).expect("memory");
    assert_eq!(written, 0xabcd_0123);
    driver.registers.write32(0x9c, 1);
    assert_eq!(driver.registers.read32(0x9c), 0);
    submit(&mut driver, [0x15, 0, 0, 0]);
    assert_eq!(events.count.load(Ordering::Relaxed), 2);
    // A status that is no memory stops nothing.
    submit(&mut driver, [0x25, 0x3_0000_0000, 0, 0]);
    assert_eq!(driver.fault_status(), 0);
    assert_eq!(driver.registers.read64(0x80), driver.queue.tail());
}

#[test]
fn requests_with_a_pasid_are_blocked_where_pasids_are_not_announced() {
    let (mut driver, _memory, _events, unit) = machine(&full());
    driver.ram.store(0x3000, &entries::root(0x5000));
    driver
        .ram
        .store(0x5000 + 8 * 16, &entries::context(2, 0, 2, 1));
    driver.ram.store(0x4000, &entries::scalable_root(0x6000, 0));
    driver
        .ram
        .store(0x6000 + 8 * 32, &entries::scalable_context(0x7000, 0));
    driver.ram.store(0x7000, &[entries::directory(0x8000)]);
    let entry = PasidEntry {
        pgtt: 4,
        did: 1,
        ..PasidEntry::default()
    };
    for pasid in 0..3 {
        driver.ram.store(0x8000 + pasid * 64, &entry.words());
    }
    let mut view = unit.port(SourceId(8)).view();
    driver.set_root(0x3000, 0);
    driver.set_command(command::TE, true);
    // Section 7.1.3: RTA.2 in legacy mode. In scalable mode PASIDE is reserved, so it is SCT.6 or,
    // for what exceeds PSS, SGN.10.
    for (root, mode, codes) in [(0x3000, 0, &[0x31][..]), (0x4000, 1, &[0x45, 0x89])] {
        driver.set_root(root, mode);
        let at = GuestAddress(0x9000);
        assert!(view.begin().read_obj::<u32>(at).is_ok(), "mode {mode}");
        for pasid in [0, 1, 2, 0xf_ffff] {
            let transaction = view.begin_pasid(Pasid::new(pasid));
            assert!(transaction.read_obj::<u32>(at).is_err(), "PASID {pasid:#x}");
            drop(transaction);
            let index = driver
                .fault_records()
                .iter()
                .position(|record| record.valid());
            let index = index.expect("a record");
            let record = driver.fault_records()[index];
            assert!(
                codes.contains(&record.reason()),
                "{record:x?} in mode {mode}"
            );
            assert_eq!(record.high & 0xffff, 8);
            driver.clear_record(index as u64);
        }
    }
}

#[test]
fn translation_types_that_are_not_defined_are_invalid() {
    let (mut driver, _memory, _events, unit) = machine(&full());
    driver.ram.store(0x4000, &entries::scalable_root(0x6000, 0));
    driver
        .ram
        .store(0x6000 + 8 * 32, &entries::scalable_context(0x7000, 0));
    driver.ram.store(0x7000, &[entries::directory(0x8000)]);
    driver.set_root(0x4000, 1);
    driver.start_queue(true);
    driver.set_command(command::TE, true);
    let mut view = unit.port(SourceId(8)).view();
    for pgtt in [0, 5, 6, 7] {
        for aw in 0..8 {
            let entry = PasidEntry {
                pgtt,
                aw,
                did: 1,
                second: 0x9000,
                second_ad: true,
                ..PasidEntry::default()
            };
            driver.ram.store(0x8000, &entry.words());
            driver.invalidate(&[
                oracle::driver::queue::context_global(),
                oracle::driver::queue::pasid_cache_global(),
                oracle::driver::queue::iotlb_global(),
            ]);
            assert!(view.begin().read_obj::<u32>(GuestAddress(0x5000)).is_err());
            let record = driver
                .fault_records()
                .into_iter()
                .find(|record| record.valid())
                .expect("a record");
            assert_eq!(record.reason(), 0x5b, "PGTT {pgtt}, AW {aw}");
            let index = driver
                .fault_records()
                .iter()
                .position(|record| record.valid())
                .expect("a record");
            driver.clear_record(index as u64);
        }
    }
}
