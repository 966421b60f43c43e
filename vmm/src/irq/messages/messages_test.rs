//! Routes over a stand-in for KVM that notes what it is asked for, and a unit whose table is in
//! memory.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use intel_vtd::{InlineBudget, Interrupts, UnitConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::super::chip::Chip;
use super::super::{LocalApics, Unit, requests_of};
use super::*;
use crate::event_loop::EventLoop;
use crate::memory::Memory;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::irq) enum Call {
    Send(u64, u32),
    Routes(Vec<(u32, u64, u32)>),
    Attach(u32),
    Detach(u32),
}
use Call::{Attach, Detach, Routes, Send};

#[derive(Default)]
pub(in crate::irq) struct Fake {
    calls: Mutex<Vec<Call>>,
    refuses_routes: AtomicBool,
    refuses_events: AtomicBool,
    /// Set once so many more events were detached.
    stop: Arc<AtomicBool>,
    detaches_left: AtomicUsize,
}

impl Fake {
    fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock())
    }

    fn note(&self, call: Call, refused: bool) -> io::Result<()> {
        if refused {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        self.calls.lock().push(call);
        Ok(())
    }
}

impl Chip for Fake {
    fn send(&self, message: InterruptMessage) -> io::Result<()> {
        self.note(Send(message.address, message.data), false)
    }

    fn set_routes(&self, routes: &[(u32, InterruptMessage)]) -> io::Result<()> {
        let routes = routes.iter();
        let routes = routes.map(|(gsi, message)| (*gsi, message.address, message.data));
        let refused = self.refuses_routes.load(Ordering::Relaxed);
        self.note(Routes(routes.collect()), refused)
    }

    fn attach(&self, gsi: u32, _event: &EventFd) -> io::Result<()> {
        self.note(Attach(gsi), self.refuses_events.load(Ordering::Relaxed))
    }

    fn detach(&self, gsi: u32, _event: &EventFd) -> io::Result<()> {
        if self.detaches_left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.stop.store(true, Ordering::SeqCst);
        }
        self.note(Detach(gsi), false)
    }
}

/// Where the interrupt remapping table of 256 entries is, and the invalidation queue.
const TABLE: u64 = 0x20_0000;
const QUEUE: u64 = 0x10_0000;
/// Where the status of a wait goes.
const STATUS: u64 = 0x30_0000;
const END: usize = 0x100_0000;

pub(in crate::irq) struct Bench {
    memory: Memory,
    unit: Option<Arc<Unit>>,
    fake: Arc<Fake>,
    pub(in crate::irq) remapper: Arc<Remapper>,
    pub(in crate::irq) table: Arc<RoutingTable>,
    routes: MessageRoutes,
    _event_loop: EventLoop,
}

pub(in crate::irq) fn bench(remapping: bool, most: u32) -> Bench {
    let fake = Arc::new(Fake::default());
    let chip = Arc::clone(&fake);
    let bench = bench_with(remapping, most, |_| chip);
    Bench { fake, ..bench }
}

/// Over another chip, for the memory that it is given.
pub(super) fn bench_with<C: Chip + 'static>(
    remapping: bool,
    most: u32,
    chip: impl FnOnce(&Memory) -> Arc<C>,
) -> Bench {
    let ranges = [(GuestAddress(0), END)];
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("mappable"));
    let chip: Arc<dyn Chip> = chip(&memory);
    let local_apics = Arc::new(LocalApics::with_chip(Arc::clone(&chip)));
    let unit = remapping.then(|| {
        let config = UnitConfig::legacy(46).with_interrupts(Interrupts::Remapped { x2apic: true });
        Unit::new(Arc::clone(&memory), &config, Arc::clone(&local_apics) as _).expect("valid")
    });
    let remapper = Remapper::new(local_apics, unit.clone());
    let event_loop = EventLoop::start(channel().0).expect("a thread");
    let table = RoutingTable::with_chip(chip, most);
    let routes = MessageRoutes::new(
        Arc::clone(&remapper),
        Arc::clone(&table),
        event_loop.handle(),
    )
    .expect("descriptors");
    let bench = Bench {
        memory,
        unit,
        fake: Arc::default(),
        remapper,
        table,
        routes,
        _event_loop: event_loop,
    };
    if remapping {
        // Queue of 256 entries of 16 bytes; table with extended destinations; remapping on.
        bench.register(0x90, QUEUE);
        bench.command(0x0400_0000);
        bench.register(0xB8, TABLE | 0x807);
        bench.command(0x0500_0000);
        bench.command(0x0600_0000);
    }
    bench
}

impl Bench {
    /// What the stand-in for KVM was asked for since the last time.
    pub(in crate::irq) fn calls(&self) -> Vec<Call> {
        self.fake.take()
    }

    fn unit(&self) -> &Arc<Unit> {
        self.unit.as_ref().expect("it was asked for")
    }

    fn register(&self, at: u64, value: u64) {
        self.unit().write(at, &value.to_le_bytes());
    }

    /// Writes GCMD.
    fn command(&self, value: u32) {
        self.unit().write(0x18, &value.to_le_bytes());
    }

    /// Writes an entry for this vector of APIC 7, or one that is not present.
    pub(in crate::irq) fn set_entry(&self, index: u64, vector: Option<u64>) {
        let entry = vector.map_or(0, |vector| 0x0000_0007_0000_0001 | vector << 16);
        self.set_raw_entry(index, entry);
    }

    /// Writes the low half of an entry.
    pub(in crate::irq) fn set_raw_entry(&self, index: u64, entry: u64) {
        let address = GuestAddress(TABLE + 16 * index);
        self.memory.write_obj(entry, address).expect("memory");
    }

    /// Invalidates `1 << log2` entries from `index` on, or all of them.
    pub(in crate::irq) fn invalidate(&self, entries: Option<(u64, u64)>) {
        let descriptor = entries.map_or(4, |(index, log2)| 4 | 1 << 4 | log2 << 27 | index << 32);
        self.submit(&[[descriptor, 0]]);
    }

    /// Appends to the queue, and writes the tail.
    fn submit(&self, descriptors: &[[u64; 2]]) {
        let mut tail = [0; 4];
        self.unit().read(0x88, &mut tail);
        let mut tail = u32::from_le_bytes(tail);
        for descriptor in descriptors {
            let place = GuestAddress(QUEUE + u64::from(tail));
            self.memory.write_obj(*descriptor, place).expect("memory");
            tail = (tail + 16) % 0x1000;
        }
        self.unit().write(0x88, &tail.to_le_bytes());
    }

    /// Invalidates all entries, and has `token` written when that is complete.
    fn invalidate_and_wait(&self, token: u32) {
        self.submit(&[[4, 0], [u64::from(token) << 32 | 0x25, STATUS]]);
    }

    /// The last token of [`invalidate_and_wait`](Self::invalidate_and_wait) that was written.
    fn completed(&self) -> u32 {
        self.memory.read_obj(GuestAddress(STATUS)).expect("memory")
    }

    /// From now on, register writes leave to [`run_backlog`](Self::run_backlog) what takes long.
    pub(in crate::irq) fn leave_to_background(&self) {
        self.unit()
            .run_in_background(InlineBudget::default(), Arc::new(|| {}));
    }

    /// Carries out what register writes have left, until `stop` is true.
    pub(in crate::irq) fn run_backlog(&self, stop: &Arc<AtomicBool>) {
        self.unit().run_backlog(stop);
    }

    fn faults(&self) -> u32 {
        let mut status = [0; 4];
        self.unit().read(0x34, &mut status);
        u32::from_le_bytes(status)
    }

    /// Has one route send `message`.
    pub(super) fn set(&self, route: &dyn InterruptRoute, message: Option<MsiMessage>) {
        self.set_all([(route, message)]);
    }

    pub(super) fn set_all<'a>(
        &self,
        messages: impl IntoIterator<Item = (&'a dyn InterruptRoute, Option<MsiMessage>)>,
    ) {
        let messages: Vec<_> = messages
            .into_iter()
            .map(|(route, message)| (route.number(), message))
            .collect();
        self.routes.set_messages(&messages).expect("taken");
    }

    pub(super) fn add(&self) -> (Box<dyn InterruptRoute>, EventFd) {
        let event = EventFd::new(EFD_NONBLOCK).expect("a descriptor");
        let source = Bdf::from_requester_id(0x18);
        let route = self
            .routes
            .add(source, event.try_clone().expect("a descriptor"));
        (route.expect("a GSI"), event)
    }
}

/// The remappable request for entry `index`.
pub(super) fn request(index: u64) -> Option<MsiMessage> {
    Some(MsiMessage {
        address: 0xFEE0_0010 | index << 5,
        data: 0,
    })
}

pub(super) fn compatible(vector: u32) -> Option<MsiMessage> {
    Some(MsiMessage {
        address: 0xFEE0_1000,
        data: vector,
    })
}

fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        if holds() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

#[test]
fn a_message_has_its_route_before_its_event_and_keeps_it_while_it_is_masked() {
    let bench = bench(false, 4096);
    let (route, _event) = bench.add();
    assert_eq!(bench.fake.take(), []);
    bench.set(&*route, compatible(0x41));
    let routes = Routes(vec![(24, 0xFEE0_1000, 0x41)]);
    assert_eq!(bench.fake.take(), [routes, Attach(24)]);
    bench.set(&*route, None);
    assert_eq!(bench.fake.take(), [Detach(24)]);
    bench.set(&*route, compatible(0x41));
    assert_eq!(bench.fake.take(), [Attach(24)], "KVM has the route");
    bench.set(&*route, compatible(0x42));
    let routes = Routes(vec![(24, 0xFEE0_1000, 0x42)]);
    assert_eq!(bench.fake.take(), [routes], "attached as it is");
    drop(route);
    assert_eq!(bench.fake.take(), [Detach(24)]);
}

#[test]
fn a_register_write_waits_for_nobody_who_waits_for_kvm() {
    let bench = bench(true, 4096);
    bench.set_entry(0, Some(0x41));
    let (route, _event) = bench.add();
    bench.set(&*route, request(0));
    let shared = &bench.routes.0;
    let invalidated = |patience: &Patience| shared.interrupt_entries_invalidated(0, 1, patience);
    let little = Patience::endless().with_steps(400);
    assert_eq!(invalidated(&little), Ok(()));
    let state = shared.lock();
    assert_eq!(invalidated(&little), Err(Unfinished));
    drop(state);
    assert_eq!(invalidated(&Patience::endless()), Ok(()));
}

#[test]
fn what_the_loop_is_to_send_has_arrived_when_interrupts_have_settled() {
    let bench = bench(false, 4096);
    bench.fake.refuses_events.store(true, Ordering::Relaxed);
    let (route, event) = bench.add();
    bench.set(&*route, compatible(0x42));
    for _ in 0..100 {
        bench.fake.take();
        event.write(1).expect("room");
        bench.routes.settle();
        let sends = bench.fake.take();
        assert_eq!(sends, [Send(0xFEE0_1000, 0x42)]);
        assert!(event.read().is_err());
        std::thread::yield_now();
        assert_eq!(bench.fake.take(), []);
    }
}

#[test]
fn what_kvm_is_to_send_has_arrived_when_interrupts_have_settled() {
    let bench = bench(false, 4096);
    let (route, _event) = bench.add();
    bench.set(&*route, compatible(0x41));
    bench.fake.take();
    bench.routes.settle();
    assert_eq!(bench.fake.take(), [Detach(24), Attach(24)]);
}

#[test]
fn an_event_from_before_counts_once() {
    let bench = bench(false, 4096);
    let (route, event) = bench.add();
    event.write(1).expect("room");
    bench.set(&*route, compatible(0x41));
    assert!(event.read().is_err(), "KVM has sent it by now");
}

#[test]
fn numbers_are_used_again_and_their_end_is_an_error() {
    let bench = bench(false, 26);
    let (first, second) = (bench.add(), bench.add());
    let event = EventFd::new(EFD_NONBLOCK).expect("a descriptor");
    let refused = bench.routes.add(Bdf::from_requester_id(0x18), event);
    let message = refused.err().expect("too many").to_string();
    assert!(message.starts_with("all 2 interrupt routes"), "{message}");
    bench.set(&*first.0, compatible(0x41));
    bench.set(&*second.0, compatible(0x42));
    bench.fake.take();
    drop(first);
    let (third, _event) = bench.add();
    bench.set(&*third, compatible(0x41));
    let both = vec![(24, 0xFEE0_1000, 0x41), (25, 0xFEE0_1000, 0x42)];
    assert_eq!(bench.fake.take(), [Detach(24), Routes(both), Attach(24)]);
}

#[test]
fn a_route_is_resolved_again_just_when_its_own_entry_is_invalidated() {
    let bench = bench(true, 4096);
    for index in 0..8 {
        bench.set_entry(index, Some(0x40 + index));
    }
    let routes: Vec<_> = (0..8).map(|_| bench.add()).collect();
    for (index, (route, _)) in (0..).zip(&routes) {
        bench.set(&**route, request(index));
    }
    bench.fake.take();
    bench.set_entry(2, Some(0x62));
    bench.set_entry(5, Some(0x65));
    bench.invalidate(Some((4, 0)));
    assert_eq!(bench.fake.take(), [], "neither of them was named");
    bench.invalidate(Some((2, 1)));
    let expected = |five: u32| {
        let vectors = [0x40, 0x41, 0x62, 0x43, 0x44, five, 0x46, 0x47];
        let routes = (24..).zip(vectors);
        Routes(
            routes
                .map(|(gsi, vector)| (gsi, 0xFEE0_7000, vector))
                .collect(),
        )
    };
    assert_eq!(bench.fake.take(), [expected(0x45)]);
    bench.invalidate(None);
    assert_eq!(bench.fake.take(), [expected(0x65)], "once for all of them");
    bench.invalidate(None);
    assert_eq!(bench.fake.take(), []);
}

#[test]
fn an_interrupt_on_a_blocked_route_is_a_fault_and_one_that_is_allowed_again_is_sent() {
    let bench = bench(true, 4096);
    bench.set_entry(3, Some(0x43));
    let (route, event) = bench.add();
    bench.set(&*route, request(3));
    let routes = Routes(vec![(24, 0xFEE0_7000, 0x43)]);
    assert_eq!(bench.fake.take(), [routes, Attach(24)]);
    bench.set_entry(3, None);
    bench.invalidate(Some((3, 0)));
    assert_eq!(bench.fake.take(), [Detach(24)]);
    assert_eq!(bench.faults(), 0, "nothing has happened yet");
    event.write(1).expect("room");
    assert!(eventually(|| bench.faults() & 2 != 0), "PPF");
    assert!(eventually(|| event.read().is_err()), "read by the loop");
    assert_eq!(bench.fake.take(), []);
    // The guest need not announce an entry that becomes present, and may.
    bench.set_entry(3, Some(0x44));
    bench.invalidate(None);
    assert_eq!(bench.fake.take(), [], "KVM has nothing before it is used");
    event.write(1).expect("room");
    let mut calls = Vec::new();
    assert!(eventually(|| {
        calls.extend(bench.fake.take());
        calls.len() >= 3
    }));
    let routes = Routes(vec![(24, 0xFEE0_7000, 0x44)]);
    assert_eq!(calls, [Send(0xFEE0_7000, 0x44), routes, Attach(24)]);
    bench.invalidate(None);
    assert_eq!(bench.fake.take(), []);
    bench.set_entry(3, None);
    bench.invalidate(None);
    assert_eq!(bench.fake.take(), [Detach(24)]);
    let watched = Arc::downgrade(&bench.routes.0.lock().routes[&24].event);
    drop(route);
    assert!(
        eventually(|| watched.strong_count() == 0),
        "the loop has let go of it"
    );
}

#[test]
fn remapping_that_is_turned_off_and_on_concerns_every_route() {
    let bench = bench(true, 4096);
    bench.set_entry(3, Some(0x43));
    let (one, two) = (bench.add(), bench.add());
    bench.set(&*one.0, request(3));
    bench.set(&*two.0, compatible(0x51));
    let remapped = Routes(vec![(24, 0xFEE0_7000, 0x43)]);
    assert_eq!(
        bench.fake.take(),
        [remapped.clone(), Attach(24)],
        "compatibility format is blocked"
    );
    bench.unit().reset();
    let raw = Routes(vec![(24, 0xFEE0_0070, 0)]);
    assert_eq!(bench.fake.take(), [raw], "the second is not used");
    two.1.write(1).expect("room");
    let mut calls = Vec::new();
    assert!(eventually(|| {
        calls.extend(bench.fake.take());
        calls.len() >= 3
    }));
    let both = Routes(vec![(24, 0xFEE0_0070, 0), (25, 0xFEE0_1000, 0x51)]);
    assert_eq!(calls, [Send(0xFEE0_1000, 0x51), both, Attach(25)]);
    bench.register(0xB8, TABLE | 0x807);
    bench.command(0x0100_0000);
    bench.command(0x0200_0000);
    let both = Routes(vec![(24, 0xFEE0_7000, 0x43), (25, 0xFEE0_1000, 0x51)]);
    let calls = bench.fake.take();
    assert_eq!(calls, [both, Detach(25)], "the second is not used");
}

/// KVM waits for its readers whenever its table changes.
#[test]
fn as_many_vectors_as_msix_has_are_one_change_of_kvms_table() {
    let bench = bench(false, 4096);
    let routes: Vec<_> = (0..2048).map(|_| bench.add()).collect();
    bench.set_all(
        routes
            .iter()
            .zip(0x1000..)
            .map(|((route, _), vector)| (&**route, compatible(vector))),
    );
    let calls = bench.fake.take();
    let (tables, events): (Vec<_>, Vec<_>) =
        calls.iter().partition(|call| matches!(call, Routes(_)));
    assert!(matches!(tables[..], [Routes(all)] if all.len() == 2048));
    assert_eq!(calls.first(), Some(tables[0]), "before any event");
    assert!(
        events
            .into_iter()
            .eq(&(24..24 + 2048).map(Attach).collect::<Vec<_>>())
    );

    bench.set_all(routes.iter().map(|(route, _)| (&**route, None)));
    let calls = bench.fake.take();
    assert!(calls == (24..24 + 2048).map(Detach).collect::<Vec<_>>());
}

/// The status write of a wait can change an entry between two invalidations of it.
#[test]
fn an_entry_that_comes_and_goes_takes_its_events_from_kvm_once() {
    let bench = bench(true, 4096);
    bench.set_entry(3, Some(0x43));
    let routes: Vec<_> = (0..8).map(|_| bench.add()).collect();
    bench.set_all(routes.iter().map(|(route, _)| (&**route, request(3))));
    bench.fake.take();
    for flip in 0..1000 {
        bench.set_entry(3, (flip % 2 == 1).then_some(0x43));
        bench.invalidate(Some((3, 0)));
    }
    let calls = bench.fake.take();
    assert_eq!(calls, (24..32).map(Detach).collect::<Vec<_>>());
}

#[test]
fn a_register_write_changes_nothing_in_kvm() {
    let bench = bench(true, 4096);
    bench.set_entry(3, Some(0x43));
    let (route, _event) = bench.add();
    bench.set(&*route, request(3));
    bench.fake.take();
    bench.leave_to_background();
    let stop = Arc::default();
    bench.invalidate_and_wait(1);
    assert_eq!(bench.completed(), 1, "nothing changes");
    let route = Routes(vec![(24, 0xFEE0_7000, 0x44)]);
    for (token, vector, calls) in [(2, Some(0x44), [route]), (3, None, [Detach(24)])] {
        bench.set_entry(3, vector);
        bench.invalidate_and_wait(token);
        assert_eq!((bench.fake.take(), bench.completed()), (vec![], token - 1));
        bench.run_backlog(&stop);
        assert_eq!(
            (bench.fake.take(), bench.completed()),
            (calls.to_vec(), token)
        );
    }
    bench.run_backlog(&stop);
    assert_eq!(bench.fake.take(), []);
}

#[test]
fn an_invalidation_that_takes_2048_events_from_kvm_can_be_interrupted() {
    let bench = bench(true, 4096);
    bench.set_entry(3, Some(0x43));
    let routes: Vec<_> = (0..2048).map(|_| bench.add()).collect();
    bench.set_all(routes.iter().map(|(route, _)| (&**route, request(3))));
    bench.fake.take();
    bench.leave_to_background();
    bench.set_entry(3, None);
    bench.invalidate_and_wait(1);
    let stop = &bench.fake.stop;
    let mut calls = Vec::new();
    for token in [0, 0, 1] {
        stop.store(false, Ordering::SeqCst);
        bench.fake.detaches_left.store(100, Ordering::Relaxed);
        if token == 1 {
            bench
                .fake
                .detaches_left
                .store(usize::MAX, Ordering::Relaxed);
        }
        bench.run_backlog(stop);
        let detached = bench.fake.take();
        assert!(token == 1 || (100..100 + 32).contains(&detached.len()));
        assert_eq!(bench.completed(), token);
        calls.extend(detached);
    }
    assert!(calls == (24..24 + 2048).map(Detach).collect::<Vec<_>>());
}

#[test]
fn an_entry_that_changes_too_often_is_followed_without_kvm() {
    let bench = bench(true, 4096);
    bench.set_entry(3, Some(0x43));
    let (route, event) = bench.add();
    bench.set(&*route, request(3));
    bench.fake.take();
    bench.routes.0.lock().credit = Credit::without_more();
    for change in 0..1000 {
        bench.set_entry(3, Some(0x44 + change % 2));
        bench.invalidate(Some((3, 0)));
    }
    let calls = bench.fake.take();
    assert_eq!(calls.len(), 51);
    assert_eq!(calls.last(), Some(&Detach(24)));
    // Its interrupts come all the same, by the loop.
    event.write(1).expect("room");
    assert!(eventually(|| bench.fake.take() == [Send(0xFEE0_7000, 0x45)]));
    event.write(1).expect("room");
    assert!(eventually(|| bench.fake.take() == [Send(0xFEE0_7000, 0x45)]));
    // And KVM has them again when there is time.
    bench.routes.0.lock().credit = Credit::default();
    event.write(1).expect("room");
    let mut calls = Vec::new();
    assert!(eventually(|| {
        calls.extend(bench.fake.take());
        calls.contains(&Attach(24))
    }));
}

#[test]
fn a_device_whose_messages_change_too_often_does_without_kvm() {
    let bench = bench(false, 4096);
    let (route, event) = bench.add();
    let credits = |credit| bench.routes.0.lock().of_devices.insert(0x18, credit);
    credits(Credit::without_more());
    // Masked and unmasked, and given another vector.
    for change in 0..1000 {
        bench.set(&*route, None);
        bench.set(&*route, compatible(0x41 + change % 2));
        bench.set(&*route, compatible(0x43 + change % 2));
    }
    let calls = bench.fake.take();
    assert!((30..110).contains(&calls.len()), "{}", calls.len());
    event.write(1).expect("room");
    assert!(eventually(|| bench
        .fake
        .take()
        .contains(&Send(0xFEE0_1000, 0x44))));
    // And KVM has them again when there is time.
    let is_attached = |fake: &Fake| fake.take().contains(&Attach(24));
    credits(Credit::without_more());
    bench.set(&*route, None);
    bench.fake.take();
    bench.set(&*route, compatible(0x45));
    assert!(is_attached(&bench.fake));
}

#[test]
fn what_kvm_refuses_is_sent_by_the_loop() {
    let bench = bench(false, 4096);
    let (route, event) = bench.add();
    for refused in [&bench.fake.refuses_routes, &bench.fake.refuses_events] {
        refused.store(true, Ordering::Relaxed);
        bench.set(&*route, compatible(0x41));
        event.write(1).expect("room");
        let sent = || bench.fake.take().contains(&Send(0xFEE0_1000, 0x41));
        assert!(eventually(sent));
        bench.set(&*route, None);
        refused.store(false, Ordering::Relaxed);
    }
    bench.set(&*route, compatible(0x41));
    assert_eq!(bench.fake.take(), [Attach(24)]);
}

#[test]
fn a_message_that_is_no_interrupt_never_reaches_a_local_apic() {
    let bench = bench(false, 4096);
    let (route, event) = bench.add();
    for address in [0x1000, 0xFED0_0000, 0x1_FEE0_0000] {
        let message = Some(MsiMessage {
            address,
            data: 0x41,
        });
        bench.set(&*route, message);
        event.write(1).expect("room");
        assert!(eventually(|| event.read().is_err()), "read by the loop");
    }
    assert_eq!(bench.fake.take(), []);
}

#[test]
fn a_dword_that_a_device_writes_to_the_interrupt_range_reaches_a_local_apic_as_its_entry_says() {
    let bench = bench(true, 4096);
    bench.set_entry(3, Some(0x45));
    let bdf = Bdf::from_requester_id(0x18);
    let msi = Arc::clone(&bench.remapper) as Arc<dyn MsiSink>;
    let port = bench.unit().port(SourceId(bdf.as_u16()));
    let mut view = port.with_interrupt_requests(requests_of(bdf, msi)).view();
    let mut send = |index| {
        let address = GuestAddress(request(index).expect("it is one").address);
        let transaction = view.begin();
        transaction.write_request(&[0; 4], address).expect("posted");
    };
    send(3);
    let sent = bench.fake.take();
    assert!(matches!(sent[..], [Send(_, data)] if data & 0xff == 0x45));
    // Entry 4 is not present.
    assert_eq!(bench.faults() & 2, 0);
    send(4);
    assert_eq!(bench.fake.take(), []);
    assert_eq!(bench.faults() & 2, 2);
}

#[test]
fn a_flood_of_blocked_interrupts_is_looked_at_once_in_a_while() {
    let bench = bench(true, 4096);
    let (route, event) = bench.add();
    // Entry 3 is not present.
    bench.set(&*route, request(3));
    let start = Instant::now();
    let mut looks = 0;
    while looks < 50 {
        // The interrupt comes again as soon as it was looked at.
        if event.read().is_err() {
            looks += 1;
        }
        event.write(1).expect("room");
        std::thread::yield_now();
    }
    assert!(bench.faults() & 2 != 0, "PPF");
    assert!(start.elapsed() >= Duration::from_millis(40));
}
