//! From the root table to the page tables (sections 3.4, 7.1.3 and 9.1-9.6).

use super::second::SecondStage;
use super::{Step, Walk};
use crate::flushes::Kind;

const CONTEXT: Kind = Kind::Context;
const PASID: Kind = Kind::Pasid;

impl Walk<'_> {
    pub(super) fn run(&mut self) -> Step<u64> {
        if self.request.address >> 20 == 0xfee {
            self.cached = false;
            return Err(self.fault(&[0x29]));
        }
        self.cached = false;
        match self.root.mode {
            0 => self.legacy(),
            1 if self.facts.scalable => self.scalable(),
            _ => Err(self.fault(&[0x30])),
        }
    }

    fn legacy(&mut self) -> Step<u64> {
        let bus = u64::from(self.request.source >> 8);
        let devfn = u64::from(self.request.source & 0xff);
        let root = self.take(self.root.table + bus * 16, 2, 0x08)?;
        if root.words[0] & 1 == 0 {
            return Err(self.blocked_by(&root, CONTEXT, &[0x01]));
        }
        if root.words[0] & (self.facts.beyond() | 0xffe) != 0 || root.words[1] != 0 {
            return Err(self.blocked_by(&root, CONTEXT, &[0x0a]));
        }
        self.note(CONTEXT, &root);
        let at = (root.words[0] & self.facts.pointer()) + devfn * 16;
        let context = self.take(at, 2, 0x09)?;
        let (low, high) = (context.words[0], context.words[1]);
        self.fpd = low & 2 != 0;
        if low & 1 == 0 {
            return Err(self.blocked_by(&context, CONTEXT, &[0x02]));
        }
        // 11:4, 63:HAW; 71 and 127:88.
        if low & (self.facts.beyond() | 0xff0) != 0 || high & (0x80 | u64::MAX << 24) != 0 {
            return Err(self.blocked_by(&context, CONTEXT, &[0x0b]));
        }
        let aw = high & 7;
        let tt = low >> 2 & 3;
        let supported = (1..=3).contains(&aw) && self.facts.sagaw >> aw & 1 != 0;
        let largest = self.facts.sagaw >> (aw + 1) == 0;
        let typed = match tt {
            0 => supported,
            2 => self.facts.pass_through && supported && largest,
            _ => false,
        };
        if !typed {
            return Err(self.blocked_by(&context, CONTEXT, &[0x03]));
        }
        self.note(CONTEXT, &context);
        self.did = Some(high >> 8 & 0xffff);
        let address = self.request.address;
        let limit = if tt == 2 {
            self.facts.haw
        } else {
            self.facts.mgaw.min(width(aw))
        };
        if address >> limit != 0 {
            return Err(self.fault(&[0x04]));
        }
        if tt == 2 {
            self.cached = true;
            return Ok(address);
        }
        let stage = SecondStage {
            table: low & self.facts.pointer(),
            levels: levels(aw),
            legacy: true,
            accessed_dirty: false,
            snooped: true,
        };
        let mapped = self.second_stage(address, &stage)?;
        self.cached = true;
        if mapped.address >> 20 == 0xfee {
            return Err(self.fault(&[0x0e]));
        }
        Ok(mapped.address)
    }

    fn scalable(&mut self) -> Step<u64> {
        let bus = u64::from(self.request.source >> 8);
        let devfn = u64::from(self.request.source & 0xff);
        // Each half of a root entry is checked by itself.
        let half = self.root.table + bus * 16 + (devfn >> 7) * 8;
        let root = self.take(half, 1, 0x38)?;
        if root.words[0] & 1 == 0 {
            return Err(self.blocked_by(&root, CONTEXT, &[0x39]));
        }
        if root.words[0] & (self.facts.beyond() | 0xffe) != 0 {
            return Err(self.blocked_by(&root, CONTEXT, &[0x3a]));
        }
        self.note(CONTEXT, &root);
        let at = (root.words[0] & self.facts.pointer()) + (devfn & 0x7f) * 32;
        let context = self.take(at, 4, 0x40)?;
        let low = context.words[0];
        self.fpd = low & 2 != 0;
        if low & 1 == 0 {
            return Err(self.blocked_by(&context, CONTEXT, &[0x41]));
        }
        // 8:2 (no device-TLB, PASID, page requests, HPT), 63:HAW, and all the rest (no RID_PASID).
        if low & (self.facts.beyond() | 0x1fc) != 0 || context.words[1..] != [0, 0, 0] {
            return Err(self.blocked_by(&context, CONTEXT, &[0x42]));
        }
        self.note(CONTEXT, &context);
        // Requests without PASID use PASID 0.
        let directory = self.take(low & self.facts.pointer(), 1, 0x50)?;
        let word = directory.words[0];
        self.fpd |= word & 2 != 0;
        if word & 1 == 0 {
            return Err(self.blocked_by(&directory, PASID, &[0x51]));
        }
        if word & (self.facts.beyond() | 0xffc) != 0 {
            return Err(self.blocked_by(&directory, PASID, &[0x52]));
        }
        self.note(PASID, &directory);
        self.pasid_entry(word & self.facts.pointer())
    }

    fn pasid_entry(&mut self, at: u64) -> Step<u64> {
        let facts = *self.facts;
        let entry = self.take(at, 8, 0x58)?;
        let word = |index: usize| entry.words[index];
        self.fpd |= word(0) & 2 != 0;
        if word(0) & 1 == 0 {
            return Err(self.blocked_by(&entry, PASID, &[0x59]));
        }
        let mut reserved = [
            1 << 5 | 3 << 10 | facts.beyond(),
            // 86:80, 89 CD, 90 EMTE, 95:91, 127:96 PAT.
            0x7f << 16 | 3 << 25 | 0x1f << 27 | 0xffff_ffff << 32,
            // 128 SRE, 129, 135 EAFE, 139:136.
            3 | 0xf80,
            u64::MAX,
            u64::MAX,
            u64::MAX,
            u64::MAX,
            u64::MAX,
        ];
        if !facts.second {
            // AW, too, is reserved by the letter. But Linux writes it in first-stage and pass-through entries whatever SSTS
            // says, so the unit does not look at it, which section 9.6 permits to read as "ignored where it is unused".
            reserved[0] |= 1 << 9 | facts.pointer();
        }
        if !facts.second_ad {
            reserved[0] |= 1 << 9;
        }
        if !facts.walk_snoop {
            reserved[1] |= 1 << 23;
        }
        if !facts.snoop_control {
            reserved[1] |= 1 << 24;
        }
        // FSPTPTR is a field of 52 bits, ignored where it is unused; only what uses it reserves its upper ones. (SSPTPTR
        // ends at HAW, and 63:HAW is reserved for itself.)
        if matches!(word(0) >> 6 & 7, 1 | 3) {
            reserved[2] |= facts.beyond();
        }
        if !facts.first {
            reserved[2] |= 0x1c | u64::MAX << 12;
        }
        if entry
            .words
            .iter()
            .zip(reserved)
            .any(|(word, reserved)| word & reserved != 0)
        {
            return Err(self.blocked_by(&entry, PASID, &[0x5a]));
        }
        let (pgtt, aw, fspm) = (word(0) >> 6 & 7, word(0) >> 2 & 7, word(2) >> 2 & 3);
        let aw_good = (1..=3).contains(&aw) && facts.sagaw >> aw & 1 != 0;
        let fspm_good = fspm == 0 || fspm == 1 && facts.first_5_levels;
        let limit = facts.mgaw.min(if aw_good { width(aw) } else { 64 });
        let first_table = word(2) & !0xfff;
        let good = match pgtt {
            1 => facts.first && fspm_good,
            2 => facts.second && aw_good,
            3 => facts.nested && aw_good && fspm_good && first_table >> limit == 0,
            4 => facts.pass_through,
            _ => false,
        };
        if !good {
            return Err(self.blocked_by(&entry, PASID, &[0x5b]));
        }
        self.note(PASID, &entry);
        self.did = Some(word(1) & 0xffff);
        let address = self.request.address;
        let second = SecondStage {
            table: word(0) & facts.pointer(),
            levels: if aw_good { levels(aw) } else { 0 },
            legacy: false,
            accessed_dirty: word(0) >> 9 & 1 != 0,
            snooped: word(1) >> 23 & 1 != 0,
        };
        let output = match pgtt {
            4 => {
                if address >> facts.haw != 0 {
                    return Err(self.fault(&[0x83]));
                }
                address
            }
            2 => {
                if address >> limit != 0 {
                    return Err(self.fault(&[0x84]));
                }
                let mapped = self.second_stage(address, &second)?;
                self.finish_second(&mapped, &second)?;
                mapped.address
            }
            _ => {
                let levels = if fspm == 1 { 5 } else { 4 };
                let nested = (pgtt == 3).then_some((&second, limit));
                self.first_stage(first_table, levels, second.snooped, nested)?
            }
        };
        self.cached = true;
        if pgtt != 4 && output >> 20 == 0xfee {
            return Err(self.fault(&[0x87]));
        }
        Ok(output)
    }
}

fn width(aw: u64) -> u32 {
    [0, 39, 48, 57][crate::index(aw)]
}

fn levels(aw: u64) -> u32 {
    [0, 3, 4, 5][crate::index(aw)]
}
