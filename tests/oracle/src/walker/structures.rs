//! From the root table to the page tables (sections 3.4, 7.1.3 and 9.1-9.6).

use super::second::SecondStage;
use super::{Form, Found, Step, Walk};
use crate::flushes::Kind;

const CONTEXT: Kind = Kind::Context;
const PASID: Kind = Kind::Pasid;

impl Walk<'_> {
    pub(super) fn run(&mut self) -> Step<Found> {
        self.cached = false;
        if self.request.address >> 20 == 0xfee && self.request.pasid.is_none() {
            match self.request.form {
                Form::Untranslated => return Err(self.fault(&[0x29])),
                // Sheet D1: no table is looked at.
                Form::Translation { no_write } => {
                    return Ok(Found {
                        write: true,
                        untranslated_only: !no_write,
                        ..Found::NOTHING
                    });
                }
                Form::Translated | Form::Page => {}
            }
        }
        match self.root.mode {
            0 => self.legacy(),
            1 if self.facts.scalable => self.scalable(),
            _ => Err(self.fault(&[0x30])),
        }
    }

    fn legacy(&mut self) -> Step<Found> {
        if self.request.form == Form::Page {
            return Err(self.fault(&[0x32]));
        }
        if self.request.pasid.is_some() {
            return Err(self.fault(&[0x31]));
        }
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
            1 => self.facts.device_tlb && supported,
            2 => self.facts.pass_through && supported && largest,
            _ => false,
        };
        if !typed {
            return Err(self.blocked_by(&context, CONTEXT, &[0x03]));
        }
        self.note(CONTEXT, &context);
        if self.request.form != Form::Untranslated && tt != 1 {
            return Err(self.fault(&[0x0d]));
        }
        let address = self.request.address;
        if self.request.form == Form::Translated {
            return self.translated(0x04, 0x0e);
        }
        self.did = Some(high >> 8 & 0xffff);
        let limit = if tt == 2 {
            self.facts.haw.min(self.facts.mgaw)
        } else {
            self.facts.mgaw.min(width(aw))
        };
        if address >> limit != 0 {
            return Err(self.fault(&[0x04]));
        }
        if tt == 2 {
            self.cached = true;
            return Ok(Found::identity(address));
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
        Ok(Found {
            address: mapped.address,
            read: mapped.read,
            write: mapped.write,
            untranslated_only: false,
            snooped: mapped.snooped,
            shift: mapped.shift,
        })
    }

    /// What the device was told is taken as it is, if it can be an address.
    fn translated(&mut self, beyond: u8, interrupt: u8) -> Step<Found> {
        let address = self.request.address;
        if address >> self.facts.haw != 0 {
            return Err(self.fault(&[beyond]));
        }
        if address >> 20 == 0xfee {
            return Err(self.fault(&[interrupt]));
        }
        Ok(Found::identity(address))
    }

    fn scalable(&mut self) -> Step<Found> {
        let form = self.request.form;
        if let Some(pasid) = self.request.pasid
            && pasid >> self.facts.pasid_bits != 0
            && form != Form::Page
        {
            return Err(self.fault(&[0x89]));
        }
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
        // 8:5 (no HPT, no PASID in translated requests), 63:HAW, RID_PRIV, and all the rest.
        let pasids = self.facts.pasid_bits != 0;
        let mut reserved = self.facts.beyond() | 0x1e0;
        for (bit, present) in [
            (4, self.facts.device_tlb),
            (8, pasids),
            (0x10, self.facts.page_requests),
        ] {
            reserved |= if present { 0 } else { bit };
        }
        let rid_pasid = context.words[1];
        let widest = if pasids { 0xf_ffff } else { 0 };
        if low & reserved != 0 || rid_pasid > widest || context.words[2..] != [0, 0] {
            return Err(self.blocked_by(&context, CONTEXT, &[0x42]));
        }
        let (dte, paside, pre) = (low & 4 != 0, low & 8 != 0, low & 0x10 != 0);
        // The directory has 2^(PDTS + 7) entries of 64 PASIDs each.
        let end = 1 << ((low >> 9 & 7) + 13);
        if pre && !dte || rid_pasid >= end {
            return Err(self.blocked_by(&context, CONTEXT, &[0x43]));
        }
        self.note(CONTEXT, &context);
        // Sheet D3: the order of these is not fixed. They are no fault of the entry, which other
        // requests may have cached.
        let asked = self.request.pasid;
        let translation = matches!(form, Form::Translation { .. } | Form::Translated);
        let denials: Vec<u8> = [
            (translation && !dte, 0x44),
            (asked.is_some() && !paside, 0x45),
            (asked.is_some_and(|pasid| pasid >= end), 0x46),
            (form == Form::Page && !pre, 0x47),
            (asked == Some(rid_pasid), 0x48),
        ]
        .into_iter()
        .filter_map(|(denied, code)| denied.then_some(code))
        .collect();
        if !denials.is_empty() {
            return Err(self.fault(&denials));
        }
        if form == Form::Translated {
            return self.translated(0x83, 0x87);
        }
        self.pasid = asked.unwrap_or(rid_pasid);
        let at = (low & self.facts.pointer()) + (self.pasid >> 6) * 8;
        let directory = self.take(at, 1, 0x50)?;
        let word = directory.words[0];
        self.fpd |= word & 2 != 0;
        if word & 1 == 0 {
            return Err(self.blocked_by(&directory, PASID, &[0x51]));
        }
        if word & (self.facts.beyond() | 0xffc) != 0 {
            return Err(self.blocked_by(&directory, PASID, &[0x52]));
        }
        self.note(PASID, &directory);
        self.pasid_entry((word & self.facts.pointer()) + (self.pasid & 0x3f) * 64)
    }

    fn pasid_entry(&mut self, at: u64) -> Step<Found> {
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
            // 129, 139:136.
            2 | 0xf00,
            u64::MAX,
            u64::MAX,
            u64::MAX,
            u64::MAX,
            u64::MAX,
        ];
        if !facts.second {
            // AW, too, is reserved by the letter. But Linux writes it in first-stage and
            // pass-through entries whatever SSTS says, so the unit does not look at it,
            // which section 9.6 permits to read as "ignored where it is unused".
            reserved[0] |= 1 << 9 | facts.pointer();
        }
        if facts.pasid_bits == 0 {
            // SRE.
            reserved[2] |= 1;
        }
        if !facts.extended_accessed {
            // EAFE.
            reserved[2] |= 1 << 7;
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
        // FSPTPTR is a field of 52 bits, ignored where it is unused; only what uses it reserves its
        // upper ones. (SSPTPTR ends at HAW, and 63:HAW is reserved for itself.)
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
        self.pgtt = pgtt;
        let address = self.request.address;
        if self.request.form == Form::Page {
            return Ok(Found::identity(address));
        }
        if self.request.privileged && word(2) & 1 == 0 {
            return Err(self.fault(&[0x5d]));
        }
        let second = SecondStage {
            table: word(0) & facts.pointer(),
            levels: if aw_good { levels(aw) } else { 0 },
            legacy: false,
            accessed_dirty: word(0) >> 9 & 1 != 0,
            snooped: word(1) >> 23 & 1 != 0,
        };
        let mut found = match pgtt {
            4 => {
                if address >> facts.haw.min(facts.mgaw) != 0 {
                    return Err(self.fault(&[0x83]));
                }
                Found::identity(address)
            }
            2 => {
                if address >> limit != 0 {
                    return Err(self.fault(&[0x84]));
                }
                let mapped = self.second_stage(address, &second)?;
                self.finish_second(&mapped, &second, true)?;
                Found {
                    address: mapped.address,
                    read: mapped.read,
                    write: mapped.write,
                    untranslated_only: false,
                    snooped: mapped.snooped,
                    shift: mapped.shift,
                }
            }
            _ => {
                let levels = if fspm == 1 { 5 } else { 4 };
                let nested = (pgtt == 3).then_some((&second, limit));
                // A, and EA with it if EAFE is set.
                let accessed = 0x20 | (word(2) >> 7 & 1) << 10;
                let protect = word(2) >> 4 & 1 != 0;
                self.first_stage(
                    first_table,
                    levels,
                    accessed,
                    second.snooped,
                    nested,
                    protect,
                )?
            }
        };
        self.cached = true;
        // PGSNP.
        found.snooped |= word(1) >> 24 & 1 != 0;
        // Sheet E1: of translation requests, this concerns those that are not passed through.
        if found.address >> 20 == 0xfee && !(pgtt == 4 && self.asks().is_some()) {
            return Err(self.fault(&[0x87]));
        }
        Ok(found)
    }
}

fn width(aw: u64) -> u32 {
    [0, 39, 48, 57][crate::index(aw)]
}

fn levels(aw: u64) -> u32 {
    [0, 3, 4, 5][crate::index(aw)]
}
