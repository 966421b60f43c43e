//! Interrupts of queues that somebody else serves. The test is that somebody, and the hypervisor.
//! Offsets and bits are literals from the specifications.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use pci::PciFunction as _;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::virtio::device::{DeviceKind, VirtioDevice};
use crate::virtio::error::QueueError;
use crate::virtio::session::{Progress, Session};
use crate::virtio::testing::{Driver, eventually};

/// A device of two queues that others serve.
struct Device([EventFd; 2]);

impl VirtioDevice for Device {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[16, 16]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn calls(&self) -> io::Result<Vec<(usize, EventFd)>> {
        let calls = self.0.iter().enumerate();
        calls
            .map(|(queue, call)| Ok((queue, call.try_clone()?)))
            .collect()
    }

    fn activate(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn serves(&self, _: usize) -> bool {
        false
    }

    fn queue_ready(&mut self, _: usize, _: &mut Session) -> Result<Progress, QueueError> {
        panic!("others serve the queues");
    }
}

struct Machine {
    driver: Driver,
    calls: [EventFd; 2],
}

impl Machine {
    /// Queue n has vector n + 1, which sends n + 1.
    fn new() -> Self {
        let calls = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
        let device = Device(calls.each_ref().map(|call| call.try_clone().unwrap()));
        let driver = Driver::new(Box::new(device));
        driver.start(0, 2);
        Self { driver, calls }
    }

    fn signal(&self, queue: usize) {
        self.calls[queue].write(1).unwrap();
    }

    /// How many interrupts there were of vectors 1 and 2: by the hypervisor, and by the device.
    fn interrupts(&self) -> ([usize; 2], [usize; 2]) {
        let hypervisor = [1, 2].map(|vector| self.driver.routes.sent(vector));
        (
            hypervisor,
            [1, 2].map(|vector| self.driver.messages(vector)),
        )
    }

    /// How many interrupts there were of vectors 1 and 2.
    fn all(&self) -> [usize; 2] {
        [1, 2].map(|vector| self.driver.interrupts(vector))
    }

    fn mask(&self, vector: u64, masked: bool) {
        let control = u32::from(masked).to_le_bytes();
        self.driver.write(0x2000 + 16 * vector + 12, &control);
    }

    /// Message Control: 0x8000 is Enable, 0x4000 Function Mask.
    fn control(&self, value: u16) {
        let msix = self.driver.find_capability(0x11, |_| true);
        let function = &self.driver.function;
        function.write_config(msix + 2, &value.to_le_bytes());
    }

    fn set_vector(&self, queue: u16, vector: u16) {
        self.driver.write(22, &queue.to_le_bytes());
        self.driver.write(26, &vector.to_le_bytes());
    }

    fn pending(&self) -> u8 {
        self.driver.read::<1>(0x3000)[0]
    }
}

#[test]
fn the_hypervisor_interrupts_while_the_vector_sends() {
    let machine = Machine::new();
    for round in 1..4 {
        machine.signal(0);
        assert_eq!(machine.interrupts(), ([round, round - 1], [0, 0]));
        machine.signal(1);
        assert_eq!(machine.interrupts(), ([round, round], [0, 0]));
    }
    assert_eq!(machine.pending(), 0);
}

#[test]
fn a_masked_vector_is_pending_once_it_was_signalled_and_sent_once_when_it_is_unmasked() {
    for look in [false, true] {
        let machine = Machine::new();
        machine.mask(1, true);
        assert_eq!(machine.pending(), 0);
        machine.signal(0);
        machine.signal(0);
        assert_eq!(machine.all(), [0, 0]);
        if look {
            assert_eq!(machine.pending(), 2);
            assert_eq!(machine.pending(), 2);
        }
        machine.signal(1);
        assert_eq!(machine.all(), [0, 1]);
        machine.mask(1, false);
        assert_eq!(machine.all(), [1, 1]);
        assert_eq!(machine.pending(), 0);
        machine.signal(0);
        assert_eq!(machine.all(), [2, 1]);
    }
}

#[test]
fn the_function_mask_holds_all_vectors_back_and_is_told_to_the_hypervisor_once() {
    let machine = Machine::new();
    let changes = || machine.driver.routes.changes.load(Ordering::Relaxed);
    let before = changes();
    machine.control(0xc000);
    assert_eq!(changes(), before + 1);
    machine.signal(0);
    machine.signal(1);
    assert_eq!(machine.all(), [0, 0]);
    assert_eq!(machine.pending(), 6);
    machine.control(0x8000);
    assert_eq!(changes(), before + 2);
    assert_eq!(machine.all(), [1, 1]);
    assert_eq!(machine.pending(), 0);
}

#[test]
fn a_message_that_is_written_anew_is_sent_from_then_on() {
    let machine = Machine::new();
    let changes = || machine.driver.routes.changes.load(Ordering::Relaxed);
    machine
        .driver
        .write(0x2000 + 16 + 8, &0x55_u32.to_le_bytes());
    machine.signal(0);
    assert_eq!(machine.all(), [0, 0]);
    assert_eq!(machine.driver.routes.sent(0x55), 1);
    let before = changes();
    for _ in 0..100 {
        machine
            .driver
            .write(0x2000 + 16 + 8, &0x55_u32.to_le_bytes());
        // Of no queue.
        machine.driver.write(0x2000 + 8, &0x66_u32.to_le_bytes());
    }
    assert_eq!(changes(), before);
}

#[test]
fn a_queue_that_gets_another_vector_interrupts_by_that_one() {
    let machine = Machine::new();
    machine.set_vector(0, 2);
    machine.signal(0);
    assert_eq!(machine.interrupts(), ([0, 1], [0, 0]));
    machine.signal(1);
    assert_eq!(machine.interrupts(), ([0, 2], [0, 0]));
}

#[test]
fn what_is_pending_stays_with_the_vector_that_the_queue_had() {
    let machine = Machine::new();
    machine.mask(1, true);
    machine.signal(0);
    machine.set_vector(0, 2);
    assert_eq!(machine.pending(), 2);
    assert_eq!(machine.all(), [0, 0]);
    machine.signal(0);
    assert_eq!(machine.all(), [0, 1]);
    machine.mask(1, false);
    assert_eq!(machine.all(), [1, 1]);
}

#[test]
fn a_queue_without_a_vector_interrupts_nobody() {
    let machine = Machine::new();
    machine.set_vector(0, 0xffff);
    machine.signal(0);
    assert_eq!(machine.pending(), 0);
    machine.set_vector(0, 1);
    assert_eq!(machine.all(), [0, 0]);
    machine.signal(0);
    assert_eq!(machine.all(), [1, 0]);
}

#[test]
fn without_msi_x_the_isr_status_tells_and_nothing_is_sent_later() {
    let machine = Machine::new();
    machine.control(0);
    assert_eq!(machine.driver.read::<1>(0x100), [0]);
    machine.signal(0);
    assert_eq!(machine.driver.read::<1>(0x100), [1]);
    assert_eq!(machine.driver.read::<1>(0x100), [0]);
    machine.signal(1);
    machine.control(0x8000);
    assert_eq!(machine.all(), [0, 0]);
    assert_eq!(machine.pending(), 0);
    assert_eq!(machine.driver.read::<1>(0x100), [1]);
    machine.signal(0);
    assert_eq!(machine.all(), [1, 0]);
}

#[test]
fn without_bus_mastering_nothing_is_sent() {
    let machine = Machine::new();
    let function = &machine.driver.function;
    function.write_config(4, &2_u16.to_le_bytes());
    machine.signal(0);
    assert_eq!(machine.all(), [0, 0]);
    function.write_config(4, &6_u16.to_le_bytes());
    let before = machine.all()[0];
    machine.signal(0);
    assert_eq!(machine.all(), [before + 1, 0]);
}

#[test]
fn a_reset_ends_what_the_hypervisor_sends() {
    let machine = Machine::new();
    machine.driver.set_status(0);
    eventually("reset completes", || machine.driver.status() == 0);
    machine.signal(0);
    assert_eq!(machine.all(), [0, 0]);
    // Of the earlier driver: the new one has no vector yet.
    machine.driver.start(0, 2);
    assert_eq!(machine.all(), [0, 0]);
    machine.signal(0);
    assert_eq!(machine.all(), [1, 0]);
    machine.driver.function.reset();
    machine.signal(0);
    machine.driver.enable_function();
    assert_eq!(machine.all(), [1, 0]);
}

#[test]
fn no_interrupt_is_lost_however_the_guest_masks_and_moves_its_vector() {
    let machine = Machine::new();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                machine.mask(1, true);
                machine.pending();
                machine.mask(1, false);
                machine.control(0xc000);
                machine.control(0x8000);
                machine.set_vector(0, 2);
                machine.set_vector(0, 1);
            }
        });
        for _ in 0..500 {
            let sum = || machine.all().iter().sum::<usize>();
            let before = sum();
            machine.signal(0);
            eventually("an interrupt", || sum() > before);
        }
        done.store(true, Ordering::Release);
    });
}

#[test]
fn routes_are_free_again_when_the_function_is_gone() {
    let machine = Machine::new();
    let routes = Arc::clone(&machine.driver.routes);
    assert_eq!(routes.alive(), 2);
    drop(machine);
    assert_eq!(routes.alive(), 0);
}
