//! Second-stage walks (sections 3.7, 3.8 and 9.8).

use super::{Step, Taken, Walk};
use crate::flushes::Kind;

/// Which tables, and how to walk them.
#[derive(Clone, Copy, Debug)]
pub(super) struct SecondStage {
    pub(super) table: u64,
    pub(super) levels: u32,
    pub(super) legacy: bool,
    pub(super) accessed_dirty: bool,
    pub(super) snooped: bool,
}

/// What an address maps to.
pub(super) struct Mapped {
    pub(super) address: u64,
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) shift: u32,
    pub(super) snooped: bool,
    leaf: Taken,
}

impl Walk<'_> {
    /// Walks for the request's access in legacy mode; else leaves permissions to the caller.
    pub(super) fn second_stage(&mut self, input: u64, stage: &SecondStage) -> Step<Mapped> {
        let codes = if stage.legacy {
            // Section 7.1.3 has code 3 for the top table, emulators have 7.
            [&[0x03, 0x07][..], &[0x07], &[0x0c]]
        } else {
            [&[0x7b][..], &[0x78], &[0x7a]]
        };
        let (mut read, mut write) = (true, true);
        let mut table = stage.table;
        for level in (1..=stage.levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let top = level == stage.levels;
            let fetch = codes[if top { 0 } else { 1 }];
            let at = table + (input >> shift & 0x1ff) * 8;
            if self.image.word(at).is_none() {
                return Err(self.fault(fetch));
            }
            let entry = self.take(at, 1, fetch[0])?;
            let word = entry.words[0];
            let leaf = level == 1 || (level <= 3 && word & 0x80 != 0);
            let kind = Kind::Second { leaf, input };
            read &= word & 1 != 0;
            write &= word & 2 != 0;
            let absent = word & 3 == 0;
            if stage.legacy {
                let (lacking, code) = if self.asks().is_some() {
                    (!read && !write, 0x06)
                } else if self.request.write {
                    (!write, 0x05)
                } else {
                    (!read, 0x06)
                };
                if lacking && absent {
                    return Err(self.blocked_by(&entry, kind, &[code]));
                }
                if lacking {
                    self.note(kind, &entry);
                    self.cached = true;
                    return Err(self.fault(&[code]));
                }
            } else {
                if absent {
                    return Err(self.blocked_by(&entry, kind, &[0x79]));
                }
                if !read && !write {
                    self.note(kind, &entry);
                    self.cached = true;
                    return Err(self.fault(&[0x79]));
                }
            }
            if word & self.reserved(level, leaf) != 0 {
                return Err(self.blocked_by(&entry, kind, codes[2]));
            }
            self.note(kind, &entry);
            if stage.accessed_dirty && word & 0x100 == 0 {
                if !stage.snooped {
                    return Err(self.blocked_by(&entry, kind, &[0x7c]));
                }
                self.update(&entry, 0x100)?;
            }
            if leaf {
                let offset = input & ((1 << shift) - 1);
                let page = word & self.facts.pointer() & (u64::MAX << shift);
                return Ok(Mapped {
                    address: page | offset,
                    read,
                    write,
                    shift,
                    snooped: word >> 11 & 1 != 0,
                    leaf: entry,
                });
            }
            table = word & self.facts.pointer();
        }
        unreachable!("level 1 is a leaf")
    }

    /// Permissions and the D bit, for the request's own access. `writable`: nothing else forbids
    /// writes.
    pub(super) fn finish_second(
        &mut self,
        mapped: &Mapped,
        stage: &SecondStage,
        writable: bool,
    ) -> Step<()> {
        if self.asks().is_some() {
            if self.dirties(writable && mapped.write) {
                self.dirty(mapped, stage)?;
            }
            return Ok(());
        }
        if self.request.write && !mapped.write {
            self.cached = true;
            return Err(self.fault(&[0x85]));
        }
        if !self.request.write && !mapped.read {
            self.cached = true;
            return Err(self.fault(&[0x86]));
        }
        if self.request.write {
            self.dirty(mapped, stage)?;
        }
        Ok(())
    }

    /// D of the leaf, if the stage has it.
    pub(super) fn dirty(&mut self, mapped: &Mapped, stage: &SecondStage) -> Step<()> {
        if !stage.accessed_dirty || mapped.leaf.words[0] & 0x200 != 0 {
            return Ok(());
        }
        if !stage.snooped {
            return Err(self.fault(&[0x7c]));
        }
        self.update(&mapped.leaf, 0x200)
    }

    fn reserved(&self, level: u32, leaf: bool) -> u64 {
        let mut reserved = self.facts.table_reserved() | 1 << 62;
        if !leaf || !self.facts.snoop_control {
            reserved |= 1 << 11;
        }
        match (level, leaf) {
            (4 | 5, _) => reserved |= 0x80,
            (3, true) => {
                reserved |= 0x3fff_f000;
                if self.facts.sslps & 2 == 0 {
                    reserved |= 0x80;
                }
            }
            (2, true) => {
                reserved |= 0x1f_f000;
                if self.facts.sslps & 1 == 0 {
                    reserved |= 0x80;
                }
            }
            _ => {}
        }
        reserved
    }
}
