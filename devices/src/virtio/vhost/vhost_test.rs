//! Queues in the hands of a kernel, behind a remapping unit in legacy mode and behind none. Tables
//! are written with literals from the VT-d specification.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use intel_vtd::{
    EventSink, InterruptMessage, Invalidation, Patience, SourceId, TranslationObserver as _,
    Unfinished, Unit, UnitConfig,
};
use pci::PciFunction as _;
use state::{RestoreError, SaveError, Section};
use vm_memory::{Bytes, GuestAddress, Permissions};
use vmm_sys_util::eventfd::EventFd;

use super::backend::Miss;
use super::fake::Fake;
use super::{Invalidations, Place, Queues};
use crate::Memory;
use crate::virtio::device::{DeviceKind, Halt, VirtioDevice};
use crate::virtio::error::QueueError;
use crate::virtio::session::{Progress, Session};
use crate::virtio::testing::{BASE_FEATURES, Driver, FakeRoutes, Ring, eventually, memory};

const IOVA: u64 = 0x4000_0000;
const ROOT: u64 = 0x70_0000;
const CONTEXT: u64 = 0x70_1000;
const PML4: u64 = 0x70_2000;
const PDPT: u64 = 0x70_3000;
const PD: u64 = 0x70_4000;
/// Of the first 2 MiB.
const PT: u64 = 0x70_5000;
/// A page of the first 2 MiB for buffers, and one that it can be remapped to.
const BUFFER: u64 = 0x8_0000;
const OTHER: u64 = 0x9_0000;

/// A device with nothing but its queues. With the flag, the kernel has used a buffer of queue 0 just
/// before it is stopped for a while.
pub(super) struct Device(pub(super) Queues, pub(super) bool);

impl VirtioDevice for Device {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[16, 16]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn halt(&self) -> Option<Arc<dyn Halt>> {
        Some(Arc::clone(self.0.shared()) as _)
    }

    fn calls(&self) -> io::Result<Vec<(usize, EventFd)>> {
        self.0.calls()
    }

    fn unsavable(&self) -> Option<&'static str> {
        None
    }

    fn save(&mut self) -> Result<Section, SaveError> {
        Section::new("test", 1, &())
    }

    fn restore(&mut self, state: &Section) -> Result<(), RestoreError> {
        state.read("test", 1)
    }

    fn activate(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn hand_over(
        &mut self,
        session: &mut Session,
        kicks: &[(usize, EventFd)],
    ) -> Result<(), QueueError> {
        self.0.hand_over(1 << 32, session, kicks)
    }

    fn serves(&self, index: usize) -> bool {
        !self.0.has(index)
    }

    fn sources(&self) -> Vec<RawFd> {
        self.0.sources()
    }

    fn queue_ready(&mut self, _: usize, _: &mut Session) -> Result<Progress, QueueError> {
        panic!("the kernel serves the queues");
    }

    fn source_ready(&mut self, source: usize, session: &mut Session) -> Result<(), QueueError> {
        self.0.source_ready(source, session)
    }

    fn suspend(&mut self, session: &mut Session) -> Result<(), QueueError> {
        if self.1 {
            self.0.calls().unwrap()[0].1.write(1).unwrap();
        }
        self.0.suspend(session)
    }

    fn go_on(&mut self, session: &mut Session) -> Result<(), QueueError> {
        self.0.go_on(session)
    }

    fn deactivate(&mut self) {
        self.0.take_back();
    }
}

struct Events;

impl EventSink for Events {
    fn deliver(&self, _message: InterruptMessage) {}
}

struct Machine {
    driver: Driver,
    unit: Arc<Unit<Memory>>,
    kernel: Arc<Fake>,
    invalidations: Arc<Invalidations>,
}

impl Machine {
    /// All 8 MiB of memory at `IOVA` for 00:03.0, the first 2 MiB of it in pages of 4 KiB;
    /// translation is on.
    fn new() -> Self {
        Self::with_routes(64)
    }

    /// The same with a hypervisor that has so many interrupt routes.
    fn with_routes(routes: u32) -> Self {
        Self::with(routes, |queues| Device(queues, false))
    }

    fn with(routes: u32, device: impl FnOnce(Queues) -> Device) -> Self {
        let memory = memory();
        let config = UnitConfig::legacy(40);
        let unit = Unit::new(Arc::clone(&memory), &config, Arc::new(Events)).unwrap();
        let invalidations = Arc::<Invalidations>::default();
        unit.observe_translations(Arc::clone(&invalidations) as _);
        let kernel = Fake::new(&memory);
        let place = Place::Behind {
            memory: Arc::clone(&memory),
            invalidations: Arc::clone(&invalidations),
            source: SourceId(0x18),
        };
        let queues = Queues::new(Arc::clone(&kernel), place, 0..2).unwrap();
        let port = unit.port(SourceId(0x18));
        let device = Box::new(device(queues));
        let routes = FakeRoutes::new(routes);
        let driver = Driver::with_routes(device, IOVA, memory, port, routes);
        let machine = Self {
            driver,
            unit,
            kernel,
            invalidations,
        };
        machine.put(ROOT, CONTEXT | 1);
        machine.put(CONTEXT + 0x18 * 16, PML4 | 1);
        // 48 bits, domain 1.
        machine.put(CONTEXT + 0x18 * 16 + 8, 0x102);
        machine.put(PML4, PDPT | 3);
        machine.put(PDPT + 8, PD | 3);
        machine.put(PD, PT | 3);
        for page in 0..512 {
            machine.put(PT + 8 * page, page << 12 | 3);
        }
        for page in 1..4 {
            machine.put(PD + 8 * page, page << 21 | 0x83);
        }
        machine.unit.write(0x20, &ROOT.to_le_bytes());
        machine.unit.write(0x18, &0x4000_0000_u32.to_le_bytes());
        machine.unit.write(0x18, &0x8000_0000_u32.to_le_bytes());
        machine
    }

    /// Another function of the same machine, which nobody has started.
    fn another(&self) -> Self {
        let memory = &self.driver.memory;
        let kernel = Fake::new(memory);
        let place = Place::Behind {
            memory: Arc::clone(memory),
            invalidations: Arc::clone(&self.invalidations),
            source: SourceId(0x18),
        };
        let queues = Queues::new(Arc::clone(&kernel), place, 0..2).unwrap();
        let device = Box::new(Device(queues, false));
        let port = self.unit.port(SourceId(0x18));
        let routes = FakeRoutes::new(64);
        Self {
            driver: Driver::with_routes(device, IOVA, Arc::clone(memory), port, routes),
            unit: Arc::clone(&self.unit),
            kernel,
            invalidations: Arc::clone(&self.invalidations),
        }
    }

    fn put(&self, at: u64, value: u64) {
        let at = GuestAddress(at);
        self.driver.memory.write_obj(value, at).unwrap();
    }

    /// Changes the entry of the page at device address `IOVA + page`.
    fn map(&self, page: u64, entry: u64) {
        self.put(PT + 8 * (page >> 12), entry);
    }

    fn fault_pending(&self) -> bool {
        let mut status = [0; 4];
        self.unit.read(0x34, &mut status);
        status[0] & 2 != 0
    }

    fn byte(&self, at: u64) -> u8 {
        self.driver.memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// Turns until the kernel has used the next buffer, which it fills with `byte`.
    fn serve(&self, ring: &Ring, byte: u8) {
        eventually("a used buffer", || {
            self.kernel.turn(ring.index.into(), byte);
            ring.try_used(&self.driver).is_some()
        });
    }

    /// Starts both queues, and has the kernel miss a buffer. When this returns, its translation was
    /// looked up, and is on its way to the kernel until the barrier is met once more.
    fn start_and_miss(&self) -> (Vec<Ring>, Arc<Barrier>) {
        let rings = self.driver.start(0, 2);
        eventually("the kernel has started", || self.kernel.running());
        rings[0].add(&self.driver, &[(BUFFER, 16, true)]);
        let barrier = Arc::new(Barrier::new(2));
        *self.kernel.pause.lock().unwrap() = Some(Arc::clone(&barrier));
        self.kernel.turn(0, 0x33);
        barrier.wait();
        (rings, barrier)
    }

    /// Turns until the device gives up.
    fn serve_in_vain(&self, ring: &Ring) {
        eventually("DEVICE_NEEDS_RESET", || {
            self.kernel.turn(ring.index.into(), 0xee);
            self.driver.status() & 64 != 0
        });
        eventually("the kernel has stopped", || !self.kernel.running());
        assert_eq!(ring.try_used(&self.driver), None);
    }
}

/// A page-selective invalidation of domain 1 by registers (section 11.4.8.1).
fn invalidate(unit: &Unit<Memory>, address: u64) {
    let mut extended = [0; 8];
    unit.read(0x10, &mut extended);
    let offset = (u64::from_le_bytes(extended) >> 8 & 0x3ff) * 16;
    unit.write(offset, &address.to_le_bytes());
    let command = 1_u64 << 63 | 3 << 60 | 1 << 32;
    unit.write(offset + 8, &command.to_le_bytes());
}

#[test]
fn the_kernel_finds_rings_and_buffers_through_the_tables_and_the_guest_is_interrupted() {
    let machine = Machine::new();
    let rings = machine.driver.start(0, 2);
    machine.map(BUFFER, OTHER | 3);
    rings[0].add(&machine.driver, &[(BUFFER, 64, true)]);
    machine.serve(&rings[0], 0x11);
    assert_eq!(machine.byte(OTHER + 63), 0x11);
    assert_eq!(machine.byte(BUFFER), 0);
    eventually("an interrupt", || machine.driver.interrupts(1) == 1);
    rings[1].add(&machine.driver, &[(BUFFER, 64, false)]);
    machine.serve(&rings[1], 0);
    eventually("an interrupt", || machine.driver.interrupts(2) == 1);
    assert!(!machine.fault_pending());
    // VERSION_1 and ACCESS_PLATFORM.
    assert_eq!(machine.kernel.state.lock().unwrap().features, 0x3_0000_0000);
}

#[test]
fn without_a_unit_the_kernel_has_addresses_of_this_process_and_no_iotlb() {
    let memory = memory();
    let kernel = Fake::new(&memory);
    let place = Place::Direct(Arc::clone(&memory));
    let queues = Queues::new(Arc::clone(&kernel), place, 0..2).unwrap();
    let port = crate::Dma::direct(Arc::clone(&memory));
    let driver = Driver::with_memory(Box::new(Device(queues, false)), 0, memory, port);
    let rings = driver.start(0, 2);
    eventually("the kernel has started", || kernel.running());
    assert_eq!(kernel.state.lock().unwrap().features, 0x1_0000_0000);
    // The fake's memory is at address 0 of the guest: what it was given is host addresses.
    assert_eq!(kernel.ring_in_guest(0), rings[0].descriptors);
    driver.set_status(0);
    eventually("reset completes", || driver.status() == 0);
    assert!(!kernel.running());
}

#[test]
fn a_driver_that_enables_one_of_the_queues_is_served_in_that_one() {
    let machine = Machine::new();
    let driver = &machine.driver;
    for index in [1, 0] {
        assert!(driver.negotiate(BASE_FEATURES));
        let ring = driver.queue(index, 16);
        driver.set_status(15);
        eventually("the kernel has started", || machine.kernel.running());
        ring.add(driver, &[(BUFFER, 16, index == 0)]);
        machine.serve(&ring, 0x66);
        let vector = u32::from(index) + 1;
        eventually("an interrupt", || driver.interrupts(vector) == 1);
        // A buffer that leads nowhere, so that all that is enabled is looked at.
        ring.add(driver, &[(0x100_0000, 16, index == 0)]);
        machine.serve_in_vain(&ring);
    }
    assert_eq!(machine.byte(BUFFER), 0x66);
}

#[test]
fn a_blocked_buffer_is_a_fault_and_leaves_nothing_in_the_kernel() {
    let machine = Machine::new();
    let rings = machine.driver.start(0, 2);
    rings[0].add(&machine.driver, &[(0x100_0000, 16, true)]);
    machine.serve_in_vain(&rings[0]);
    assert!(machine.fault_pending());
    machine.driver.set_status(0);
    eventually("reset completes", || machine.driver.status() == 0);
    assert_eq!(machine.kernel.misses(), 0);
    assert!(machine.kernel.state.lock().unwrap().iotlb.is_empty());

    let rings = machine.driver.start(0, 2);
    rings[0].add(&machine.driver, &[(BUFFER, 16, true)]);
    machine.serve(&rings[0], 0x22);
}

#[test]
fn a_write_to_a_page_that_the_kernel_may_read_is_a_fault_although_it_is_not_asked_for() {
    let machine = Machine::new();
    let rings = machine.driver.start(0, 2);
    machine.map(BUFFER, OTHER | 1);
    rings[1].add(&machine.driver, &[(BUFFER, 16, false)]);
    machine.serve(&rings[1], 0);
    assert!(!machine.fault_pending());
    rings[0].add(&machine.driver, &[(BUFFER, 16, true)]);
    machine.serve_in_vain(&rings[0]);
    assert!(machine.fault_pending());
}

#[test]
fn a_used_ring_that_may_not_be_written_is_a_fault_and_the_kernel_does_not_start() {
    let machine = Machine::new();
    // The used ring of queue 0.
    machine.map(0x1_c000, 0x1_c001);
    machine.driver.start(0, 2);
    machine.driver.expect_needs_reset();
    assert!(machine.fault_pending());
    assert!(!machine.kernel.running());
}

#[test]
fn an_invalidated_page_is_gone_from_the_kernel_when_the_invalidation_is_complete() {
    let machine = Machine::new();
    let rings = machine.driver.start(0, 2);
    for round in 1..20_u8 {
        rings[0].add(&machine.driver, &[(BUFFER, 16, true)]);
        machine.serve(&rings[0], round);
        let (now, next) = if round % 2 == 0 {
            (OTHER, BUFFER)
        } else {
            (BUFFER, OTHER)
        };
        assert_eq!(machine.byte(now), round);
        machine.map(BUFFER, next | 3);
        assert!(machine.kernel.holds(IOVA + BUFFER));
        invalidate(&machine.unit, IOVA + BUFFER);
        assert!(!machine.kernel.holds(IOVA + BUFFER));
        // The rings stay.
        assert!(machine.kernel.holds(IOVA + 0x1_0000));
    }
}

#[test]
fn an_invalidation_waits_for_an_answer_that_was_read_from_the_tables_before_it() {
    let machine = Machine::new();
    let (rings, barrier) = machine.start_and_miss();
    machine.map(BUFFER, 0);
    let done = Mutex::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            invalidate(&machine.unit, IOVA + BUFFER);
            let gone = !machine.kernel.holds(IOVA + BUFFER);
            *done.lock().unwrap() = gone;
        });
        thread::sleep(crate::virtio::testing::A_WHILE);
        barrier.wait();
    });
    assert!(done.into_inner().unwrap(), "a stale translation is left");
    machine.serve_in_vain(&rings[0]);
    assert!(machine.fault_pending());
    assert_eq!(machine.byte(BUFFER), 0);
}

#[test]
fn switching_translation_off_takes_everything_back() {
    let machine = Machine::new();
    machine.map(BUFFER, OTHER | 3);
    let rings = machine.driver.start(0, 2);
    rings[0].add(&machine.driver, &[(BUFFER, 16, true)]);
    machine.serve(&rings[0], 0x44);
    machine.unit.write(0x18, &0_u32.to_le_bytes());
    assert!(machine.kernel.state.lock().unwrap().iotlb.is_empty());
    machine.unit.reset();
    assert!(machine.kernel.state.lock().unwrap().iotlb.is_empty());
}

#[test]
fn bus_mastering_that_ends_stops_the_kernel_before_the_write_returns() {
    let machine = Machine::new();
    machine.driver.start(0, 2);
    eventually("the kernel has started", || machine.kernel.running());
    let function = &machine.driver.function;
    function.write_config(4, &2_u16.to_le_bytes());
    assert!(!machine.kernel.running());
    machine.driver.expect_needs_reset();
    // Not while it is off.
    machine.driver.start(0, 2);
    machine.driver.expect_needs_reset();
    assert!(!machine.kernel.running());
    function.write_config(4, &6_u16.to_le_bytes());
    machine.driver.start(0, 2);
    eventually("the kernel has started", || machine.kernel.running());
}

#[test]
fn a_reset_is_complete_only_when_the_kernel_has_stopped() {
    let machine = Machine::new();
    for _ in 0..50 {
        machine.driver.start(0, 2);
        machine.driver.set_status(0);
        eventually("reset completes", || machine.driver.status() == 0);
        assert!(!machine.kernel.running());
    }
}

#[test]
fn the_interrupt_of_a_masked_vector_is_pending_until_it_is_unmasked() {
    let machine = Machine::new();
    let rings = machine.driver.start(0, 2);
    machine.driver.write(0x2000 + 16 + 12, &1_u32.to_le_bytes());
    rings[0].add(&machine.driver, &[(BUFFER, 16, true)]);
    machine.serve(&rings[0], 0x55);
    eventually("a pending bit", || machine.driver.read::<1>(0x3000)[0] == 2);
    assert_eq!(machine.driver.interrupts(1), 0);
    machine.driver.write(0x2000 + 16 + 12, &0_u32.to_le_bytes());
    assert_eq!(machine.driver.interrupts(1), 1);
    assert_eq!(machine.driver.read::<1>(0x3000)[0], 0);
}

#[test]
fn the_hypervisor_interrupts_where_it_has_a_route_and_the_thread_elsewhere() {
    for (routes, by_thread) in [(2, [0, 0]), (1, [0, 1]), (0, [1, 1])] {
        let machine = Machine::with_routes(routes);
        let rings = machine.driver.start(0, 2);
        for (vector, ring) in (1..).zip(&rings) {
            ring.add(&machine.driver, &[(BUFFER, 16, vector == 1)]);
            machine.serve(ring, 0x77);
            eventually("an interrupt", || machine.driver.interrupts(vector) == 1);
        }
        let messages = [1, 2].map(|vector| machine.driver.messages(vector));
        assert_eq!(messages, by_thread, "{routes} routes");
    }
}

#[test]
fn an_answer_that_overtakes_an_invalidation_of_everything_is_known_to_the_next() {
    let machine = Machine::new();
    let (_, barrier) = machine.start_and_miss();
    // The kernel forgets everything, and gets the answer then.
    let all = [Invalidation::All];
    machine
        .invalidations
        .invalidated(&all, &Patience::endless())
        .unwrap();
    barrier.wait();
    eventually("the answer", || machine.kernel.holds(IOVA + BUFFER));
    machine.map(BUFFER, 0);
    invalidate(&machine.unit, IOVA + BUFFER);
    assert!(!machine.kernel.holds(IOVA + BUFFER));
}

#[test]
fn a_miss_of_a_page_that_the_kernel_is_done_with_is_no_fault() {
    let machine = Machine::new();
    let rings = machine.driver.start(0, 2);
    rings[0].add(&machine.driver, &[(BUFFER, 16, true)]);
    machine.serve(&rings[0], 0x44);
    // The guest has taken the page back when the device's thread reads what was missed twice.
    machine.map(BUFFER, 0);
    invalidate(&machine.unit, IOVA + BUFFER);
    let miss = Miss {
        address: IOVA + BUFFER,
        access: Permissions::Write,
    };
    {
        let mut state = machine.kernel.state.lock().unwrap();
        machine.kernel.miss(&mut state, miss);
    }
    eventually("nothing is missed", || machine.kernel.misses() == 0);
    eventually("the kernel goes on", || machine.kernel.running());
    assert!(!machine.kernel.holds(IOVA + BUFFER));
    rings[0].add(&machine.driver, &[(OTHER, 16, true)]);
    machine.serve(&rings[0], 0x55);
    assert_eq!(machine.byte(OTHER), 0x55);
    assert!(!machine.fault_pending());
    assert_eq!(machine.driver.status() & 64, 0);
}

#[test]
fn a_function_that_is_told_to_stop_has_stopped_the_kernel() {
    let machine = Machine::new();
    machine.driver.start(0, 2);
    eventually("the kernel has started", || machine.kernel.running());
    machine.driver.function.quiesce();
    assert!(!machine.kernel.running());
}

#[test]
fn a_miss_that_is_repeated_is_answered_once() {
    let machine = Machine::new();
    machine.driver.start(0, 2);
    eventually("the kernel has started", || machine.kernel.running());
    let miss = Miss {
        address: IOVA + BUFFER,
        access: Permissions::Read,
    };
    let before = {
        let mut state = machine.kernel.state.lock().unwrap();
        for _ in 0..200 {
            machine.kernel.miss(&mut state, miss);
        }
        state.updates
    };
    eventually("answers", || machine.kernel.misses() == 0);
    let updates = machine.kernel.state.lock().unwrap().updates - before;
    assert_eq!(updates, 1);
}

#[test]
fn a_register_write_leaves_what_the_kernel_takes_long_for_to_the_background() {
    let machine = Machine::new();
    machine.driver.start(0, 2);
    eventually("the kernel has started", || machine.kernel.running());
    let little = Patience::endless().with_steps(399);
    let all = [Invalidation::All];
    let outcome = machine.invalidations.invalidated(&all, &little);
    assert_eq!(outcome, Err(Unfinished));
    assert!(!machine.kernel.state.lock().unwrap().iotlb.is_empty());
    let outcome = machine
        .invalidations
        .invalidated(&all, &Patience::endless());
    assert_eq!(outcome, Ok(()));
    assert!(machine.kernel.state.lock().unwrap().iotlb.is_empty());
}

#[test]
fn a_parked_device_stops_the_kernel_which_goes_on_where_it_was() {
    let machine = Machine::new();
    let rings = machine.driver.start(0, 2);
    eventually("the kernel has started", || machine.kernel.running());
    rings[0].add(&machine.driver, &[(BUFFER, 16, true)]);
    machine.serve(&rings[0], 0x31);
    let function = &machine.driver.function;
    function.park();
    eventually("it parks", || function.parked().is_ok());
    assert!(!machine.kernel.running());
    rings[0].add(&machine.driver, &[(BUFFER, 16, true)]);
    function.resume();
    eventually("the kernel goes on", || machine.kernel.running());
    machine.serve(&rings[0], 0x32);
    assert_eq!(machine.byte(BUFFER), 0x32);
    assert!(!machine.fault_pending());
}

#[test]
fn what_the_kernel_has_used_when_a_pause_comes_has_interrupted_when_it_has_begun() {
    let machine = Machine::with(0, |queues| Device(queues, true));
    machine.driver.start(0, 2);
    eventually("the kernel has started", || machine.kernel.running());
    let function = &machine.driver.function;
    for count in 1..4 {
        function.park();
        eventually("it parks", || function.parked().is_ok());
        assert_eq!(machine.driver.interrupts(1), count);
        function.resume();
        eventually("the kernel goes on", || machine.kernel.running());
        assert_eq!(machine.driver.interrupts(1), count);
    }
}

#[test]
fn what_the_kernel_misses_when_a_pause_comes_is_served_afterwards() {
    let machine = Machine::new();
    let (rings, barrier) = machine.start_and_miss();
    let function = &machine.driver.function;
    function.park();
    assert!(function.parked().is_err(), "its answer is on its way");
    barrier.wait();
    eventually("it parks", || function.parked().is_ok());
    assert!(!machine.kernel.running());
    assert_eq!(rings[0].try_used(&machine.driver), None);
    function.resume();
    eventually("the kernel goes on", || machine.kernel.running());
    machine.serve(&rings[0], 0x34);
    assert_eq!(machine.byte(BUFFER), 0x34);
    assert!(!machine.fault_pending());
}

#[test]
fn a_kernel_that_was_stopped_before_a_pause_stays_so() {
    let machine = Machine::new();
    machine.driver.start(0, 2);
    eventually("the kernel has started", || machine.kernel.running());
    let function = &machine.driver.function;
    // Bus mastering ends.
    function.write_config(4, &2_u16.to_le_bytes());
    assert!(!machine.kernel.running());
    function.park();
    eventually("it parks", || function.parked().is_ok());
    function.resume();
    thread::sleep(crate::virtio::testing::A_WHILE);
    assert!(!machine.kernel.running());
}

#[test]
fn a_kernel_elsewhere_finds_all_of_it_through_the_tables_once_the_device_goes_on() {
    let mut machine = Machine::new();
    let rings = machine.driver.start(0, 2);
    eventually("the kernel has started", || machine.kernel.running());
    for byte in 1..20 {
        rings[0].add(&machine.driver, &[(BUFFER, 16, true)]);
        machine.serve(&rings[0], byte);
        machine.driver.park();
        let section = machine.driver.function.save().unwrap();
        let next = machine.another();
        next.driver.function.restore(&section).expect("restored");
        assert!(!next.kernel.running());
        assert!(next.kernel.state.lock().unwrap().iotlb.is_empty());
        assert_eq!(next.driver.function.save().as_ref(), Ok(&section));
        machine = next;
        machine.driver.function.resume();
        eventually("the kernel has started", || machine.kernel.running());
        assert!(machine.kernel.holds(IOVA + rings[0].used));
        assert_eq!(rings[0].try_used(&machine.driver), None);
    }
    assert!(!machine.fault_pending());
    // It hears of invalidations.
    rings[0].add(&machine.driver, &[(BUFFER, 16, true)]);
    machine.serve(&rings[0], 0x77);
    machine.map(BUFFER, OTHER | 3);
    invalidate(&machine.unit, IOVA + BUFFER);
    assert!(!machine.kernel.holds(IOVA + BUFFER));
}

#[test]
fn rings_that_lead_nowhere_when_a_restored_device_goes_on_are_a_fault() {
    let machine = Machine::new();
    machine.driver.start(0, 2);
    eventually("the kernel has started", || machine.kernel.running());
    machine.driver.park();
    let section = machine.driver.function.save().unwrap();
    let next = machine.another();
    next.driver.function.restore(&section).expect("restored");
    // The used ring of queue 0.
    next.map(0x1_c000, 0);
    assert!(!next.fault_pending());
    next.driver.function.resume();
    next.driver.expect_needs_reset();
    assert!(next.fault_pending());
    assert!(!next.kernel.running());
}
