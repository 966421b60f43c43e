//! A unit with tables in guest memory, in which a case then changes what it is about.
//!
//! Positions and values are written down as the specification has them. Source 00:03.0, 16 MiB of memory, HAW 46.
//!
//! * Legacy mode: domain 1, translation type 01, three levels. 1000h goes to 60_0000h by the leaf at 5008h.
//! * Scalable mode: a context entry with DTE, PASIDE, PRE and RID_PASID 0. PASID 0 is passed through. PASID 5 has a first
//!   stage of four levels from 5000h on: 1000h goes to 1_0000h by the leaf at 8008h. PASID 6 has a second stage of three levels
//!   from 9000h on: 1000h goes to 60_0000h by the leaf at B008h. PASID 7 has the first stage of PASID 5 nested on a second
//!   stage from C000h on, which maps the tables to themselves and 1_0000h to 60_0000h, by the leaves from E000h on.
//! * Interrupts: an extended table of 256 entries at 20_0000h, of which entry 3 is for vector 41h.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::case::{Ask, Case};
use super::memory::{Memory, memory};
use intel_vtd::spec::fault_reason::FaultReason;
use intel_vtd::{
    AddressWidth, AtsRefusal, AtsTranslation, EventSink, InterruptMessage, PageRequest,
    PageRequestRefusal, Pasid, Request, Scalable, SourceId, Unit, UnitConfig,
};

pub(super) const SOURCE: SourceId = SourceId(0x0018);

struct Deaf;

impl EventSink for Deaf {
    fn deliver(&self, _message: InterruptMessage) {}
}

pub(super) struct World {
    pub(super) memory: Memory,
    pub(super) unit: Arc<Unit<Memory>>,
}

impl World {
    /// The world of `case`, in which the entry at `fpd` has FPD set.
    pub(super) fn of(case: &Case, fpd: Option<u64>) -> Self {
        let config = UnitConfig::svm(46)
            .with_address_width(AddressWidth::from_bits(case.address_bits).unwrap())
            .with_scalable(
                Scalable::new(case.stages)
                    .with_pasid_bits(case.pasid_bits)
                    .with_page_requests(true),
            );
        let memory = memory();
        let unit = Unit::new(Arc::clone(&memory), &config, Arc::new(Deaf)).unwrap();
        let world = Self { memory, unit };
        world.poke_all(case.base);
        world.poke_all(case.pokes);
        if let Some(at) = fpd {
            let word: u64 = world.memory.read_obj(GuestAddress(at)).unwrap();
            world.poke(at, &[word | 2]);
        }
        // An empty page-request queue of one page.
        world.write64(0xD0, 0x30_0000);
        // Root table, SRTP, interrupt table, SIRTP, then TE and IRE.
        world.write64(0x20, case.root);
        world.write32(0x18, 0x4000_0000);
        world.write64(0xB8, case.interrupt_table);
        world.write32(0x18, 0x0100_0000);
        world.write32(0x18, 0x8000_0000);
        world.write32(0x18, 0x8200_0000);
        assert_eq!(world.read64(0x18) >> 32, 0xC300_0000);
        if let Some(at) = case.loses {
            let region = world.memory.find_region(GuestAddress(at)).unwrap();
            region.lose_after_next_access(at);
        }
        world
    }

    fn poke_all(&self, pokes: &[(u64, &[u64])]) {
        for (at, words) in pokes {
            self.poke(*at, words);
        }
    }

    fn poke(&self, at: u64, words: &[u64]) {
        for (place, word) in (at..).step_by(8).zip(words) {
            let bytes = word.to_le_bytes();
            self.memory
                .write_slice(&bytes, GuestAddress(place))
                .unwrap();
        }
    }

    pub(super) fn read64(&self, at: u64) -> u64 {
        let mut bytes = [0xAA; 8];
        self.unit.read(at, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn write64(&self, at: u64, value: u64) {
        self.unit.write(at, &value.to_le_bytes());
    }

    fn write32(&self, at: u64, value: u32) {
        self.unit.write(at, &value.to_le_bytes());
    }

    /// FSTS.
    pub(super) fn fault_status(&self) -> u32 {
        let mut bytes = [0xAA; 4];
        self.unit.read(0x34, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// The first fault record: low half, high half.
    pub(super) fn record(&self) -> [u64; 2] {
        [self.read64(0x220), self.read64(0x228)]
    }

    /// Makes a request, and tells whether it got through.
    pub(super) fn ask(&self, ask: Ask) -> bool {
        let mut view = self.unit.port(SOURCE).view();
        match ask {
            Ask::Read(pasid, address) => {
                let transaction = view.begin_pasid(number(pasid));
                transaction.read_obj::<u32>(GuestAddress(address)).is_ok()
            }
            Ask::Write(pasid, address) => {
                let transaction = view.begin_pasid(number(pasid));
                transaction.write_obj(1_u32, GuestAddress(address)).is_ok()
            }
            Ask::Supervisor(pasid, address) => {
                let transaction = view.begin_supervisor(Pasid::new(pasid).unwrap());
                transaction.read_obj::<u32>(GuestAddress(address)).is_ok()
            }
            Ask::Translation(pasid, address) => self.translate(pasid, address).is_ok(),
            Ask::ReadTranslated(address) => {
                let transaction = view.begin_translated();
                transaction.read_obj::<u32>(GuestAddress(address)).is_ok()
            }
            Ask::Page(pasid, address) => self.request_page(pasid, address).is_ok(),
            Ask::Interrupt(address, data) => self.unit.remap(SOURCE, address, data).is_ok(),
            Ask::Walk(request) => self.walk(&request).is_ok(),
        }
    }

    /// Translates a request: the reason for which it is blocked, and whether a record is due.
    pub(super) fn walk(&self, request: &Request) -> Result<(), (FaultReason, bool)> {
        let tables = self.unit.dma_state().tables();
        tables
            .translate(request)
            .map(|_| ())
            .map_err(|fault| (fault.reason, fault.record))
    }

    /// Makes a page request that is the last of its group.
    pub(super) fn request_page(
        &self,
        pasid: Option<u32>,
        address: u64,
    ) -> Result<(), PageRequestRefusal> {
        let request = PageRequest {
            pasid: number(pasid),
            address,
            read: true,
            last: true,
            ..PageRequest::default()
        };
        self.unit.request_page(SOURCE, &request)
    }

    /// Makes a translation request.
    pub(super) fn translate(
        &self,
        pasid: Option<u32>,
        address: u64,
    ) -> Result<AtsTranslation, AtsRefusal> {
        let mut view = self.unit.port(SOURCE).view();
        view.begin_pasid(number(pasid)).translate(address, false)
    }

    /// Makes a translation request as supervisor.
    pub(super) fn translate_supervisor(
        &self,
        pasid: u32,
        address: u64,
    ) -> Result<AtsTranslation, AtsRefusal> {
        let mut view = self.unit.port(SOURCE).view();
        let transaction = view.begin_supervisor(Pasid::new(pasid).unwrap());
        transaction.translate(address, false)
    }
}

fn number(pasid: Option<u32>) -> Option<Pasid> {
    pasid.map(|pasid| Pasid::new(pasid).unwrap())
}
