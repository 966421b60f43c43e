//! Several vCPUs: starting them, a lock, a barrier.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::acpi::Machine;
use crate::{apic, say, store};

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
}

static ARRIVED: AtomicU32 = AtomicU32::new(0);
/// vCPUs that take part, once all have arrived.
static TOTAL: AtomicU32 = AtomicU32::new(0);

/// Spins for a while; the unit is an iteration.
pub fn pause(rounds: u32) {
    for _ in 0..rounds {
        core::hint::spin_loop();
    }
}

/// A spin lock over nothing but its own scope.
pub struct Lock(AtomicBool);

/// Held until dropped.
pub struct Guard<'a>(&'a AtomicBool);

impl Lock {
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    pub fn lock(&self) -> Guard<'_> {
        while self.0.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
        Guard(&self.0)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Waits until `done`, at most `rounds` iterations.
pub fn wait_for(rounds: u32, mut done: impl FnMut() -> bool) -> bool {
    for _ in 0..rounds {
        if done() {
            return true;
        }
        core::hint::spin_loop();
    }
    false
}

/// An application processor has reached Rust.
pub fn arrive() {
    ARRIVED.fetch_add(1, Ordering::SeqCst);
    while TOTAL.load(Ordering::SeqCst) == 0 {
        core::hint::spin_loop();
    }
}

/// How many vCPUs take part.
pub fn total() -> u32 {
    TOTAL.load(Ordering::SeqCst)
}

/// Starts every vCPU that the MADT lists and reports how many came.
pub fn start_all(machine: &Machine) {
    start(machine.cpus);
}

/// Starts all vCPUs, which are `expected`, and reports how many came.
pub fn start(expected: u32) {
    let start = (&raw const ap_trampoline) as u64;
    let length = (&raw const ap_trampoline_end) as u64 - start;
    for offset in 0..length {
        store(0x8000 + offset, crate::load::<u8>(start + offset));
    }
    if expected > 1 {
        apic::start_others();
    }
    let all = wait_for(2_000_000_000, || ARRIVED.load(Ordering::SeqCst) == expected - 1);
    let arrived = ARRIVED.load(Ordering::SeqCst) + 1;
    say!("@nido report payload-cpus {} {} of {}", if all { "ok" } else { "fail" }, arrived, expected);
    if !all {
        crate::port::power_off();
    }
    TOTAL.store(expected, Ordering::SeqCst);
}

/// All vCPUs meet here before any goes on. Can be used again and again.
pub struct Barrier {
    here: AtomicU32,
    round: AtomicU32,
}

impl Barrier {
    pub const fn new() -> Self {
        Self { here: AtomicU32::new(0), round: AtomicU32::new(0) }
    }

    pub fn wait(&self) {
        let round = self.round.load(Ordering::SeqCst);
        if self.here.fetch_add(1, Ordering::SeqCst) + 1 == total() {
            self.here.store(0, Ordering::SeqCst);
            self.round.fetch_add(1, Ordering::SeqCst);
        } else {
            while self.round.load(Ordering::SeqCst) == round {
                core::hint::spin_loop();
            }
        }
    }
}
