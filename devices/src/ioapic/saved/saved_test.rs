use std::sync::{Arc, Mutex};

use pci::{Bdf, IntxSink as _, MsiSink};
use proptest::prelude::*;
use state::Section;
use vm_device::DeviceMmio as _;
use vm_device::bus::MmioAddress;

use crate::ioapic::{IntxLine, IoApic, PINS, Route, RouteListener};

const BASE: MmioAddress = MmioAddress(0xfec0_0000);

#[derive(Default)]
struct Sent(Mutex<Vec<(u64, u32)>>);

impl MsiSink for Sent {
    fn signal(&self, _requester: Bdf, address: u64, data: u32) {
        self.0.lock().expect("not poisoned").push((address, data));
    }
}

/// An I/O APIC with two lines on pin 5 and one on pin 6.
struct Machine {
    ioapic: Arc<IoApic>,
    lines: [Arc<IntxLine>; 3],
    sent: Arc<Sent>,
}

impl Machine {
    fn new() -> Self {
        let sent = Arc::<Sent>::default();
        let ioapic = IoApic::new(Arc::clone(&sent) as _, Bdf::from_requester_id(0xff00));
        let lines = [5, 5, 6].map(|pin| ioapic.line(pin));
        Self {
            ioapic,
            lines,
            sent,
        }
    }

    fn sent(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.sent.0.lock().expect("not poisoned"))
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.ioapic.mmio_read(BASE, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u32) {
        self.ioapic.mmio_write(BASE, offset, &value.to_le_bytes());
    }

    /// Selects the register and writes it.
    fn program(&self, register: u32, value: u32) {
        self.write(0, register);
        self.write(0x10, value);
    }

    fn act(&self, step: &Step) {
        match *step {
            Step::Select(register) => self.write(0, register.into()),
            Step::Program(register, value) => self.program(register, value),
            Step::End(vector) => self.write(0x40, vector.into()),
            Step::Eoi(vector) => self.ioapic.eoi(vector),
            Step::Drive(pin, level) => self.ioapic.set_level(pin, level),
            Step::Pulse(pin) => self.ioapic.pulse(pin),
            Step::Line(line, level) => self.lines[line].set_level(level),
        }
    }

    /// All that can be read.
    fn registers(&self) -> Vec<u32> {
        let select = self.read(0);
        let read = |register| {
            self.write(0, register);
            self.read(0x10)
        };
        let mut values: Vec<_> = (0..0x42).map(read).collect();
        self.write(0, select);
        values.push(select);
        values
    }
}

#[derive(Clone, Debug)]
enum Step {
    Select(u8),
    Program(u32, u32),
    End(u8),
    Eoi(u8),
    Drive(u8, bool),
    Pulse(u8),
    Line(usize, bool),
}

/// Values by which entries become level-triggered or not, masked or not, with one of four vectors.
fn low() -> impl Strategy<Value = u32> {
    (0x40..0x44_u32, any::<[bool; 2]>(), any::<u32>()).prop_map(
        |(vector, [level, masked], other)| {
            let control = u32::from(level) << 15 | u32::from(masked) << 16;
            vector | control | other & 0x5700
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let pin = 4..8_u8;
    prop_oneof![
        1 => any::<u8>().prop_map(Step::Select),
        6 => (0x18..0x20_u32, low()).prop_map(|(register, value)| Step::Program(register & !1, value)),
        1 => (0..0x42_u32, any::<u32>()).prop_map(|(register, value)| Step::Program(register, value)),
        2 => (0x40..0x44_u8).prop_map(Step::End),
        2 => (0x40..0x44_u8).prop_map(Step::Eoi),
        2 => (pin.clone(), any::<bool>()).prop_map(|(pin, level)| Step::Drive(pin, level)),
        1 => pin.prop_map(Step::Pulse),
        4 => (0..3_usize, any::<bool>()).prop_map(|(line, level)| Step::Line(line, level)),
    ]
}

proptest! {
    #[test]
    fn a_restored_one_goes_on_as_the_saved_one_does(
        before in prop::collection::vec(step(), 0..40),
        after in prop::collection::vec(step(), 0..40),
    ) {
        let saved = Machine::new();
        before.iter().for_each(|step| saved.act(step));
        saved.sent();
        let restored = Machine::new();
        for (line, level) in [0, 1, 2].into_iter().zip(levels(&before)) {
            restored.lines[line].set_level(level);
        }
        restored.ioapic.restore(&saved.ioapic.save().expect("saved")).expect("restored");
        prop_assert_eq!(restored.sent(), []);
        prop_assert_eq!(restored.registers(), saved.registers());
        prop_assert_eq!(restored.ioapic.in_service(), saved.ioapic.in_service());
        for step in &after {
            saved.act(step);
            restored.act(step);
            prop_assert_eq!(restored.sent(), saved.sent(), "{:?}", step);
        }
        prop_assert_eq!(restored.registers(), saved.registers());
        prop_assert_eq!(restored.ioapic.save(), saved.ioapic.save());
    }
}

/// What the lines are after `steps`.
fn levels(steps: &[Step]) -> [bool; 3] {
    let mut levels = [false; 3];
    for step in steps {
        if let Step::Line(line, level) = *step {
            levels[line] = level;
        }
    }
    levels
}

#[test]
fn a_line_counts_once_however_often_a_machine_is_saved() {
    let first = Machine::new();
    first.program(0x1a, 0x8041);
    first.lines[0].set_level(true);
    let second = Machine::new();
    second.lines[0].set_level(true);
    second
        .ioapic
        .restore(&first.ioapic.save().expect("saved"))
        .expect("restored");
    second.lines[0].set_level(false);
    second.ioapic.eoi(0x41);
    assert_eq!(second.sent(), [], "nobody asserts the pin");
}

#[test]
fn vectors_in_service_are_those_of_processors_and_an_end_that_was_lost_is_made_good() {
    let machine = Machine::new();
    machine.program(0x1a, 0x8041);
    // In remappable format: the processor's vector is another one, and here unknown.
    machine.program(0x1d, 1 << 16);
    machine.program(0x1c, 0x8042);
    machine.lines[0].set_level(true);
    machine.lines[2].set_level(true);
    assert_eq!(machine.sent().len(), 2);
    assert_eq!(machine.ioapic.in_service(), [0x41]);
    machine.ioapic.set_eoi_vector(6, Some(0x55));
    assert_eq!(machine.ioapic.in_service(), [0x41, 0x55]);
    machine.lines[0].set_level(false);
    machine.ioapic.eoi(0x41);
    assert_eq!(machine.ioapic.in_service(), [0x55]);
    assert_eq!(machine.sent(), []);
}

#[derive(Default)]
struct Routes(Mutex<Vec<(u8, Route)>>);

impl RouteListener for Routes {
    fn route_changed(&self, pin: u8, route: Route) {
        self.0.lock().expect("not poisoned").push((pin, route));
    }
}

#[test]
fn the_listener_hears_of_all_routes() {
    let (saved, restored) = (Machine::new(), Machine::new());
    saved.program(0x1a, 0x8041);
    let routes = Arc::<Routes>::default();
    restored.ioapic.set_listener(Arc::clone(&routes) as _);
    restored
        .ioapic
        .restore(&saved.ioapic.save().expect("saved"))
        .expect("restored");
    let heard = std::mem::take(&mut *routes.0.lock().expect("not poisoned"));
    let expected: Vec<_> = (0..PINS)
        .map(|pin| (pin, saved.ioapic.route(pin).expect("a pin")))
        .collect();
    assert_eq!(heard, expected);
}

/// Why `state` is refused.
fn refusal(state: &serde_json::Value) -> String {
    let machine = Machine::new();
    machine.program(0x1a, 0x41);
    let before = machine.registers();
    let section = Section::new("ioapic", 1, state).expect("a section");
    let error = machine.ioapic.restore(&section).expect_err("refused");
    assert_eq!(machine.registers(), before, "nothing has changed");
    error.to_string()
}

#[test]
fn what_no_ioapic_is_like_is_refused_with_the_reason() {
    let fine = || serde_json::json!({ "select": 0, "id": 0, "entries": vec![0x10000_u64; 24], "driven": 0 });
    let with = |field: &str, value: serde_json::Value| {
        let mut state = fine();
        state[field] = value;
        refusal(&state)
    };
    let cases = [
        (
            with("entries", vec![0_u64; 23].into()),
            "the I/O APIC's entries cannot be: 23 instead of 24",
        ),
        (
            with("entries", vec![0x4000_u64; 24].into()),
            "the entry of pin 0 cannot be: 0x0000000000004000 has bits that it never has",
        ),
        (
            with("entries", vec![1_u64 << 32; 24].into()),
            "the entry of pin 0 cannot be: 0x0000000100000000 has bits that it never has",
        ),
        (
            with("id", 1.into()),
            "the I/O APIC's id cannot be: 0x00000001 has reserved bits",
        ),
        (
            with("driven", 0x0100_0000.into()),
            "what is driven cannot be: 0x01000000 has more pins than 24",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }
    assert!(with("select", 256.into()).starts_with("ioapic cannot be: "));
}
