//! Guest memory with the tables of one device in scalable mode, and a unit in front of it.

use std::cell::Cell;
use std::sync::Arc;

use intel_vtd::{DmaPort, EventSink, InterruptMessage, SourceId, Unit, UnitConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub(crate) type Memory = Arc<GuestMemoryMmap<()>>;

/// 00:03.0.
pub(crate) const SOURCE: SourceId = SourceId(0x0018);

/// Where the invalidation queue is: 256 entries of 32 bytes.
pub(crate) const QUEUE: u64 = 0x8000;
/// What pages are mapped to.
pub(crate) const DATA: u64 = 0x100_0000;
const ROOT: u64 = 0x1000;
const PASID_ENTRY: u64 = 0x4000;
const TABLES: u64 = 0x10_0000;
/// The guest has as much below 3 GiB as many have; tables and data lie there.
const LOW: usize = 64 << 20;
const HIGH: u64 = 4 << 30;

struct Nowhere;

impl EventSink for Nowhere {
    fn deliver(&self, _: InterruptMessage) {}
}

pub(crate) struct World {
    pub(crate) memory: Memory,
    pub(crate) unit: Arc<Unit<Memory>>,
    next: Cell<u64>,
}

impl World {
    pub(crate) fn new() -> Self {
        // Two regions, as the hole below 4 GiB makes them.
        let ranges = [(GuestAddress(0), LOW), (GuestAddress(HIGH), 16 << 20)];
        let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let config = UnitConfig::scalable(46);
        let unit = Unit::new(Arc::clone(&memory), &config, Arc::new(Nowhere)).unwrap();
        let world = Self {
            memory,
            unit,
            next: Cell::new(TABLES),
        };
        world.set(ROOT, 0x2001);
        // Context entry with a PASID directory of 64 entries; RID_PASID is 0.
        world.set(0x2300, 0x3001);
        world.set(0x3000, PASID_ENTRY | 1);
        world
    }

    pub(crate) fn set(&self, address: u64, word: u64) {
        self.memory.write_obj(word, GuestAddress(address)).unwrap();
    }

    fn get(&self, address: u64) -> u64 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn page(&self) -> u64 {
        let page = self.next.get();
        self.next.set(page + 0x1000);
        page
    }

    /// Maps `input` to `output` by tables of four levels below `top`, with `flags` in every entry.
    fn map(&self, top: u64, input: u64, output: u64, flags: u64) {
        let mut table = top;
        for shift in [39, 30, 21] {
            let slot = table + (input >> shift) % 512 * 8;
            if self.get(slot) == 0 {
                self.set(slot, self.page() | flags);
            }
            table = self.get(slot) & 0x3FFF_FFFF_F000;
        }
        self.set(table + (input >> 12) % 512 * 8, output | flags);
    }

    /// First-stage tables: present, writable, user, accessed and dirty already.
    fn first_stage(&self, pages: u64) -> u64 {
        let top = self.page();
        (0..pages).for_each(|page| self.map(top, page << 12, DATA + (page << 12), 0x67));
        top
    }

    /// Second-stage tables: read and write.
    fn second_stage(&self, pages: u64) -> u64 {
        let top = self.page();
        (0..pages).for_each(|page| self.map(top, page << 12, DATA + (page << 12), 0x3));
        top
    }

    /// Second-stage tables that map low memory to itself, page by page.
    fn identity(&self) -> u64 {
        let top = self.page();
        (0..(LOW as u64) >> 12).for_each(|page| self.map(top, page << 12, page << 12, 0x3));
        top
    }

    fn set_pasid(&self, words: [u64; 3]) {
        for (place, word) in (PASID_ENTRY..).step_by(8).zip(words) {
            self.set(place, word);
        }
        self.unit.write(0x20, &(ROOT | 0x400).to_le_bytes());
        self.command(0x4000_0000);
        self.command(0x8000_0000);
    }

    fn command(&self, bit: u32) {
        let mut status = [0; 4];
        self.unit.read(0x1C, &mut status);
        let kept = u32::from_le_bytes(status) & 0x8680_0000;
        self.unit.write(0x18, &(kept | bit).to_le_bytes());
    }

    /// `pages` pages from 0 on by the first stage.
    pub(crate) fn with_first_stage(pages: u64) -> Self {
        let world = Self::new();
        let top = world.first_stage(pages);
        world.set_pasid([0x49, 1, top]);
        world
    }

    /// `pages` pages from 0 on by the second stage.
    pub(crate) fn with_second_stage(pages: u64) -> Self {
        let world = Self::new();
        let top = world.second_stage(pages);
        world.set_pasid([top | 0x89, 1, 0]);
        world
    }

    /// `pages` pages from 0 on by the first stage, on a second stage that leaves everything where it is.
    pub(crate) fn with_nested(pages: u64) -> Self {
        let world = Self::new();
        let (first, second) = (world.first_stage(pages), world.identity());
        world.set_pasid([second | 0xC9, 1, first]);
        world
    }

    pub(crate) fn port(&self) -> DmaPort<Memory> {
        self.unit.port(SOURCE)
    }

    /// Switches the queue at [`QUEUE`] on.
    pub(crate) fn enable_queue(&self) {
        self.unit.write(0x90, &(QUEUE | 0x801).to_le_bytes());
        self.command(0x0400_0000);
    }
}
