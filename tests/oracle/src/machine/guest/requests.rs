//! DMA requests of the guest's devices: to addresses of interest, to any others, and again while an
//! entry changes.

use super::{END, Guest, PASIDS};
use crate::machine::Check;
use crate::machine::dma::{Access, Manner};

impl Guest {
    /// A PASID for a request of a view, or none. Mostly one that may be used.
    pub(super) fn random_pasid(&mut self, view: usize) -> Option<u64> {
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
    pub(super) fn random_input(&mut self, view: usize, pasid: Option<u64>) -> (usize, u64) {
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

    pub(super) fn random_address(&mut self, view: usize, pasid: Option<u64>) -> u64 {
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

    pub(super) fn dma(&mut self) -> Check {
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

    /// Uses a mapping, changes an entry on its way, and uses it again, before and after an
    /// invalidation.
    pub(super) fn hot(&mut self) -> Check {
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

    pub(super) fn touch(&mut self, view: usize, pasid: Option<u64>, address: u64) -> Check {
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
}
