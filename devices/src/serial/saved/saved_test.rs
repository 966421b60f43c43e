use std::io::Write;
use std::sync::{Arc, Mutex};

use pci::{Bdf, MsiSink};
use proptest::prelude::*;
use serde_json::{Value, json};
use state::Section;
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::{DeviceMmio as _, DevicePio as _};

use crate::ioapic::IoApic;
use crate::serial::SerialPort;

const BASE: PioAddress = PioAddress(0x3f8);

#[derive(Default)]
struct Sent(Mutex<u32>);

impl MsiSink for Sent {
    fn signal(&self, _requester: Bdf, _address: u64, _data: u32) {
        *self.0.lock().expect("not poisoned") += 1;
    }
}

#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Machine {
    port: SerialPort,
    output: Output,
    sent: Arc<Sent>,
}

impl Machine {
    fn new() -> Self {
        let sent = Arc::<Sent>::default();
        let ioapic = IoApic::new(Arc::clone(&sent) as _, Bdf::from_requester_id(0xff00));
        // Pin 4 unmasked, vector 0x31.
        ioapic.mmio_write(MmioAddress(0), 0, &0x18_u32.to_le_bytes());
        ioapic.mmio_write(MmioAddress(0), 0x10, &0x31_u32.to_le_bytes());
        let output = Output::default();
        let port = SerialPort::new(ioapic, 4, Box::new(output.clone()));
        Self { port, output, sent }
    }

    fn restored(saved: &Self) -> Self {
        let machine = Self::new();
        let section = saved.port.save().expect("saved");
        machine.port.restore(&section).expect("restored");
        machine
    }

    fn read(&self, register: u16) -> u8 {
        let mut data = [0];
        self.port.pio_read(BASE, register, &mut data);
        data[0]
    }

    /// What a step reads or takes, and how many interrupts it sends.
    fn act(&self, step: &Step) -> (usize, u32) {
        let result = match step {
            Step::Read(register) => self.read(*register).into(),
            Step::Write(register, value) => {
                self.port.pio_write(BASE, *register, &[*value]);
                0
            }
            Step::Input(bytes) => self.port.push_input(bytes),
        };
        (
            result,
            std::mem::take(&mut *self.sent.0.lock().expect("not poisoned")),
        )
    }

    fn written(&self) -> Vec<u8> {
        std::mem::take(&mut self.output.0.lock().expect("not poisoned"))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Read(u16),
    Write(u16, u8),
    Input(Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..8_u16).prop_map(Step::Read),
        3 => (0..8_u16, any::<u8>()).prop_map(|(register, value)| Step::Write(register, value)),
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Step::Input),
    ]
}

proptest! {
    #[test]
    fn a_restored_one_goes_on_as_the_saved_one_does(
        before in prop::collection::vec(step(), 0..60),
        after in prop::collection::vec(step(), 0..200),
    ) {
        let saved = Machine::new();
        for step in &before {
            saved.act(step);
        }
        saved.written();
        let restored = Machine::restored(&saved);
        prop_assert_eq!(*restored.sent.0.lock().expect("not poisoned"), 0);
        prop_assert_eq!(restored.port.save(), saved.port.save());
        for step in &after {
            prop_assert_eq!(restored.act(step), saved.act(step), "{:?}", step);
        }
        prop_assert_eq!(restored.written(), saved.written());
    }
}

#[test]
fn input_that_waits_is_kept_and_what_came_meanwhile_is_behind_it() {
    let saved = Machine::new();
    let typed: Vec<u8> = (0..200).collect();
    assert_eq!(saved.port.push_input(&typed), 200);
    let restored = Machine::new();
    assert_eq!(restored.port.push_input(&[200, 201]), 2);
    let section = saved.port.save().expect("saved");
    restored.port.restore(&section).expect("restored");
    let ready = || (restored.read(5) & 1 != 0).then(|| restored.read(0));
    let received: Vec<u8> = std::iter::from_fn(ready).collect();
    assert_eq!(received, (0..202).collect::<Vec<u8>>());
}

#[test]
fn what_no_port_is_like_is_refused_with_the_reason() {
    let fine = serde_json::to_value(Machine::new().port.save().expect("saved")).expect("JSON");
    let refusal = |field: &str, value: Value| {
        let mut state = fine["state"].clone();
        state[field] = value;
        let section = Section::new("serial", 1, &state).expect("a section");
        let error = Machine::new().port.restore(&section).expect_err("refused");
        error.to_string()
    };
    let cases = [
        (
            "fifo",
            json!("00".repeat(65)),
            "the receiver's FIFO cannot be: it is longer than any",
        ),
        (
            "waiting",
            json!("00".repeat(4097)),
            "input that waits cannot be: 4097 bytes, and 4096 are the most",
        ),
        (
            "interrupt_enable",
            json!(0x10),
            "the interrupt enable register cannot be: 0x10 has reserved bits",
        ),
    ];
    for (field, value, expected) in cases {
        assert_eq!(refusal(field, value), expected);
    }
    assert!(refusal("scratch", json!(256)).starts_with("serial cannot be: "));
}
