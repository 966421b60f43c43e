//! A random guest: address spaces, edits, corruptions, invalidations and requests.

mod devices;

use std::collections::BTreeMap;

use intel_vtd::{AddressWidth, Interrupts, Scalable, Stages, UnitConfig, WalkFeatures};

use super::dma::{Access, Manner};
use super::{Check, INTERRUPT_TABLE, LEGACY_ROOT, Machine, POOL, SCALABLE_ROOT, SOURCES};
use crate::driver::entries::{self, Irte, PasidEntry};
use crate::driver::queue;
use crate::driver::tables::{Pages, Slot, Space, Stage};
use crate::flushes::Flush;
use crate::rng::Rng;

const DATA: u64 = 0x6_0000;
const END: u64 = 0x8_0000;

/// Any configuration that makes a unit.
pub fn configuration(rng: &mut Rng) -> UnitConfig {
    loop {
        let interrupt_remapping = rng.chance(4, 5);
        let scalable = rng.chance(3, 4);
        let device_tlb = rng.chance(1, 2);
        let host_address_width =
            u8::try_from(rng.pick(&[32_u64, 36, 39, 46, 48, 52])).unwrap_or(46);
        let address_width = rng.pick(&[39_u64, 48, 57]);
        let [first_stage, second_stage, nested] =
            [(2, 3), (4, 5), (1, 2)].map(|(times, of)| rng.chance(times, of));
        let x2apic = interrupt_remapping && rng.chance(1, 2);
        let caching_mode = rng.chance(1, 2);
        let snoop_control = rng.chance(1, 2);
        let pasid_bits = if scalable {
            u8::try_from(rng.pick(&[0_u64, 0, 1, 3, 7, 16, 20, 20])).unwrap_or(0)
        } else {
            0
        };
        let page_requests = scalable && device_tlb && rng.chance(2, 3);
        // The walker knows no unit without SRS.
        let walks = WalkFeatures::ALL
            .with_pages_of_1g(rng.chance(7, 8))
            .with_extended_accessed(rng.chance(7, 8))
            .with_snooped(rng.chance(7, 8));
        let keep_translations = rng.chance(1, 2);

        let stages = match (first_stage, second_stage, nested) {
            (false, true, false) => Stages::Second,
            (true, false, false) => Stages::First,
            (true, true, false) => Stages::Both,
            (true, true, true) => Stages::Nested,
            _ => continue,
        };
        if !scalable && stages != Stages::Second {
            continue;
        }
        let scalable = scalable.then(|| {
            Scalable::new(stages)
                .with_pasid_bits(pasid_bits)
                .with_page_requests(page_requests)
                .with_walks(walks)
        });
        let interrupts = if interrupt_remapping {
            Interrupts::Remapped { x2apic }
        } else {
            Interrupts::Off
        };
        let width = u8::try_from(address_width).ok();
        let width = width.and_then(AddressWidth::from_bits);
        let config = UnitConfig::legacy(host_address_width)
            .with_address_width(width.unwrap_or(AddressWidth::Bits48))
            .with_scalable(scalable)
            .with_interrupts(interrupts)
            .with_device_tlb(device_tlb)
            .with_caching_mode(caching_mode)
            .with_snoop_control(snoop_control)
            .with_keep_translations(keep_translations);
        if config.capabilities().is_ok() {
            return config;
        }
    }
}

/// A guest on a machine.
pub struct Guest {
    /// The machine.
    pub machine: Machine,
    rng: Rng,
    pages: Pages,
    spaces: Vec<Space>,
    /// Address width code of each second-stage space; of a nested one, that of its second stage.
    widths: Vec<u64>,
    /// Input addresses of interest, with their space.
    inputs: Vec<(usize, u64)>,
    slots: Vec<Slot>,
    structures: Vec<(u64, usize)>,
    interrupt_index: u64,
    /// The space of a mode, a source and a PASID. Corruption may make it another one.
    assigned: BTreeMap<(u64, usize, u64), usize>,
    /// RID_PASID of each source.
    rid_pasids: [u64; 3],
}

/// PASIDs that have an entry.
const PASIDS: [u64; 4] = [0, 1, 5, 67];

/// Where the PASID-table entry of a source is.
fn pasid_at(source: usize, pasid: u64) -> u64 {
    let table = if pasid < 64 { 0xd000 } else { 0x1_1000 };
    table + source as u64 * 0x1000 + (pasid & 0x3f) * 64
}

/// Space numbers.
const SECOND: usize = 0;
const NESTED: usize = 2;

impl Guest {
    /// A guest with everything set up, and translation on.
    ///
    /// # Errors
    /// When the unit does not start as specified.
    pub fn new(rng: Rng) -> Result<Self, String> {
        let mut rng = rng;
        let config = configuration(&mut rng);
        let machine = Machine::new(&config)?;
        let mut guest = Self {
            machine,
            rng,
            pages: Pages::new(POOL, DATA),
            spaces: Vec::new(),
            widths: Vec::new(),
            inputs: Vec::new(),
            slots: Vec::new(),
            structures: Vec::new(),
            interrupt_index: 0,
            assigned: BTreeMap::new(),
            rid_pasids: [0; 3],
        };
        guest.build();
        guest.machine.sync();
        guest.machine.image.forget();
        if guest.machine.facts.interrupts {
            let extended = guest.machine.facts.extended_interrupts && guest.rng.chance(1, 2);
            guest
                .machine
                .set_interrupt_table(INTERRUPT_TABLE, 7, extended);
            guest.machine.remap_interrupts(true);
        }
        let mode = u64::from(guest.machine.facts.scalable && guest.rng.chance(3, 4));
        guest.choose_root(mode);
        guest.machine.translate(true);
        guest.machine.mask_event(guest.rng.chance(1, 2))?;
        guest.machine.check_quiet()?;
        Ok(guest)
    }

    fn choose_root(&mut self, mode: u64) {
        let table = if mode == 0 {
            LEGACY_ROOT
        } else {
            SCALABLE_ROOT
        };
        self.machine.set_root(table, mode);
    }

    fn build(&mut self) {
        let facts = self.machine.facts;
        let codes: Vec<u64> = (1..=3).filter(|aw| facts.sagaw >> aw & 1 != 0).collect();
        let first_levels = [4, if facts.first_5_levels { 5 } else { 4 }];
        let shift_limit = [0, 39, 48, 57];
        let nested_width = self.rng.pick(&codes);
        let shift = self.rng.pick(&[0, 0x4000_0000, 1 << 37]) & !facts.beyond();
        let plans = [
            (Stage::Second, nested_width, 0),
            (Stage::Second, self.rng.pick(&codes), 0),
            (Stage::First, 0, shift),
            (Stage::First, 0, 0),
        ];
        let ram = &mut self.machine.driver.ram;
        for (stage, aw, shift) in plans {
            let levels = match stage {
                Stage::First => self.rng.pick(&first_levels),
                Stage::Second => u32::try_from(aw).unwrap_or(1) + 2,
            };
            let space =
                Space::new(stage, levels, shift, &mut self.pages, ram).expect("pages for tops");
            self.spaces.push(space);
            self.widths.push(if stage == Stage::First {
                nested_width
            } else {
                aw
            });
        }
        for number in 0..self.spaces.len() {
            let space = &self.spaces[number];
            let width = match space.stage {
                Stage::First => 12 + 9 * space.levels,
                Stage::Second => shift_limit[crate::index(self.widths[number])].min(facts.mgaw),
            };
            let mut bases = vec![
                0,
                0x20_0000 - 0x2000,
                0x4000_0000 - 0x2000,
                1 << 32,
                0xfee0_0000 - 0x2000,
                (1 << (width - 1)) - 0x4000,
            ];
            if space.stage == Stage::First {
                bases.push(u64::MAX << (width - 1));
                bases.push(0_u64.wrapping_sub(0x4000));
            } else {
                bases.push((1 << width) - 0x4000);
            }
            for _ in 0..2 {
                let base = self.rng.pick(&bases);
                for page in 0..4 {
                    self.inputs.push((number, base + page * 0x1000));
                }
            }
            let large = self.rng.pick(&bases);
            self.inputs.push((number, large));
        }
        self.map_nested();
        for choice in 0..self.inputs.len() {
            self.map(choice);
        }
        self.build_structures();
    }

    /// What the nested space finds its tables and data in.
    fn map_nested(&mut self) {
        let shift = self.spaces[NESTED].shift;
        let ram = &mut self.machine.driver.ram;
        for page in (POOL..END).step_by(4096) {
            let slots = self.spaces[SECOND].map(page + shift, page, 1, 3, &mut self.pages, ram);
            for slot in slots.into_iter().flatten() {
                if !self.slots.contains(&slot) {
                    self.slots.push(slot);
                }
            }
        }
    }

    fn target(&mut self, level: u32) -> u64 {
        let facts = self.machine.facts;
        let target = match (level, self.rng.below(20)) {
            (1, 0) => 0x1_0000_0000,
            (1, 1) => 0xfee0_0000,
            (1, 2) => 0x7_0000_0000,
            (1, 3) => self.rng.below(END / 4096) * 4096,
            (1, _) => DATA + self.rng.below((END - DATA) / 4096) * 4096,
            (2, 0 | 1) => 0xfee0_0000,
            (2, 2 | 3) => 0x1_0000_0000,
            (3, 0) => 0x1_0000_0000,
            _ => 0,
        };
        target & facts.pointer()
    }

    /// Maps an input of interest, with whatever right.
    fn map(&mut self, choice: usize) {
        let (number, input) = self.inputs[choice];
        let nested = number == NESTED;
        let level = if self.rng.chance(5, 6) {
            1
        } else {
            self.rng.pick(&[2, 3])
        };
        let input = input >> (12 + 9 * (level - 1)) << (12 + 9 * (level - 1));
        let mut target = self.target(level);
        if nested && target < END {
            // Pages are mapped at a shift; so are large pages, as far as alignment goes.
            target += self.spaces[number].shift;
        }
        let flags = match self.spaces[number].stage {
            Stage::First => self.rng.pick(&[0x7, 0x7, 0x7, 0x7, 0x5, 0x3, 0x67, 0x27]),
            Stage::Second => self.rng.pick(&[3, 3, 3, 3, 1, 2, 0x303, 0x103]),
        };
        let ram = &mut self.machine.driver.ram;
        let slots = self.spaces[number].map(input, target, level, flags, &mut self.pages, ram);
        for slot in slots.into_iter().flatten() {
            if !self.slots.contains(&slot) {
                self.slots.push(slot);
            }
        }
    }

    fn context_words(&mut self, source: usize) -> [u64; 2] {
        let facts = self.machine.facts;
        let largest = (1..=3)
            .rev()
            .find(|aw| facts.sagaw >> aw & 1 != 0)
            .unwrap_or(2);
        if self.rng.chance(1, 6) {
            let did = 7;
            return entries::context(2, 0x1234_5000 & facts.pointer(), largest, did);
        }
        let number = crate::index(self.rng.below(2));
        self.assigned.insert((0, source, 0), number);
        let (top, aw) = (self.spaces[number].top, self.widths[number]);
        let tt = u64::from(facts.device_tlb && self.rng.chance(2, 3));
        entries::context(tt, top, aw, number as u64 + 1)
    }

    fn scalable_context_words(&mut self, source: usize, directory: u64) -> [u64; 4] {
        let facts = self.machine.facts;
        // The page of a directory has room for 512 entries.
        let mut words = entries::scalable_context(directory, self.rng.below(3));
        if facts.device_tlb && self.rng.chance(5, 6) {
            words[0] |= entries::DEVICE_TLB;
            if facts.page_requests && self.rng.chance(5, 6) {
                words[0] |= entries::PAGE_REQUESTS;
            }
        }
        if facts.pasid_bits != 0 {
            if self.rng.chance(19, 20) {
                words[0] |= entries::PASIDS;
            }
            words[1] = self.rng.pick(&[0, 0, 0, 1, 67]);
        }
        self.rid_pasids[source] = words[1];
        words
    }

    fn pasid_words(&mut self, source: usize, pasid: u64) -> [u64; 8] {
        let facts = self.machine.facts;
        let snoop_walk = facts.walk_snoop && self.rng.chance(5, 6);
        let snoop_page = facts.snoop_control && self.rng.chance(1, 3);
        let mut kinds = vec![4];
        if facts.first {
            kinds.extend([1, 1]);
        }
        if facts.second {
            kinds.extend([2, 2]);
        }
        if facts.nested {
            kinds.extend([3, 3, 3]);
        }
        let pgtt = self.rng.pick(&kinds);
        let number = match pgtt {
            1 => 3,
            2 => crate::index(self.rng.below(2)),
            3 => NESTED,
            _ => {
                return PasidEntry {
                    pgtt,
                    snoop_walk,
                    snoop_page,
                    did: 7,
                    supervisor: facts.pasid_bits != 0 && self.rng.chance(2, 3),
                    ..PasidEntry::default()
                }
                .words();
            }
        };
        self.assigned.insert((1, source, pasid), number);
        let space = &self.spaces[number];
        let mut entry = PasidEntry {
            pgtt,
            snoop_walk,
            snoop_page,
            extended_accessed: pgtt != 2 && facts.extended_accessed && self.rng.chance(1, 3),
            supervisor: facts.pasid_bits != 0 && self.rng.chance(2, 3),
            write_protect: facts.first && self.rng.chance(1, 3),
            did: number as u64 + 1,
            ..PasidEntry::default()
        };
        if pgtt != 2 {
            entry.first = space.pointer();
            entry.fspm = u64::from(space.levels == 5);
        }
        if pgtt != 1 {
            let second = if pgtt == 3 { SECOND } else { number };
            entry.second = self.spaces[second].top;
            entry.aw = self.widths[second];
            entry.second_ad = facts.second_ad && self.rng.chance(1, 2);
        }
        entry.words()
    }

    /// Writes all structures anew, with valid values.
    fn build_structures(&mut self) {
        self.structures.clear();
        let mut stores: Vec<(u64, Vec<u64>)> = vec![
            (LEGACY_ROOT, entries::root(0x5000).to_vec()),
            (LEGACY_ROOT + 3 * 16, entries::root(0x6000).to_vec()),
            (
                SCALABLE_ROOT,
                entries::scalable_root(0x7000, 0x8000).to_vec(),
            ),
            (
                SCALABLE_ROOT + 3 * 16,
                entries::scalable_root(0x9000, 0).to_vec(),
            ),
        ];
        for (which, source) in SOURCES.into_iter().enumerate() {
            let number = which as u64;
            let (bus, devfn) = (u64::from(source >> 8), u64::from(source & 0xff));
            let legacy = if bus == 0 { 0x5000 } else { 0x6000 };
            stores.push((legacy + devfn * 16, self.context_words(which).to_vec()));
            let scalable = match (bus, devfn >> 7) {
                (0, 0) => 0x7000,
                (0, _) => 0x8000,
                _ => 0x9000,
            };
            let (directory, table) = (0xa000 + number * 0x1000, 0xd000 + number * 0x1000);
            let context = self.scalable_context_words(which, directory);
            stores.push((scalable + (devfn & 0x7f) * 32, context.to_vec()));
            stores.push((
                directory,
                vec![
                    entries::directory(table),
                    entries::directory(pasid_at(which, 64)),
                ],
            ));
            for pasid in PASIDS {
                let words = self.pasid_words(which, pasid);
                stores.push((pasid_at(which, pasid), words.to_vec()));
            }
        }
        for (at, words) in stores {
            self.structures.push((at, words.len()));
            self.machine.driver.ram.store(at, &words);
        }
    }

    /// One random step.
    ///
    /// # Errors
    /// When the unit and the oracle disagree.
    pub fn step(&mut self) -> Check {
        if self.rng.chance(1, 3) {
            self.machine.drain_log()?;
        }
        if self.rng.chance(1, 3) {
            return self.device_step();
        }
        match self.rng.below(100) {
            0..40 => self.dma(),
            40..50 => self.hot(),
            50..62 => self.interrupts(),
            62..68 => {
                self.corrupt_table();
                Ok(())
            }
            68..71 => {
                self.corrupt_structure();
                Ok(())
            }
            71..76 => {
                let choice = crate::index(self.rng.below(self.inputs.len() as u64));
                self.map(choice);
                Ok(())
            }
            76..82 => self.remap_properly(),
            82..87 => self.random_invalidation(),
            87..89 => self.change_structure_properly(),
            89..91 => {
                self.build_structures();
                self.map_nested();
                for choice in 0..self.inputs.len() {
                    self.map(choice);
                }
                self.machine.sync();
                let registers = self.rng.chance(1, 4);
                self.machine.invalidate_world(registers);
                self.machine.check_quiet()
            }
            91..93 => self.modes(),
            93..97 => {
                let index = self.rng.below(8);
                match self.rng.below(4) {
                    0 => self.machine.clear_record(index),
                    1 => {
                        let masked = self.rng.chance(1, 2);
                        self.machine.mask_event(masked)
                    }
                    _ => self.machine.drain_log(),
                }
            }
            _ => {
                let registers = self.rng.chance(1, 4);
                self.machine.sync();
                self.machine.invalidate_world(registers);
                self.machine.check_quiet()
            }
        }
    }

    /// A PASID for a request of a view, or none. Mostly one that may be used.
    fn random_pasid(&mut self, view: usize) -> Option<u64> {
        let bits = self.machine.facts.pasid_bits;
        let often = if self.machine.root.mode == 1 { 2 } else { 16 };
        if bits == 0 || !self.rng.chance(1, often) {
            return None;
        }
        let taken = self.rid_pasids[view % 3];
        let usable: Vec<u64> = PASIDS
            .into_iter()
            .filter(|pasid| pasid >> bits == 0 && *pasid != taken)
            .collect();
        if !usable.is_empty() && self.rng.chance(9, 10) {
            return Some(self.rng.pick(&usable));
        }
        let other = self.rng.below(0x10_0000);
        let choices = [0, 1, 67, 2, 200, 0x2005, 0xf_ffff, other];
        Some(self.rng.pick(&choices))
    }

    /// The PASID, and whether the request asks for supervisor privilege.
    pub(super) fn requester(&mut self, pasid: Option<u64>) -> (Option<u64>, bool) {
        (pasid, pasid.is_some() && self.rng.chance(1, 3))
    }

    /// An input of interest, mostly of the space that the view's source has.
    fn random_input(&mut self, view: usize, pasid: Option<u64>) -> (usize, u64) {
        let mode = self.machine.root.mode & 1;
        let pasid = match (mode, pasid) {
            (0, _) => 0,
            (_, Some(pasid)) => pasid,
            (_, None) => self.rid_pasids[view % 3],
        };
        let number = self.assigned.get(&(mode, view % 3, pasid)).copied();
        let number = number.unwrap_or(0);
        for _ in 0..8 {
            let input = self.inputs[crate::index(self.rng.below(self.inputs.len() as u64))];
            if input.0 == number {
                return input;
            }
        }
        self.inputs[crate::index(self.rng.below(self.inputs.len() as u64))]
    }

    fn random_address(&mut self, view: usize, pasid: Option<u64>) -> u64 {
        let (_, input) = self.random_input(view, pasid);
        match self.rng.below(20) {
            0 => self.rng.word(),
            1 => self.rng.word() >> self.rng.below(52),
            2 => self.rng.below(END),
            3 => 0x1_0000_0000 + self.rng.below(0x4000),
            4 => 1 << self.rng.pick(&[31_u64, 38, 39, 47, 48, 56, 57, 63]),
            5 => input ^ 1 << self.rng.below(64),
            6 => 0xfee0_0000 + self.rng.below(0x10_0000),
            _ => input
                .wrapping_add(self.rng.below(0x1800))
                .wrapping_sub(0x200),
        }
    }

    fn dma(&mut self) -> Check {
        let view = crate::index(self.rng.below(6));
        let manner = self.rng.pick(&[
            Manner::Slice,
            Manner::Slice,
            Manner::Partial,
            Manner::Object,
            Manner::Atomic,
        ]);
        let pasid = self.random_pasid(view);
        let mut address = self.random_address(view, pasid);
        let length = match manner {
            Manner::Object => 4,
            Manner::Atomic => {
                address &= !3;
                4
            }
            _ if self.rng.chance(1, 5) => 1 + self.rng.below(0x2800),
            _ => 1 + self.rng.below(64),
        };
        let write = self.rng.chance(1, 2);
        // The unit has no part in what becomes of interrupt requests that a device makes by DMA.
        if address.wrapping_add(0x3000) >> 20 == 0xfee || address >> 20 == 0xfee {
            if !self.machine.translating {
                return Ok(());
            }
            address &= !0xfff;
            if write && length <= 8 && pasid.is_none() {
                return Ok(());
            }
        }
        let length = length.min(0_u64.wrapping_sub(address).max(1));
        let length = if address > u64::MAX - 0x4000 {
            length.min(0x1000 - (address & 0xfff))
        } else {
            length
        };
        let filler = self.rng.word();
        let data = (0..length)
            .map(|byte| (filler.rotate_left(u32::try_from(byte & 63).unwrap_or(0)) & 0xff) as u8)
            .collect();
        let (pasid, privileged) = self.requester(pasid);
        let access = Access {
            view,
            pasid,
            privileged,
            translated: false,
            address,
            data,
            write,
            manner,
        };
        if self.rng.chance(1, 10) {
            return self.machine.probe(access);
        }
        self.machine.dma(access)
    }

    /// Uses a mapping, changes an entry on its way, and uses it again, before and after an invalidation.
    fn hot(&mut self) -> Check {
        let view = crate::index(self.rng.below(6));
        let pasid = self.random_pasid(view);
        let (number, input) = self.random_input(view, pasid);
        if input >> 20 == 0xfee || !self.machine.translating {
            return Ok(());
        }
        self.machine.drain_log()?;
        let at = input + self.rng.below(0xfc0);
        self.touch(view, pasid, at)?;
        if self.rng.chance(3, 4) {
            let ram = &mut self.machine.driver.ram;
            let slots = self.spaces[number].slots(input, 1, &mut self.pages, ram);
            if let Some(slots) = slots.filter(|slots| !slots.is_empty()) {
                let slot = if self.rng.chance(1, 2) {
                    slots[slots.len() - 1]
                } else {
                    self.rng.pick(&slots)
                };
                self.corrupt_slot(slot);
            }
        } else {
            self.corrupt_structure();
        }
        for _ in 0..2 {
            let view = if self.rng.chance(3, 4) {
                view
            } else {
                (view + 3) % 6
            };
            self.touch(view, pasid, at)?;
        }
        match self.rng.below(4) {
            0 => self.machine.invalidate_world(false),
            1 => self.random_invalidation()?,
            _ => {}
        }
        self.touch(view, pasid, at)
    }

    fn touch(&mut self, view: usize, pasid: Option<u64>, address: u64) -> Check {
        if self.machine.facts.device_tlb && self.rng.chance(1, 4) {
            let no_write = self.rng.chance(1, 2);
            let requester = self.requester(pasid);
            return self.machine.ask(view, requester, address, no_write);
        }
        let write = self.rng.chance(1, 2);
        let filler = self.rng.word();
        let (pasid, privileged) = self.requester(pasid);
        self.machine.dma(Access {
            view,
            pasid,
            privileged,
            translated: false,
            address,
            data: filler.to_le_bytes().to_vec(),
            write,
            manner: Manner::Slice,
        })
    }

    fn corrupt_table(&mut self) {
        let slot = self.slots[crate::index(self.rng.below(self.slots.len() as u64))];
        self.corrupt_slot(slot);
    }

    fn corrupt_slot(&mut self, slot: Slot) {
        let other = self.slots[crate::index(self.rng.below(self.slots.len() as u64))];
        let ram = &mut self.machine.driver.ram;
        let word = ram.load(slot.at);
        let new = match self.rng.below(12) {
            0..3 => word ^ 1 << self.rng.below(64),
            3 => word ^ 1 << self.rng.below(12),
            4 => 0,
            5 => ram.load(other.at),
            6 => word & !3 | self.rng.below(4),
            7 => word ^ 0x80,
            8 => word & !0x360,
            9 => (word & !0xf_ffff_ffff_f000) | (self.rng.below(0x90) * 4096),
            10 => word | 0x7,
            _ => self.rng.word() & self.rng.word(),
        };
        ram.store(slot.at, &[new]);
    }

    fn corrupt_structure(&mut self) {
        let (at, count) =
            self.structures[crate::index(self.rng.below(self.structures.len() as u64))];
        let word_at = at + self.rng.below(count as u64) * 8;
        let ram = &mut self.machine.driver.ram;
        let word = ram.load(word_at);
        let new = match self.rng.below(8) {
            0 => word ^ 2,
            1 => word & !1,
            2 => word & !1 | 2,
            3 => word ^ 1 << self.rng.below(12),
            4 => word & !0x1c0 | self.rng.below(8) << 6,
            5 => word & !0x1f | self.rng.below(32),
            6 => word ^ 1 << (12 + self.rng.below(20)),
            _ => word ^ 1 << self.rng.below(64),
        };
        ram.store(word_at, &[new]);
    }

    /// Changes a mapping and invalidates it as section 6.5.3 says. Afterwards only the new one may be used.
    fn remap_properly(&mut self) -> Check {
        if !self.machine.queue_runs() {
            return Ok(());
        }
        let choice = crate::index(self.rng.below(self.inputs.len() as u64));
        let (number, input) = self.inputs[choice];
        if self.rng.chance(1, 2) {
            self.map(choice);
        } else {
            let ram = &mut self.machine.driver.ram;
            let slots = self.spaces[number].slots(input, 1, &mut self.pages, ram);
            if let Some(leaf) = slots.and_then(|slots| slots.last().copied()) {
                ram.store(leaf.at, &[0]);
            }
        }
        self.machine.sync();
        let did = number as u64 + 1;
        let order = self.rng.pick(&[0_u64, 0, 2, 9, 18]);
        let first = input >> (12 + order) << (12 + order);
        let last = first | ((1 << (12 + order)) - 1);
        let scalable = self.machine.root.mode == 1;
        let hint = self.rng.chance(1, 4);
        let narrow = self.rng.chance(1, 2);
        let pasid = self.rng.pick(&PASIDS);
        let command = match (self.spaces[number].stage, scalable) {
            (Stage::First, true) if narrow => (
                Flush::PasidIotlbPages {
                    did,
                    pasid,
                    first,
                    last,
                    hint,
                },
                queue::pasid_iotlb_pages(did, pasid, input, order, hint),
            ),
            (Stage::First, true) => (
                Flush::PasidIotlb(did, pasid),
                queue::pasid_iotlb(did, pasid),
            ),
            _ if narrow => (
                Flush::IotlbPages {
                    did,
                    first,
                    last,
                    hint,
                },
                queue::iotlb_pages(did, input, order, hint),
            ),
            _ => (Flush::IotlbDomain(did), queue::iotlb_domain(did)),
        };
        self.machine.invalidate(&[command]);
        self.machine.check_quiet()?;
        // Its first use comes at once, by every source.
        for view in 0..6 {
            let write = self.rng.chance(1, 2);
            let known = self.machine.facts.pasid_bits != 0 && self.rng.chance(1, 2);
            let (pasid, privileged) = self.requester(known.then_some(pasid));
            let access = Access {
                view,
                pasid,
                privileged,
                translated: false,
                address: input + self.rng.below(0xfc0),
                data: vec![0x5a; 32],
                write,
                manner: Manner::Slice,
            };
            if self.machine.translating && access.address >> 20 != 0xfee {
                self.machine.dma(access)?;
            }
        }
        Ok(())
    }

    fn change_structure_properly(&mut self) -> Check {
        if !self.machine.queue_runs() {
            return Ok(());
        }
        let scalable = self.machine.root.mode == 1;
        let number = crate::index(self.rng.below(3));
        let source = SOURCES[number];
        let pasid = self.rng.pick(&PASIDS);
        if scalable {
            let words = self.pasid_words(number, pasid);
            self.machine
                .driver
                .ram
                .store(pasid_at(number, pasid), &words);
        } else {
            let words = self.context_words(number);
            let table = if source >> 8 == 0 { 0x5000 } else { 0x6000 };
            let at = table + u64::from(source & 0xff) * 16;
            self.machine.driver.ram.store(at, &words);
        }
        self.machine.sync();
        let mut commands = vec![(
            Flush::ContextDevice { source, mask: 0 },
            queue::context_device(0, u64::from(source), 0),
        )];
        for did in [0, 1, 2, 3, 4, 7] {
            if scalable {
                commands.push(if self.rng.chance(1, 2) {
                    (Flush::PasidCache(did, None), queue::pasid_cache_domain(did))
                } else {
                    (
                        Flush::PasidCache(did, Some(pasid)),
                        queue::pasid_cache_pasid(did, pasid),
                    )
                });
            }
        }
        for did in [0, 1, 2, 3, 4, 7] {
            commands.push((Flush::IotlbDomain(did), queue::iotlb_domain(did)));
        }
        self.machine.invalidate(&commands);
        self.machine.check_quiet()?;
        for _ in 0..3 {
            self.dma()?;
        }
        Ok(())
    }

    fn random_invalidation(&mut self) -> Check {
        self.machine.sync();
        if !self.machine.queue_runs() {
            return Ok(());
        }
        let did = self.rng.pick(&[0, 1, 2, 3, 4, 7]);
        let source = self.rng.pick(&SOURCES);
        let mask = self.rng.below(4);
        let pasid = self.rng.pick(&PASIDS);
        let kinds = if self.machine.root.mode == 1 { 9 } else { 5 };
        let command = match self.rng.below(kinds) {
            0 => (Flush::ContextGlobal, queue::context_global()),
            1 => (
                Flush::ContextDevice { source, mask },
                queue::context_device(did, u64::from(source), mask),
            ),
            2 => (Flush::IotlbGlobal, queue::iotlb_global()),
            3 | 4 => (Flush::IotlbDomain(did), queue::iotlb_domain(did)),
            5 => (
                Flush::PasidIotlb(did, pasid),
                queue::pasid_iotlb(did, pasid),
            ),
            6 => (Flush::PasidCache(did, None), queue::pasid_cache_domain(did)),
            7 => (
                Flush::PasidCache(did, Some(pasid)),
                queue::pasid_cache_pasid(did, pasid),
            ),
            _ => (Flush::PasidCacheGlobal, queue::pasid_cache_global()),
        };
        self.machine.invalidate(&[command]);
        self.machine.check_quiet()
    }

    fn modes(&mut self) -> Check {
        self.machine.sync();
        match self.rng.below(8) {
            0 => {
                self.machine.translate(false);
                for _ in 0..3 {
                    self.dma()?;
                }
                if !self.machine.facts.scalable {
                    self.machine.invalidate_world(false);
                }
                self.machine.translate(true);
            }
            1 => {
                let table = self.rng.below(0x100) * 4096;
                let mode = self.rng.below(4);
                self.machine.set_root(table, mode);
                for _ in 0..3 {
                    self.dma()?;
                }
                let mode = u64::from(self.machine.facts.scalable && self.rng.chance(3, 4));
                self.choose_root(mode);
            }
            _ => {
                let mode = u64::from(self.machine.facts.scalable && self.rng.chance(3, 4));
                self.choose_root(mode);
            }
        }
        self.machine.check_quiet()
    }

    fn random_irte(&mut self) -> [u64; 2] {
        let facts = self.machine.facts;
        let source = self.rng.pick(&SOURCES);
        let mut irte = Irte {
            vector: self.rng.below(256),
            delivery: self
                .rng
                .pick(&[0, 0, 1, 2, 4, 5, 7, self.rng.clone().below(8)]),
            logical: self.rng.chance(1, 2),
            redirect: self.rng.chance(1, 2),
            level: self.rng.chance(1, 4),
            destination: self.rng.below(256) << 8,
            source: u64::from(source),
            qualifier: self.rng.below(4),
            validation: self.rng.pick(&[0, 1, 1, 1, 2, self.rng.clone().below(4)]),
        };
        if irte.validation == 2 {
            irte.source = self.rng.pick(&[0x0003, 0x0000, 0x0305, 0x0300]);
        }
        if facts.extended_interrupts && self.rng.chance(1, 2) {
            irte.destination = self.rng.word() >> 32;
        }
        let mut words = irte.words();
        match self.rng.below(8) {
            0 => words[0] ^= 1 << self.rng.below(64),
            1 => words[1] ^= 1 << self.rng.below(64),
            2 => words[0] ^= 2,
            3 => words[0] &= !1,
            _ => {}
        }
        words
    }

    fn interrupts(&mut self) -> Check {
        self.machine.sync();
        if !self.machine.facts.interrupts {
            return Ok(());
        }
        match self.rng.below(20) {
            0..5 => {
                let index = self.rng.below(24);
                let words = self.random_irte();
                self.interrupt_index = index;
                self.machine
                    .driver
                    .ram
                    .store(INTERRUPT_TABLE + index * 16, &words);
            }
            5 if self.machine.queue_runs() => {
                let entries = self
                    .rng
                    .chance(3, 4)
                    .then(|| (self.interrupt_index, self.rng.below(5)));
                self.machine.invalidate_interrupts(entries);
            }
            6 if self.rng.chance(1, 4) => {
                let on = self.rng.chance(1, 2);
                self.machine.allow_compatibility(on);
            }
            7 if self.rng.chance(1, 4) => {
                self.machine.remap_interrupts(false);
                self.request()?;
                let extended = self.machine.facts.extended_interrupts && self.rng.chance(1, 2);
                let size = self.rng.pick(&[7, 7, 7, 3, 15]);
                self.machine
                    .set_interrupt_table(INTERRUPT_TABLE, size, extended);
                self.machine.remap_interrupts(true);
            }
            _ => {}
        }
        self.machine.sync();
        self.request()
    }

    fn request(&mut self) -> Check {
        let source = self.rng.pick(&SOURCES);
        let index = match self.rng.below(8) {
            0 => self.rng.below(0x1_0000),
            1 => self.rng.below(0x110),
            2 => self.interrupt_index,
            _ => self.rng.below(24),
        };
        let (address, data) = match self.rng.below(6) {
            0 => (
                0xfee0_0000 | self.rng.below(0x1_0000) << 4 & 0xf_ffec,
                self.rng.word() >> 32,
            ),
            1 | 2 => {
                let data = index & self.rng.below(8);
                let handle = index - data;
                let dirt = if self.rng.chance(1, 8) { 1 << 17 } else { 0 };
                (
                    0xfee0_0018 | (handle & 0x7fff) << 5 | handle >> 15 << 2,
                    data | dirt,
                )
            }
            _ => (
                0xfee0_0010 | (index & 0x7fff) << 5 | index >> 15 << 2,
                self.rng.word() >> 32,
            ),
        };
        self.machine
            .interrupt(source, address, u32::try_from(data).unwrap_or(0))
    }
}
