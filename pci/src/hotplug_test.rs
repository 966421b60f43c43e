//! Hot-plug, driven as Linux's pciehp drives it: its writes, their order, and what it waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use crate::port_test::Machine;
use crate::probe::Probe;
use crate::{BarKind, Indicator, PciFunction, RemovalOutcome, UnplugError};

// Registers of the first port.
const COMMAND: u64 = 0x04;
const MSI: u64 = 0x48;
const LINK_CONTROL: u64 = 0x70;
const SLOT_CONTROL: u64 = 0x78;
const SLOT_STATUS: u64 = 0x7a;

// Slot Status.
const BUTTON: u16 = 0x0001;
const PRESENCE: u16 = 0x0008;
const COMPLETED: u16 = 0x0010;
const PRESENT: u16 = 0x0040;
const LINK: u16 = 0x0100;
const ALL: u16 = 0x011f;

// Slot Control.
const NOTIFY: (u16, u16) = (0x1031, 0x103b);
const POWER_ON: (u16, u16) = (0x0000, 0x0400);
const POWER_OFF: (u16, u16) = (0x0400, 0x0400);
const INDICATOR_ON: (u16, u16) = (0x0100, 0x0300);
const INDICATOR_BLINK: (u16, u16) = (0x0200, 0x0300);
const INDICATOR_OFF: (u16, u16) = (0x0300, 0x0300);

const MESSAGE: (u16, u64, u32) = (0x08, 0xfee0_1000, 0x41);
const SHORT: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(60);

/// The driver of the first port.
struct Driver<'a>(&'a Machine);

impl Driver<'_> {
    /// As at probe: message, bus mastering, no old events; an empty slot is powered off; then
    /// events are enabled.
    fn start(machine: &Machine) -> Driver<'_> {
        let driver = Driver(machine);
        driver.write(MSI + 4, &0xfee0_1000_u64.to_le_bytes());
        driver.write(MSI + 12, &0x41_u16.to_le_bytes());
        driver.write(MSI + 2, &[1, 0]);
        driver.write(COMMAND, &[6, 4]);
        driver.write(SLOT_STATUS, &ALL.to_le_bytes());
        if driver.status() & PRESENT == 0 {
            driver.command(POWER_OFF);
        }
        driver.command(NOTIFY);
        driver
    }

    fn write(&self, register: u64, data: &[u8]) {
        self.0.write(0, 1, register, data);
    }

    fn read16(&self, register: u64) -> u16 {
        let word = self.0.read(0, 1, register & !3);
        u16::try_from(word >> (8 * (register & 2)) & 0xffff).expect("masked")
    }

    fn status(&self) -> u16 {
        self.read16(SLOT_STATUS)
    }

    /// Reads the events and clears them, until there are none. Nothing is written back but what was
    /// read.
    fn interrupt(&self) -> u16 {
        let mut events = 0;
        loop {
            let new = self.status() & ALL;
            if new == 0 {
                return events;
            }
            self.write(SLOT_STATUS, &new.to_le_bytes());
            events |= new;
        }
    }

    /// Changes bits of Slot Control, and waits for the command.
    fn command(&self, (value, mask): (u16, u16)) {
        let control = self.read16(SLOT_CONTROL) & !mask | value;
        self.write(SLOT_CONTROL, &control.to_le_bytes());
        assert_eq!(self.status() & COMPLETED, COMPLETED, "commands complete");
        self.write(SLOT_STATUS, &COMPLETED.to_le_bytes());
    }

    /// Powers a slot on whose card is present, finds the device, gives it addresses.
    fn enable(&self) {
        self.command(POWER_ON);
        self.command(INDICATOR_BLINK);
        assert_eq!(self.read16(LINK_CONTROL + 2), 0x2011, "link active");
        assert_eq!(self.0.read(1, 0, 0), 0x0009_1234);
        self.0.write(1, 0, 0x10, &0xc000_5000_u32.to_le_bytes());
        self.0.write(1, 0, COMMAND, &[6, 0]);
        self.command(INDICATOR_ON);
        self.interrupt();
    }

    /// Powers the slot off after the driver of the device is gone.
    fn disable(&self) {
        self.0.write(1, 0, COMMAND, &[0, 4]);
        self.command(POWER_OFF);
        self.interrupt();
        self.command(INDICATOR_OFF);
    }
}

fn probe() -> Arc<Probe> {
    Probe::new(9, &[(0, BarKind::Memory32, 0x1000)])
}

fn started() -> Machine {
    let machine = Machine::new();
    machine.root.assign_bars().expect("room");
    machine
}

#[test]
fn a_function_is_plugged_in_powered_on_and_used() {
    let machine = started();
    let driver = Driver::start(&machine);
    machine.messages.take();
    let probe = probe();
    machine.plug(0, &probe);
    assert_eq!(machine.messages.take(), [MESSAGE]);
    assert_eq!(
        machine.read(1, 0, 0),
        0xffff_ffff,
        "without power there is nothing"
    );
    assert_eq!(driver.interrupt(), BUTTON | PRESENCE);
    assert_eq!(driver.status(), PRESENT);
    driver.enable();
    assert_eq!(machine.load(0xc000_5000), Some(9));
    let slot = machine.ports[0].slot();
    assert!(slot.occupied && slot.powered && slot.link_up);
    assert_eq!(slot.power_indicator, Indicator::On);
    assert_eq!(slot.attention_indicator, Indicator::Off);
}

#[test]
fn a_function_that_is_pulled_is_stopped_and_the_guest_finds_it_gone() {
    let machine = Machine::new();
    let function = probe();
    machine.plug(0, &function);
    machine.root.assign_bars().expect("room");
    let driver = Driver::start(&machine);
    machine.write(1, 0, COMMAND, &[6, 0]);
    assert_eq!(driver.interrupt(), 0);
    machine.messages.take();
    assert!(machine.root.pull(&machine.ports[0]).is_ok());
    assert_eq!(machine.messages.take(), [MESSAGE]);
    assert_eq!(machine.read(1, 0, 0), 0xffff_ffff);
    assert_eq!(machine.load(0xc000_0000), None);
    assert!(function.windows().is_empty(), "it was reset");
    assert_eq!(Arc::strong_count(&function), 1);
    assert_eq!(driver.interrupt(), PRESENCE | LINK);
    assert_eq!(driver.status() & PRESENT, 0);
    driver.disable();
    let empty = UnplugError::Empty(machine.ports[0].address());
    assert_eq!(machine.root.pull(&machine.ports[0]).err(), Some(empty));
    machine.plug(0, &function);
    driver.enable();
    assert_eq!(machine.load(0xc000_5000), Some(9));
}

#[test]
fn a_plug_right_after_a_pull_presses_no_button() {
    let machine = Machine::new();
    let function = probe();
    machine.plug(0, &function);
    machine.root.assign_bars().expect("room");
    let driver = Driver::start(&machine);
    driver.interrupt();
    assert!(machine.root.pull(&machine.ports[0]).is_ok());
    machine.plug(0, &function);
    let events = driver.interrupt();
    assert_eq!(events & (PRESENCE | BUTTON), PRESENCE);
    driver.disable();
    driver.enable();
    assert_eq!(machine.read(1, 0, 0) & 0xffff, 0x1234);
}

#[test]
fn a_function_is_given_up_on_request_and_taken_out() {
    let machine = Machine::new();
    let function = probe();
    machine.plug(0, &function);
    machine.root.assign_bars().expect("room");
    let driver = Driver::start(&machine);
    machine.write(1, 0, COMMAND, &[6, 0]);
    assert_eq!(machine.load(0xc000_0000), Some(9));
    machine.messages.take();
    let port = &machine.ports[0];
    port.request_removal().expect("occupied");
    assert_eq!(machine.messages.take(), [MESSAGE]);
    assert_eq!(driver.interrupt(), BUTTON);
    driver.command(INDICATOR_BLINK);
    assert_eq!(
        port.request_removal(),
        Err(UnplugError::Requested(port.address())),
        "another press would cancel"
    );
    assert_eq!(port.wait_for_removal(SHORT), RemovalOutcome::TimedOut);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| port.wait_for_removal(LONG));
        driver.disable();
        assert_eq!(
            waiting.join().expect("no panic"),
            RemovalOutcome::PoweredOff
        );
    });
    assert_eq!(function.resets.load(Ordering::Relaxed), 1);
    assert_eq!(machine.read(1, 0, 0), 0xffff_ffff);
    assert_eq!(machine.load(0xc000_0000), None);
    machine.root.unplug(port).expect("powered off");
    assert_eq!(function.told().last(), Some(&vec![]));
    assert_eq!(Arc::strong_count(&function), 1, "nobody else has it");
    assert!(!port.slot().occupied);
    assert_eq!(driver.status() & (PRESENT | PRESENCE), PRESENCE);
    // And another one, which finds the events enabled.
    driver.interrupt();
    machine.messages.take();
    machine.plug(0, &probe());
    assert_eq!(machine.messages.take(), [MESSAGE]);
    assert_eq!(driver.interrupt(), BUTTON | PRESENCE);
    driver.enable();
    assert_eq!(machine.load(0xc000_5000), Some(9));
}

#[test]
fn a_guest_without_a_driver_leaves_everything_as_it_was() {
    let machine = Machine::new();
    machine.plug(0, &probe());
    machine.root.assign_bars().expect("room");
    let port = &machine.ports[0];
    for _ in 0..2 {
        port.request_removal().expect("occupied");
        assert_eq!(port.wait_for_removal(SHORT), RemovalOutcome::TimedOut);
    }
    assert_eq!(machine.messages.take(), []);
    assert_eq!(machine.read(1, 0, 0), 0x0009_1234);
    assert_eq!(port.wait_for_removal(LONG), RemovalOutcome::Declined);
}

#[test]
fn a_removal_ends_when_the_guest_cancels_it_or_is_reset() {
    let machine = Machine::new();
    machine.plug(0, &probe());
    machine.root.assign_bars().expect("room");
    let driver = Driver::start(&machine);
    let port = &machine.ports[0];
    port.request_removal().expect("occupied");
    driver.interrupt();
    driver.command(INDICATOR_BLINK);
    driver.command(INDICATOR_ON);
    assert_eq!(port.wait_for_removal(LONG), RemovalOutcome::Declined);
    port.request_removal().expect("the last one is over");
    machine.root.reset();
    assert_eq!(port.wait_for_removal(LONG), RemovalOutcome::Declined);
}

#[test]
fn a_guest_that_powers_a_slot_on_is_not_disturbed() {
    let machine = started();
    let driver = Driver::start(&machine);
    machine.plug(0, &probe());
    driver.interrupt();
    driver.command(POWER_ON);
    driver.command(INDICATOR_BLINK);
    machine.messages.take();
    let port = &machine.ports[0];
    assert_eq!(
        port.request_removal(),
        Err(UnplugError::Busy(port.address()))
    );
    assert_eq!(machine.messages.take(), []);
    assert_eq!(driver.status() & BUTTON, 0, "a press would cancel");
    driver.command(INDICATOR_ON);
    port.request_removal().expect("the guest is done");
    assert_eq!(driver.interrupt() & BUTTON, BUTTON);
}

#[test]
fn a_slot_without_power_needs_no_request() {
    let machine = Machine::new();
    machine.plug(0, &probe());
    machine.root.assign_bars().expect("room");
    let driver = Driver::start(&machine);
    driver.disable();
    machine.messages.take();
    let port = &machine.ports[0];
    port.request_removal().expect("occupied");
    assert_eq!(machine.messages.take(), [], "a press would power it on");
    assert_eq!(port.wait_for_removal(SHORT), RemovalOutcome::PoweredOff);
    // The guest powers it on again before it is taken out.
    driver.command(POWER_ON);
    assert!(machine.root.unplug(port).is_err());
    driver.command(POWER_OFF);
    assert!(machine.root.unplug(port).is_ok());
    assert_eq!(
        port.request_removal(),
        Err(UnplugError::Empty(port.address()))
    );
}

#[test]
fn a_message_is_sent_when_the_first_enabled_event_appears() {
    let machine = Machine::new();
    machine.plug(0, &probe());
    machine.root.assign_bars().expect("room");
    let driver = Driver::start(&machine);
    driver.interrupt();
    machine.messages.take();
    // Link down: one message; the completed command adds nothing to it.
    driver.write(SLOT_CONTROL, &0x17f1_u16.to_le_bytes());
    assert_eq!(machine.messages.take(), [MESSAGE]);
    assert_eq!(driver.status() & ALL, LINK | COMPLETED);
    driver.write(SLOT_STATUS, &LINK.to_le_bytes());
    assert_eq!(machine.messages.take(), []);
    driver.write(SLOT_STATUS, &COMPLETED.to_le_bytes());
    // Without Hot-Plug Interrupt Enable nothing is sent; enabling it with an event there is an
    // edge.
    driver.write(SLOT_CONTROL, &0x17d1_u16.to_le_bytes());
    assert_eq!(machine.messages.take(), []);
    driver.write(SLOT_CONTROL, &0x17f1_u16.to_le_bytes());
    assert_eq!(machine.messages.take(), [MESSAGE]);
    driver.interrupt();
    // A masked vector keeps it.
    driver.write(MSI + 16, &[1]);
    driver.write(SLOT_CONTROL, &0x13f1_u16.to_le_bytes());
    assert_eq!(machine.messages.take(), []);
    driver.write(MSI + 16, &[0]);
    assert_eq!(machine.messages.take(), [MESSAGE]);
}

#[test]
fn what_is_plugged_in_before_the_driver_starts_is_found_by_it() {
    let machine = started();
    machine.plug(0, &probe());
    let driver = Driver::start(&machine);
    assert_eq!(driver.status() & PRESENT, PRESENT);
    driver.enable();
    assert_eq!(machine.load(0xc000_5000), Some(9));
}

#[test]
fn a_thousand_functions_come_and_go_and_take_no_room_with_them() {
    let machine = Machine::new();
    // Half of the 32-bit aperture: there is no room for a second one.
    let bars = [(0, BarKind::Memory32, 256 << 20)];
    machine.root.assign_bars().expect("room");
    for round in 0..1000 {
        machine.plug(round % 2, &Probe::new(7, &bars));
        let port = &machine.ports[round % 2];
        machine.root.pull(port).expect("it is there");
    }
    let last = Probe::new(7, &bars);
    machine.plug(1, &last);
    machine.root.reset();
    machine.root.assign_bars().expect("room");
    assert_eq!(last.address(0), Some(0xc000_0000));
}

/// Waits for another thread.
fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        thread::yield_now();
    }
}

#[test]
fn a_pull_waits_for_one_reset_by_a_guest_that_switches_the_link_and_for_no_other() {
    let machine = Machine::new();
    let function = probe();
    machine.plug(0, &function);
    machine.root.assign_bars().expect("room");
    let port = &machine.ports[0];
    let resets = || function.resets.load(Ordering::Relaxed);
    let over = AtomicBool::new(false);
    let hold = function.hold.lock();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    machine.write(0, 1, LINK_CONTROL, &[0x10, 0]);
                    machine.write(0, 1, LINK_CONTROL, &[0x00, 0]);
                }
            });
        }
        until(|| resets() == 1);
        let pull = scope.spawn(|| machine.root.pull(port).map(drop));
        until(|| port.is_pulled());
        drop(hold);
        let outcome = pull.join();
        let resets = resets();
        over.store(true, Ordering::Relaxed);
        assert_eq!(outcome.expect("no panic"), Ok(()));
        assert_eq!(resets, 2, "the one under way, and the pull's own");
    });
    assert!(!port.slot().occupied);
    assert_eq!(Arc::strong_count(&function), 1, "nobody else has it");
    // Another one finds the port as the guest has left it.
    machine.plug(0, &probe());
    let driver = Driver::start(&machine);
    driver.interrupt();
    driver.enable();
}

/// The guest may have a function reset whenever it likes, which takes as long as it takes.
#[test]
fn a_pull_does_not_wait_for_another_function_that_is_busy() {
    let machine = Machine::new();
    let (busy, other) = (probe(), Probe::new(8, &[(0, BarKind::Memory32, 0x1000)]));
    machine.plug(0, &busy);
    machine.plug(1, &other);
    machine.root.assign_bars().expect("room");
    let hold = busy.hold.lock();
    thread::scope(|scope| {
        scope.spawn(|| machine.write(1, 0, COMMAND, &[6, 0]));
        until(|| machine.ports[0].endpoint().is_some_and(|it| it.is_in_use()));
        // This one waits for the access, and the next accesses for this one.
        scope.spawn(|| machine.write(0, 1, LINK_CONTROL, &[0x10, 0]));
        until(|| !machine.ports[0].slot().link_up);
        let (done, pulled) = channel();
        let (root, port) = (&machine.root, &machine.ports[1]);
        scope.spawn(move || {
            let _ = root.pull(port);
            let _ = done.send(());
        });
        let outcome = pulled.recv_timeout(LONG);
        drop(hold);
        assert_eq!(outcome, Ok(()));
    });
}
