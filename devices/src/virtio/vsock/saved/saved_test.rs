use std::sync::Arc;

use pci::PciFunction as _;
use serde_json::{Value, json};
use state::Section;
use vm_memory::{Bytes, GuestAddress};

use crate::Memory;
use crate::virtio::testing::{A_WHILE, Driver, EVENT_IDX, Ring, eventually};
use crate::virtio::vhost::fake::Fake;
use crate::virtio::vhost::{Place, Queues};
use crate::virtio::vsock::Vsock;

const BUFFER: u64 = 0x8_0000;
const EVENT: u64 = 0x9_0000;

fn device(memory: &Memory) -> (Box<Vsock>, Arc<Fake>) {
    let kernel = Fake::new(memory);
    let place = Place::Direct(Arc::clone(memory));
    let queues = Queues::new(Arc::clone(&kernel), place, 0..2).unwrap();
    (Box::new(Vsock::new(queues, 7, u64::MAX)), kernel)
}

fn machine() -> (Driver, Arc<Fake>) {
    let memory = crate::virtio::testing::memory();
    let (device, kernel) = device(&memory);
    let port = crate::Dma::direct(Arc::clone(&memory));
    (Driver::with_memory(device, 0, memory, port), kernel)
}

/// The function becomes another one, which another kernel serves.
fn move_on(driver: &mut Driver) -> Arc<Fake> {
    let (device, kernel) = device(&driver.memory);
    driver.move_to(device);
    eventually("the next kernel has started", || kernel.running());
    kernel
}

fn serve(driver: &Driver, kernel: &Fake, ring: &Ring, byte: u8) {
    eventually("a used buffer", || {
        kernel.turn(ring.index.into(), byte);
        ring.try_used(driver).is_some()
    });
}

fn offer_event(driver: &Driver, ring: &Ring) {
    let at = GuestAddress(EVENT);
    driver.memory.write_slice(&[0xaa; 8], at).unwrap();
    ring.add(driver, &[(EVENT, 4, true)]);
    driver.kick(ring);
}

/// The driver is told that its connections have ended.
fn is_told(driver: &Driver, ring: &Ring) {
    let mut used = None;
    eventually("an event", || {
        used = ring.try_used(driver);
        used.is_some()
    });
    assert_eq!(used.map(|(_, length)| length), Some(4));
    let mut event = [0; 8];
    let at = GuestAddress(EVENT);
    driver.memory.read_slice(&mut event, at).unwrap();
    assert_eq!(event, [0, 0, 0, 0, 0xaa, 0xaa, 0xaa, 0xaa]);
}

#[test]
fn another_kernel_goes_on_where_the_last_one_was_and_not_before_the_guest() {
    for features in [2, EVENT_IDX] {
        let (mut driver, mut kernel) = machine();
        let rings = driver.start(features, 2);
        for byte in 1..40 {
            rings[0].add(&driver, &[(BUFFER, 16, true)]);
            rings[1].add(&driver, &[(BUFFER, 16, false)]);
            if byte % 3 == 0 {
                kernel = move_on(&mut driver);
            }
            serve(&driver, &kernel, &rings[0], byte);
            serve(&driver, &kernel, &rings[1], 0);
            if byte % 3 == 1 {
                kernel = move_on(&mut driver);
            }
            assert_eq!(rings[0].try_used(&driver), None);
            let there: u8 = driver.memory.read_obj(GuestAddress(BUFFER)).unwrap();
            assert_eq!(there, byte);
        }
        driver.set_status(0);
        eventually("a reset completes", || driver.status() == 0);
        assert!(!kernel.running());
        // The next driver begins at the beginning.
        let rings = driver.start(features, 2);
        rings[0].add(&driver, &[(BUFFER, 16, true)]);
        serve(&driver, &kernel, &rings[0], 0x77);
    }
}

#[test]
fn a_driver_is_told_once_after_each_move_that_its_connections_have_ended() {
    for features in [0, EVENT_IDX] {
        let (mut driver, _) = machine();
        let rings = driver.start(features, 3);
        let events = &rings[2];
        offer_event(&driver, events);
        for _ in 0..20 {
            move_on(&mut driver);
            is_told(&driver, events);
            if features == 0 {
                eventually("an interrupt", || driver.interrupts(3) == 1);
            }
            offer_event(&driver, events);
        }
        // One that is saved and goes on keeps them.
        driver.saved();
        driver.function.resume();
        std::thread::sleep(A_WHILE);
        assert_eq!(events.try_used(&driver), None);
    }
}

#[test]
fn a_driver_without_a_buffer_for_the_event_is_told_when_it_has_one_wherever_it_is_then() {
    let (mut driver, _) = machine();
    let rings = driver.start(0, 3);
    move_on(&mut driver);
    move_on(&mut driver);
    offer_event(&driver, &rings[2]);
    is_told(&driver, &rings[2]);
    offer_event(&driver, &rings[2]);
    std::thread::sleep(A_WHILE);
    assert_eq!(rings[2].try_used(&driver), None, "told once");
}

#[test]
fn one_that_comes_later_or_has_left_the_events_out_is_not_told() {
    let (mut driver, _) = machine();
    let (device, _kernel) = device(&driver.memory);
    driver.move_to(device);
    let rings = driver.start(0, 3);
    offer_event(&driver, &rings[2]);
    std::thread::sleep(A_WHILE);
    assert_eq!(rings[2].try_used(&driver), None);
    driver.start(0, 2);
    move_on(&mut driver);
    let rings = driver.start(0, 3);
    offer_event(&driver, &rings[2]);
    std::thread::sleep(A_WHILE);
    assert_eq!(rings[2].try_used(&driver), None);
}

#[test]
fn a_buffer_that_is_too_small_for_the_event_needs_a_reset() {
    let (mut driver, _) = machine();
    let rings = driver.start(0, 3);
    rings[2].add(&driver, &[(EVENT, 3, true)]);
    let (device, _kernel) = device(&driver.memory);
    driver.move_to(device);
    driver.expect_needs_reset();
}

#[test]
fn the_interrupt_of_a_masked_vector_that_nobody_has_seen_is_pending_elsewhere() {
    let (mut driver, kernel) = machine();
    let rings = driver.start(0, 2);
    eventually("the kernel has started", || kernel.running());
    driver.write(0x2000 + 16 + 12, &1_u32.to_le_bytes());
    rings[0].add(&driver, &[(BUFFER, 16, true)]);
    serve(&driver, &kernel, &rings[0], 1);
    move_on(&mut driver);
    assert_eq!(driver.read::<1>(0x3000), [2]);
    assert_eq!(driver.interrupts(1), 0);
    driver.write(0x2000 + 16 + 12, &0_u32.to_le_bytes());
    assert_eq!(driver.interrupts(1), 1);
}

/// Why a state of a running device is refused with `value` at `path`.
fn refusal(path: &str, value: Value) -> String {
    let (driver, kernel) = machine();
    driver.start(0, 3);
    eventually("the kernel has started", || kernel.running());
    let mut json = serde_json::to_value(driver.saved()).unwrap();
    *json.pointer_mut(path).expect("a field") = value;
    let section: Section = serde_json::from_value(json).unwrap();
    let (device, _kernel) = device(&driver.memory);
    let restored = driver.restored(device, &section).map(|_| ());
    restored.expect_err("refused").to_string()
}

#[test]
fn states_that_cannot_be_are_refused_with_the_reason() {
    let cases = [
        (
            "/state/device/rings/0",
            json!(null),
            "queue 0 cannot be: only one that is served goes on somewhere",
        ),
        (
            "/state/device/rings/1",
            json!({"packed": {"next": 0, "wrap": true}}),
            "a queue cannot be: it is of another kind than was negotiated",
        ),
        (
            "/state/device_config",
            json!("0800000000000000"),
            "its configuration is 0800000000000000 in the saved machine and 0700000000000000 here",
        ),
        (
            "/state/device/parts/0/kind",
            json!("rng"),
            "the saved machine has rng there, and this one vhost-vsock",
        ),
    ];
    for (path, value, expected) in cases {
        assert_eq!(refusal(path, value), expected);
    }
}

#[test]
fn a_place_where_the_guest_has_no_buffers_harms_nobody() {
    for next in [1, 15, 16, 17, 0x7fff, 0xffff] {
        let (driver, _kernel) = machine();
        let rings = driver.start(0, 3);
        rings[0].add(&driver, &[(BUFFER, 16, true)]);
        let mut json = serde_json::to_value(driver.saved()).unwrap();
        json["state"]["device"]["rings"][0] = json!({"split": {"next": next}});
        let section: Section = serde_json::from_value(json).unwrap();
        let (device, kernel) = device(&driver.memory);
        let driver = driver.restored(device, &section).expect("restored");
        driver.function.resume();
        eventually("the kernel has started", || kernel.running());
        driver.set_status(0);
        eventually("a reset completes", || driver.status() == 0);
        let rings = driver.start(0, 3);
        rings[0].add(&driver, &[(BUFFER, 16, true)]);
        serve(&driver, &kernel, &rings[0], 3);
    }
}
