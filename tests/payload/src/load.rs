//! A guest that writes to memory for whoever measures how it is moved: the command line `load FILL SET RATE` has the boot
//! vCPU put something into each page of FILL MiB, and another one write a word to each page of SET MiB of them, one after the
//! other and again and again: to RATE MiB of them in a second, or as fast as it can (0).
//!
//! The boot vCPU says that it runs by a `.` each millisecond. Each hundredth time it is a line instead: `#`, and in eight hexadecimal
//! digits each how many batches of 64 pages were written, how many pages did not hold what was written to them before, the
//! microseconds of its own time stamp counter since the start, and those of the longest time since the last line in which it
//! noticed nothing.
//!
//! There are KVMs that carry out each instruction by emulation, a million in a second: so there are few in loops.

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::port::{self, byte};
use crate::{apic, load, smp, store};

/// The first byte that is written to.
const BASE: u64 = 64 << 20;
const PAGE: u64 = 4096;
/// Pages that are written to between two looks at the time.
const BATCH: u64 = 64;
/// The longest command line.
const LINE: u64 = 64;
/// Reports are this many ticks apart.
const TICKS: u32 = 100;
/// vCPUs: one tells, one writes.
const CPUS: u32 = 2;

static FREQUENCY: AtomicU64 = AtomicU64::new(0);
static PAGES: AtomicU64 = AtomicU64::new(0);
static RATE: AtomicU64 = AtomicU64::new(0);
/// Batches that were written.
static WORK: AtomicU64 = AtomicU64::new(0);
/// Pages that did not hold what was written to them.
static BAD: AtomicU64 = AtomicU64::new(0);

#[repr(C, align(4096))]
struct Clock([u64; 4]);

static mut CLOCK: Clock = Clock([0; 4]);

/// What is to be done, in MiB and MiB per second.
pub struct Wish {
    fill: u64,
    set: u64,
    rate: u64,
}

/// The next number of the command line at `at`, and where it ends.
fn number(at: u64, end: u64) -> Option<(u64, u64)> {
    let mut at = at;
    while at < end && load::<u8>(at) == b' ' {
        at += 1;
    }
    let start = at;
    let mut value = 0;
    while at < end && load::<u8>(at).is_ascii_digit() {
        value = value * 10 + u64::from(load::<u8>(at) - b'0');
        at += 1;
    }
    (at > start).then_some((value, at))
}

/// What the command line asks for, if that is a load.
pub fn wish(start_info: u64) -> Option<Wish> {
    let line: u64 = load(start_info + 24);
    if line == 0 || load::<[u8; 5]>(line) != *b"load " {
        return None;
    }
    let end = line + LINE;
    let (fill, at) = number(line + 5, end)?;
    let (set, at) = number(at, end)?;
    let (rate, _) = number(at, end)?;
    Some(Wish { fill, set, rate })
}

/// Whether this is what all vCPUs do.
pub fn is_on() -> bool {
    FREQUENCY.load(Ordering::SeqCst) != 0
}

fn now() -> u64 {
    // SAFETY: every x86-64 has a time stamp counter.
    unsafe { _rdtsc() }
}

/// Steps of the time stamp counter in a second, as kvm-clock has it (Documentation/virt/kvm/x86/msr.rst).
fn frequency() -> u64 {
    let at = (&raw const CLOCK) as u64;
    apic::wrmsr(0x4b56_4d01, at | 1);
    let multiplier = u128::from(load::<u32>(at + 24)).max(1);
    let shift = load::<i8>(at + 28);
    apic::wrmsr(0x4b56_4d01, 0);
    let hertz = (1_000_000_000u128 << 32) / multiplier;
    (if shift < 0 { hertz << -shift } else { hertz >> shift }) as u64
}

/// What a page holds that was written to in this pass, and is not zero.
fn stamp(page: u64, pass: u64) -> u64 {
    1 << 63 | pass << 24 | page
}

/// The boot vCPU's part.
pub fn run_boot(wish: &Wish) -> ! {
    let hertz = frequency();
    FREQUENCY.store(hertz, Ordering::SeqCst);
    for page in 0..(wish.fill.max(wish.set) << 20) / PAGE {
        store(BASE + page * PAGE, stamp(page, 0));
    }
    PAGES.store((wish.set << 20) / PAGE, Ordering::SeqCst);
    RATE.store((wish.rate << 20) / PAGE, Ordering::SeqCst);
    smp::start(CPUS);
    let (tick, micro) = ((hertz / 1000).max(1), (hertz / 1_000_000).max(1));
    let start = now();
    let (mut last, mut next, mut longest, mut ticks) = (start, start, 0, 0);
    loop {
        let time = now();
        longest = longest.max(time.saturating_sub(last));
        last = time;
        if time < next {
            continue;
        }
        next = (next + tick).max(time);
        ticks += 1;
        if ticks < TICKS {
            byte(b'.');
            continue;
        }
        ticks = 0;
        byte(b'#');
        hexadecimal(WORK.load(Ordering::SeqCst));
        hexadecimal(BAD.load(Ordering::SeqCst));
        hexadecimal(time.saturating_sub(start) / micro);
        hexadecimal(longest / micro);
        byte(b'\n');
        longest = 0;
        last = now();
    }
}

/// Eight digits.
fn hexadecimal(value: u64) {
    for place in (0..8).rev() {
        let digit = (value >> (4 * place)) as u8 & 0xf;
        byte(if digit < 10 { b'0' + digit } else { b'a' - 10 + digit });
    }
}

/// The writer's part, if there is anything to be written.
pub fn run_other() -> ! {
    let (pages, rate) = (PAGES.load(Ordering::SeqCst), RATE.load(Ordering::SeqCst));
    let hertz = FREQUENCY.load(Ordering::SeqCst);
    let each = (hertz * BATCH).checked_div(rate).unwrap_or(0);
    // What it could not do in a pause, it does not do later.
    let forget = hertz / 100;
    let (mut page, mut pass, mut batches) = (0, 0, 0);
    let mut next = now();
    while pages > 0 {
        for one in page..page + BATCH {
            let at = BASE + one * PAGE;
            if load::<u64>(at) != stamp(one, pass) {
                BAD.fetch_add(1, Ordering::SeqCst);
            }
            store(at, stamp(one, pass + 1));
        }
        page += BATCH;
        if page >= pages {
            (page, pass) = (0, pass + 1);
        }
        batches += 1;
        WORK.store(batches, Ordering::SeqCst);
        if each == 0 {
            continue;
        }
        next += each;
        if now() > next + forget {
            next = now();
        }
        while now() < next {}
    }
    port::rest()
}
