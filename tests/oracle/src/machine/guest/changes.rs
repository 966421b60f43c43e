//! Proper changes of tables, each with the invalidations that section 6.5.3 asks for; random
//! invalidations; changes of mode.

use super::{Guest, PASIDS, pasid_at};
use crate::driver::queue;
use crate::driver::tables::Stage;
use crate::flushes::Flush;
use crate::machine::dma::{Access, Manner};
use crate::machine::{Check, SOURCES};

impl Guest {
    /// Changes a mapping and invalidates it as section 6.5.3 says. Afterwards only the new one may
    /// be used.
    pub(super) fn remap_properly(&mut self) -> Check {
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

    pub(super) fn change_structure_properly(&mut self) -> Check {
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

    pub(super) fn random_invalidation(&mut self) -> Check {
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

    pub(super) fn modes(&mut self) -> Check {
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
}
