//! A small machine of devices: what can be saved without a host.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::state::{RestoreError, Section, Sections};
use arbitrary::Arbitrary;
use devices::edu::{Edu, EduFeatures, EduOptions};
use devices::ioapic::IoApic;
use devices::serial::SerialPort;
use devices::virtio::VirtioDevice;
use devices::virtio::console::{Console, ConsoleInput, ConsoleSender};
use devices::virtio::pci::VirtioPci;
use devices::virtio::rng::Rng;
use devices::{Doorbells, InterruptRoute, InterruptRoutes, Memory};
use intel_vtd::{EventSink, InterruptMessage, Interrupts, SourceId, Unit, UnitConfig, UnitState};
use pci::{Apertures, Bdf, MsiMessage, MsiSink, PciFunction, RootComplex};
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::{DeviceMmio as _, DevicePio as _};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

const MEMORY: usize = 1 << 20;
/// A bound for whatever has to happen.
const SOON: Duration = Duration::from_secs(8);
/// Steps after a state was restored.
const STEPS: usize = 64;

/// Who hears of all that the machine says, and does nothing.
struct Nobody;

impl MsiSink for Nobody {
    fn signal(&self, _requester: Bdf, _address: u64, _data: u32) {}
}

impl EventSink for Nobody {
    fn deliver(&self, _message: InterruptMessage) {}
}

impl Doorbells for Nobody {
    fn add(&self, _address: u64, _fd: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _address: u64, _fd: &EventFd) {}
}

impl InterruptRoutes for Nobody {
    fn add(&self, _source: Bdf, _event: EventFd) -> io::Result<Box<dyn InterruptRoute>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn set_messages(&self, _messages: &[(u32, Option<MsiMessage>)]) -> io::Result<()> {
        Ok(())
    }
}

/// What a guest does.
#[derive(Arbitrary, Debug)]
pub(super) enum Step {
    ReadConfig(u8, u16),
    WriteConfig(u8, u16, u32),
    ReadBar(u8, u16),
    WriteBar(u8, u16, u32),
    IoApic(u8, u32),
    EndOfInterrupt(u8),
    ReadPort(u8),
    WritePort(u8, u8),
    Type(u8),
}

pub(super) struct Machine {
    memory: Memory,
    unit: Arc<Unit<Memory>>,
    root: RootComplex,
    /// Those that can be written to without their addresses.
    functions: Vec<Arc<dyn PciFunction>>,
    ioapic: Arc<IoApic>,
    serial: SerialPort,
    typing: ConsoleSender,
}

fn bdf(device: u8) -> Bdf {
    Bdf::new(0, device, 0).expect("in range")
}

impl Machine {
    /// One that was just made.
    pub(super) fn new() -> Self {
        let ranges = [(GuestAddress(0), MEMORY)];
        let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("mappable"));
        let config = UnitConfig::svm(40).with_interrupts(Interrupts::Off);
        let unit = Unit::new(Arc::clone(&memory), &config, Arc::new(Nobody)).expect("valid");
        let ioapic = IoApic::new(Arc::new(Nobody), Bdf::from_requester_id(0xff00));
        let root = RootComplex::new(Apertures {
            ecam_base: 0xe000_0000,
            buses: 3,
            mmio32: 0xc000_0000..0xe000_0000,
            mmio64: 0x80_0000_0000..0x100_0000_0000,
        });
        let (typing, input) = ConsoleInput::channel().expect("an event");
        let console = Console::new(input, Box::new(io::sink()));
        let ports = [1, 2].map(|device| root.add_port(bdf(device), Arc::new(Nobody)));
        let [port, _] = ports.map(|port| port.expect("free"));
        let behind = virtio(&unit, port.function_address(), Box::new(Rng::new()));
        let functions: Vec<Arc<dyn PciFunction>> = vec![
            virtio(&unit, bdf(3), Box::new(Rng::new())),
            virtio(&unit, bdf(4), Box::new(console)),
            edu(&unit, &ioapic, bdf(5)),
        ];
        for (device, function) in (3..).zip(&functions) {
            root.add(bdf(device), Arc::clone(function)).expect("free");
        }
        root.plug(&port, Arc::clone(&behind))
            .expect("an empty slot");
        root.assign_bars().expect("room");
        let serial = SerialPort::new(Arc::clone(&ioapic), 4, Box::new(io::sink()));
        let functions = functions.into_iter().chain([behind]).collect();
        Self {
            memory,
            unit,
            root,
            functions,
            ioapic,
            serial,
            typing,
        }
    }

    /// One whose drivers are at work: rings split and packed, a page that was asked for, input.
    pub(super) fn at_work() -> Self {
        let machine = Self::new();
        let [rng, console, edu, behind] = machine.functions.as_slice() else {
            unreachable!("four functions");
        };
        for function in &machine.functions {
            function.write_config(4, &6_u16.to_le_bytes());
        }
        // VERSION_1 and ACCESS_PLATFORM; and packed rings.
        drive(&**rng, 3, &[0x1_0000]);
        drive(&**console, 7, &[0x2_0000, 0x3_0000]);
        drive(&**behind, 3, &[0x6_0000]);
        machine.put(0x1_0000, &0x4_0000_u64.to_le_bytes());
        machine.put(0x1_0008, &[8, 0, 0, 0, 2, 0, 0, 0]);
        machine.put(0x1_8002, &[1, 0]);
        rng.write_bar(0, 0x1000, &[0, 0]);
        machine.ask_for_a_page(&**edu);
        for (select, value) in [(0x18_u32, 0x31_u32), (0x19, 1 << 24), (0x20, 0x8041)] {
            machine
                .ioapic
                .mmio_write(MmioAddress(0), 0, &select.to_le_bytes());
            machine
                .ioapic
                .mmio_write(MmioAddress(0), 0x10, &value.to_le_bytes());
        }
        machine.ioapic.set_level(8, true);
        machine.serial.push_input(&[b'x'; 100]);
        machine.typing.send(b"typed").expect("room");
        let begin = Instant::now();
        while machine.get(0x1_c002) == 0 || machine.requests() == 0 {
            assert!(begin.elapsed() < SOON, "the devices do nothing");
            std::thread::yield_now();
        }
        machine.root.park(begin + SOON).expect("all park");
        machine
    }

    /// Has edu, whose requests are translated by tables without pages, ask for one.
    fn ask_for_a_page(&self, edu: &dyn PciFunction) {
        let source = 5 << 3_u64;
        // Root, context, PASID directory, PASID table: first-stage.
        for (at, value) in [
            (0x5_0000, 0x5_1001_u64),
            (0x5_1000 + 32 * source, 0x5_201d),
            (0x5_2000, 0x5_3001),
            (0x5_3000 + 64 * 5, 0x41),
            (0x5_3000 + 64 * 5 + 8, 1 | 1 << 23),
            (0x5_3000 + 64 * 5 + 16, 0x5_4000),
        ] {
            self.put(at, &value.to_le_bytes());
        }
        // Other functions pass: second-stage pass-through of PASID 0.
        for device in [3_u64, 4] {
            self.put(0x5_1000 + 32 * (device << 3), &0x5_6001_u64.to_le_bytes());
        }
        self.put(0x5_6000, &0x5_7001_u64.to_le_bytes());
        self.put(0x5_7000, &0x109_u64.to_le_bytes());
        self.put(0x5_7008, &1_u64.to_le_bytes());
        let root = [
            (0x20, 0x5_0400_u64),
            (0x88, 0),
            (0x90, 0x5_8800),
            (0xd0, 0x5_9000),
        ];
        for (register, value) in root {
            self.unit.write(register, &value.to_le_bytes());
        }
        for command in [0x4000_0000_u32, 0x0400_0000, 0x8400_0000] {
            self.unit.write(0x18, &command.to_le_bytes());
        }
        // ATS, PASID and PRI enabled.
        for (at, value) in [(0x106, 0x8000_u16), (0x10e, 1), (0x114, 1)] {
            edu.write_config(at, &value.to_le_bytes());
        }
        edu.write_bar(0, 0x104, &0xe000_0005_u32.to_le_bytes());
        for (at, value) in [(0x80, 0x4_0000_u64), (0x88, 0x5000), (0x90, 64), (0x98, 3)] {
            edu.write_bar(0, at, &value.to_le_bytes());
        }
    }

    /// PQT.
    fn requests(&self) -> u64 {
        let mut tail = [0; 8];
        self.unit.read(0xc8, &mut tail);
        u64::from_le_bytes(tail)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(at))
            .expect("memory");
    }

    fn get(&self, at: u64) -> u16 {
        self.memory.read_obj(GuestAddress(at)).expect("memory")
    }

    /// What a machine says that is parked.
    pub(super) fn save(&self) -> Sections {
        let mut sections = Sections::default();
        let unit = self.unit.save().expect("nothing is pinned");
        sections.add("unit", Section::new("unit", 1, &unit).expect("a section"));
        for (name, section) in self.root.save().expect("all can be saved") {
            sections.add(name, section);
        }
        sections.add("ioapic", self.ioapic.save().expect("a section"));
        sections.add("serial", self.serial.save().expect("a section"));
        sections
    }

    /// Of one that was just made. It is parked.
    pub(super) fn restore(&self, mut sections: Sections) -> Result<(), String> {
        let text = |error: RestoreError| error.to_string();
        self.restore_unit(&mut sections).map_err(text)?;
        let restored = self.root.restore(&mut sections);
        restored.map_err(|(name, error)| format!("{name}: {error}"))?;
        self.restore_rest(&mut sections).map_err(text)?;
        match sections.left() {
            Some((name, _)) => Err(format!("nobody takes {name}")),
            None => Ok(()),
        }
    }

    fn restore_unit(&self, sections: &mut Sections) -> Result<(), RestoreError> {
        let state: UnitState = sections.take("unit")?.read("unit", 1)?;
        let restored = self.unit.restore(&state);
        restored.map_err(|error| RestoreError::damaged("the unit", error))
    }

    fn restore_rest(&self, sections: &mut Sections) -> Result<(), RestoreError> {
        self.ioapic.restore(&sections.take("ioapic")?)?;
        self.serial.restore(&sections.take("serial")?)
    }

    /// Has the devices go on, and a guest do something; then all end.
    pub(super) fn go_on(&self, steps: &[Step]) {
        self.root.resume();
        for step in steps.iter().take(STEPS) {
            self.act(step);
        }
        self.root.park(Instant::now() + SOON).expect("all park");
        self.root.resume();
        self.root.reset();
        self.ioapic.reset();
        self.serial.reset();
    }

    fn act(&self, step: &Step) {
        let function = |index: &u8| {
            let index = usize::from(*index) % self.functions.len();
            self.functions.get(index).expect("one of them")
        };
        let mut data = [0; 4];
        match step {
            // By ECAM: ports and what is behind them as well.
            Step::ReadConfig(place, register) => {
                self.root.read_ecam(ecam(*place, *register), &mut data);
            }
            Step::WriteConfig(place, register, value) => {
                self.root
                    .write_ecam(ecam(*place, *register), &value.to_le_bytes());
            }
            Step::ReadBar(index, offset) => {
                function(index).read_bar(0, (*offset).into(), &mut data)
            }
            Step::WriteBar(index, offset, value) => {
                function(index).write_bar(0, (*offset).into(), &value.to_le_bytes());
            }
            Step::IoApic(register, value) => {
                let select = u32::from(*register).to_le_bytes();
                self.ioapic.mmio_write(MmioAddress(0), 0, &select);
                self.ioapic
                    .mmio_write(MmioAddress(0), 0x10, &value.to_le_bytes());
            }
            Step::EndOfInterrupt(vector) => self.ioapic.eoi(*vector),
            Step::ReadPort(register) => {
                let register = u16::from(register % 8);
                self.serial
                    .pio_read(PioAddress(0), register, &mut data[..1]);
            }
            Step::WritePort(register, value) => {
                let register = u16::from(register % 8);
                self.serial.pio_write(PioAddress(0), register, &[*value]);
            }
            Step::Type(byte) => {
                self.serial.push_input(&[*byte]);
                self.typing.send(&[*byte]).expect("it is woken");
            }
        }
    }
}

/// Bus in bits 5:4, device in bits 2:0.
fn ecam(place: u8, register: u16) -> u64 {
    let (bus, device) = (u64::from(place >> 4 & 3), u64::from(place & 7));
    bus << 20 | device << 15 | u64::from(register & 0xffc)
}

fn virtio(
    unit: &Arc<Unit<Memory>>,
    bdf: Bdf,
    device: Box<dyn VirtioDevice>,
) -> Arc<dyn PciFunction> {
    let port = unit.port(SourceId(bdf.as_u16()));
    let nobody = Arc::new(Nobody);
    let (routes, bells) = (Arc::clone(&nobody), Arc::clone(&nobody));
    VirtioPci::new(bdf, port, nobody, routes, bells, device).expect("events")
}

fn edu(unit: &Arc<Unit<Memory>>, ioapic: &Arc<IoApic>, bdf: Bdf) -> Arc<dyn PciFunction> {
    let options = EduOptions {
        dma_mask: u64::MAX,
        features: EduFeatures {
            ats: true,
            pasid: true,
            pri: true,
        },
        ..EduOptions::default()
    };
    let port = unit.port(SourceId(bdf.as_u16()));
    let (line, unit) = (ioapic.line(16), Some(Arc::clone(unit)));
    Edu::new(bdf, port, Arc::new(Nobody), line, unit, options).expect("a thread")
}

/// What a driver does to the function's device: it takes the features whose upper half is `features`, and
/// gives it queues at these places.
fn drive(function: &dyn PciFunction, features: u32, queues: &[u64]) {
    let write = |at: u64, bytes: &[u8]| function.write_bar(0, at, bytes);
    write(20, &[1]);
    write(20, &[3]);
    write(8, &1_u32.to_le_bytes());
    write(12, &features.to_le_bytes());
    write(20, &[11]);
    for (queue, base) in (0_u16..).zip(queues) {
        write(22, &queue.to_le_bytes());
        write(24, &16_u16.to_le_bytes());
        for (at, address) in [(32, *base), (40, base + 0x8000), (48, base + 0xc000)] {
            write(at, &address.to_le_bytes());
        }
        write(28, &[1, 0]);
    }
    write(20, &[15]);
}
