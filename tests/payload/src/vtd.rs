//! Driver of the remapping unit: registers, and scalable mode: first stage for `edu`, queued invalidation in 256 bits,
//! interrupt remapping with x2APIC destinations. Section numbers are of the VT-d specification, revision 5.10.

use core::sync::atomic::{AtomicU32, Ordering, fence};

use crate::smp::{Lock, wait_for};
use crate::{load, store};

const GCMD: u64 = 0x18;
const GSTS: u64 = 0x1c;
const RTADDR: u64 = 0x20;
const FSTS: u64 = 0x34;
const IQH: u64 = 0x80;
const IQT: u64 = 0x88;
const IQA: u64 = 0x90;
const IRTA: u64 = 0xb8;

/// Bits of GCMD, and of GSTS at the same places (sec. 11.4.4).
const TRANSLATION: u32 = 31;
const SET_ROOT: u32 = 30;
const QUEUE_ENABLE: u32 = 26;
const REMAPPING: u32 = 25;
const SET_REMAP_TABLE: u32 = 24;
/// The bits of GSTS that a command has to repeat: the others act when they are written.
const PERSISTENT: u32 = 0x9680_0000;

const ENTRIES: u64 = 256;
/// The domain of `edu`.
const DOMAIN: u64 = 5;

/// A page of memory for tables.
#[repr(C, align(4096))]
pub struct Page([u64; 512]);

impl Page {
    /// Zeros.
    pub const ZERO: Self = Self([0; 512]);
}

#[repr(C, align(8192))]
struct Queue([u64; 1024]);

static mut ROOT: Page = Page::ZERO;
static mut CONTEXT: Page = Page::ZERO;
static mut DIRECTORY: Page = Page::ZERO;
static mut PASIDS: Page = Page::ZERO;
static mut LEVELS: [Page; 4] = [const { Page::ZERO }; 4];
static mut QUEUE: Queue = Queue([0; 1024]);
static mut REMAP: Page = Page::ZERO;
static QUEUE_LOCK: Lock = Lock::new();
static STATUS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

/// The unit; all state is static.
#[derive(Clone, Copy)]
pub struct Vtd(pub u64);

impl Vtd {
    fn command(self, bit: u32) -> bool {
        // Only the bits that persist are written back (sec. 11.4.4).
        let status = load::<u32>(self.0 + GSTS) & PERSISTENT;
        store(self.0 + GCMD, status | 1 << bit);
        wait_for(1_000_000, || load::<u32>(self.0 + GSTS) & 1 << bit != 0)
    }

    fn disable(self, bit: u32) -> bool {
        let status = load::<u32>(self.0 + GSTS) & PERSISTENT;
        store(self.0 + GCMD, status & !(1 << bit));
        wait_for(1_000_000, || load::<u32>(self.0 + GSTS) & 1 << bit == 0)
    }

    /// Starts the invalidation queue at `queue`, whose low bits say its form (sec. 11.4.9.4).
    pub fn start_queue(self, queue: u64) -> bool {
        store(self.0 + IQT, 0u64);
        store(self.0 + IQA, queue);
        self.command(QUEUE_ENABLE)
    }

    /// Sets the root table, whose low bits say its mode (sec. 11.4.5).
    pub fn set_root(self, root: u64) -> bool {
        store(self.0 + RTADDR, root);
        self.command(SET_ROOT)
    }

    /// Enables translation.
    pub fn enable_translation(self) -> bool {
        self.command(TRANSLATION)
    }

    /// Disables translation and the queue, which must be idle.
    pub fn stop(self) -> bool {
        self.disable(TRANSLATION) && self.stop_queue()
    }

    /// Disables the queue, which must be idle.
    pub fn stop_queue(self) -> bool {
        self.disable(QUEUE_ENABLE)
    }

    /// Where remapping entry `index` is.
    pub fn irte_address(self, index: u16) -> u64 {
        (&raw const REMAP) as u64 + 16 * u64::from(index & 0xff)
    }

    /// The queue's tail in bytes.
    pub fn tail(self) -> u64 {
        load(self.0 + IQT)
    }

    /// Moves the queue's tail.
    pub fn set_tail(self, tail: u64) {
        store(self.0 + IQT, tail);
    }

    /// Sets everything up with `requester` in first-stage translation; false where a handshake failed.
    pub fn start(self, requester: u16) -> bool {
        let context = (&raw mut CONTEXT) as u64 + 32 * u64::from(requester & 0x7f);
        store(&raw const ROOT as u64, (&raw const CONTEXT) as u64 | 1);
        store(context, (&raw const DIRECTORY) as u64 | 1);
        store(&raw const DIRECTORY as u64, (&raw const PASIDS) as u64 | 1);
        let pasid = (&raw const PASIDS) as u64;
        store(pasid + 8, DOMAIN | 1 << 23); // PWSNP
        store(pasid + 16, (&raw const LEVELS) as u64);
        store(pasid, 1u64 | 1 << 6); // first stage
        for level in 0..3u64 {
            let table = (&raw const LEVELS) as u64 + 4096 * level;
            store(table, (table + 4096) | 0x27);
        }
        let queue = self.start_queue((&raw const QUEUE) as u64 | 1 << 11 | 1);
        // 256 entries of interrupt remapping, 32-bit destinations.
        store(self.0 + IRTA, (&raw const REMAP) as u64 | 1 << 11 | 7);
        let pointers = self.command(SET_REMAP_TABLE);
        let root = self.set_root((&raw const ROOT) as u64 | 1 << 10);
        self.submit(0, &[[1 | 1 << 4, 0], [7 | 3 << 4, 0], [2 | 1 << 4, 0], [4, 0]]);
        queue && pointers && root && self.command(REMAPPING) && self.enable_translation()
    }

    /// Maps the page `iova` (below 2 MiB) of `edu` to `physical`; no invalidation.
    pub fn map(self, iova: u64, physical: u64) {
        let leaf = (&raw const LEVELS) as u64 + 3 * 4096 + 8 * (iova >> 12 & 511);
        store(leaf, if physical == 0 { 0 } else { physical | 0x67 });
    }

    /// Points remapping entry `index` at `destination`, for `requester` only, as an edge or a level; no invalidation.
    pub fn set_irte(self, index: u16, requester: u16, destination: u32, vector: u8, level: bool) {
        let entry = (&raw const REMAP) as u64 + 16 * u64::from(index & 0xff);
        store(entry + 8, u64::from(requester) | 1 << 18);
        store(entry, u64::from(destination) << 32 | u64::from(vector) << 16 | u64::from(level) << 4 | 1);
    }

    /// The MSI address of remapping entry `index`.
    pub fn msi_address(index: u16) -> u32 {
        0xfee0_0010 | u32::from(index) << 5
    }

    /// Runs `descriptors` and a wait on behalf of vCPU `cpu`; false if the wait did not complete.
    pub fn submit(self, cpu: u32, descriptors: &[[u64; 2]]) -> bool {
        let slot = &STATUS[cpu as usize & 0xff];
        slot.store(0, Ordering::SeqCst);
        let status = core::ptr::from_ref(slot) as u64;
        let guard = QUEUE_LOCK.lock();
        let mut tail = load::<u64>(self.0 + IQT) >> 5;
        let wait = [5 | 1 << 5 | 1 << 6 | 0x600d << 32, status];
        for descriptor in descriptors.iter().chain(core::iter::once(&wait)) {
            let at = (&raw const QUEUE) as u64 + 32 * tail;
            store(at, descriptor[0]);
            store(at + 8, descriptor[1]);
            store(at + 16, 0u64);
            store(at + 24, 0u64);
            tail = (tail + 1) % ENTRIES;
        }
        fence(Ordering::SeqCst);
        store(self.0 + IQT, tail << 5);
        drop(guard);
        wait_for(50_000_000, || slot.load(Ordering::SeqCst) == 0x600d)
    }

    /// First-stage page-selective invalidation of one page of `edu`.
    pub fn page_invalidation(iova: u64) -> [u64; 2] {
        [6 | 3 << 4 | DOMAIN << 16, iova & !0xfff]
    }

    /// Interrupt-entry invalidation of one index.
    pub fn interrupt_invalidation(index: u16) -> [u64; 2] {
        [4 | 1 << 4 | u64::from(index) << 32, 0]
    }

    /// The fault status, and whether the queue has drained without an error.
    pub fn faults(self) -> u32 {
        load(self.0 + FSTS)
    }

    /// Head and tail are equal.
    pub fn idle(self) -> bool {
        load::<u64>(self.0 + IQH) == load::<u64>(self.0 + IQT)
    }
}
