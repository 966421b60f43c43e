//! The I/O APIC (82093AA), with `edu`'s INTx pin in remappable format (VT-d 5.10, sec. 5.1.5.1), level-triggered.
//!
//! For each interrupt that `edu` raises, the pin must interrupt twice: the first time the handler leaves the line as it is,
//! so that the end of the interrupt makes the pin send again; the second time it lowers it.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::acpi::Machine;
use crate::edu::Edu;
use crate::smp::{pause, wait_for};
use crate::vtd::Vtd;
use crate::{apic, load, store};

/// The vector of the pin, in its redirection entry and in its remapping entry.
pub const VECTOR: u8 = 0x42;
/// The remapping entry of the pin; no vCPU uses it for itself.
pub const INDEX: u16 = 0xf0;
/// Interrupts raised for each target.
pub const ROUNDS: u32 = 4;

const REMOTE_IRR: u32 = 1 << 14;
const LEVEL: u32 = 1 << 15;
const ACTIVE_LOW: u32 = 1 << 13;
const MASKED: u32 = 1 << 16;

static BASE: AtomicU64 = AtomicU64::new(0);
static PIN: AtomicU32 = AtomicU32::new(0);
static EDU: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// Interrupts on the pin, and how many of them found remote IRR set and arrived where they should.
static TAKEN: AtomicU32 = AtomicU32::new(0);
static RIGHT: AtomicU32 = AtomicU32::new(0);
static TARGET: AtomicU32 = AtomicU32::new(0);
static LOWER: AtomicBool = AtomicBool::new(false);

fn read(register: u32) -> u32 {
    let base = BASE.load(Ordering::SeqCst);
    store(base, register);
    load(base + 0x10)
}

fn write(register: u32, value: u32) {
    let base = BASE.load(Ordering::SeqCst);
    store(base, register);
    store(base + 0x10, value);
}

/// The register with the low half of the pin's redirection entry.
fn entry() -> u32 {
    0x10 + 2 * PIN.load(Ordering::SeqCst)
}

/// The handler of [`VECTOR`], before the end of the interrupt. The boot vCPU keeps off the registers meanwhile.
pub fn interrupted() {
    if apic::id() == TARGET.load(Ordering::SeqCst) && read(entry()) & REMOTE_IRR != 0 {
        RIGHT.fetch_add(1, Ordering::SeqCst);
    }
    if LOWER.fetch_xor(true, Ordering::SeqCst) {
        Edu::from_parts(EDU[0].load(Ordering::SeqCst), EDU[1].load(Ordering::SeqCst)).acknowledge();
    }
    TAKEN.fetch_add(1, Ordering::SeqCst);
}

/// Lets the pin interrupt as [`check`] had it; `edu` keeps it quiet.
pub fn unmask() {
    write(entry(), LEVEL | ACTIVE_LOW | u32::from(VECTOR));
}

/// A pin that nothing drives becomes level-triggered through [`INDEX`], or edge-triggered, and sends nothing.
pub fn set_unused_pin(pin: u32, level: bool) {
    write(0x11 + 2 * pin, u32::from(INDEX) << 17 | 1 << 16);
    write(0x10 + 2 * pin, MASKED | if level { LEVEL } else { 0 } | u32::from(VECTOR));
}

/// What came of the check: interrupts taken, and how many were right.
pub struct Outcome {
    /// Interrupts that should have been taken.
    pub expected: u32,
    /// Interrupts taken.
    pub taken: u32,
    /// Of them, those on the vCPU that the remapping entry named, while the pin waited for their end.
    pub right: u32,
    /// After each, remote IRR was clear, and all invalidations completed.
    pub ended: bool,
}

/// Leads `edu`'s pin to each of `targets` in turn, by rewriting only the remapping entry.
pub fn check(machine: &Machine, unit: Vtd, edu: Edu, targets: &[u32]) -> Outcome {
    BASE.store(machine.ioapic, Ordering::SeqCst);
    PIN.store(machine.edu_pin(), Ordering::SeqCst);
    let (config, registers) = edu.parts();
    EDU[0].store(config, Ordering::SeqCst);
    EDU[1].store(registers, Ordering::SeqCst);
    edu.use_intx();
    let mut outcome = Outcome { expected: 0, taken: 0, right: 0, ended: true };
    for (turn, target) in targets.iter().enumerate() {
        TARGET.store(*target, Ordering::SeqCst);
        unit.set_irte(INDEX, machine.ioapic_requester, *target, VECTOR, true);
        outcome.ended &= unit.submit(apic::id(), &[Vtd::interrupt_invalidation(INDEX)]);
        if turn == 0 {
            // Bits 63:49 are the index, bit 48 the format; the vector serves the end of the interrupt.
            write(entry() + 1, u32::from(INDEX) << 17 | 1 << 16);
            write(entry(), LEVEL | ACTIVE_LOW | u32::from(VECTOR));
        }
        for _ in 0..ROUNDS {
            outcome.expected += 2;
            edu.raise();
            let _ = wait_for(50_000_000, || TAKEN.load(Ordering::SeqCst) >= outcome.expected);
            // The handler's vCPU has yet to end the interrupt; nobody else is at the registers any more.
            outcome.ended &= wait_for(1_000_000, || read(entry()) & REMOTE_IRR == 0);
        }
    }
    // A line that is low sends nothing more.
    pause(10_000);
    outcome.taken = TAKEN.load(Ordering::SeqCst);
    outcome.right = RIGHT.load(Ordering::SeqCst);
    write(entry(), MASKED);
    edu.acknowledge();
    outcome
}
