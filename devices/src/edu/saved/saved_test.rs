use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pci::{Bdf, IntxSink, MsiSink, PciFunction as _};
use proptest::prelude::*;
use serde_json::{Value, json};
use state::{RestoreError, Section};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::edu::extension_test::{
    ATS, ENTRY, FIRST, INPUT, Machine, PAGES, PATIENCE, PRI, SECOND, TRANSLATE, fresh, machine,
};
use crate::edu::{Edu, EduOptions};
use crate::{Dma, Memory};

/// Messages, and levels of the pin.
#[derive(Default)]
struct Sink {
    messages: Mutex<Vec<(u64, u32)>>,
    level: Mutex<bool>,
}

impl MsiSink for Sink {
    fn signal(&self, _requester: Bdf, address: u64, data: u32) {
        self.messages.lock().push((address, data));
    }
}

impl IntxSink for Sink {
    fn set_level(&self, asserted: bool) {
        *self.level.lock() = asserted;
    }
}

/// A device without a unit.
struct Plain {
    edu: Arc<Edu>,
    memory: Memory,
    sink: Arc<Sink>,
}

impl Plain {
    fn new() -> Self {
        let memory: Memory = Arc::new(
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("mappable"),
        );
        let sink = Arc::<Sink>::default();
        let options = EduOptions {
            msi_vectors: 4,
            ..EduOptions::default()
        };
        let (msi, intx) = (Arc::clone(&sink) as _, Arc::clone(&sink) as _);
        let dma = Dma::direct(Arc::clone(&memory));
        let bdf = Bdf::from_requester_id(0x18);
        let edu = Edu::new(bdf, dma, msi, intx, None, options).expect("a thread");
        Self { edu, memory, sink }
    }

    fn read(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        let length = if offset < 0x80 { 4 } else { 8 };
        self.edu.read_bar(0, offset, &mut data[..length]);
        u64::from_le_bytes(data)
    }

    fn act(&self, step: &Step) {
        match *step {
            Step::Narrow(offset, value) => self.edu.write_bar(0, offset, &value.to_le_bytes()),
            Step::Wide(offset, value) => self.edu.write_bar(0, offset, &value.to_le_bytes()),
            Step::Config(offset, value) => {
                self.edu.write_config(offset, &value.to_le_bytes());
            }
            Step::Memory(at, value) => {
                let at = GuestAddress(at);
                self.memory.write_obj(value, at).expect("memory");
            }
        }
        let begin = Instant::now();
        while self.read(0x20) & 1 != 0 || self.read(0x98) & 1 != 0 {
            assert!(begin.elapsed() < PATIENCE, "a command does not end");
            thread::yield_now();
        }
        self.edu.park();
        while self.edu.parked().is_err() {
            assert!(begin.elapsed() < PATIENCE, "it does not park");
            thread::yield_now();
        }
        self.edu.resume();
    }

    /// All that can be seen.
    fn seen(&self) -> (Vec<u64>, Vec<u8>, Vec<u8>, bool) {
        let offsets = [0, 4, 8, 0x20, 0x24, 0x80, 0x88, 0x90, 0x98];
        let mut config = vec![0; 0x100];
        self.edu.read_config(0, &mut config);
        let mut memory = vec![0; 0x3000];
        self.memory
            .read_slice(&mut memory, GuestAddress(0))
            .expect("memory");
        let registers = offsets.map(|offset| self.read(offset));
        (registers.to_vec(), config, memory, *self.sink.level.lock())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Narrow(u64, u32),
    Wide(u64, u64),
    Config(u16, u16),
    Memory(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let narrow = prop_oneof![Just(4_u64), Just(8), Just(0x20), Just(0x60), Just(0x64)];
    let wide = prop_oneof![
        // Source and destination: memory, and the device's buffer.
        3 => (prop_oneof![Just(0x80_u64), Just(0x88)], prop_oneof![0..0x2000_u64, 0x4_0000..0x4_0800_u64])
            .prop_map(|(offset, value)| Step::Wide(offset, value)),
        1 => (0..0x900_u64).prop_map(|length| Step::Wide(0x90, length)),
        4 => (0..8_u64).prop_map(|command| Step::Wide(0x98, command)),
    ];
    let config = prop_oneof![
        Just((4_u16, 6_u16)),
        Just((4, 2)),
        Just((4, 0x406)),
        Just((0x42, 1)),
        Just((0x42, 0x21)),
        Just((0x42, 0)),
        Just((0x44, 0x1000)),
        Just((0x46, 0xfee0)),
        Just((0x4c, 0x40)),
        Just((0x50, 3)),
        Just((0x50, 0)),
        any::<(u16, u16)>().prop_map(|(at, value)| (at % 0x40, value)),
    ];
    prop_oneof![
        4 => (narrow, any::<u32>()).prop_map(|(offset, value)| Step::Narrow(offset, value)),
        4 => wide,
        3 => config.prop_map(|(offset, value)| Step::Config(offset, value)),
        1 => (0..0x400_u64, any::<u64>()).prop_map(|(at, value)| Step::Memory(8 * at, value)),
    ]
}

fn saved(edu: &Edu) -> Section {
    edu.park();
    let begin = Instant::now();
    while edu.parked().is_err() {
        assert!(begin.elapsed() < PATIENCE, "it does not park");
        thread::yield_now();
    }
    edu.save().expect("saved")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_restored_one_goes_on_as_the_saved_one_does(
        before in prop::collection::vec(step(), 0..40),
        after in prop::collection::vec(step(), 0..40),
    ) {
        let (first, second) = (Plain::new(), Plain::new());
        before.iter().for_each(|step| first.act(step));
        let mut memory = vec![0; 1 << 20];
        first.memory.read_slice(&mut memory, GuestAddress(0)).expect("memory");
        second.memory.write_slice(&memory, GuestAddress(0)).expect("memory");
        let section = saved(&first.edu);
        second.edu.restore(&section).expect("restored");
        prop_assert_eq!(saved(&second.edu), section);
        prop_assert_eq!(&*second.sink.messages.lock(), &[]);
        prop_assert_eq!(second.seen(), first.seen());
        first.sink.messages.lock().clear();
        for plain in [&first, &second] {
            plain.edu.resume();
            after.iter().for_each(|step| plain.act(step));
        }
        prop_assert_eq!(second.seen(), first.seen());
        prop_assert_eq!(&*second.sink.messages.lock(), &*first.sink.messages.lock());
        prop_assert_eq!(saved(&second.edu), saved(&first.edu));
    }
}

/// Another machine with the same memory, whose unit and device are as those of `machine` are.
fn moved(machine: &Machine) -> Machine {
    let section = saved(&machine.edu);
    let unit = machine.unit.save().expect("saved");
    let next = fresh(Arc::clone(&machine.memory));
    next.unit.restore(&unit).expect("restored");
    next.edu.restore(&section).expect("restored");
    assert_eq!(next.edu.parked(), Ok(()));
    assert_eq!(saved(&next.edu), section);
    next
}

#[test]
fn what_the_device_tlb_keeps_is_used_elsewhere_until_it_is_invalidated() {
    let first = machine();
    first.start(TRANSLATE);
    assert_eq!(first.finish(), 0);
    let next = moved(&first);
    next.edu.resume();
    assert_eq!((next.read(0x10c), next.read(0x110)), (1, 0));
    // Nobody told the device of this.
    next.put(ENTRY, SECOND | 7);
    next.fill(FIRST);
    next.fill(SECOND);
    next.start(TRANSLATE);
    assert_eq!(next.finish(), 0);
    assert!(next.written(FIRST) && !next.written(SECOND));
    next.invalidate_device();
    assert_eq!((next.read(0x10c), next.read(0x110)), (0, 1));
    next.start(TRANSLATE);
    assert_eq!(next.finish(), 0);
    assert!(next.written(SECOND));
}

/// Has a machine wait for a page.
fn waiting() -> Machine {
    let machine = machine();
    machine.put(ENTRY, 0);
    machine.fill(FIRST);
    machine.start(TRANSLATE | PAGES);
    machine.wait_until("a request comes", || machine.register(0xc8) == 32);
    machine
}

#[test]
fn a_command_that_waits_for_a_page_is_answered_elsewhere() {
    let first = waiting();
    let next = moved(&first);
    // Once more, and nothing has begun meanwhile.
    let next = moved(&next);
    assert_eq!(
        next.config(PRI + 6) & 0x102,
        0,
        "in flight, and nothing unexpected"
    );
    next.edu.resume();
    thread::sleep(Duration::from_millis(20));
    assert_eq!(next.read(0x98) & 1, 1, "it waits");
    assert_eq!((next.read(0x114), next.read(0x118)), (0, 0));
    next.put(ENTRY, FIRST | 7);
    next.respond(0, 0);
    assert_eq!(next.finish(), 0);
    assert!(next.written(FIRST));
    assert_eq!((next.read(0x114), next.read(0x118)), (1, 1));
    assert_eq!(next.register(0xc8), 32, "it has not asked again");
    assert_eq!(next.config(PRI + 6) & 2, 0, "nothing unexpected");
    // The next group follows.
    next.put(ENTRY, 0);
    next.invalidate_device();
    next.start(TRANSLATE | PAGES);
    next.wait_until("a request comes", || next.register(0xc8) == 64);
    next.respond(1, 1);
    assert_eq!(next.finish(), 5);
}

#[test]
fn an_answer_that_came_while_all_was_parked_counts_elsewhere() {
    let first = waiting();
    saved(&first.edu);
    first.put(ENTRY, FIRST | 7);
    first.respond(0, 0);
    let next = moved(&first);
    assert!(!next.written(FIRST), "parked");
    next.edu.resume();
    assert_eq!(next.finish(), 0);
    assert!(next.written(FIRST));
    assert_eq!((next.read(0x114), next.read(0x118)), (1, 1));
}

#[test]
fn what_was_copied_before_the_page_is_not_copied_again() {
    let first = machine();
    // The second page is missing.
    first.put(ENTRY + 8, 0);
    first.write(0x104, 5 | 1 << 31 | TRANSLATE | PAGES);
    first.fill(FIRST + 0xfc0);
    for (offset, value) in [
        (0x80, 0x4_0000_u64),
        (0x88, INPUT + 0xfc0),
        (0x90, 128),
        (0x98, 3),
    ] {
        first.edu.write_bar(0, offset, &value.to_le_bytes());
    }
    first.wait_until("a request comes", || first.register(0xc8) == 32);
    assert!(first.written(FIRST + 0xfc0));
    let next = moved(&first);
    next.fill(FIRST + 0xfc0);
    next.fill(SECOND);
    next.edu.resume();
    next.put(ENTRY + 8, SECOND | 7);
    next.respond(0, 0);
    assert_eq!(next.finish(), 0);
    assert!(next.written(SECOND) && !next.written(FIRST + 0xfc0));
}

#[test]
fn a_restored_command_ends_with_a_reset_and_leaves_no_request_behind() {
    let first = waiting();
    let next = moved(&first);
    next.edu.reset();
    assert_eq!(next.edu.parked(), Ok(()));
    next.edu.resume();
    assert_eq!(next.read(0x98), 0);
    next.switch_on();
    assert_eq!(next.config(PRI + 6) & 2, 0);
    next.put(ENTRY, FIRST | 7);
    next.start(TRANSLATE);
    assert_eq!(next.finish(), 0);
    assert!(next.written(FIRST));
}

/// Why the state of a machine that waits for a page is refused when `path` in it is `value`.
fn refusal(json: &Value, path: &str, value: Value) -> String {
    let mut json = json.clone();
    *json.pointer_mut(path).expect("a field") = value;
    let section: Section = serde_json::from_value(json).expect("a section");
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("mappable");
    let next = fresh(Arc::new(memory));
    let error: RestoreError = next.edu.restore(&section).expect_err(path);
    error.to_string()
}

#[test]
fn hostile_states_are_refused_with_the_reason() {
    let first = waiting();
    let json = serde_json::to_value(saved(&first.edu)).expect("JSON");
    let entry = json!({ "pasid": null, "input": 0, "address": 0, "page_shift": 12, "readable": true,
        "writable": true, "snooped": true, "privileged": false });
    let mut many = Vec::new();
    many.resize(65, entry.clone());
    let with = |field: &str, value: Value| {
        let mut entry = entry.clone();
        entry[field] = value;
        json!([entry])
    };
    let copy = "/state/copy";
    let cases = [
        (
            "/state/dma_mask",
            json!(0xfff),
            "the mask of its addresses is 0xfff in the saved machine and 0xffffffffffffffff here",
        ),
        (
            "/state/buffer",
            json!("00"),
            "the device's buffer cannot be: 1 bytes instead of 4096",
        ),
        (
            "/state/next_group",
            json!(512),
            "the next page request's group cannot be: 512 of 512",
        ),
        (
            "/state/factorial",
            json!(3),
            "a factorial cannot be: the registers say something else about it",
        ),
        (
            "/state/registers/command",
            json!(2),
            "a copy cannot be: the registers say something else about it",
        ),
        (
            copy,
            json!(null),
            "a copy cannot be: the registers say something else about it",
        ),
        (
            "/state/registers/status",
            json!(0x40),
            "the status register cannot be: there are no bits 0x40",
        ),
        (
            "/state/registers/extension/features",
            json!(1),
            "the features register is 1 in the saved machine and 7 here",
        ),
        (
            "/state/registers/extension/control",
            json!(1 << 20),
            "the control register cannot be: there are no bits 0x100000",
        ),
        (
            "/state/registers/extension/outcome",
            json!(8),
            "the outcome register cannot be: there is no code 8",
        ),
        (
            "/state/translations",
            json!(many),
            "the device-TLB cannot be: 65 translations, and 64 fit",
        ),
        (
            "/state/translations",
            with("page_shift", json!(64)),
            "a translation cannot be: no page has 64 address bits",
        ),
        (
            "/state/translations",
            with("pasid", json!(1 << 20)),
            "a PASID cannot be: 0x100000 has more than 20 bits",
        ),
        (
            "/state/copy/offset",
            json!(0x1000),
            "a copy cannot be: 64 bytes at 4096 of the buffer",
        ),
        (
            "/state/copy/pages",
            json!(false),
            "a page request cannot be: no copy asks for a page there",
        ),
        (
            "/state/copy/carried/before",
            json!("00"),
            "a page request cannot be: no copy asks for a page there",
        ),
        (
            "/state/copy/carried/waits_for",
            json!(null),
            "a page request cannot be: there is none that could be answered",
        ),
        (
            "/state/copy/carried/waits_for",
            json!([5, 512]),
            "a page request cannot be: its group has more than 9 bits",
        ),
        (
            "/state/copy/carried/answer",
            json!(16),
            "a page request cannot be: its answer has no such code",
        ),
    ];
    for (path, value, expected) in cases {
        assert_eq!(refusal(&json, path, value), expected, "{path}");
    }
    // Without ATS, nothing is kept.
    let mut bytes = json["state"]["config"]["bytes"]
        .as_str()
        .expect("digits")
        .to_owned();
    let at = 2 * (usize::from(ATS) + 7);
    bytes.replace_range(at..at + 2, "00");
    let mut off = json.clone();
    off["state"]["config"]["bytes"] = json!(bytes);
    let text = refusal(&off, "/state/translations", json!([entry]));
    assert_eq!(
        text,
        "the device-TLB cannot be: address translation services are off"
    );
}
