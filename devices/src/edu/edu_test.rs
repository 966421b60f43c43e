use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use pci::{Bdf, IntxSink, MsiSink, PciFunction};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Edu, EduOptions};
use crate::{Dma, Memory};

const PATIENCE: Duration = Duration::from_secs(10);

enum Event {
    Message(u16, u64, u32),
    Level(bool),
}

struct Events(Mutex<Sender<Event>>);

impl MsiSink for Events {
    fn signal(&self, requester: Bdf, address: u64, data: u32) {
        let event = Event::Message(requester.as_u16(), address, data);
        let _ = self.0.lock().expect("not poisoned").send(event);
    }
}

impl IntxSink for Events {
    fn set_level(&self, asserted: bool) {
        let _ = self
            .0
            .lock()
            .expect("not poisoned")
            .send(Event::Level(asserted));
    }
}

struct Machine {
    edu: Arc<Edu>,
    memory: Memory,
    events: Receiver<Event>,
    level: bool,
}

/// Offsets in configuration space: MSI is the first capability, PCI Express the second.
const COMMAND: u16 = 0x04;
const MSI: u16 = 0x40;
const PCIE: u16 = 0x58;

fn machine(options: EduOptions) -> Machine {
    let memory =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("mappable"));
    let (sender, events) = channel();
    let sink = Arc::new(Events(Mutex::new(sender)));
    let bdf = Bdf::new(0, 3, 0).expect("in range");
    let msi = Arc::clone(&sink);
    let dma =
        Dma::direct(Arc::clone(&memory)).with_interrupt_requests(Arc::new(move |address, data| {
            msi.signal(bdf, address, data)
        }));
    let edu = Edu::new(
        bdf,
        dma,
        Arc::<Events>::clone(&sink) as Arc<dyn MsiSink>,
        sink as Arc<dyn IntxSink>,
        None,
        options,
    )
    .expect("thread starts");
    // Memory space and bus master.
    edu.write_config(COMMAND, &6_u16.to_le_bytes());
    Machine {
        edu,
        memory,
        events,
        level: false,
    }
}

impl Machine {
    fn write(&self, offset: u64, value: u64) {
        if offset < 0x80 {
            self.edu.write_bar(0, offset, &value.to_le_bytes()[..4]);
        } else {
            self.edu.write_bar(0, offset, &value.to_le_bytes());
        }
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.edu.read_bar(0, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn config(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.edu.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn enable_msi(&self) {
        self.edu
            .write_config(MSI + 4, &0xfee0_1000_u32.to_le_bytes());
        self.edu.write_config(MSI + 0xc, &0x41_u16.to_le_bytes());
        self.edu.write_config(MSI + 2, &1_u16.to_le_bytes());
    }

    /// The next message.
    fn message(&mut self) -> (u16, u64, u32) {
        loop {
            match self.events.recv_timeout(PATIENCE).expect("a message comes") {
                Event::Message(requester, address, data) => return (requester, address, data),
                Event::Level(level) => self.level = level,
            }
        }
    }

    /// Waits for the pin to have `level`.
    fn wait_level(&mut self, level: bool) {
        while self.level != level {
            match self
                .events
                .recv_timeout(PATIENCE)
                .expect("the level changes")
            {
                Event::Message(..) => panic!("no message was expected"),
                Event::Level(level) => self.level = level,
            }
        }
    }

    /// How many messages have been sent; brings the level up to date.
    fn drain(&mut self) -> usize {
        let mut messages = 0;
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Message(..) => messages += 1,
                Event::Level(level) => self.level = level,
            }
        }
        messages
    }

    /// Starts a copy and waits until it is done.
    fn copy(&self, source: u64, destination: u64, count: u64, command: u64) {
        self.write(0x80, source);
        self.write(0x88, destination);
        self.write(0x90, count);
        self.write(0x98, command);
        self.settle();
    }

    fn settle(&self) {
        let start = Instant::now();
        while self.read(0x98) & 1 != 0 || self.read(0x20) & 1 != 0 {
            assert!(start.elapsed() < PATIENCE, "the command ends");
            thread::yield_now();
        }
    }
}

fn snapshot(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    memory
        .read_slice(&mut bytes, GuestAddress(0))
        .expect("all there");
    bytes
}

#[test]
fn it_identifies_itself() {
    let machine = machine(EduOptions::default());
    assert_eq!(machine.config(0x00), 0x11e8_1234);
    assert_eq!(machine.config(0x08), 0x00ff_0010);
    assert_eq!(machine.config(0x3c) >> 8 & 0xff, 1, "INTA");
    assert_eq!(machine.config(MSI) & 0xff, 5);
    assert_eq!(machine.config(PCIE) & 0xff, 0x10);
    assert_eq!(machine.edu.bar_sizes().len(), 1);
    assert_eq!(machine.read(0), 0x0100_00ed);
}

#[test]
fn a_factorial_ends_with_a_level_interrupt_that_acknowledging_lowers() {
    let mut machine = machine(EduOptions::default());
    machine.write(0x20, 0x80);
    machine.write(0x08, 10);
    machine.wait_level(true);
    assert_eq!(machine.read(0x24), 1);
    assert_eq!(machine.read(0x08), 3_628_800);
    assert_eq!(machine.config(COMMAND) >> 16 & 8, 8, "interrupt status");
    machine.write(0x64, 1);
    machine.wait_level(false);
    assert_eq!(machine.config(COMMAND) >> 16 & 8, 0);
}

#[test]
fn interrupt_disable_and_msi_keep_the_pin_quiet() {
    let mut machine = machine(EduOptions::default());
    machine.write(0x60, 2);
    machine.wait_level(true);
    machine.edu.write_config(COMMAND, &0x406_u16.to_le_bytes());
    machine.wait_level(false);
    machine.edu.write_config(COMMAND, &0x006_u16.to_le_bytes());
    machine.wait_level(true);
    machine.enable_msi();
    machine.wait_level(false);
}

#[test]
fn a_copy_there_and_back_changes_exactly_the_destination() {
    let mut machine = machine(EduOptions::default());
    machine.enable_msi();
    let pattern: Vec<u8> = (0..=255).cycle().take(4096).collect();
    machine
        .memory
        .write_slice(&pattern, GuestAddress(0x1_0ff0))
        .expect("there");
    let mut expected = snapshot(&machine.memory);
    machine.copy(0x1_0ff0, 0x4_0000, 4096, 0x5);
    assert_eq!(machine.message(), (0x18, 0xfee0_1000, 0x41));
    assert_eq!(machine.read(0x24), 0x100);
    assert_eq!(snapshot(&machine.memory), expected);
    machine.copy(0x4_0010, 0x2_0001, 256, 0x3);
    expected[0x2_0001..0x2_0101].copy_from_slice(&pattern[0x10..0x110]);
    assert_eq!(snapshot(&machine.memory), expected);
    assert_eq!(machine.drain(), 0, "no interrupt was asked for");
}

#[test]
fn a_dword_to_the_interrupt_range_is_an_interrupt_and_nothing_else_is() {
    let mut machine = machine(EduOptions {
        dma_mask: u64::MAX,
        ..EduOptions::default()
    });
    machine
        .memory
        .write_obj([0x1234_0041_u32, 0x42], GuestAddress(0x1000))
        .expect("memory");
    machine.copy(0x1000, 0x4_0000, 8, 1);
    // A quadword is blocked.
    machine.copy(0x4_0000, 0xfee0_1000, 8, 3);
    machine.copy(0x4_0000, 0xfee0_1008, 4, 3);
    machine.copy(0x4_0004, 0xfee0_100c, 4, 3);
    assert_eq!(machine.message(), (0x18, 0xfee0_1008, 0x1234_0041));
    assert_eq!(machine.message(), (0x18, 0xfee0_100c, 0x42));
}

#[test]
fn addresses_are_cut_to_the_mask() {
    let machine = machine(EduOptions {
        dma_mask: 0xffff,
        ..EduOptions::default()
    });
    machine
        .memory
        .write_obj(0x1122_3344_u32, GuestAddress(0x4000))
        .expect("there");
    machine.copy(0x4000, 0x4_0000, 4, 0x1);
    machine.copy(0x4_0000, 0x5_8000, 4, 0x3);
    assert_eq!(
        machine
            .memory
            .read_obj::<u32>(GuestAddress(0x8000))
            .expect("there"),
        0x1122_3344
    );
    assert_eq!(
        machine
            .memory
            .read_obj::<u32>(GuestAddress(0x5_8000))
            .expect("there"),
        0
    );
}

#[test]
fn without_bus_master_there_is_neither_dma_nor_message() {
    let mut machine = machine(EduOptions::default());
    machine.enable_msi();
    machine
        .memory
        .write_obj(u32::MAX, GuestAddress(0x4000))
        .expect("there");
    machine.edu.write_config(COMMAND, &2_u16.to_le_bytes());
    let before = snapshot(&machine.memory);
    machine.copy(0x4000, 0x4_0000, 4, 0x5);
    machine.copy(0x4_0000, 0x4000, 4, 0x7);
    machine.write(0x60, 1);
    assert_eq!(snapshot(&machine.memory), before);
    assert_eq!(machine.read(0x24), 0x101, "the commands completed");
    assert_eq!(machine.drain(), 0);
    // The buffer did not change either.
    machine.edu.write_config(COMMAND, &6_u16.to_le_bytes());
    machine.copy(0x4_0000, 0x4000, 4, 0x3);
    assert_eq!(
        machine
            .memory
            .read_obj::<u32>(GuestAddress(0x4000))
            .expect("there"),
        0
    );
}

#[test]
fn a_copy_that_faults_still_completes() {
    let machine = machine(EduOptions::default());
    machine.copy(0x10_0000, 0x4_0000, 4, 0x5);
    assert_eq!(machine.read(0x98), 0x4);
    assert_eq!(machine.read(0x24), 0x100);
}

#[test]
fn each_bit_has_the_message_of_its_number_among_those_that_are_enabled() {
    let mut machine = machine(EduOptions {
        msi_vectors: 8,
        ..EduOptions::default()
    });
    // Multiple Message Capable: 2^3.
    assert_eq!(machine.config(MSI) >> 16 & 0xf, 3 << 1);
    machine.enable_msi();
    machine.edu.write_config(MSI + 0xc, &0x40_u16.to_le_bytes());
    // Multiple Message Enable: 2^2.
    machine.edu.write_config(MSI + 2, &0x21_u16.to_le_bytes());
    for (bits, data) in [
        (1, 0x40),
        (2, 0x41),
        (4, 0x42),
        (8, 0x43),
        (0x10, 0x40),
        (0x8000_0000, 0x43),
        (0xc, 0x42),
    ] {
        machine.write(0x60, bits);
        assert_eq!(machine.message(), (0x18, 0xfee0_1000, data), "{bits:#x}");
    }
    // The end of a transfer has bit 8.
    machine.copy(0x4_0000, 0x4000, 4, 0x7);
    assert_eq!(machine.message(), (0x18, 0xfee0_1000, 0x40));
    // One that is masked waits, and the others do not.
    machine.edu.write_config(MSI + 0x10, &4_u32.to_le_bytes());
    machine.write(0x60, 4);
    machine.write(0x60, 2);
    assert_eq!(machine.message(), (0x18, 0xfee0_1000, 0x41));
    assert_eq!(machine.config(MSI + 0x14), 4, "pending");
    machine.edu.write_config(MSI + 0x10, &0_u32.to_le_bytes());
    assert_eq!(machine.message(), (0x18, 0xfee0_1000, 0x42));
    assert_eq!(machine.drain(), 0);
}

#[test]
fn a_masked_message_is_sent_when_it_is_unmasked() {
    let mut machine = machine(EduOptions::default());
    machine.enable_msi();
    machine.edu.write_config(MSI + 0x10, &1_u32.to_le_bytes());
    machine.write(0x60, 1);
    assert_eq!(machine.drain(), 0);
    assert_eq!(machine.config(MSI + 0x14), 1, "pending");
    machine.edu.write_config(MSI + 0x10, &0_u32.to_le_bytes());
    assert_eq!(machine.message(), (0x18, 0xfee0_1000, 0x41));
    assert_eq!(machine.config(MSI + 0x14), 0);
}

#[test]
fn function_level_reset_returns_everything_to_its_initial_state() {
    let mut machine = machine(EduOptions::default());
    let fresh: Vec<u32> = (0..0x100)
        .step_by(4)
        .map(|offset| machine.config(offset))
        .collect();
    machine.enable_msi();
    machine
        .edu
        .write_config(0x10, &0xc000_0000_u32.to_le_bytes());
    machine.write(0x04, 1);
    machine
        .memory
        .write_obj(u32::MAX, GuestAddress(0x4000))
        .expect("there");
    machine.copy(0x4000, 0x4_0000, 4, 0x5);
    machine.message();
    let change = machine
        .edu
        .write_config(PCIE + 8, &0x8000_u16.to_le_bytes());
    assert!(change.function_reset);
    machine.edu.write_config(COMMAND, &6_u16.to_le_bytes());
    let again: Vec<u32> = (0..0x100)
        .step_by(4)
        .map(|offset| machine.config(offset))
        .collect();
    assert_eq!(again, fresh);
    assert_eq!(
        (machine.read(0x04), machine.read(0x24), machine.read(0x98)),
        (0, 0, 0)
    );
    machine.drain();
    assert!(!machine.level);
    // The buffer is empty again.
    machine.copy(0x4_0000, 0x4000, 4, 0x3);
    assert_eq!(
        machine
            .memory
            .read_obj::<u32>(GuestAddress(0x4000))
            .expect("there"),
        0
    );
}

#[test]
fn dropping_the_device_ends_its_thread() {
    let machine = machine(EduOptions::default());
    let shared = Arc::downgrade(&machine.edu.shared);
    drop(machine);
    assert_eq!(shared.strong_count(), 0);
}

#[test]
fn a_reset_ends_while_others_reset_and_start_commands() {
    let machine = machine(EduOptions::default());
    let stop = AtomicBool::new(false);
    let edu = &machine.edu;
    thread::scope(|scope| {
        for register in [0x08_u64, 0x98] {
            let stop = &stop;
            // A factorial and a copy, each started while the other runs, keep the worker from ever
            // being idle.
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    edu.write_config(COMMAND, &6_u16.to_le_bytes());
                    edu.write_bar(0, 0x80, &0x4_0000_u64.to_le_bytes());
                    edu.write_bar(0, 0x88, &0x1000_u64.to_le_bytes());
                    edu.write_bar(0, 0x90, &4096_u64.to_le_bytes());
                    edu.write_bar(0, register, &3_u32.to_le_bytes());
                }
            });
        }
        let resets: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut slowest = Duration::ZERO;
                    for _ in 0..200 {
                        let begin = Instant::now();
                        edu.reset();
                        slowest = slowest.max(begin.elapsed());
                    }
                    slowest
                })
            })
            .collect();
        for reset in resets {
            let slowest = reset.join().expect("no panic");
            assert!(slowest < Duration::from_secs(2), "{slowest:?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
    machine.edu.reset();
    let before = snapshot(&machine.memory);
    machine.edu.write_config(COMMAND, &6_u16.to_le_bytes());
    machine.settle();
    assert_eq!(
        snapshot(&machine.memory),
        before,
        "no command survives a reset"
    );
}
