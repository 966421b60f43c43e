//! Tables for tests, made of raw literals.
//!
//! It shares no arithmetic and no constant with the code under test: positions are written down as
//! the specification has them, and indices are found by division.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{
    Access, Fault, Gates, GuestTables, Latched, Request, RequestKind, RootPointer, Translation,
};
use crate::memory::Nearby;
use crate::spec::ids::{Pasid, SourceId};
use crate::spec::registers::{Capability, Caps, ExtendedCapability, TableMode};

/// ND 16 bits; SAGAW 39, 48 and 57; MGAW 57; ZLR; 2M and 1G; PSI; FS1GP; FS5LP.
pub const CAP: u64 = 0x1100_008c_0078_0e06;
/// C QI DT PT SC NEST PRS SRS NWFS EAFS PSS 20 PASID SMTS SSADS SSTS FSTS SMPWCS RPS RPRIVS PTRS.
pub const ECAP: u64 = 0x0123_e99e_a400_00c7;

/// 64 MiB of guest memory at 0.
pub const RAM: usize = 0x400_0000;
/// Not guest memory, but a legal address.
pub const NOWHERE: u64 = 0x7000_0000;
/// Width of guest-physical addresses.
pub const HAW: u8 = 46;

/// 00:03.0.
pub const SOURCE: SourceId = SourceId(0x0018);

/// Bytes that an entry of level 1 to 5 covers.
const COVERS: [u64; 6] = [
    0,
    4096,
    2_097_152,
    1_073_741_824,
    549_755_813_888,
    281_474_976_710_656,
];

pub fn gates(cap: u64, ecap: u64) -> Gates {
    let caps = Caps {
        cap: Capability::from_bits(cap),
        ecap: ExtendedCapability::from_bits(ecap),
    };
    Gates::new(caps, HAW)
}

/// Guest memory with a root table, a context table for bus 0, and in scalable mode a PASID
/// directory and the table of PASIDs 0 to 63.
pub struct World {
    pub memory: Arc<GuestMemoryMmap<()>>,
    next: Cell<u64>,
    pub gates: Gates,
    pub latched: Latched,
    pub root: u64,
    pub context: u64,
    pub directory: u64,
    pub pasids: u64,
}

/// Page tables. `bias` is what has to be added to where a table is, to get what points to it.
#[derive(Clone, Copy)]
pub struct Paging {
    pub top: u64,
    pub levels: usize,
    pub bias: u64,
    pub table_flags: u64,
}

impl World {
    fn empty(mode: TableMode) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let mut world = Self {
            memory: Arc::new(memory),
            next: Cell::new(0x10_0000),
            gates: gates(CAP, ECAP),
            latched: Latched::default(),
            root: 0,
            context: 0,
            directory: 0,
            pasids: 0,
        };
        world.root = world.page();
        world.context = world.page();
        world.directory = world.page();
        world.pasids = world.page();
        world.latched = Latched {
            enabled: true,
            root: RootPointer {
                address: world.root,
                mode,
            },
        };
        world.set(world.root, world.context | 1);
        world
    }

    /// Legacy mode; the context entry is empty.
    pub fn legacy() -> Self {
        Self::empty(TableMode::Legacy)
    }

    /// Scalable mode; the context entry has DTE, PASIDE, PRE, EPTR and PDTS 1, RID_PASID is 0;
    /// PASID entries are empty.
    pub fn scalable() -> Self {
        let world = Self::empty(TableMode::Scalable);
        world.set(world.context + 0x300, world.directory | 0x25d);
        world.set(world.directory, world.pasids | 1);
        world
    }

    /// A zeroed page.
    pub fn page(&self) -> u64 {
        let page = self.next.get();
        self.next.set(page + 0x1000);
        page
    }

    pub fn set(&self, address: u64, word: u64) {
        self.memory
            .store(word.to_le(), GuestAddress(address), Ordering::SeqCst)
            .unwrap();
    }

    pub fn get(&self, address: u64) -> u64 {
        u64::from_le(
            self.memory
                .load(GuestAddress(address), Ordering::SeqCst)
                .unwrap(),
        )
    }

    pub fn or(&self, address: u64, bits: u64) {
        self.set(address, self.get(address) | bits);
    }

    pub fn clear(&self, address: u64, bits: u64) {
        self.set(address, self.get(address) & !bits);
    }

    /// Writes the legacy context entry of [`SOURCE`].
    pub fn set_context(&self, low: u64, high: u64) {
        self.set(self.context + 0x180, low);
        self.set(self.context + 0x188, high);
    }

    /// Where the scalable-mode context entry of [`SOURCE`] is.
    pub fn scalable_context(&self) -> u64 {
        self.context + 0x300
    }

    /// Where the entry of `pasid`, up to 63, is.
    pub fn pasid_entry(&self, pasid: u64) -> u64 {
        self.pasids + pasid * 64
    }

    /// Writes the first words of the entry of `pasid`.
    pub fn set_pasid(&self, pasid: u64, words: &[u64]) {
        for (address, word) in (self.pasid_entry(pasid)..).step_by(8).zip(words) {
            self.set(address, *word);
        }
    }

    /// Empty second-stage tables.
    pub fn second_stage(&self, levels: usize) -> Paging {
        Paging {
            top: self.page(),
            levels,
            bias: 0,
            table_flags: 0x3,
        }
    }

    /// Empty first-stage tables, whose entries above the leaves have P, R/W, U/S and A.
    pub fn first_stage(&self, levels: usize) -> Paging {
        Paging {
            top: self.page(),
            levels,
            bias: 0,
            table_flags: 0x27,
        }
    }

    /// Where the entry of `level` for `input` is; tables on the way are made.
    pub fn slot(&self, paging: &Paging, input: u64, level: usize) -> u64 {
        let mut table = paging.top;
        for above in (level + 1..=paging.levels).rev() {
            let slot = table + input / COVERS[above] % 512 * 8;
            if self.get(slot) == 0 {
                self.set(slot, (self.page() + paging.bias) | paging.table_flags);
            }
            table = (self.get(slot) & 0x000f_ffff_ffff_f000) - paging.bias;
        }
        table + input / COVERS[level] % 512 * 8
    }

    /// Writes the entry of `level` for `input`, and returns where it is.
    pub fn map(&self, paging: &Paging, input: u64, level: usize, entry: u64) -> u64 {
        let slot = self.slot(paging, input, level);
        self.set(slot, entry);
        slot
    }

    /// The tables, as a unit has them.
    pub fn tables(&self) -> GuestTables<'_, Nearby<'_, GuestMemoryMmap<()>>> {
        GuestTables::new(Nearby::new(&*self.memory), &self.gates, self.latched)
    }

    pub fn translate(&self, request: &Request) -> Result<Translation, Fault> {
        self.tables().translate(request)
    }

    pub fn access(&self, address: u64, access: Access) -> Result<Translation, Fault> {
        self.translate(&Request::untranslated(SOURCE, address, access))
    }

    pub fn read(&self, address: u64) -> Result<Translation, Fault> {
        self.access(address, Access::Read)
    }

    pub fn write(&self, address: u64) -> Result<Translation, Fault> {
        self.access(address, Access::Write)
    }
}

pub fn with_pasid(pasid: u32, address: u64, access: Access) -> Request {
    Request {
        pasid: Pasid::new(pasid),
        ..Request::untranslated(SOURCE, address, access)
    }
}

pub fn of_kind(kind: RequestKind, address: u64) -> Request {
    Request {
        kind,
        ..Request::untranslated(SOURCE, address, Access::Read)
    }
}

pub const ASK: RequestKind = RequestKind::TranslationRequest { no_write: false };
pub const ASK_NO_WRITE: RequestKind = RequestKind::TranslationRequest { no_write: true };

/// The code of the fault.
#[track_caller]
pub fn code(outcome: Result<Translation, Fault>) -> u8 {
    outcome.expect_err("the request is blocked").reason.code()
}

/// The address of the answer.
#[track_caller]
pub fn address(outcome: Result<Translation, Fault>) -> u64 {
    outcome.expect("the request is let through").address
}
