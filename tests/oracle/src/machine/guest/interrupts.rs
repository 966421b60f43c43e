//! Interrupt requests, and the interrupt-remapping table that they go through.

use super::Guest;
use crate::driver::entries::Irte;
use crate::machine::{Check, INTERRUPT_TABLE, SOURCES};

impl Guest {
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

    pub(super) fn interrupts(&mut self) -> Check {
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
