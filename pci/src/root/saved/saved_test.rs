use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use state::Sections;

use crate::port_test::Machine;
use crate::probe::Probe;
use crate::{BarKind, Bdf, PciFunction};

/// Ports at 00:01.0, with a function behind it, and 00:02.0; a function at 00:03.0.
struct Setup {
    machine: Machine,
    probes: [Arc<Probe>; 2],
}

impl Setup {
    fn new() -> Self {
        let machine = Machine::new();
        let wide = BarKind::Memory64 { prefetchable: true };
        let bars = [(0, BarKind::Memory32, 0x1000), (2, wide, 0x4000)];
        let probes = [0xaa, 0xbb].map(|name| Probe::new(name, &bars));
        machine.plug(0, &probes[0]);
        let bdf = Bdf::new(0, 3, 0).expect("in range");
        let function = Arc::clone(&probes[1]) as Arc<dyn PciFunction>;
        machine.root.add(bdf, function).expect("free");
        machine.root.assign_bars().expect("room");
        Self { machine, probes }
    }

    fn sections(&self) -> Sections {
        let mut sections = Sections::default();
        for (name, section) in self.machine.root.save().expect("all can be saved") {
            sections.add(name, section);
        }
        sections
    }

    /// Another one, like this.
    fn copy(&self) -> Self {
        let copy = Self::new();
        let mut sections = self.sections();
        copy.machine
            .root
            .restore(&mut sections)
            .expect("the same machine");
        assert_eq!(sections.left(), None);
        copy
    }

    fn act(&self, step: &Step) {
        match step {
            Step::Write(bus, device, register, data) => {
                self.machine.write(*bus, *device, *register, data);
            }
            Step::Remove(port) => {
                let _ = self.machine.ports[*port].request_removal();
            }
        }
    }

    /// All registers, slots, and who answers where.
    fn seen(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let functions = (0..4).flat_map(|bus| (0..4).map(move |device| (bus, device)));
        let registers: Vec<_> = functions
            .flat_map(|(bus, device)| {
                (0..0x110)
                    .step_by(4)
                    .map(move |register| (bus, device, register))
            })
            .map(|(bus, device, register)| self.machine.read(bus, device, register))
            .collect();
        let slots = [0, 1].map(|port| self.machine.ports[port].slot());
        let addresses = self
            .probes
            .each_ref()
            .map(|probe| [0, 2].map(|bar| probe.address(bar)));
        let loads = addresses.map(|bars| bars.map(|bar| self.machine.load(bar?)));
        (registers, slots, addresses, loads)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u64, Vec<u8>),
    Remove(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let place = prop_oneof![
        Just((0, 1)),
        Just((0, 2)),
        Just((0, 3)),
        Just((1, 0)),
        Just((2, 0))
    ];
    // Command, BARs or bus numbers and windows, MSI, the slot's registers.
    let register = prop_oneof![
        Just(4_u64),
        0x10..0x30_u64,
        0x3c..0x40_u64,
        0x48..0x60_u64,
        Just(0x78_u64),
        Just(0x70_u64),
    ];
    let data = prop_oneof![
        vec(any::<u8>(), 1..5),
        Just(vec![6]),
        Just(vec![6, 0]),
        Just(vec![0, 1, 1])
    ];
    prop_oneof![
        9 => (place, register, data)
            .prop_map(|((bus, device), register, data)| Step::Write(bus, device, register, data)),
        1 => (0..2_usize).prop_map(Step::Remove),
    ]
}

proptest! {
    #[test]
    fn a_restored_machine_goes_on_as_the_saved_one_does(
        before in vec(step(), 0..40),
        after in vec(step(), 0..40),
    ) {
        let saved = Setup::new();
        before.iter().for_each(|step| saved.act(step));
        saved.machine.messages.take();
        let restored = saved.copy();
        prop_assert_eq!(restored.machine.messages.take(), []);
        prop_assert_eq!(restored.seen(), saved.seen());
        prop_assert_eq!(restored.sections(), saved.sections());
        saved.probes.iter().chain(&restored.probes).for_each(|probe| {
            probe.told();
        });
        for step in &after {
            saved.act(step);
            restored.act(step);
            let messages = restored.machine.messages.take();
            prop_assert_eq!(messages, saved.machine.messages.take(), "{:?}", step);
        }
        prop_assert_eq!(restored.seen(), saved.seen());
        for (saved, restored) in saved.probes.iter().zip(&restored.probes) {
            prop_assert_eq!(restored.told(), saved.told());
        }
    }
}

#[test]
fn what_is_behind_a_port_has_the_ports_name_whatever_its_bus_is_now() {
    let setup = Setup::new();
    let names = || {
        let sections = setup.machine.root.save().expect("all can be saved");
        sections
            .into_iter()
            .map(|(name, _)| name)
            .collect::<Vec<_>>()
    };
    let expected = ["00:00.0", "00:01.0", "00:02.0", "00:03.0", "behind 00:01.0"];
    assert_eq!(names(), expected);
    setup.machine.write(0, 1, 0x18, &[0, 7, 9]);
    assert_eq!(names(), expected);
}

#[test]
fn windows_are_told_once_all_registers_are_there() {
    let setup = Setup::new();
    setup.machine.write(0, 1, 4, &[6, 0]);
    setup.machine.write(1, 0, 4, &[6, 0]);
    let restored = setup.copy();
    let told = restored.probes[0].told();
    assert_eq!(told.len(), 1, "both BARs at the same time");
    assert_eq!(Some(&told[0]), setup.probes[0].told().last());
    assert_eq!(restored.machine.load(told[0][0].base), Some(0xaa));
}

#[test]
fn a_machine_with_other_functions_is_refused_by_name() {
    let saved = Setup::new();
    let empty = || {
        let machine = Machine::new();
        machine.root.assign_bars().expect("room");
        machine
    };
    let other = empty();
    let refused = other
        .root
        .restore(&mut saved.sections())
        .expect_err("an empty slot");
    let text = "the slot is occupied in the saved machine and empty here";
    assert_eq!(
        (refused.0.as_str(), refused.1.to_string().as_str()),
        ("00:01.0", text)
    );

    let mut sections = Sections::default();
    for (name, section) in empty().root.save().expect("all can be saved") {
        sections.add(name, section);
    }
    let refused = Setup::new()
        .machine
        .root
        .restore(&mut sections)
        .expect_err("no function");
    assert_eq!(refused.0, "00:01.0");

    let mut sections = saved.sections();
    sections.take("behind 00:01.0").expect("there");
    let refused = Setup::new()
        .machine
        .root
        .restore(&mut sections)
        .expect_err("none");
    let text = "the saved machine has nothing for it";
    assert_eq!(
        (refused.0.as_str(), refused.1.to_string().as_str()),
        ("behind 00:01.0", text)
    );
}

#[test]
fn a_link_that_cannot_be_up_is_refused() {
    let saved = Setup::new();
    let mut sections = saved.sections();
    let port = sections.take("00:01.0").expect("there");
    let mut json = serde_json::to_value(port).expect("JSON");
    let config = &mut json["state"]["config"]["bytes"];
    let mut digits = config.as_str().expect("digits").to_owned();
    // Link Disable of Link Control.
    digits.replace_range(0xe0..0xe2, "10");
    *config = digits.into();
    sections.add("00:01.0", serde_json::from_value(json).expect("a section"));
    let refused = Setup::new()
        .machine
        .root
        .restore(&mut sections)
        .expect_err("odd");
    let text = "the link's status cannot be: power and control say otherwise";
    assert_eq!(
        (refused.0.as_str(), refused.1.to_string().as_str()),
        ("00:01.0", text)
    );
}
