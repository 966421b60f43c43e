//! The extension in front of a real unit in scalable mode. Tables, registers and descriptors are
//! written with literals from the VT-d specification.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use intel_vtd::{EventSink, InterruptMessage, Interrupts, SourceId, Unit, UnitConfig};
use pci::{Bdf, IntxSink, MsiSink, PciFunction};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Edu, EduFeatures, EduOptions};
use crate::Memory;

pub(super) const SOURCE: u64 = 0x18;
pub(super) const PASID: u64 = 5;
/// An input address, its page table entry, and two pages that it may stand for.
pub(super) const INPUT: u64 = 0x5000;
pub(super) const ENTRY: u64 = PAGE_TABLE + 8 * 5;
pub(super) const FIRST: u64 = 0x4_0000;
pub(super) const SECOND: u64 = 0x4_1000;

const ROOT: u64 = 0x1_0000;
const CONTEXT: u64 = 0x1_1000;
const DIRECTORY: u64 = 0x1_2000;
const PASIDS: u64 = 0x1_3000;
pub(super) const PML4: u64 = 0x1_4000;
pub(super) const PDPT: u64 = 0x1_5000;
pub(super) const PD: u64 = 0x1_6000;
pub(super) const PAGE_TABLE: u64 = 0x1_7000;
pub(super) const QUEUE: u64 = 0x1_8000;
pub(super) const PAGE_QUEUE: u64 = 0x1_9000;
pub(super) const STATUS: u64 = 0x1_a000;

pub(super) const WITH_PASID: u32 = 1 << 31;
pub(super) const TRANSLATE: u32 = 1 << 30;
pub(super) const PAGES: u32 = 1 << 29;

/// Offsets in configuration space: the extended capabilities in the order in which they are added.
pub(super) const COMMAND: u16 = 0x04;
const PCIE: u16 = 0x58;
pub(super) const ATS: u16 = 0x100;
const PASID_CAPABILITY: u16 = 0x108;
pub(super) const PRI: u16 = 0x110;

pub(super) const PATIENCE: Duration = Duration::from_secs(10);

struct Nobody;

impl EventSink for Nobody {
    fn deliver(&self, _message: InterruptMessage) {}
}

impl MsiSink for Nobody {
    fn signal(&self, _requester: Bdf, _address: u64, _data: u32) {}
}

impl IntxSink for Nobody {
    fn set_level(&self, _asserted: bool) {}
}

pub(super) struct Machine {
    pub(super) memory: Memory,
    pub(super) unit: Arc<Unit<Memory>>,
    pub(super) edu: Arc<Edu>,
}

pub(super) fn machine() -> Machine {
    let memory: Memory =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("mappable"));
    let machine = fresh(memory);
    machine.write_tables();
    machine.switch_on();
    machine
}

/// A machine that was just made.
pub(super) fn fresh(memory: Memory) -> Machine {
    with_mappings(Arc::clone(&memory), memory)
}

/// The same, whose unit and device have a mapping of their own of the guest's memory.
pub(super) fn with_mappings(memory: Memory, device: Memory) -> Machine {
    let config = UnitConfig::svm(40).with_interrupts(Interrupts::Off);
    let unit = Unit::new(device, &config, Arc::new(Nobody)).expect("valid");
    let source = SourceId(0x18);
    let options = EduOptions {
        dma_mask: u64::MAX,
        features: EduFeatures {
            ats: true,
            pasid: true,
            pri: true,
        },
        ..EduOptions::default()
    };
    let dma = unit.port(source);
    let bdf = Bdf::new(0, 3, 0).expect("in range");
    let sink = Arc::new(Nobody);
    let edu = Edu::new(
        bdf,
        dma,
        Arc::clone(&sink) as _,
        sink,
        Some(Arc::clone(&unit)),
        options,
    )
    .expect("a thread");
    Machine { memory, unit, edu }
}

impl Machine {
    pub(super) fn put(&self, at: u64, value: u64) {
        self.memory
            .write_obj(value, GuestAddress(at))
            .expect("memory");
    }

    /// PASID 5 translates INPUT to FIRST by first-stage tables.
    pub(super) fn write_tables(&self) {
        self.put(ROOT, CONTEXT | 1);
        // P, DTE, PASIDE, PRE; RID_PASID 0.
        self.put(CONTEXT + SOURCE * 32, DIRECTORY | 0x1d);
        self.put(DIRECTORY, PASIDS | 1);
        // P, PGTT first-stage; domain 1, PWSNP; FSPTPTR.
        self.put(PASIDS + PASID * 64, 0x41);
        self.put(PASIDS + PASID * 64 + 8, 1 | 1 << 23);
        self.put(PASIDS + PASID * 64 + 16, PML4);
        self.put(PML4, PDPT | 7);
        self.put(PDPT, PD | 7);
        self.put(PD, PAGE_TABLE | 7);
        self.put(ENTRY, FIRST | 7);
    }

    pub(super) fn register(&self, at: u64) -> u64 {
        let mut data = [0; 8];
        self.unit.read(at, &mut data);
        u64::from_le_bytes(data)
    }

    pub(super) fn switch_on(&self) {
        self.unit.write(0x20, &(ROOT | 1 << 10).to_le_bytes());
        self.unit.write(0x18, &0x4000_0000_u32.to_le_bytes());
        self.unit.write(0x88, &0_u64.to_le_bytes());
        self.unit.write(0x90, &(QUEUE | 1 << 11).to_le_bytes());
        self.unit.write(0xd0, &PAGE_QUEUE.to_le_bytes());
        self.unit.write(0x18, &0x0400_0000_u32.to_le_bytes());
        self.unit.write(0x18, &0x8400_0000_u32.to_le_bytes());
        for (at, value) in [
            (COMMAND, 6_u16),
            (ATS + 6, 0x8000),
            (PASID_CAPABILITY + 6, 1),
            (PRI + 4, 1),
        ] {
            self.edu.write_config(at, &value.to_le_bytes());
        }
    }

    /// Has the unit carry out a descriptor, and a wait behind it.
    pub(super) fn submit(&self, first: u64, second: u64) {
        let tail = self.register(0x88);
        let wait = [0x1_0000_0025, STATUS, 0, 0];
        self.put(STATUS, 0);
        for (slot, words) in (0..).zip([[first, second, 0, 0], wait]) {
            for (word, value) in (0..).zip(words) {
                self.put(QUEUE + (tail + 32 * slot) % 4096 + 8 * word, value);
            }
        }
        let tail = (tail + 64) % 4096;
        self.unit.write(0x88, &tail.to_le_bytes());
        let status: u64 = self.memory.read_obj(GuestAddress(STATUS)).expect("memory");
        assert_eq!(status, 1, "the wait completed");
    }

    /// PASID-based device-TLB invalidation of one page.
    pub(super) fn invalidate_device(&self) {
        self.submit(SOURCE << 16 | PASID << 32 | 8, INPUT);
    }

    /// Page-group response.
    pub(super) fn respond(&self, group: u64, code: u64) {
        self.submit(PASID << 32 | SOURCE << 16 | code << 12 | 0x19, group << 3);
    }

    pub(super) fn write(&self, offset: u64, value: u32) {
        self.edu.write_bar(0, offset, &value.to_le_bytes());
    }

    pub(super) fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.edu.read_bar(0, offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(super) fn config(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.edu.read_config(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// Starts to write the device's buffer to INPUT.
    pub(super) fn start(&self, manner: u32) {
        self.write(0x104, 5 | WITH_PASID | manner);
        for (offset, value) in [(0x80, 0x4_0000_u64), (0x88, INPUT), (0x90, 64), (0x98, 3)] {
            self.edu.write_bar(0, offset, &value.to_le_bytes());
        }
    }

    pub(super) fn wait_until(&self, what: &str, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < PATIENCE, "{what}");
            thread::yield_now();
        }
    }

    /// The outcome of a command.
    pub(super) fn finish(&self) -> u32 {
        self.wait_until("the command ends", || self.read(0x98) & 1 == 0);
        self.read(0x108)
    }

    pub(super) fn fill(&self, at: u64) {
        self.memory
            .write_slice(&[0xaa; 64], GuestAddress(at))
            .expect("memory");
    }

    /// Whether the device has written its buffer, which is all zeros, to `at`.
    pub(super) fn written(&self, at: u64) -> bool {
        let mut bytes = [0xff; 64];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .expect("memory");
        bytes == [0; 64]
    }
}

#[test]
fn what_is_kept_is_used_until_it_is_invalidated() {
    let machine = machine();
    machine.fill(FIRST);
    machine.start(TRANSLATE);
    assert_eq!(machine.finish(), 0);
    assert!(machine.written(FIRST));
    assert_eq!(machine.read(0x10c), 1);

    // Nobody told the device of this.
    machine.put(ENTRY, SECOND | 7);
    machine.fill(FIRST);
    machine.start(TRANSLATE);
    assert_eq!(machine.finish(), 0);
    assert!(machine.written(FIRST));

    machine.fill(FIRST);
    machine.fill(SECOND);
    machine.submit(1 << 16 | PASID << 32 | 2 << 4 | 6, 0);
    machine.invalidate_device();
    assert_eq!((machine.read(0x10c), machine.read(0x110)), (0, 1));
    machine.start(TRANSLATE);
    assert_eq!(machine.finish(), 0);
    assert!(machine.written(SECOND) && !machine.written(FIRST));
}

#[test]
fn an_absent_page_is_asked_for_and_comes() {
    let machine = machine();
    machine.put(ENTRY, 0);
    machine.start(TRANSLATE);
    assert_eq!(machine.finish(), 2, "denied");

    machine.fill(FIRST);
    machine.start(TRANSLATE | PAGES);
    machine.wait_until("a request comes", || machine.register(0xc8) == 32);
    let word = |at| {
        machine
            .memory
            .read_obj::<u64>(GuestAddress(at))
            .expect("memory")
    };
    assert_eq!(word(PAGE_QUEUE), PASID << 32 | SOURCE << 16 | 0x101);
    // Write requested, last of group 0.
    assert_eq!(word(PAGE_QUEUE + 8), INPUT | 0b110);
    machine.put(ENTRY, FIRST | 7);
    machine.respond(0, 0);
    assert_eq!(machine.finish(), 0);
    assert!(machine.written(FIRST));
    assert_eq!((machine.read(0x114), machine.read(0x118)), (1, 1));
}

#[test]
fn an_answer_can_refuse_one_page_or_all() {
    let machine = machine();
    machine.put(ENTRY, 0);
    machine.start(TRANSLATE | PAGES);
    machine.wait_until("a request comes", || machine.register(0xc8) == 32);
    // Nobody asked in this group.
    machine.respond(7, 0);
    assert_eq!(machine.config(PRI + 6) & 2, 2, "unexpected group");
    machine.respond(0, 1);
    assert_eq!(machine.finish(), 5, "invalid");

    machine.start(TRANSLATE | PAGES);
    machine.wait_until("a request comes", || machine.register(0xc8) == 64);
    machine.respond(1, 0xf);
    assert_eq!(machine.finish(), 5, "failed");
    assert_eq!(machine.config(PRI + 6) & 1, 1, "response failure");
    machine.start(TRANSLATE | PAGES);
    assert_eq!(
        machine.finish(),
        7,
        "page requests are off until that is cleared"
    );
    machine.edu.write_config(PRI + 6, &1_u16.to_le_bytes());
    machine.put(ENTRY, FIRST | 7);
    machine.start(TRANSLATE | PAGES);
    assert_eq!(machine.finish(), 0);
}

#[test]
fn a_reset_does_not_wait_for_software_to_answer() {
    let machine = machine();
    machine.put(ENTRY, 0);
    machine.start(TRANSLATE | PAGES);
    machine.wait_until("a request comes", || machine.register(0xc8) == 32);
    let start = Instant::now();
    machine
        .edu
        .write_config(PCIE + 8, &0xa810_u16.to_le_bytes());
    assert!(start.elapsed() < PATIENCE / 2);
    assert_eq!(machine.read(0x104), 0);
    assert_eq!(machine.config(ATS + 6), 0);
    // Nor does the end of the device.
    machine.switch_on();
    machine.start(TRANSLATE | PAGES);
    machine.wait_until("a request comes", || machine.register(0xc8) == 64);
    let start = Instant::now();
    drop(machine);
    assert!(start.elapsed() < PATIENCE / 2);
}

#[test]
fn what_is_not_enabled_is_not_sent() {
    let machine = machine();
    machine.fill(FIRST);
    for (at, manner) in [
        (ATS + 6, TRANSLATE),
        (PASID_CAPABILITY + 6, 0),
        (PRI + 4, TRANSLATE | PAGES),
    ] {
        machine.edu.write_config(at, &0_u16.to_le_bytes());
        machine.start(manner);
        assert_eq!(machine.finish(), 7);
    }
    assert!(!machine.written(FIRST));
    assert_eq!(machine.config(PRI + 6) >> 8 & 1, 1, "stopped");
}

#[test]
fn disabling_ats_forgets_what_was_kept() {
    let machine = machine();
    machine.start(TRANSLATE);
    assert_eq!(machine.finish(), 0);
    assert_eq!(machine.read(0x10c), 1);
    machine.edu.write_config(ATS + 6, &0_u16.to_le_bytes());
    assert_eq!(machine.read(0x10c), 0);
}

#[test]
fn a_capability_that_goes_away_ends_a_command_that_waits() {
    let machine = machine();
    machine.put(ENTRY, 0);
    machine.start(TRANSLATE | PAGES);
    machine.wait_until("a request comes", || machine.register(0xc8) == 32);
    machine.edu.write_config(ATS + 6, &0_u16.to_le_bytes());
    machine.put(ENTRY, FIRST | 7);
    machine.fill(FIRST);
    machine.respond(0, 0);
    assert_eq!(machine.finish(), 7);
    assert!(!machine.written(FIRST));
    assert_eq!(machine.read(0x10c), 0, "nothing is kept while ATS is off");
}

#[test]
fn a_reset_leaves_nothing_of_page_requests_behind() {
    let machine = machine();
    machine.respond(7, 0);
    machine.put(ENTRY, 0);
    machine.start(TRANSLATE | PAGES);
    machine.wait_until("a request comes", || machine.register(0xc8) == 32);
    machine.respond(0, 0xf);
    machine
        .edu
        .write_config(PCIE + 8, &0xa810_u16.to_le_bytes());
    machine.switch_on();
    machine.put(ENTRY, FIRST | 7);
    machine.start(TRANSLATE);
    assert_eq!(machine.finish(), 0);
    assert_eq!(
        machine.config(PRI + 6) & 3,
        0,
        "no failure, no unexpected group"
    );
    assert_eq!((machine.read(0x114), machine.read(0x118)), (0, 0));
}

#[test]
fn a_command_that_waits_for_a_page_parks_and_goes_on_with_the_answer_afterwards() {
    let machine = machine();
    machine.put(ENTRY, 0);
    machine.fill(FIRST);
    machine.start(TRANSLATE | PAGES);
    machine.wait_until("a request comes", || machine.register(0xc8) == 32);
    machine.edu.park();
    machine.wait_until("it parks", || machine.edu.parked().is_ok());
    machine.put(ENTRY, FIRST | 7);
    machine.respond(0, 0);
    thread::sleep(Duration::from_millis(50));
    assert!(!machine.written(FIRST), "parked");
    assert_eq!(machine.read(0x98) & 1, 1, "the command is under way");
    machine.edu.resume();
    assert_eq!(machine.finish(), 0);
    assert!(machine.written(FIRST));
}

#[test]
fn what_is_started_while_parked_waits_and_a_reset_ends_it() {
    let machine = machine();
    machine.fill(FIRST);
    machine.edu.park();
    assert_eq!(machine.edu.parked(), Ok(()));
    machine.start(0);
    thread::sleep(Duration::from_millis(50));
    assert!(!machine.written(FIRST), "parked");
    machine.edu.resume();
    assert_eq!(machine.finish(), 0);
    assert!(machine.written(FIRST));

    machine.put(ENTRY, 0);
    machine.invalidate_device();
    machine.start(TRANSLATE | PAGES);
    machine.wait_until("a request comes", || machine.register(0xc8) == 32);
    machine.edu.park();
    machine.wait_until("it parks", || machine.edu.parked().is_ok());
    let start = Instant::now();
    machine.edu.reset();
    assert!(start.elapsed() < PATIENCE / 2);
    assert_eq!(machine.edu.parked(), Ok(()));
    machine.edu.resume();
}
