use ::pci::PciFunction as _;
use proptest::prelude::*;
use serde_json::{Value, json};
use state::Section;
use vm_memory::{Bytes, GuestAddress};

use crate::virtio::moving::Queue;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{
    BASE_FEATURES, Driver, EVENT_IDX, INDIRECT, PACKED, Ring, eventually,
};

const BUFFER: u64 = 0x40000;

fn rng() -> Driver {
    Driver::new(Box::new(Rng::new()))
}

/// Adds a buffer of `length` bytes at the place of `number`.
fn add(driver: &Driver, queue: &Queue, number: u64, length: u32) {
    queue.add(driver, &[(BUFFER + 0x100 * number, length, true)]);
}

#[test]
fn a_driver_finds_its_queue_where_it_left_it_wherever_that_is() {
    for features in [0, EVENT_IDX, PACKED, PACKED | EVENT_IDX | INDIRECT] {
        let mut driver = rng();
        let queue = driver.start_queues(features, 1).remove(0);
        for round in 0..40_u32 {
            let count = u64::from(round % 5);
            for number in 0..count {
                add(&driver, &queue, number, round + 1);
            }
            if round % 2 == 0 {
                queue.kick(&driver);
            }
            if round % 4 == 0 {
                for _ in 0..count {
                    assert_eq!(queue.used(&driver), round + 1);
                }
            }
            // What was added, and perhaps told, and not taken, is there afterwards.
            driver.move_to(Box::new(Rng::new()));
            if round % 4 != 0 {
                for _ in 0..count {
                    assert_eq!(queue.used(&driver), round + 1);
                }
            }
            assert_eq!(queue.try_used(&driver), None);
        }
        driver.set_status(0);
        eventually("a reset completes", || driver.status() == 0);
        let queue = driver.start_queues(features, 1).remove(0);
        add(&driver, &queue, 0, 7);
        queue.kick(&driver);
        assert_eq!(queue.used(&driver), 7);
        eventually("an interrupt", || driver.interrupts(1) > 0);
    }
}

#[test]
fn interrupts_of_a_moved_function_go_where_the_driver_wants_them() {
    let mut driver = rng();
    let queue = driver.start_queues(0, 1).remove(0);
    // Masked: pending.
    driver.write(0x2000 + 16 + 12, &1_u32.to_le_bytes());
    add(&driver, &queue, 0, 8);
    queue.kick(&driver);
    assert_eq!(queue.used(&driver), 8);
    eventually("it is pending", || driver.read::<1>(0x3000) == [2]);
    driver.move_to(Box::new(Rng::new()));
    assert_eq!(driver.read::<1>(0x3000), [2]);
    assert_eq!(driver.interrupts(1), 0);
    driver.write(0x2000 + 16 + 12, &0_u32.to_le_bytes());
    assert_eq!(driver.interrupts(1), 1);
    add(&driver, &queue, 0, 8);
    queue.kick(&driver);
    eventually("an interrupt", || driver.interrupts(1) == 2);
}

#[test]
fn a_device_that_needs_a_reset_needs_it_elsewhere_too() {
    let mut driver = rng();
    let ring = driver.start(0, 1).remove(0);
    ring.add(&driver, &[(0xffff_ffff_0000, 64, true)]);
    driver.kick(&ring);
    driver.expect_needs_reset();
    driver.move_to(Box::new(Rng::new()));
    assert_eq!(driver.status(), 0x4f);
    let queue = driver.start_queues(0, 1).remove(0);
    add(&driver, &queue, 0, 8);
    queue.kick(&driver);
    assert_eq!(queue.used(&driver), 8);
}

#[test]
fn a_function_that_is_not_parked_is_not_saved_and_its_pause_may_be_repeated() {
    let driver = rng();
    driver.start(0, 1);
    let error = driver.function.save().expect_err("at work");
    assert_eq!(error.to_string(), "it is at work; pause the guest before");
    let first = driver.saved();
    assert_eq!(driver.saved(), first);
    driver.function.resume();
    assert_eq!(driver.saved(), first);
}

#[test]
fn a_moved_function_can_be_reset_before_it_goes_on() {
    let driver = rng();
    driver.start(0, 1);
    let section = driver.saved();
    let moved = driver
        .restored(Box::new(Rng::new()), &section)
        .expect("restored");
    moved.function.reset();
    assert!(moved.function.is_quiet());
    moved.enable_function();
    let ring = moved.start(0, 1).remove(0);
    ring.add(&moved, &[(BUFFER, 16, true)]);
    moved.kick(&ring);
    assert_eq!(ring.used(&moved).1, 16);
}

#[derive(Clone, Debug)]
enum Step {
    Common(u64, Vec<u8>),
    Bar(u64, Vec<u8>),
    Config(u16, Vec<u8>),
    Isr,
}

fn step() -> impl Strategy<Value = Step> {
    let data = || prop::collection::vec(any::<u8>(), 1..5);
    let small = prop_oneof![Just(vec![0, 0]), Just(vec![1, 0]), Just(vec![2, 0]), data()];
    // All status bits but DRIVER_OK: nothing runs.
    let status = any::<u8>().prop_map(|bits| Step::Common(20, vec![bits & !4]));
    let table = prop_oneof![0x2000..0x2020_u64, 0x3000..0x3008_u64, 0x100..0x104_u64];
    prop_oneof![
        6 => ((0..20_u64).prop_union(21..56_u64), small).prop_map(|(at, data)| Step::Common(at, data)),
        2 => status,
        3 => (table, data()).prop_map(|(at, data)| Step::Bar(at, data)),
        3 => (0..0x110_u16, data()).prop_map(|(at, data)| Step::Config(at, data)),
        1 => Just(Step::Isr),
    ]
}

fn act(driver: &Driver, step: &Step) {
    match step {
        // Neither the status, nor what leads to it.
        Step::Common(at, data) if *at < 20 => {
            let length = data.len().min(usize::try_from(20 - at).unwrap());
            driver.write(*at, &data[..length]);
        }
        Step::Common(20, data) => driver.write(20, &data[..1]),
        Step::Common(at, data) | Step::Bar(at, data) => driver.write(*at, data),
        // What may reset the function, or lead to the status, is done by other tests.
        Step::Config(at, data) => {
            let (first, last) = (*at, at + u16::try_from(data.len()).unwrap());
            let access = driver.find_capability(9, |at| driver.config_byte(at + 3) == 5);
            let pcie = driver.find_capability(0x10, |_| true);
            if last > access && first < access + 20 || last > pcie + 9 && first < pcie + 10 {
                return;
            }
            driver.function.write_config(*at, data);
        }
        Step::Isr => {
            driver.read::<1>(0x100);
        }
    }
}

/// All that can be read without an effect.
fn seen(driver: &Driver) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let mut config = vec![0; 0x110];
    driver.function.read_config(0, &mut config);
    let mut table = vec![0; 0x40];
    driver.function.read_bar(0, 0x2000, &mut table);
    let mut common = driver.read::<56>(0).to_vec();
    common.extend(driver.read::<8>(0x3000));
    (config, common, table)
}

proptest! {
    #[test]
    fn a_restored_function_goes_on_as_the_saved_one_does(
        before in prop::collection::vec(step(), 0..40),
        after in prop::collection::vec(step(), 0..40),
    ) {
        let saved = rng();
        before.iter().for_each(|step| act(&saved, step));
        saved.messages.0.lock().unwrap().clear();
        let section = saved.saved();
        let restored = saved.restored(Box::new(Rng::new()), &section).expect("restored");
        prop_assert_eq!(seen(&restored), seen(&saved));
        for step in &after {
            act(&saved, step);
            act(&restored, step);
        }
        prop_assert_eq!(seen(&restored), seen(&saved));
        let (messages, expected) = (&restored.messages.0, &saved.messages.0);
        prop_assert_eq!(&*messages.lock().unwrap(), &*expected.lock().unwrap());
        prop_assert_eq!(restored.saved(), saved.saved());
    }
}

/// The state of a device whose driver has taken `features`, has two rings in use, and is at work.
fn running(features: u64) -> (Driver, Value) {
    let driver = rng();
    let queue = driver.start_queues(features, 1).remove(0);
    add(&driver, &queue, 0, 8);
    queue.kick(&driver);
    assert_eq!(queue.used(&driver), 8);
    let json = serde_json::to_value(driver.saved()).expect("JSON");
    (driver, json)
}

/// Why the state is refused when `path` in it is `value`.
fn refusal(features: u64, path: &str, value: Value) -> String {
    let (driver, mut json) = running(features);
    let place = json.pointer_mut(path).expect("a field");
    *place = value;
    let section: Section = serde_json::from_value(json).expect("a section");
    let before = driver.all_memory();
    let refused = driver.restored(Box::new(Rng::new()), &section);
    assert!(driver.all_memory() == before);
    match refused {
        Ok(_) => panic!("{path} is accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn hostile_states_are_refused_with_the_reason() {
    let cases = [
        (
            0,
            "/kind",
            json!("virtio-blk"),
            "the saved machine has virtio-blk there, and this one virtio-rng",
        ),
        (
            0,
            "/state/transport/status",
            json!(0x1f),
            "the device status cannot be: there are no bits 0x10",
        ),
        (
            0,
            "/state/transport/status",
            json!(7),
            "the device status cannot be: a driver has started a device without having chosen features",
        ),
        (
            0,
            "/state/transport/status",
            json!(13),
            "the device status cannot be: a driver cannot have chosen these features",
        ),
        (
            0,
            "/state/transport/status",
            json!(11),
            "a queue cannot be: the device does not run",
        ),
        (
            0,
            "/state/transport/isr",
            json!(4),
            "the ISR status cannot be: there are no bits 0x04",
        ),
        (
            0,
            "/state/transport/config_vector",
            json!(2),
            "an interrupt vector cannot be: there is no vector 2",
        ),
        (
            0,
            "/state/transport/queue_vectors",
            json!([2]),
            "an interrupt vector cannot be: there is no vector 2",
        ),
        (
            0,
            "/state/transport/queue_vectors",
            json!([]),
            "its number of queues is 0 in the saved machine and 1 here",
        ),
        (
            0,
            "/state/device/registers/accepted",
            json!(1_u64 << 33),
            "the device status cannot be: a driver cannot have chosen these features",
        ),
        (
            0,
            "/state/device/registers/accepted",
            json!(BASE_FEATURES | 1),
            "the device status cannot be: a driver cannot have chosen these features",
        ),
        (
            0,
            "/state/device/registers/offered",
            json!(BASE_FEATURES | 1),
            "what features it offers is 0x0000000300000001 in the saved machine and 0x0000000730000000 here",
        ),
        (
            0,
            "/state/device/registers/queues/0/max_size",
            json!(128),
            "the largest size of queue 0 is 128 in the saved machine and 64 here",
        ),
        (
            0,
            "/state/device/registers/queues/0/size",
            json!(128),
            "the queues cannot be: queue setup is invalid: invalid queue size",
        ),
        (
            0,
            "/state/device/registers/queues/0/size",
            json!(0),
            "the queues cannot be: queue setup is invalid: invalid queue size",
        ),
        (
            0,
            "/state/device/registers/queues/0/descriptors",
            json!(u64::MAX - 15),
            "the queues cannot be: queue setup is invalid: address overflow",
        ),
        (
            0,
            "/state/device/registers/queues/0/descriptors",
            json!(8),
            "the queues cannot be: queue setup is invalid: virtio queue descriptor table breaks alignment constraints",
        ),
        (
            0,
            "/state/device/registers/queues/0/enabled",
            json!(false),
            "queue 0 cannot be: only one that is served goes on somewhere",
        ),
        (
            0,
            "/state/device/rings",
            json!([null]),
            "queue 0 cannot be: only one that is served goes on somewhere",
        ),
        (
            0,
            "/state/device/rings",
            json!([]),
            "its number of queues is 0 in the saved machine and 1 here",
        ),
        (
            0,
            "/state/device/rings/0",
            json!({ "packed": { "next": 1, "wrap": true } }),
            "a queue cannot be: it is of another kind than was negotiated",
        ),
        (
            PACKED,
            "/state/device/rings/0",
            json!({ "split": { "next": 1 } }),
            "a queue cannot be: it is of another kind than was negotiated",
        ),
        (
            PACKED,
            "/state/device/rings/0/packed/next",
            json!(16),
            "a queue cannot be: descriptor 16 is next, of 16",
        ),
        (
            0,
            "/state/device/parts",
            json!([]),
            "its number of parts is 0 in the saved machine and 1 here",
        ),
        (
            0,
            "/state/device/parts/0/kind",
            json!("blk"),
            "the saved machine has blk there, and this one rng",
        ),
        (
            0,
            "/state/device_config",
            json!("00"),
            "its configuration is 00 in the saved machine and  here",
        ),
        (
            0,
            "/state/config/bytes",
            json!("00"),
            "configuration space cannot be: 1 bytes instead of 4096",
        ),
    ];
    for (features, path, value, expected) in cases {
        assert_eq!(refusal(features, path, value), expected, "{path}");
    }
}

#[test]
fn addresses_that_lead_nowhere_need_a_reset_when_the_device_goes_on() {
    let (driver, mut json) = running(0);
    for ring in ["descriptors", "driver", "device"] {
        json["state"]["device"]["registers"]["queues"][0][ring] = json!(0x7000_0000_0000_u64);
    }
    let section: Section = serde_json::from_value(json).expect("a section");
    let moved = driver
        .restored(Box::new(Rng::new()), &section)
        .expect("restored");
    assert_eq!(moved.status(), 15);
    moved.function.resume();
    moved.expect_needs_reset();
}

#[test]
fn a_device_that_offers_more_goes_on_offering_what_it_did() {
    let (driver, mut json) = running(0);
    json["state"]["device"]["registers"]["offered"] = json!(BASE_FEATURES);
    let section: Section = serde_json::from_value(json).expect("a section");
    let moved = driver
        .restored(Box::new(Rng::new()), &section)
        .expect("restored");
    assert_eq!(moved.offered(), BASE_FEATURES);
    moved.function.resume();
    assert!(!moved.negotiate(BASE_FEATURES | PACKED));
    assert!(moved.negotiate(BASE_FEATURES));
}

#[test]
fn a_split_ring_goes_on_at_any_index() {
    let (driver, mut json) = running(0);
    json["state"]["device"]["rings"][0]["split"]["next"] = json!(0xffff);
    let section: Section = serde_json::from_value(json).expect("a section");
    // As a driver leaves it after 65535 chains.
    let base = 0x10000;
    let write = |at: u64, value: u16| {
        let at = GuestAddress(base + at);
        driver.memory.write_obj(value, at).unwrap();
    };
    write(0x8002, 1);
    write(0x8004 + 2 * 15, 0);
    write(0x8004, 0);
    write(0xc002, 0xffff);
    Ring::descriptor(&driver, base, 0, (BUFFER, 5, 2, 0));
    let moved = driver
        .restored(Box::new(Rng::new()), &section)
        .expect("restored");
    moved.function.resume();
    let used = || {
        moved
            .memory
            .read_obj::<u16>(GuestAddress(base + 0xc002))
            .unwrap()
    };
    eventually("two more are used", || used() == 1);
    assert_eq!(moved.status(), 15);
}
