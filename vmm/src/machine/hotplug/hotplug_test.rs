//! Devices behind two ports, with a driver of the guest that does as little as possible.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::{fs, io};

use devices::edu::{Edu, EduFeatures, EduOptions};
use devices::virtio::pci::VirtioPci;
use devices::virtio::rng::Rng;
use devices::{Doorbells, InterruptRoute, InterruptRoutes, Memory};
use intel_vtd::{EventSink, InterruptMessage, SourceId, Unit, UnitConfig};
use pci::{Apertures, ConfigChange, IntxSink, MsiMessage, MsiSink};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::*;

struct Nowhere;

impl MsiSink for Nowhere {
    fn signal(&self, _requester: Bdf, _address: u64, _data: u32) {}
}

impl InterruptRoutes for Nowhere {
    fn add(&self, _: Bdf, _: EventFd) -> io::Result<Box<dyn InterruptRoute>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn set_messages(&self, _: &[(u32, Option<MsiMessage>)]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl IntxSink for Nowhere {
    fn set_level(&self, _asserted: bool) {}
}

impl EventSink for Nowhere {
    fn deliver(&self, _message: InterruptMessage) {}
}

/// Addresses with a doorbell.
#[derive(Default)]
struct Bells(Mutex<BTreeSet<u64>>);

impl Doorbells for Bells {
    fn add(&self, address: u64, _fd: &EventFd) -> io::Result<()> {
        assert!(self.0.lock().insert(address));
        Ok(())
    }

    fn remove(&self, address: u64, _fd: &EventFd) {
        assert!(self.0.lock().remove(&address));
    }
}

/// A function whose host has not answered yet.
#[derive(Default)]
struct Hung(AtomicBool);

impl PciFunction for Hung {
    fn read_config(&self, _offset: u16, _data: &mut [u8]) {}

    fn write_config(&self, _offset: u16, _data: &[u8]) -> ConfigChange {
        ConfigChange::default()
    }

    fn reset(&self) {}

    fn is_quiet(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a maker has and counts.
struct Parts {
    memory: Memory,
    unit: Arc<Unit<Memory>>,
    bells: Arc<Bells>,
    fails: AtomicBool,
    hung: Arc<Hung>,
    released: AtomicU32,
}

struct TestMaker(Arc<Parts>);

impl Maker for TestMaker {
    fn make(&self, bdf: Bdf, kind: &FunctionKind) -> anyhow::Result<Arc<dyn PciFunction>> {
        let Parts {
            unit, bells, fails, ..
        } = &*self.0;
        anyhow::ensure!(!fails.load(Ordering::Relaxed), "no such file");
        let dma = unit.port(SourceId(bdf.as_u16()));
        Ok(match kind {
            FunctionKind::Edu(options) => Edu::new(
                bdf,
                dma,
                Arc::new(Nowhere),
                Arc::new(Nowhere),
                Some(Arc::clone(unit)),
                *options,
            )?,
            _ => {
                let bells = Arc::clone(bells) as _;
                let (msi, routes) = (Arc::new(Nowhere), Arc::new(Nowhere));
                VirtioPci::new(bdf, dma, msi, routes, bells, Box::new(Rng::new()))?
            }
        })
    }

    fn release(&self, _bdf: Bdf) {
        self.0.released.fetch_add(1, Ordering::Relaxed);
    }
}

struct Bench {
    root: Arc<RootComplex>,
    parts: Arc<Parts>,
    plug: Arc<HotPlug>,
}

fn bench() -> Bench {
    let root = Arc::new(RootComplex::new(Apertures {
        ecam_base: 0xe000_0000,
        buses: 3,
        mmio32: 0xc000_0000..0xe000_0000,
        mmio64: 0x80_0000_0000..0x100_0000_0000,
    }));
    let ports = ["left", "right"].iter().zip(1..).map(|(name, device)| {
        let bdf = Bdf::new(0, device, 0).expect("in range");
        let port = root.add_port(bdf, Arc::new(Nowhere)).expect("free");
        (String::from(*name), port)
    });
    let ports: Vec<_> = ports.collect();
    root.assign_bars().expect("room");
    for device in [1, 2] {
        // Ports forward memory accesses.
        root.write_ecam(device << 15 | 0x04, &[6, 0]);
    }
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]);
    let memory: Memory = Arc::new(memory.expect("mappable"));
    let config = UnitConfig::legacy(46).with_device_tlb(true);
    let unit = Unit::new(Arc::clone(&memory), &config, Arc::new(Nowhere)).expect("valid");
    let parts = Arc::new(Parts {
        memory,
        unit,
        bells: Arc::default(),
        fails: AtomicBool::new(false),
        hung: Arc::default(),
        released: AtomicU32::new(0),
    });
    let maker = Box::new(TestMaker(Arc::clone(&parts)));
    let port = |device| Bdf::new(0, device, 0).expect("in range");
    let fixed = [
        (port(1), &config_of("left", None, FunctionKind::RootPort)),
        (port(2), &config_of("right", None, FunctionKind::RootPort)),
    ];
    let plug = HotPlug::new(Arc::clone(&root), maker, ports, &fixed);
    Bench { root, parts, plug }
}

fn config_of(id: &str, bus: Option<&str>, kind: FunctionKind) -> FunctionConfig {
    FunctionConfig {
        id: (!id.is_empty()).then(|| id.to_owned()),
        bus: bus.map(str::to_owned),
        device: None,
        kind,
    }
}

fn rng(id: &str, bus: &str) -> FunctionConfig {
    config_of(id, Some(bus), FunctionKind::Rng)
}

fn edu(id: &str, bus: &str) -> FunctionConfig {
    let features = EduFeatures {
        ats: true,
        ..EduFeatures::default()
    };
    let options = EduOptions {
        features,
        ..EduOptions::default()
    };
    config_of(id, Some(bus), FunctionKind::Edu(options))
}

impl Bench {
    /// Slot Control of a port: power and its indicator.
    fn power(&self, device: u64, on: bool) {
        let control: u16 = if on { 0x0140 } else { 0x0740 };
        self.root
            .write_ecam(device << 15 | 0x78, &control.to_le_bytes());
    }

    /// Turns memory and bus mastering on, with the first BAR at `address`.
    fn start(&self, bus: u64, address: u64) {
        let bar = u32::try_from(address).expect("below 4 GiB");
        self.root.write_ecam(bus << 20 | 0x10, &bar.to_le_bytes());
        self.root.write_ecam(bus << 20 | 0x14, &0_u32.to_le_bytes());
        self.root.write_ecam(bus << 20 | 0x04, &[6, 0]);
    }

    /// A guest that follows the button of this port for as long as `plug` is at work.
    fn obey<T>(&self, device: u64, plug: impl FnOnce() -> T) -> T {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let mut status = [0; 2];
                    self.root.read_ecam(device << 15 | 0x7a, &mut status);
                    if status[0] & 1 != 0 {
                        self.root.write_ecam(device << 15 | 0x7a, &[1, 0]);
                        self.power(device, false);
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            });
            let result = plug();
            done.store(true, Ordering::Release);
            result
        })
    }

    fn vendor(&self, bus: u64) -> u16 {
        let mut data = [0; 2];
        self.root.read_ecam(bus << 20, &mut data);
        u16::from_le_bytes(data)
    }

    fn error(&self, config: &FunctionConfig) -> String {
        self.plug.add(config).expect_err("refused").to_string()
    }
}

#[test]
fn a_device_comes_and_goes_when_the_guest_has_let_go() {
    let bench = bench();
    let told = bench.plug.add(&rng("r0", "left")).expect("room");
    assert_eq!(told, "r0 is in the slot of left, at 01:00.0\n");
    let port = |device| Bdf::new(0, device, 0).expect("in range");
    let function = Bdf::new(1, 0, 0).expect("in range");
    assert_eq!(bench.plug.describe(function), " id=r0 bus=left");
    assert_eq!(bench.vendor(1), 0xffff, "the slot has no power yet");
    // The button that announced it.
    bench.root.write_ecam(1 << 15 | 0x7a, &[1, 0]);
    bench.power(1, true);
    assert_eq!(bench.vendor(1), 0x1af4);
    assert_eq!(
        bench.plug.describe(port(1)),
        " id=left slot=occupied,power-on"
    );
    bench.start(1, 0xc000_0000);
    assert!(!bench.parts.bells.0.lock().is_empty());
    let told = bench.obey(1, || bench.plug.remove("r0", false));
    assert_eq!(told.expect("let go"), "r0 is out of the slot of left\n");
    assert_eq!(bench.vendor(1), 0xffff);
    assert!(bench.parts.bells.0.lock().is_empty());
    assert_eq!(bench.parts.released.load(Ordering::Relaxed), 1);
    assert_eq!(
        bench.plug.describe(port(1)),
        " id=left slot=empty,power-off"
    );
}

#[test]
fn a_device_is_pulled_from_a_guest_that_does_nothing() {
    let bench = bench();
    bench.plug.add(&edu("e0", "right")).expect("room");
    bench.power(2, true);
    bench.start(2, 0xc000_0000);
    assert_eq!(bench.vendor(2), 0x1234);
    let told = bench.plug.remove("right", true).expect("by its port");
    assert_eq!(told, "right is out of the slot of right\n");
    assert_eq!(bench.vendor(2), 0xffff);
    bench.plug.add(&rng("e0", "right")).expect("room and name");
}

#[test]
fn what_is_pulled_while_its_host_does_not_answer_is_not_quiet_before_it_has() {
    let bench = bench();
    let function: Arc<dyn PciFunction> = Arc::clone(&bench.parts.hung) as _;
    let port = Bdf::new(1, 0, 0).expect("in range");
    bench.plug.release(port, function);
    assert!(!bench.plug.is_quiet());
    let why = bench.plug.freeze().expect_err("it touches guest memory");
    assert!(why.contains("01:00.0"), "{why}");
    bench
        .plug
        .add(&rng("r0", "right"))
        .expect("nothing is frozen");
    bench.parts.hung.0.store(true, Ordering::Relaxed);
    assert!(bench.plug.is_quiet());
    bench.plug.freeze().expect("it has answered");
    assert_eq!(Arc::strong_count(&bench.parts.hung), 1, "nobody keeps it");
}

#[test]
fn the_guest_is_asked_for_a_device_that_the_host_wants_back() {
    let bench = bench();
    bench.plug.add(&rng("r0", "left")).expect("room");
    bench.root.write_ecam(1 << 15 | 0x7a, &[1, 0]);
    bench.power(1, true);
    let nobody = Bdf::new(0, 9, 0).expect("in range");
    bench.plug.give_back(nobody);
    bench.obey(1, || {
        for _ in 0..3 {
            bench.plug.give_back(Bdf::new(1, 0, 0).expect("in range"));
        }
        let start = Instant::now();
        while bench.parts.released.load(Ordering::Relaxed) == 0 {
            assert!(start.elapsed() < Duration::from_secs(60), "never removed");
            thread::sleep(Duration::from_millis(1));
        }
    });
    assert_eq!(bench.vendor(1), 0xffff);
}

#[test]
fn a_guest_that_is_reset_meanwhile_keeps_its_device() {
    let bench = bench();
    bench.plug.add(&rng("r0", "left")).expect("room");
    bench.power(1, true);
    let refused = thread::scope(|scope| {
        let removal = scope.spawn(|| bench.plug.remove("r0", false));
        while !bench
            .plug
            .describe(Bdf::new(0, 1, 0).expect("in range"))
            .ends_with("requested")
        {
            thread::sleep(Duration::from_millis(1));
        }
        let again = bench.plug.remove("r0", false).expect_err("one at a time");
        assert!(matches!(again, HotPlugError::Slot(_)), "{again}");
        bench.root.reset();
        bench.root.assign_bars().expect("room");
        removal.join().expect("no panic")
    });
    let message = refused.expect_err("declined").to_string();
    assert!(message.starts_with("the guest keeps `r0`"), "{message}");
    assert_eq!(bench.vendor(1), 0x1af4, "there after the reset");
    // Another request that takes it by force ends one that waits.
    let overtaken = thread::scope(|scope| {
        let removal = scope.spawn(|| bench.plug.remove("r0", false));
        while !bench
            .plug
            .describe(Bdf::new(0, 1, 0).expect("in range"))
            .ends_with("requested")
        {
            thread::sleep(Duration::from_millis(1));
        }
        bench.plug.remove("r0", true).expect("by force");
        removal.join().expect("no panic")
    });
    assert!(
        matches!(overtaken, Err(HotPlugError::Overtaken(_))),
        "{overtaken:?}"
    );
}

#[test]
fn a_removal_that_comes_too_late_leaves_the_next_device_alone() {
    let bench = bench();
    bench.plug.add(&rng("r0", "left")).expect("room");
    let first = bench.plug.find("r0").expect("there");
    bench.plug.remove("r0", true).expect("by force");
    let late = |id| bench.plug.depart(id, first);
    assert!(matches!(late("r0"), Err(HotPlugError::Overtaken(_))));
    bench.plug.add(&rng("r1", "left")).expect("room");
    assert!(matches!(late("r1"), Err(HotPlugError::Overtaken(_))));
    bench.plug.remove("r1", true).expect("still there");
}

#[test]
fn what_cannot_be_added_is_refused_and_leaves_nothing_behind() {
    let bench = bench();
    assert_eq!(
        bench.error(&config_of("r", None, FunctionKind::Rng)),
        "key `bus` is missing; add `bus=PORT`, where PORT is one of left, right"
    );
    assert_eq!(
        bench.error(&rng("r", "middle")),
        "bus=middle: there is no such root port; choose one of left, right"
    );
    assert_eq!(
        bench.error(&rng("right", "left")),
        "id=right: another device has this name; choose another"
    );
    for kind in [FunctionKind::Console, FunctionKind::RootPort] {
        let message = bench.error(&config_of("c", Some("left"), kind));
        assert!(message.contains("cannot be plugged in"), "{message}");
    }
    bench.parts.fails.store(true, Ordering::Relaxed);
    assert_eq!(bench.error(&rng("r", "left")), "no such file");
    bench.parts.fails.store(false, Ordering::Relaxed);
    bench
        .plug
        .add(&rng("r", "left"))
        .expect("nothing is left of it");
    assert_eq!(
        bench.error(&rng("s", "left")),
        "bus=left: the port has a device already; remove it with `device-del r`, or choose another port"
    );
    assert_eq!(
        bench.error(&rng("r", "right")),
        "id=r: another device has this name; choose another"
    );
    let message = |id| {
        bench
            .plug
            .remove(id, false)
            .expect_err("refused")
            .to_string()
    };
    assert_eq!(
        message("s"),
        "there is no device `s` behind a root port; choose one of r"
    );
    assert_eq!(
        message("right"),
        "there is no device `right` behind a root port; choose one of r"
    );
    assert!(
        bench.plug.remove("r", false).is_ok(),
        "no power, no waiting"
    );
    assert_eq!(
        message("r"),
        "there is no device `r` behind a root port; all slots are empty"
    );
}

/// The number of this process's threads and descriptors, which other tests change: so it is counted
/// in a process of its own.
fn counts() -> (usize, usize) {
    let count = |path| fs::read_dir(path).expect("readable").count();
    (count("/proc/self/task"), count("/proc/self/fd"))
}

const ALONE: &str = "NIDO_TEST_ALONE";

#[test]
fn twenty_devices_that_come_and_go_leave_no_thread_and_no_descriptor() {
    if std::env::var_os(ALONE).is_none() {
        let test = std::env::current_exe().expect("this test");
        let name = "machine::hotplug::hotplug_test::twenty_devices_that_come_and_go_leave_no_thread_and_no_descriptor";
        let output = std::process::Command::new(test)
            .args(["--exact", name, "--test-threads=1"])
            .env(ALONE, "1")
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("1 passed"), "{text}");
        return;
    }
    let bench = bench();
    let references = || {
        (
            Arc::strong_count(&bench.parts.unit),
            Arc::strong_count(&bench.parts.memory),
        )
    };
    let before = (counts(), references());
    for round in 0..20 {
        let (left, right) = if round % 2 == 0 {
            (rng("a", "left"), edu("b", "right"))
        } else {
            (edu("a", "left"), rng("b", "right"))
        };
        for (config, bus, base) in [(&left, 1, 0xc000_0000), (&right, 2, 0xc100_0000)] {
            bench.plug.add(config).expect("room");
            bench.root.write_ecam(bus << 15 | 0x7a, &[1, 0]);
            bench.power(bus, true);
            bench.start(bus, base);
        }
        assert!(counts().0 > before.0.0, "there are threads");
        bench
            .obey(1, || bench.plug.remove("a", false))
            .expect("let go");
        if round % 4 == 0 {
            bench.plug.remove("b", true).expect("by force");
            bench.power(2, false);
        } else {
            bench
                .obey(2, || bench.plug.remove("b", false))
                .expect("let go");
        }
        // The system takes a moment to forget a thread that has been joined.
        let start = Instant::now();
        while counts() != before.0 && start.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!((counts(), references()), before, "round {round}");
    }
}

#[test]
fn nothing_comes_or_goes_while_the_guest_is_paused_and_what_is_on_its_way_prevents_a_pause() {
    let bench = bench();
    bench.plug.add(&rng("one", "left")).expect("an empty slot");
    bench.power(1, true);
    bench.plug.freeze().expect("nothing is on its way");
    for outcome in [
        bench.plug.add(&rng("two", "right")),
        bench.plug.remove("one", false),
        bench.plug.remove("one", true),
    ] {
        let error = outcome.expect_err("paused").to_string();
        assert!(error.contains("`resume`"), "{error}");
    }
    let behind = Bdf::new(1, 0, 0).expect("in range");
    assert_eq!(
        bench.plug.how_to_remove(behind),
        "write `device-del one` first"
    );
    let fixed = bench
        .plug
        .how_to_remove(Bdf::new(0, 9, 0).expect("in range"));
    assert!(fixed.contains("pcie-root-port"), "{fixed}");
    bench.plug.thaw();
    bench.plug.add(&rng("two", "right")).expect("an empty slot");
    thread::scope(|scope| {
        let removal = scope.spawn(|| bench.plug.remove("one", false));
        // The guest does nothing, so it takes as long as it can.
        let port = Bdf::new(0, 1, 0).expect("in range");
        while !bench.plug.describe(port).ends_with("requested") {
            thread::sleep(Duration::from_millis(1));
        }
        let why = bench.plug.freeze().expect_err("it is on its way");
        assert!(why.contains("`one`"), "{why}");
        bench.plug.remove("one", true).expect("pulled");
        assert!(removal.join().expect("no panic").is_err());
    });
    bench.plug.freeze().expect("nothing is on its way");
}

#[test]
fn what_a_guest_lets_go_of_to_move_is_plugged_in_again_if_it_stays() {
    let bench = bench();
    for (device, config) in [(1, rng("r0", "left")), (2, edu("", "right"))] {
        bench.plug.add(&config).expect("room");
        bench.root.write_ecam(device << 15 | 0x7a, &[1, 0]);
        bench.power(device, true);
    }
    let before = bench.plug.plugged();
    let mut unplugged = Unplugged::new(&bench.plug);
    let names = ["r0", "right"].map(str::to_owned);
    let asked = AtomicU32::new(0);
    let go_on = || {
        asked.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    let taken = bench.obey(1, || bench.obey(2, || unplugged.take_all(&names, go_on)));
    taken.expect("let go");
    assert_eq!(bench.plug.plugged(), []);
    assert_eq!(asked.load(Ordering::Relaxed), 3);
    assert_eq!(
        unplugged.give_back(),
        "; `r0` is plugged in again; `right` is plugged in again"
    );
    assert_eq!(bench.plug.plugged(), before);
}

#[test]
fn what_is_in_the_way_of_a_move_is_told_and_what_was_taken_before_is_given_back() {
    let bench = bench();
    bench.plug.add(&rng("r0", "left")).expect("room");
    bench.root.write_ecam(1 << 15 | 0x7a, &[1, 0]);
    bench.power(1, true);
    let names = ["r0", "other"].map(str::to_owned);
    let mut unplugged = Unplugged::new(&bench.plug);
    let taken = bench.obey(1, || unplugged.take_all(&names, || Ok(())));
    let why = taken.expect_err("there is no such device");
    assert!(why.starts_with("unplug=other: "), "{why}");
    bench.parts.fails.store(true, Ordering::Relaxed);
    let said = unplugged.give_back();
    assert!(
        said.contains("`r0` cannot be plugged in again: no such file"),
        "{said}"
    );
    // Nobody wants it any more.
    bench.parts.fails.store(false, Ordering::Relaxed);
    bench.plug.add(&rng("r0", "left")).expect("room");
    let mut unplugged = Unplugged::new(&bench.plug);
    let taken = unplugged.take_all(&names, || Err("given up".to_owned()));
    assert_eq!(taken, Err("given up".to_owned()));
    assert_eq!(unplugged.give_back(), "");
    assert_eq!(bench.plug.plugged().len(), 1);
}

#[test]
fn a_guest_that_has_come_gets_devices_when_it_runs_and_runs_without_those_that_fail() {
    let bench = bench();
    bench.plug.freeze().expect("nothing comes");
    let devices = vec![rng("r0", "nowhere"), rng("r1", "right")];
    plug_later(&bench.plug, devices);
    thread::sleep(Duration::from_millis(200));
    assert_eq!(bench.plug.plugged(), [], "it is paused");
    bench.plug.thaw();
    let until = Instant::now() + Duration::from_secs(60);
    while bench.plug.plugged() != [rng("r1", "right")] {
        assert!(Instant::now() < until, "{:?}", bench.plug.plugged());
        thread::sleep(Duration::from_millis(5));
    }
}
