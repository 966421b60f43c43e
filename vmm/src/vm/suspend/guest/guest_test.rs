//! Pausing a machine whose vCPUs were not started, on the host's KVM, where there is one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::mpsc::channel;

use pci::{ConfigChange, PciFunction};

use super::*;
use crate::cli::{self, Device, Parsed, Request};
use crate::event_loop::EventLoop;
use crate::host_files::Given;

/// A function that counts.
#[derive(Default)]
struct Function {
    refuses: AtomicBool,
    is_late: AtomicBool,
    parked: AtomicU32,
    resumed: AtomicU32,
}

impl PciFunction for Function {
    fn read_config(&self, _offset: u16, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&self, _offset: u16, _data: &[u8]) -> ConfigChange {
        ConfigChange::default()
    }

    fn parkable(&self) -> Result<(), String> {
        match self.refuses.load(Ordering::Relaxed) {
            true => Err("it is another's".to_owned()),
            false => Ok(()),
        }
    }

    fn park(&self) {
        self.parked.fetch_add(1, Ordering::Relaxed);
    }

    fn parked(&self) -> Result<(), String> {
        match self.is_late.load(Ordering::Relaxed) {
            true => Err("it is busy".to_owned()),
            false => Ok(()),
        }
    }

    fn resume(&self) {
        self.resumed.fetch_add(1, Ordering::Relaxed);
    }

    fn reset(&self) {}
}

impl Function {
    /// How often it was parked and resumed.
    fn counts(&self) -> (u32, u32) {
        let count = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        (count(&self.parked), count(&self.resumed))
    }
}

struct Bench {
    machine: Machine,
    function: Arc<Function>,
    _event_loop: EventLoop,
}

/// A machine with such a function at 00:1e.0, or `None` on a host without KVM.
fn bench() -> Option<Bench> {
    if crate::kvm::open(1).is_err() {
        eprintln!("skipped: this host has no usable /dev/kvm");
        return None;
    }
    let line = "nido --kernel /dev/null --memory 64M --device edu --device pcie-root-port,id=rp0 --device intel-iommu";
    let Ok(Request::Run { config, .. }) = cli::parse(line.split(' ')) else {
        panic!("{line}");
    };
    let (events, _) = channel();
    let event_loop = EventLoop::start(events.clone()).expect("a thread");
    let machine = Machine::new(
        &config,
        None,
        Given::default(),
        &events,
        event_loop.handle(),
    )
    .expect("created");
    let function = Arc::<Function>::default();
    let bdf = Bdf::new(0, 30, 0).expect("in range");
    let added = Arc::clone(&function) as _;
    machine.root().add(bdf, added).expect("free");
    Some(Bench {
        machine,
        function,
        _event_loop: event_loop,
    })
}

impl Bench {
    fn with_guest<R>(&mut self, body: impl FnOnce(&mut Guest<'_>) -> R) -> R {
        let mut running = Vec::new();
        let (events, _) = channel();
        body(&mut Guest::new(&mut self.machine, &mut running, &events))
    }

    /// Whether input comes in, devices come and go, and vCPUs would run.
    fn goes_on(&self) -> bool {
        let device = cli::parse_device("virtio-rng-pci,bus=rp0").expect("valid");
        let Parsed::Device(Device::Function(device)) = device else {
            panic!("it is a function");
        };
        let hotplug = self.machine.hotplug();
        let parts = [
            self.machine.input()(b"x") == 1,
            hotplug.add(&device).is_ok() && hotplug.remove("rp0", true).is_ok(),
            !self.machine.shared.park.is_wanted(),
        ];
        assert!(parts == [true; 3] || parts == [false; 3], "{parts:?}");
        parts[0]
    }
}

#[test]
fn a_paused_machine_does_nothing_until_it_goes_on() {
    let Some(mut bench) = bench() else { return };
    for round in 1..4 {
        assert!(bench.goes_on());
        bench.with_guest(|guest| {
            guest.pause().expect("nothing is at work");
            assert!(guest.clock.is_some());
        });
        assert!(!bench.goes_on());
        assert_eq!(bench.function.counts(), (round, round - 1));
        bench.with_guest(|guest| guest.resume());
        assert_eq!(bench.function.counts(), (round, round));
    }
    assert!(bench.goes_on());
}

#[test]
fn what_was_stopped_for_a_pause_that_fails_goes_on_and_the_culprit_is_named() {
    let Some(mut bench) = bench() else { return };
    bench.function.is_late.store(true, Ordering::Relaxed);
    let why = bench.with_guest(|guest| {
        guest.limit = Duration::ZERO;
        let why = guest.pause().expect_err("it is late");
        assert!(guest.clock.is_none());
        why
    });
    assert_eq!(why, "the guest cannot be paused: 00:1e.0: it is busy");
    assert!(bench.goes_on());
    let (parked, resumed) = bench.function.counts();
    assert!(parked == 1 && resumed >= 1);
}

#[test]
fn a_machine_that_cannot_be_paused_is_not_disturbed() {
    let Some(mut bench) = bench() else { return };
    bench.function.refuses.store(true, Ordering::Relaxed);
    let why = bench.with_guest(|guest| guest.pause().expect_err("it refuses"));
    assert!(
        why.starts_with("the guest cannot be paused: 00:1e.0: it is another's; start"),
        "{why}"
    );
    assert_eq!(bench.machine.shared.park.times(), 0);
    assert_eq!(bench.function.counts(), (0, 0));
    assert!(bench.goes_on());
}

#[test]
fn nothing_goes_on_for_the_end_of_a_paused_machine() {
    let Some(mut bench) = bench() else { return };
    bench.with_guest(|guest| {
        guest.pause().expect("nothing is at work");
        guest.end();
    });
    assert!(!bench.goes_on());
    bench.machine.reset_devices();
    assert_eq!(bench.function.counts(), (1, 0));
    assert!(bench.machine.shared.stop.load(Ordering::Relaxed));
    assert!(bench.machine.is_quiet());
}
