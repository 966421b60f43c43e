//! The guest's root, context and PASID tables: valid entries of every kind, and corrupted ones.

use super::{Guest, NESTED, PASIDS, SECOND, pasid_at};
use crate::driver::entries::{self, PasidEntry};
use crate::machine::{LEGACY_ROOT, SCALABLE_ROOT, SOURCES};

impl Guest {
    pub(super) fn context_words(&mut self, source: usize) -> [u64; 2] {
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

    pub(super) fn pasid_words(&mut self, source: usize, pasid: u64) -> [u64; 8] {
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
    pub(super) fn build_structures(&mut self) {
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

    pub(super) fn corrupt_structure(&mut self) {
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
}
