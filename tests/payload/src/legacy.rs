//! The remapping unit in legacy mode: a root table of plain entries, second-stage tables for `edu`, queued invalidation in
//! 128 bits. Only the boot vCPU uses it, before the unit is set up as the other checks need it. Section numbers are of the
//! VT-d specification, revision 5.10.

use core::sync::atomic::{Ordering, fence};

use crate::edu::Edu;
use crate::smp::wait_for;
use crate::vtd::{Page, Vtd};
use crate::{load, store};

/// The domain of `edu` here.
const DOMAIN: u64 = 9;
/// Descriptors that the queue holds: one page of them.
const DESCRIPTORS: u64 = 256;

static mut ROOT: Page = Page::ZERO;
static mut CONTEXT: Page = Page::ZERO;
static mut LEVELS: [Page; 4] = [const { Page::ZERO }; 4];
static mut QUEUE: Page = Page::ZERO;
static mut DONE: u64 = 0;

/// What came of the check.
pub struct Outcome {
    /// The unit was set up, and switched off again.
    pub handshakes: bool,
    /// Pages that `edu` copied from and to the right places.
    pub copies: u32,
}

/// Copies of [`check`].
pub const COPIES: u32 = 8;

/// Has `edu` copy pages in legacy mode. Two of `pages` take turns at the source address, and the third is the target.
pub fn check(unit: Vtd, edu: Edu, requester: u16, pages: [u64; 3]) -> Outcome {
    let (source, target) = (0x5000, 0x9000);
    let started = start(unit, requester);
    map(target, pages[2]);
    let mut copies = 0;
    for round in 0..u64::from(COPIES) {
        let (shown, hidden) = if round & 1 == 0 { (pages[0], pages[1]) } else { (pages[1], pages[0]) };
        for word in 0..512 {
            store(shown + 8 * word, (round << 40) ^ (word << 3));
            store(hidden + 8 * word, !0u64);
            store(pages[2] + 8 * word, 0u64);
        }
        map(source, shown);
        // Page-selective, one page (sec. 6.5.2.3).
        let invalidated = submit(unit, &[[2 | 3 << 4 | DOMAIN << 16, source]]);
        let moved = edu.fetch(source, 4096) && edu.deliver(target, 4096);
        let same = (0..512).all(|word| load::<u64>(pages[2] + 8 * word) == (round << 40) ^ (word << 3));
        if invalidated && moved && same {
            copies += 1;
        }
    }
    let clean = unit.faults() == 0 && unit.idle();
    Outcome { handshakes: started && clean && unit.stop(), copies }
}

fn start(unit: Vtd, requester: u16) -> bool {
    // Root entry 0 and the context entry of the function (sec. 9.1, 9.3): present, second-stage, four levels.
    store(&raw const ROOT as u64, (&raw const CONTEXT) as u64 | 1);
    let context = (&raw const CONTEXT) as u64 + 16 * u64::from(requester & 0xff);
    store(context + 8, 2 | DOMAIN << 8);
    store(context, (&raw const LEVELS) as u64 | 1);
    for level in 0..3u64 {
        let table = (&raw const LEVELS) as u64 + 4096 * level;
        store(table, (table + 4096) | 3);
    }
    let queue = unit.start_queue((&raw const QUEUE) as u64);
    // TTM 00: legacy mode (sec. 11.4.5).
    let root = unit.set_root((&raw const ROOT) as u64);
    // Context cache and IOTLB, both globally.
    let flushed = submit(unit, &[[1 | 1 << 4, 0], [2 | 1 << 4, 0]]);
    queue && root && flushed && unit.enable_translation()
}

/// Maps the page `iova` (below 2 MiB) to `physical` for reads and writes (sec. 9.8); no invalidation.
fn map(iova: u64, physical: u64) {
    let leaf = (&raw const LEVELS) as u64 + 3 * 4096 + 8 * (iova >> 12 & 511);
    store(leaf, physical | 3);
}

/// Runs `descriptors` and a wait; false if the wait did not complete.
fn submit(unit: Vtd, descriptors: &[[u64; 2]]) -> bool {
    let status = (&raw const DONE) as u64;
    store(status, 0u64);
    let wait = [5 | 1 << 5 | 1 << 6 | 0x1e6a << 32, status];
    let mut tail = unit.tail() >> 4;
    for descriptor in descriptors.iter().chain(core::iter::once(&wait)) {
        let at = (&raw const QUEUE) as u64 + 16 * tail;
        store(at, descriptor[0]);
        store(at + 8, descriptor[1]);
        tail = (tail + 1) % DESCRIPTORS;
    }
    fence(Ordering::SeqCst);
    unit.set_tail(tail << 4);
    wait_for(50_000_000, || load::<u32>(status) == 0x1e6a)
}
