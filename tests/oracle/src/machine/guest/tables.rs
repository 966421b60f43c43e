//! The guest's page tables: address spaces, mappings, and corrupted entries.

use super::{DATA, END, Guest, NESTED, SECOND};
use crate::driver::tables::{Slot, Space, Stage};
use crate::machine::POOL;

impl Guest {
    pub(super) fn build(&mut self) {
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
    pub(super) fn map_nested(&mut self) {
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
    pub(super) fn map(&mut self, choice: usize) {
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

    pub(super) fn corrupt_table(&mut self) {
        let slot = self.slots[crate::index(self.rng.below(self.slots.len() as u64))];
        self.corrupt_slot(slot);
    }

    pub(super) fn corrupt_slot(&mut self, slot: Slot) {
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
}
