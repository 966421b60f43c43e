//! The worst invalidation queues known, one after the other without end: as long as a queue can be, every second descriptor a
//! wait with a fence, beside a device in DMA; and the status of each other wait makes the remapping entry of the I/O APIC's pin
//! present or not, so that a route of the host changes.
//!
//! Meanwhile the other vCPUs read registers, or do what else makes nido ask KVM for something that KVM waits for: one has the
//! BARs of all virtio functions, with their doorbells, appear and vanish, and one makes a pin of the I/O APIC level-triggered
//! and edge-triggered in turn.
//!
//! What is shown is that nothing waits for that: the boot vCPU says how long the longest of its own accesses took, and the
//! lab asks nido for its histograms and ends it in the midst of it.

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use crate::edu::Edu;
use crate::smp::wait_for;
use crate::vtd::Vtd;
use crate::{apic, ioapic, load, say, store};

const GSTS: u64 = 0x1c;
const IQT: u64 = 0x88;
const IQA: u64 = 0x90;
const CAP: u64 = 0x08;

/// Descriptors of 256 bits in 128 pages (QS = 7).
const ENTRIES: u64 = 16384;

#[repr(C, align(4096))]
struct LongQueue([u64; 4 * ENTRIES as usize]);

static mut QUEUE: LongQueue = LongQueue([0; 4 * ENTRIES as usize]);
static LAST: AtomicU32 = AtomicU32::new(0);
static ON: AtomicBool = AtomicBool::new(false);
static UNIT: AtomicU64 = AtomicU64::new(0);
static ECAM: AtomicU64 = AtomicU64::new(0);
/// How often BARs came, and how often the pin became level-triggered.
static MOVES: AtomicU32 = AtomicU32::new(0);
static FLIPS: AtomicU32 = AtomicU32::new(0);
/// The pin, to which no PCI function leads.
const PIN: u32 = 5;

/// Whether the command line asks for this instead of the checks.
pub fn is_asked_for(start_info: u64) -> bool {
    let line: u64 = load(start_info + 24);
    line != 0 && load::<[u8; 5]>(line) == *b"storm"
}

/// Fills the queue up to the last descriptor but one: a wait whose status is `last`.
fn fill(entry: u64, present: u32, last: u32) {
    let base = (&raw mut QUEUE) as u64;
    let status = core::ptr::from_ref(&LAST) as u64;
    for pair in 0..ENTRIES / 2 - 1 {
        let flip = present & !1 | (pair as u32 >> 1) & 1;
        let (invalidation, data, at) = match pair & 1 {
            0 => (Vtd::page_invalidation(0x3000), last.wrapping_sub(1), status),
            _ => (Vtd::interrupt_invalidation(ioapic::INDEX), flip, entry),
        };
        let is_last = pair == ENTRIES / 2 - 2;
        let (data, at) = if is_last { (last, status) } else { (data, at) };
        let place = base + 64 * pair;
        store(place, invalidation[0]);
        store(place + 8, invalidation[1]);
        store(place + 32, 5u64 | 1 << 5 | 1 << 6 | u64::from(data) << 32);
        store(place + 40, at);
    }
}

/// How long one access of this vCPU takes, in cycles.
fn timed(access: impl FnOnce()) -> u64 {
    // SAFETY: every x86-64 has a time stamp counter.
    let before = unsafe { _rdtsc() };
    access();
    // SAFETY: as above.
    unsafe { _rdtsc() }.saturating_sub(before)
}

/// The boot vCPU's part: it says once that a whole storm went by, and goes on.
pub fn run_boot(unit: Vtd, edu: Edu, ecam: u64) -> ! {
    // What the I/O APIC's entry says is told by the check before.
    let entry = unit.irte_address(ioapic::INDEX);
    let present = load::<u32>(entry);
    ioapic::unmask();
    let stopped = unit.stop_queue();
    let started = unit.start_queue((&raw const QUEUE) as u64 | 1 << 11 | 7);
    UNIT.store(unit.0, Ordering::SeqCst);
    ECAM.store(ecam, Ordering::SeqCst);
    ON.store(true, Ordering::SeqCst);
    let mut round = 0u32;
    loop {
        round += 1;
        let last = round * 2;
        fill(entry, present, last);
        fence(Ordering::SeqCst);
        let (mut longest, mut copies) = (0, 0u32);
        let tail = 64 * (ENTRIES / 2 - 1);
        longest = timed(|| store(unit.0 + IQT, tail)).max(longest);
        let done = wait_for(50_000_000, || {
            for at in [CAP, IQA, IQT] {
                let access = || {
                    let _ = load::<u64>(unit.0 + at);
                };
                longest = timed(access).max(longest);
            }
            copies += u32::from(edu.fetch(0x3000, 4096));
            LAST.load(Ordering::SeqCst) == last
        });
        let drained = wait_for(1_000_000, || unit.idle());
        if round == 2 {
            let beside = || [&MOVES, &FLIPS].map(|count| count.load(Ordering::SeqCst));
            let joined = wait_for(50_000_000, || beside().iter().all(|count| *count > 0));
            let passed = stopped && started && done && drained && joined && unit.faults() == 0;
            let [moves, flips] = beside();
            say!(
                "@nido report payload-storm {} {} descriptors beside {} copies, {} moves of BARs and {} of a pin, \
                 the longest access took {} cycles",
                if passed { "ok" } else { "fail" },
                ENTRIES - 2,
                copies,
                moves,
                flips,
                longest
            );
            // Now the lab asks nido, and ends it.
            say!("@nido end 0");
        }
        // The queue begins anew at its start.
        if !(unit.stop_queue() && unit.start_queue((&raw const QUEUE) as u64 | 1 << 11 | 7)) {
            say!("@nido report payload fail the queue does not start again");
        }
    }
}

/// The part of every other vCPU, for as long as there is one.
pub fn run_other() -> ! {
    while !ON.load(Ordering::SeqCst) {
        core::hint::spin_loop();
    }
    match apic::id() {
        1 => move_windows(ECAM.load(Ordering::SeqCst)),
        2 => flip_pin(),
        _ => read_registers(UNIT.load(Ordering::SeqCst)),
    }
}

/// Memory decoding of all virtio functions of bus 0, off and on.
fn move_windows(ecam: u64) -> ! {
    loop {
        for slot in 0..32 {
            let config = ecam + (slot << 15);
            if load::<u16>(config) == 0x1af4 {
                store::<u16>(config + 4, 0);
                store::<u16>(config + 4, 2);
                MOVES.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

fn flip_pin() -> ! {
    loop {
        for level in [true, false] {
            ioapic::set_unused_pin(PIN, level);
        }
        FLIPS.fetch_add(1, Ordering::SeqCst);
    }
}

fn read_registers(unit: u64) -> ! {
    loop {
        for at in [CAP, IQA, IQT] {
            let _ = load::<u64>(unit + at);
        }
        let _ = load::<u32>(unit + GSTS);
    }
}
