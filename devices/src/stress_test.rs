//! Several vCPUs against everything at once: any register, any time, any memory.
#![allow(clippy::cast_possible_truncation)] // What the dice show is small.

use std::io::sink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use pci::{Apertures, Bdf, MsiMessage, MsiSink, RootComplex};
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::{DeviceMmio, DevicePio};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::edu::{Edu, EduOptions};
use crate::ioapic::IoApic;
use crate::serial::SerialPort;
use crate::virtio::VirtioDevice;
use crate::virtio::console::{Console, ConsoleInput};
use crate::virtio::pci::VirtioPci;
use crate::virtio::rng::Rng;
use crate::{Dma, Doorbells, InterruptRoute, InterruptRoutes, Memory};

const MMIO: u64 = 0xc000_0000;
const MEMORY: u64 = 1 << 20;

#[derive(Default)]
struct Messages(AtomicU64);

impl MsiSink for Messages {
    fn signal(&self, _requester: Bdf, _address: u64, _data: u32) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct NoDoorbells;

impl Doorbells for NoDoorbells {
    fn add(&self, _address: u64, _fd: &EventFd) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn remove(&self, _address: u64, _fd: &EventFd) {
        panic!("nothing was added");
    }
}

struct NoRoutes;

impl InterruptRoutes for NoRoutes {
    fn add(&self, _: Bdf, _: EventFd) -> std::io::Result<Box<dyn InterruptRoute>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn set_messages(&self, _: &[(u32, Option<MsiMessage>)]) -> std::io::Result<()> {
        panic!("nothing was added");
    }
}

struct Machine {
    memory: Memory,
    root: RootComplex,
    ioapic: Arc<IoApic>,
    serial: SerialPort,
    messages: Arc<Messages>,
}

fn machine() -> Machine {
    let memory: Memory =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("mappable"));
    let messages = Arc::new(Messages::default());
    let ioapic = IoApic::new(
        Arc::<Messages>::clone(&messages),
        Bdf::from_requester_id(0xff00),
    );
    let root = RootComplex::new(Apertures {
        ecam_base: 0xe000_0000,
        buses: 1,
        mmio32: MMIO..0xe000_0000,
        mmio64: 0..0,
    });
    let dma = || Dma::direct(Arc::clone(&memory));
    let (_, input) = ConsoleInput::channel().expect("an eventfd");
    let models: [Box<dyn VirtioDevice>; 2] = [
        Box::new(Rng::new()),
        Box::new(Console::new(input, Box::new(sink()))),
    ];
    for (device, model) in (1..).zip(models) {
        let bdf = Bdf::new(0, device, 0).expect("in range");
        let doorbells = Arc::new(NoDoorbells);
        let function = VirtioPci::new(
            bdf,
            dma(),
            Arc::clone(&messages) as _,
            Arc::new(NoRoutes),
            doorbells,
            model,
        );
        root.add(bdf, function.expect("eventfds")).expect("free");
    }
    let bdf = Bdf::new(0, 3, 0).expect("in range");
    let edu = Edu::new(
        bdf,
        dma(),
        Arc::clone(&messages) as _,
        ioapic.line(16),
        None,
        EduOptions::default(),
    );
    root.add(bdf, edu.expect("a thread")).expect("free");
    root.assign_bars().expect("room");
    Machine {
        serial: SerialPort::new(Arc::clone(&ioapic), 4, Box::new(sink())),
        memory,
        root,
        ioapic,
        messages,
    }
}

/// xorshift64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    /// One of the first `sides` numbers, more often one of the small ones.
    fn low(&mut self, sides: u64) -> u64 {
        let bound = 1 + self.roll(sides);
        self.roll(bound)
    }
}

impl Machine {
    /// One access of a guest that knows what is where and nothing of what is allowed.
    fn access(&self, dice: &mut Dice) {
        let value = match dice.roll(4) {
            0 => dice.0,
            1 => dice.low(0x10_0000),
            2 => MMIO + (dice.roll(16) << 14),
            _ => [0, 1, 2, 3, 4, 6, 7, 0xb, 0xf, 0x10, 0x80, 0xffff][dice.roll(12) as usize],
        };
        let data = value.to_le_bytes();
        let data = &data[..[1, 2, 4, 8][dice.roll(4) as usize]];
        let mut read = [0; 8];
        let device = dice.roll(4);
        let function = device << 15;
        let base = MMIO + (device << 20);
        match dice.roll(16) {
            0 => self.root.write_ecam(function | dice.low(0x100), data),
            1 => self.root.write_ecam(function | dice.roll(0x20), data),
            2 => self.root.read_ecam(function | dice.low(0x1000), &mut read),
            3..5 => {
                let structure = [0, 0x1000, 0x2000, 0x3000, 0x80, 0x60][dice.roll(6) as usize];
                self.root.write_mmio(base + structure + dice.low(64), data);
            }
            5 => {
                self.root.read_mmio(MMIO + dice.low(0x40_0000), &mut read);
            }
            6..8 => {
                self.enable(device);
                self.start_driver(base);
            }
            8..11 => {
                // An available ring that moves on, and a notification; for edu, a factorial and a
                // copy.
                let ring = dice.roll(2) << 13;
                let index = dice.roll(0x1_0000) as u16;
                let _ = self.memory.write_obj(index, GuestAddress(ring + 0x402));
                self.root.write_mmio(base + 0x1000, &[0; 4]);
                self.root.write_mmio(base + 0x1004, &[0; 4]);
                if device == 3 {
                    for (register, value) in [
                        (0x20, 0x80),
                        (8, 5),
                        (0x80, 0x4_0000),
                        (0x90, 64),
                        (0x98, 7),
                    ] {
                        self.root
                            .write_mmio(base + register, &u32::to_le_bytes(value));
                    }
                }
            }
            11 => {
                // Rings and descriptors are nothing but memory.
                let address = GuestAddress(dice.roll(2) << 13 | dice.low(0x1000) & !1);
                let _ = self.memory.write_slice(data, address);
            }
            12 => self.fill_descriptors(),
            13 => {
                let register = [0, 0x10, 0x40][dice.roll(3) as usize];
                self.ioapic.mmio_write(MmioAddress(0), register, data);
                self.ioapic.mmio_read(MmioAddress(0), register, &mut read);
            }
            14 => self.ioapic.eoi(data[0]),
            _ => {
                let register = dice.roll(8) as u16;
                self.serial.pio_write(PioAddress(0x3f8), register, data);
                self.serial
                    .pio_read(PioAddress(0x3f8), register, &mut read[..1]);
                self.serial.push_input(data);
            }
        }
    }

    /// Memory space and bus mastering, BAR 0, MSI-X and its first vectors.
    fn enable(&self, device: u64) {
        let function = device << 15;
        let base = MMIO + (device << 20);
        self.root.write_ecam(
            function | 0x10,
            &base.to_le_bytes()[..if device == 3 { 4 } else { 8 }],
        );
        self.root.write_ecam(function | 4, &[6, 0]);
        // MSI-X follows PCI Express, whose structure is 0x3c bytes long; edu's MSI is the first
        // capability.
        if device == 3 {
            self.root.write_ecam(function | 0x42, &[1, 0]);
        } else {
            self.root.write_ecam(function | 0x7e, &[0, 0x80]);
            for vector in 0..3 {
                self.root
                    .write_mmio(base + 0x2000 + vector * 16, &0xfee0_0000_u64.to_le_bytes());
                self.root.write_mmio(base + 0x200c + vector * 16, &[0; 4]);
            }
        }
    }

    /// Sixteen descriptors of each queue: writable in the first, readable in the second; every
    /// vector of the rings as it should be.
    fn fill_descriptors(&self) {
        for (ring, flags) in [(0_u64, 2_u64), (0x2000, 0)] {
            for index in 0..16_u64 {
                let address = GuestAddress(ring + 16 * index);
                let words = [0x8000 + 64 * index, 64 | flags << 32];
                let _ = self
                    .memory
                    .write_slice(&words.map(u64::to_le_bytes).concat(), address);
                let entry = GuestAddress(ring + 0x404 + 2 * index);
                let _ = self.memory.write_obj(index as u16, entry);
            }
            let _ = self.memory.write_obj(0_u32, GuestAddress(ring + 0x400));
        }
    }

    /// A virtio driver's start, without looking at any answer.
    fn start_driver(&self, base: u64) {
        let write = |at: u64, data: &[u8]| self.root.write_mmio(base + at, data);
        write(20, &[0]);
        write(20, &[3]);
        for half in [0_u32, 1] {
            write(8, &half.to_le_bytes());
            let features = if half == 0 { 3_u32 << 28 } else { 3 };
            write(12, &features.to_le_bytes());
        }
        write(20, &[11]);
        for queue in [0_u16, 1] {
            write(22, &queue.to_le_bytes());
            write(24, &16_u16.to_le_bytes());
            let ring = u64::from(queue) << 13;
            write(32, &ring.to_le_bytes());
            write(40, &(ring + 0x400).to_le_bytes());
            write(48, &(ring + 0x800).to_le_bytes());
            write(26, &queue.to_le_bytes());
            write(28, &[1, 0]);
        }
        write(20, &[15]);
        write(0x1000, &[0; 4]);
        write(0x1004, &[0; 4]);
    }
}

#[test]
fn several_vcpus_at_once_break_nothing() {
    let (done, ended) = channel();
    let run = move || {
        let machine = machine();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for vcpu in 0..4_u32 {
                let (machine, stop) = (&machine, &stop);
                scope.spawn(move || {
                    let mut dice = Dice(0x9e37_79b9_7f4a_7c15_u64.rotate_left(16 * vcpu));
                    while !stop.load(Ordering::Relaxed) {
                        machine.access(&mut dice);
                    }
                });
            }
            thread::sleep(Duration::from_millis(1500));
            stop.store(true, Ordering::Relaxed);
        });
        // A test that no device notices would prove nothing.
        let messages = machine.messages.0.load(Ordering::Relaxed);
        assert!(messages > 1000, "only {messages} interrupts");
        // And a reset makes it a machine again, out of which nothing writes any more.
        machine.root.reset();
        let mut before = vec![0; MEMORY as usize];
        let mut after = before.clone();
        let memory = &machine.memory;
        memory
            .read_slice(&mut before, GuestAddress(0))
            .expect("all of it");
        thread::sleep(Duration::from_millis(50));
        memory
            .read_slice(&mut after, GuestAddress(0))
            .expect("all of it");
        assert!(before == after, "memory changes after the reset");
        machine.root.assign_bars().expect("room");
        for (function, id) in [(1, 0x1044_1af4_u32), (2, 0x1043_1af4), (3, 0x11e8_1234)] {
            let mut data = [0; 4];
            machine.root.read_ecam(function << 15, &mut data);
            assert_eq!(data, id.to_le_bytes());
        }
        drop(machine);
        let _ = done.send(());
    };
    let thread = thread::spawn(run);
    let outcome = ended.recv_timeout(Duration::from_secs(60));
    assert!(
        outcome.is_ok() || thread.is_finished(),
        "the vCPUs wait for each other"
    );
    thread.join().expect("no panic");
}
