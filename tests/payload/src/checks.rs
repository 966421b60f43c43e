//! The checks, which all vCPUs run together.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::acpi::Machine;
use crate::edu::Edu;
use crate::smp::{Barrier, Lock, total, wait_for};
use crate::vtd::Vtd;
use crate::{apic, ioapic, legacy, load, port, say, storm, store};

/// Rounds of each check on every vCPU.
const ROUNDS: u32 = 16;
/// More vCPUs than this do not run at once but halt, and the boot vCPU has each of them interrupted in turn: waiting for
/// each other in loops, they would take hours on a machine with two cores.
const AT_ONCE: u32 = 8;

static START: Barrier = Barrier::new();
static PHASE: Barrier = Barrier::new();
static EDU_LOCK: Lock = Lock::new();
static UNIT: AtomicU64 = AtomicU64::new(0);
static EDU_AT: AtomicU64 = AtomicU64::new(0);
static REQUESTER: AtomicU32 = AtomicU32::new(0);
static ECAM: AtomicU64 = AtomicU64::new(0);
static INTERRUPTS: AtomicU32 = AtomicU32::new(0);
static INVALIDATIONS: AtomicU32 = AtomicU32::new(0);
static MOVES: AtomicU32 = AtomicU32::new(0);
static STORM: AtomicBool = AtomicBool::new(false);
static FAILURES: AtomicU32 = AtomicU32::new(0);

#[repr(C, align(4096))]
struct Pages([[u64; 512]; 3]);
/// Two pages that take turns under the device, and the one it delivers to.
static mut PAGES: Pages = Pages([[0; 512]; 3]);

fn page(index: u64) -> u64 {
    (&raw const PAGES) as u64 + 4096 * index
}

/// The boot vCPU's part.
pub fn run_boot(machine: &Machine, storm: bool) {
    let Some((requester, registers)) = machine.edu else {
        say!("@nido report payload fail no edu: start nido with --device edu");
        return;
    };
    if machine.vtd == 0 {
        say!("@nido report payload fail no DMAR: start nido with --device intel-iommu");
        return;
    }
    UNIT.store(machine.vtd, Ordering::SeqCst);
    REQUESTER.store(u32::from(requester), Ordering::SeqCst);
    EDU_AT.store(registers, Ordering::SeqCst);
    ECAM.store(machine.ecam, Ordering::SeqCst);
    let unit = Vtd(machine.vtd);
    let edu = Edu::new(machine.ecam, requester, registers);
    let id = edu.identification();
    verdict("payload-edu", id == 0x0100_00ed, format_args!("identification {id:#010x}"));
    let copied = legacy::check(unit, edu, requester, [page(0), page(1), page(2)]);
    verdict(
        "payload-legacy",
        copied.handshakes && copied.copies == legacy::COPIES,
        format_args!("{} of {} pages copied through second-stage tables", copied.copies, legacy::COPIES),
    );
    verdict("payload-unit", unit.start(requester), format_args!("queue, remapping and translation enabled"));
    unit.map(0x3000, page(2));
    pin(machine, unit, edu);
    if storm {
        STORM.store(true, Ordering::SeqCst);
        START.wait();
        storm::run_boot(unit, edu, machine.ecam);
    }
    if total() > AT_ONCE {
        return interrupt_each(unit, edu, requester);
    }
    START.wait();
    together();
    let (interrupts, invalidations) = (INTERRUPTS.load(Ordering::SeqCst), INVALIDATIONS.load(Ordering::SeqCst));
    let (moves, failures) = (MOVES.load(Ordering::SeqCst), FAILURES.load(Ordering::SeqCst));
    let expected = ROUNDS * total();
    verdict("payload-interrupts", interrupts == expected, format_args!("{interrupts} of {expected} between vCPUs"));
    verdict(
        "payload-invalidations",
        invalidations == 4 * expected,
        format_args!("{invalidations} of {} at once from {} vCPUs", 4 * expected, total()),
    );
    verdict("payload-moves", moves == expected, format_args!("{moves} of {expected} pages moved under DMA"));
    let faults = unit.faults();
    let clean = failures == 0 && faults == 0 && unit.idle();
    verdict("payload", clean, format_args!("{failures} failures, fault status {faults:#x}"));
}

/// The part of every other vCPU.
pub fn run_other() -> ! {
    if total() <= AT_ONCE {
        START.wait();
        if STORM.load(Ordering::SeqCst) {
            storm::run_other();
        }
        together();
    }
    loop {
        // SAFETY: interrupts are taken here; the boot vCPU powers the machine off.
        unsafe { core::arch::asm!("hlt", options(nomem, nostack)) }
    }
}

/// The boot vCPU has `edu` interrupt every vCPU, whatever its x2APIC id.
fn interrupt_each(unit: Vtd, edu: Edu, requester: u16) {
    for target in 0..total() {
        interrupt(unit, edu, requester, 0, target);
    }
    let interrupts = INTERRUPTS.load(Ordering::SeqCst);
    verdict("payload-interrupts", interrupts == total(), format_args!("{interrupts} of {} vCPUs", total()));
    let faults = unit.faults();
    verdict("payload", faults == 0 && unit.idle(), format_args!("fault status {faults:#x}"));
}

/// `edu`'s INTx pin through the I/O APIC: to the last vCPU, to the first, and back.
///
/// A failure does not end the run: there are software KVMs (PVM) that tell of the end of a level-triggered interrupt while its
/// handler still runs, and the other checks are worth running on them.
fn pin(machine: &Machine, unit: Vtd, edu: Edu) {
    let last = total() - 1;
    let pin = ioapic::check(machine, unit, edu, &[last, 0, last]);
    report(
        "payload-ioapic",
        pin.ended && pin.taken == pin.expected && pin.right == pin.expected,
        format_args!(
            "pin {}: {} of {} interrupts, {} with remote IRR on the vCPU of the remapping entry",
            machine.edu_pin(),
            pin.taken,
            pin.expected,
            pin.right
        ),
    );
}

fn report(check: &str, passed: bool, detail: core::fmt::Arguments<'_>) {
    say!("@nido report {} {} {}", check, if passed { "ok" } else { "fail" }, detail);
}

/// A report after which nothing else makes sense if it is bad.
fn verdict(check: &str, passed: bool, detail: core::fmt::Arguments<'_>) {
    report(check, passed, detail);
    if !passed {
        port::power_off();
    }
}

fn together() {
    let unit = Vtd(UNIT.load(Ordering::SeqCst));
    let requester = REQUESTER.load(Ordering::SeqCst) as u16;
    let edu = Edu::new(ECAM.load(Ordering::SeqCst), requester, EDU_AT.load(Ordering::SeqCst));
    let me = apic::id();
    for round in 0..ROUNDS {
        interrupt_another(unit, edu, requester, me, round);
    }
    PHASE.wait();
    for _ in 0..4 * ROUNDS {
        let batch = [Vtd::interrupt_invalidation(me as u16), Vtd::page_invalidation(0x1000 * u64::from(me))];
        count(unit.submit(me, &batch), &INVALIDATIONS);
    }
    PHASE.wait();
    for round in 0..ROUNDS {
        move_under_dma(unit, edu, me, round);
    }
    PHASE.wait();
}

fn count(passed: bool, counter: &AtomicU32) {
    if passed { counter } else { &FAILURES }.fetch_add(1, Ordering::SeqCst);
}

/// This vCPU has `edu` interrupt the next one, through a remapping entry that it has just rewritten.
fn interrupt_another(unit: Vtd, edu: Edu, requester: u16, me: u32, round: u32) {
    let _edu = EDU_LOCK.lock();
    interrupt(unit, edu, requester, me, (me + 1 + round) % total());
}

/// Through the remapping entry of vCPU `me`, which is rewritten for `target`.
fn interrupt(unit: Vtd, edu: Edu, requester: u16, me: u32, target: u32) {
    let index = me as u16;
    unit.set_irte(index, requester, target, apic::EDU_VECTOR, false);
    let invalidated = unit.submit(me, &[Vtd::interrupt_invalidation(index)]);
    edu.set_msi(Vtd::msi_address(index), 0);
    let before = apic::count(target);
    edu.raise();
    let taken = wait_for(50_000_000, || apic::count(target) != before);
    edu.acknowledge();
    count(invalidated && taken, &INTERRUPTS);
}

/// Maps one of two pages at the same address, invalidates, and has `edu` bring what it sees.
fn move_under_dma(unit: Vtd, edu: Edu, me: u32, round: u32) {
    let _edu = EDU_LOCK.lock();
    let mark = u64::from(me) << 32 | u64::from(round) << 1;
    let which = u64::from(round) & 1;
    for word in 0..512 {
        store(page(which) + 8 * word, mark ^ word);
        store(page(1 - which) + 8 * word, !0u64);
    }
    unit.map(0x1000, page(which));
    let invalidated = unit.submit(me, &[Vtd::page_invalidation(0x1000)]);
    let moved = edu.fetch(0x1000, 4096) && edu.deliver(0x3000, 4096);
    let same = (0..512).all(|word| load::<u64>(page(2) + 8 * word) == mark ^ word);
    count(invalidated && moved && same, &MOVES);
}
