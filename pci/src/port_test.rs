//! Root ports as software finds them: registers, routing of configuration accesses, decoding
//! through windows.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::probe::Probe;
use crate::{
    AddError, Apertures, AssignError, BarKind, BarWindow, Bdf, MsiSink, PciFunction, PlugError,
    RootComplex, RootPort, UnplugError,
};

const WIDE: BarKind = BarKind::Memory64 { prefetchable: true };

/// Remembers messages: requester, address, data.
#[derive(Default)]
pub(crate) struct Messages(Mutex<Vec<(u16, u64, u32)>>);

impl Messages {
    pub(crate) fn take(&self) -> Vec<(u16, u64, u32)> {
        std::mem::take(&mut self.0.lock())
    }
}

impl MsiSink for Messages {
    fn signal(&self, requester: Bdf, address: u64, data: u32) {
        let message = (requester.as_u16(), address, data);
        self.0.lock().push(message);
    }
}

/// Ports at 00:01.0 and 00:02.0.
pub(crate) struct Machine {
    pub(crate) root: RootComplex,
    pub(crate) ports: [Arc<RootPort>; 2],
    pub(crate) messages: Arc<Messages>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let root = RootComplex::new(Apertures {
            ecam_base: 0xe000_0000,
            buses: 3,
            mmio32: 0xc000_0000..0xe000_0000,
            mmio64: 0x80_0000_0000..0x100_0000_0000,
        });
        let messages = Arc::new(Messages::default());
        let ports = [1, 2].map(|device| {
            let bdf = Bdf::new(0, device, 0).expect("in range");
            let sink = Arc::<Messages>::clone(&messages);
            root.add_port(bdf, sink).expect("free")
        });
        Self {
            root,
            ports,
            messages,
        }
    }

    pub(crate) fn plug(&self, port: usize, probe: &Arc<Probe>) {
        let function = Arc::<Probe>::clone(probe);
        self.root.plug(&self.ports[port], function).expect("empty");
    }

    pub(crate) fn read(&self, bus: u64, device: u64, register: u64) -> u32 {
        let mut data = [0; 4];
        self.root
            .read_ecam(bus << 20 | device << 15 | register, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&self, bus: u64, device: u64, register: u64, data: &[u8]) {
        self.root
            .write_ecam(bus << 20 | device << 15 | register, data);
    }

    pub(crate) fn load(&self, address: u64) -> Option<u8> {
        let mut data = [0; 4];
        let answered = self.root.read_mmio(address, &mut data);
        assert!(answered || data == [0xff; 4]);
        answered.then_some(data[0])
    }
}

/// A 4 KiB BAR below 4 GiB and a 16 KiB BAR above.
fn probe(name: u8) -> Arc<Probe> {
    Probe::new(name, &[(0, BarKind::Memory32, 0x1000), (2, WIDE, 0x4000)])
}

#[test]
fn a_port_shows_a_bridge_with_a_hot_plug_slot() {
    let machine = Machine::new();
    let read = |register| machine.read(0, 2, register);
    assert_eq!(read(0x00), 0x000c_1b36);
    assert_eq!(read(0x04), 0x0010_0000, "capabilities");
    assert_eq!(read(0x08), 0x0604_0000, "PCI-to-PCI bridge");
    assert_eq!(read(0x0c), 0x0001_0000, "header type 1");
    assert_eq!(read(0x1c), 0, "no I/O window");
    assert_eq!(read(0x34), 0x40);
    assert_eq!((read(0x40), read(0x44)), (0x480d, 0x0000_1b36));
    assert_eq!(read(0x48) & 0xffff, 0x6005, "MSI");
    assert_eq!(read(0x60), 0x0142_0010, "root port with a slot");
    assert_eq!(read(0x6c), 0x0250_0011, "port 2, link active reporting");
    assert_eq!(read(0x70), 0, "the link is down");
    assert_eq!(read(0x74), 0x0010_005b, "slot 2");
    assert_eq!(read(0x78), 0x0000_07c0, "power and indicators off");
    assert_eq!(read(0x84) & 1 << 21, 1 << 21, "prefixes pass");
    assert_eq!(read(0x100), 0x0001_000d);
    assert_eq!(read(0x104), 0x001d, "what keeps functions apart");
}

#[test]
fn registers_take_what_bridges_must_take_and_nothing_else() {
    let machine = Machine::new();
    for register in (0..0x1000).step_by(4) {
        let before = machine.read(0, 1, register);
        machine.write(0, 1, register, &[0xff; 4]);
        let changed = before ^ machine.read(0, 1, register);
        let expected = match register {
            // Command.
            0x04 => 0x0546,
            0x0c => 0xff,
            0x18 => 0x00ff_ffff,
            // Memory window, prefetchable window.
            0x20 | 0x24 => 0xfff0_fff0,
            0x28 | 0x2c => 0xffff_ffff,
            // Interrupt line; bridge control: errors, secondary bus reset.
            0x3c => 0x0043_00ff,
            // MSI.
            0x48 => 0x0071_0000,
            0x4c => 0xffff_fffc,
            0x50 => 0xffff_ffff,
            0x54 => 0xffff,
            0x58 => 1,
            // Device Control; Link Control; Link Control 2: from 1 to 15.
            0x68 => 0x001f,
            0x70 => 0x00d0,
            0x90 => 0x000e,
            // Slot Control without latch and interlock, from 0x07c0; a command completes.
            0x78 => 0x0010_103b,
            // Root Control.
            0x7c => 0x000f,
            0x104 => 0x001d_0000,
            _ => 0,
        };
        assert_eq!(changed, expected, "{register:#x}");
    }
}

#[test]
fn firmware_gives_ports_buses_and_windows_with_room() {
    let machine = Machine::new();
    let (one, root_function) = (probe(9), probe(5));
    machine.plug(0, &one);
    let slot = Bdf::new(0, 3, 0).expect("in range");
    let function = Arc::<Probe>::clone(&root_function);
    machine.root.add(slot, function).expect("free");
    machine.root.assign_bars().expect("room");
    assert_eq!(machine.read(0, 1, 0x18), 0x0001_0100);
    assert_eq!(machine.read(0, 2, 0x18), 0x0002_0200);
    assert_eq!(machine.read(0, 1, 0x20), 0xc0f0_c000, "16 MiB");
    assert_eq!(machine.read(0, 2, 0x20), 0xc1f0_c100);
    assert_eq!(machine.read(0, 1, 0x24), 0xfff1_0001, "4 GiB");
    assert_eq!(
        (machine.read(0, 1, 0x28), machine.read(0, 1, 0x2c)),
        (0x80, 0x80)
    );
    assert_eq!(
        (machine.read(0, 2, 0x28), machine.read(0, 2, 0x2c)),
        (0x81, 0x81)
    );
    assert_eq!(
        (one.address(0), one.address(2)),
        (Some(0xc000_0000), Some(0x80_0000_0000))
    );
    assert_eq!(
        (root_function.address(0), root_function.address(2)),
        (Some(0xc200_0000), Some(0x82_0000_0000))
    );
    assert_eq!(machine.read(0, 1, 4) & 7, 0, "firmware enables nothing");
}

#[test]
fn a_window_grows_with_what_is_behind_it() {
    let machine = Machine::new();
    let large = Probe::new(
        1,
        &[
            (0, BarKind::Memory32, 0x0100_0000),
            (1, BarKind::Memory32, 0x1000),
            (2, WIDE, 0x4_0000_0000),
            // Not prefetchable: a bridge forwards it below 4 GiB only.
            (
                4,
                BarKind::Memory64 {
                    prefetchable: false,
                },
                0x1000,
            ),
        ],
    );
    machine.plug(1, &large);
    machine.root.assign_bars().expect("room");
    assert_eq!(machine.read(0, 2, 0x20), 0xc1f0_c000, "32 MiB");
    assert_eq!(
        (machine.read(0, 2, 0x28), machine.read(0, 2, 0x2c)),
        (0x80, 0x83),
        "16 GiB"
    );
    assert_eq!(
        [0, 1, 2, 4].map(|bar| large.address(bar)),
        [0xc000_0000, 0xc100_0000, 0x80_0000_0000, 0xc100_1000].map(Some)
    );
}

#[test]
fn a_function_without_room_for_its_window_is_refused_with_the_port_named() {
    for started in [false, true] {
        let machine = Machine::new();
        if started {
            machine.root.assign_bars().expect("room");
        }
        let huge = Probe::new(1, &[(0, BarKind::Memory32, 0x4000_0000)]);
        let function = Arc::<Probe>::clone(&huge);
        assert_eq!(
            machine.root.plug(&machine.ports[1], function),
            Err(PlugError::NoRoom(AssignError::Window {
                port: Bdf::new(0, 2, 0).expect("in range"),
                size: 0x4000_0000,
                aperture: "32-bit"
            }))
        );
        assert!(!machine.ports[1].slot().occupied);
        machine.root.reset();
        assert_eq!(machine.root.assign_bars(), Ok(()));
        assert_eq!(huge.address(0), None);
    }
}

#[test]
fn the_second_of_two_functions_without_room_for_both_is_refused() {
    let machine = Machine::new();
    machine.root.assign_bars().expect("room");
    let half = || Probe::new(1, &[(0, BarKind::Memory32, 0x1000_0000)]);
    machine.plug(0, &half());
    let more = [
        (0, BarKind::Memory32, 0x1000_0000),
        (1, BarKind::Memory32, 0x1000),
    ];
    let refused = machine.root.plug(&machine.ports[1], Probe::new(2, &more));
    assert!(matches!(refused, Err(PlugError::NoRoom(_))), "{refused:?}");
    machine.plug(1, &half());
    machine.root.reset();
    assert_eq!(machine.root.assign_bars(), Ok(()));
}

#[test]
fn a_machine_has_as_many_ports_as_buses_behind_them() {
    let machine = Machine::new();
    let slot = Bdf::new(0, 3, 0).expect("in range");
    let sink = Arc::<Messages>::clone(&machine.messages);
    let refused = machine.root.add_port(slot, sink).map(|_| ());
    assert_eq!(refused, Err(AddError::NoSuchBus(slot, 3)));
    let behind = Bdf::new(1, 0, 0).expect("in range");
    assert_eq!(
        machine.root.add(behind, probe(1)),
        Err(AddError::NotOnRootBus(behind))
    );
    assert_eq!(machine.ports[0].function_address(), behind);
    machine.plug(0, &probe(1));
    assert_eq!(
        machine.root.plug(&machine.ports[0], probe(2)),
        Err(PlugError::Occupied(Bdf::new(0, 1, 0).expect("in range")))
    );
    let addresses = machine.root.addresses();
    let addresses: Vec<u16> = addresses.into_iter().map(Bdf::as_u16).collect();
    assert_eq!(addresses, [0x00, 0x08, 0x10, 0x100]);
}

#[test]
fn configuration_accesses_follow_the_bus_numbers() {
    let machine = Machine::new();
    machine.plug(0, &probe(9));
    assert_eq!(machine.read(1, 0, 0), 0xffff_ffff, "not numbered yet");
    machine.root.assign_bars().expect("room");
    assert_eq!(machine.read(1, 0, 0), 0x0009_1234);
    assert_eq!(machine.read(1, 1, 0), 0xffff_ffff, "another device");
    assert_eq!(machine.read(1, 0, 0x1000), 0xffff_ffff, "another function");
    assert_eq!(machine.read(2, 0, 0), 0xffff_ffff, "an empty slot");
    // The guest renumbers: bus 2 is behind the first port, bus 1 behind none.
    machine.write(0, 2, 0x18, &[0, 1, 1]);
    machine.write(0, 1, 0x18, &[0, 2, 2]);
    assert_eq!(machine.read(2, 0, 0), 0x0009_1234);
    assert_eq!(machine.read(1, 0, 0), 0xffff_ffff);
    // Behind the bridge, but not on the bus of the slot.
    machine.write(0, 1, 0x18, &[0, 1, 2]);
    assert_eq!(machine.read(1, 0, 0), 0x0009_1234);
    assert_eq!(machine.read(2, 0, 0), 0xffff_ffff);
    // Bus 0 is always the root bus.
    machine.write(0, 1, 0x18, &[0, 0, 2]);
    assert_eq!(machine.read(1, 0, 0), 0xffff_ffff);
    assert_eq!(machine.read(0, 0, 0), 0x0d57_8086);
}

#[test]
fn an_integrated_endpoint_becomes_an_endpoint_with_a_link() {
    let machine = Machine::new();
    let probe = probe(9);
    machine.plug(0, &probe);
    machine.root.assign_bars().expect("room");
    let mut own = [0; 4];
    probe.read_config(0x40, &mut own);
    assert_eq!(own, [0x10, 0, 0x92, 0]);
    assert_eq!(machine.read(1, 0, 0x40), 0x0002_0010);
    assert_eq!(machine.read(1, 0, 0x4c), 0x0040_0011);
    assert_eq!(machine.read(1, 0, 0x50), 0x0011_0000);
    assert_eq!(machine.read(1, 0, 0x6c), 0x0000_0002);
    // Whatever the access, the same bytes.
    let mut all = [0; 0x80];
    machine.root.read_ecam(0x10_0001, &mut all);
    assert_eq!(all[0x41..0x43], [0x02, 0x00]);
    assert_eq!(all[0x51..0x53], [0x11, 0x00]);
    // What the function decides itself: function-level reset.
    machine.write(1, 0, 0x48, &[0, 0x80]);
    assert_eq!(machine.read(1, 0, 0x48) & 0xffff, 0x2810);
}

#[test]
fn bars_are_decoded_inside_the_windows_while_the_port_forwards() {
    let machine = Machine::new();
    let probe = probe(9);
    machine.plug(0, &probe);
    machine.root.assign_bars().expect("room");
    let seen = || {
        (
            machine.load(0xc000_0000),
            machine.load(0x80_0000_0000).is_some(),
        )
    };
    machine.write(1, 0, 4, &[2, 0]);
    assert_eq!(seen(), (None, false), "the port's Memory Space is off");
    machine.write(0, 1, 4, &[2, 0]);
    assert_eq!(seen(), (Some(9), true));
    let both = [
        BarWindow {
            bar: 0,
            base: 0xc000_0000,
            size: 0x1000,
        },
        BarWindow {
            bar: 2,
            base: 0x80_0000_0000,
            size: 0x4000,
        },
    ];
    assert_eq!(probe.told(), [both.to_vec()]);
    // The window moves away, closes, and comes back.
    machine.write(0, 1, 0x20, &[0x10, 0xc0, 0xf0, 0xc0]);
    assert_eq!(seen(), (None, true));
    machine.write(0, 1, 0x24, &[0xf1, 0xff, 0x01, 0x00]);
    assert_eq!(seen(), (None, false));
    assert_eq!(probe.told(), [vec![both[1]], vec![]]);
    machine.write(0, 1, 0x20, &[0x00, 0xc0, 0x00, 0xc0]);
    assert_eq!(seen(), (Some(9), false));
    // A BAR that leaves the window.
    machine.write(1, 0, 0x10, &[0x00, 0x00, 0x10, 0xc0]);
    assert_eq!((seen(), machine.load(0xc010_0000)), ((None, false), None));
    machine.write(0, 1, 0x20, &[0x00, 0xc0, 0x10, 0xc0]);
    assert_eq!(machine.load(0xc010_0000), Some(9));
    machine.write(0, 1, 4, &[0, 0]);
    assert_eq!(machine.load(0xc010_0000), None);
    assert_eq!(probe.told().last(), Some(&vec![]));
}

#[test]
fn a_window_over_everything_leads_nowhere_but_to_the_apertures() {
    let machine = Machine::new();
    let probe = probe(9);
    machine.plug(0, &probe);
    machine.root.assign_bars().expect("room");
    machine.write(0, 1, 0x20, &[0x00, 0x00, 0xff, 0xff]);
    machine.write(0, 1, 4, &[2, 0]);
    machine.write(1, 0, 4, &[2, 0]);
    for base in [0x0010_0000_u32, 0xe000_0000, 0xfee0_0000, 0xbfff_f000] {
        machine.write(1, 0, 0x10, &base.to_le_bytes());
        assert_eq!(machine.load(base.into()), None, "{base:#x}");
    }
    machine.write(1, 0, 0x10, &0xdfff_f000_u32.to_le_bytes());
    assert_eq!(machine.load(0xdfff_f000), Some(9));
}

#[test]
fn a_secondary_bus_reset_resets_the_function_and_takes_the_link_down_meanwhile() {
    let machine = Machine::new();
    let probe = probe(9);
    machine.plug(0, &probe);
    machine.root.assign_bars().expect("room");
    machine.write(0, 1, 4, &[2, 0]);
    machine.write(1, 0, 4, &[2, 0]);
    machine.write(0, 1, 0x3e, &[0x40, 0]);
    assert_eq!(probe.resets.load(Ordering::Relaxed), 1);
    assert_eq!(machine.read(1, 0, 0), 0xffff_ffff);
    assert_eq!(machine.read(0, 1, 0x70), 0);
    assert_eq!(machine.load(0xc000_0000), None);
    machine.write(0, 1, 0x3e, &[0, 0]);
    assert_eq!(machine.read(1, 0, 0), 0x0009_1234);
    assert_eq!(machine.read(0, 1, 0x70), 0x2011_0000);
    assert_eq!(
        machine.read(1, 0, 4) & 0xffff,
        0,
        "memory space is off after a reset"
    );
    // Link Disable does the same.
    machine.write(0, 1, 0x70, &[0x10]);
    assert_eq!(machine.read(1, 0, 0), 0xffff_ffff);
    assert_eq!(probe.resets.load(Ordering::Relaxed), 2);
    machine.write(0, 1, 0x70, &[0]);
    assert_eq!(machine.read(1, 0, 0), 0x0009_1234);
}

#[test]
fn after_a_reset_of_the_machine_firmware_begins_anew_and_functions_are_still_there() {
    let machine = Machine::new();
    let probe = probe(9);
    machine.plug(0, &probe);
    machine.root.assign_bars().expect("room");
    machine.write(0, 1, 4, &[2, 0]);
    machine.write(1, 0, 4, &[2, 0]);
    machine.write(0, 1, 0x78, &[0xc0, 0x07]);
    machine.write(0, 1, 0x18, &[7, 8, 9]);
    machine.root.reset();
    assert_eq!(machine.read(0, 1, 0x18), 0);
    assert_eq!(machine.read(0, 1, 0x20), 0);
    assert_eq!(
        machine.read(0, 1, 0x78),
        0x0040_01c0,
        "present, powered, no event"
    );
    assert_eq!(machine.load(0xc000_0000), None);
    machine.root.assign_bars().expect("room");
    assert_eq!(machine.read(1, 0, 0), 0x0009_1234);
    assert_eq!(probe.address(0), Some(0xc000_0000));
}

#[test]
fn a_function_is_taken_out_before_the_guest_starts_but_not_while_it_has_power() {
    let machine = Machine::new();
    let probe = probe(9);
    let empty = UnplugError::Empty(machine.ports[0].address());
    assert_eq!(machine.root.unplug(&machine.ports[0]).err(), Some(empty));
    machine.plug(0, &probe);
    assert!(machine.root.unplug(&machine.ports[0]).is_ok());
    machine.plug(0, &probe);
    machine.root.assign_bars().expect("room");
    let powered = UnplugError::Powered(machine.ports[0].address());
    assert_eq!(machine.root.unplug(&machine.ports[0]).err(), Some(powered));
    assert_eq!(machine.read(1, 0, 0), 0x0009_1234);
}

proptest! {
    #[test]
    fn no_write_to_ports_panics_or_leads_out_of_the_apertures(
        writes in vec(
            (0_u64..3, 0_u64..4, 0_u64..0x110, vec(prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(2)], 1..9)),
            1..80,
        ),
        probes in vec(any::<u64>(), 16),
    ) {
        let machine = Machine::new();
        let functions = [probe(1), probe(2)];
        machine.plug(0, &functions[0]);
        machine.plug(1, &functions[1]);
        machine.root.assign_bars().expect("room");
        for (bus, device, register, data) in writes {
            machine.write(bus, device, register, &data);
            machine.read(bus, device, register);
        }
        let inside = |first: u64, last: u64| {
            [0xc000_0000..0xe000_0000_u64, 0x80_0000_0000..0x100_0000_0000]
                .iter()
                .any(|range| range.contains(&first) && range.contains(&last))
        };
        for function in functions {
            if let Some(windows) = function.told().last() {
                for window in windows {
                    prop_assert!(inside(window.base, window.base + window.size - 1));
                }
            }
            for address in [function.address(0), function.address(2)].into_iter().flatten() {
                if machine.load(address).is_some() {
                    prop_assert!(inside(address, address));
                }
            }
        }
        for address in probes {
            if machine.load(address).is_some() {
                prop_assert!(inside(address, address));
            }
        }
    }
}
