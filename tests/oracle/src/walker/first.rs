//! First-stage and nested walks (sections 3.6, 3.8 and 9.7).

use super::second::{Mapped, SecondStage};
use super::{Found, Step, Taken, Walk};
use crate::flushes::Kind;

impl Walk<'_> {
    /// Translates the request; `accessed` is what is set in each entry; with `nested`, through that
    /// second stage of so many input bits; `protect` is WPE.
    pub(super) fn first_stage(
        &mut self,
        table: u64,
        levels: u32,
        accessed: u64,
        snooped: bool,
        nested: Option<(&SecondStage, u32)>,
        protect: bool,
    ) -> Step<Found> {
        let input = self.request.address;
        let sign = if levels == 5 { 56 } else { 47 };
        let upper = input >> sign;
        if upper != 0 && upper != u64::MAX >> sign {
            return Err(self.fault(&[0x80]));
        }
        let (mut user, mut writable) = (true, true);
        let mut table = table;
        for level in (1..=levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let top = level == levels;
            let guest_at = table + (input >> shift & 0x1ff) * 8;
            let backing = match nested {
                Some((stage, _)) => Some((self.table_access(guest_at, stage, top)?, stage)),
                None => None,
            };
            let at = backing
                .as_ref()
                .map_or(guest_at, |(mapped, _)| mapped.address);
            let entry = self.take(at, 1, if top { 0x73 } else { 0x70 })?;
            let word = entry.words[0];
            let leaf = level == 1 || (level <= 3 && word & 0x80 != 0);
            let kind = Kind::First { leaf };
            if word & 1 == 0 {
                return Err(self.blocked_by(&entry, kind, &[0x71]));
            }
            if word & self.first_reserved(level, leaf) != 0 {
                return Err(self.blocked_by(&entry, kind, &[0x72]));
            }
            let target = word & ((1 << 52) - 1) & !0xfff;
            if let Some((_, limit)) = nested
                && target >> limit != 0
            {
                return Err(self.blocked_by(&entry, kind, &[0x74]));
            }
            self.note(kind, &entry);
            user &= word & 4 != 0;
            writable &= word & 2 != 0;
            let writable = writable || self.request.privileged && !protect;
            if leaf && !user && !self.request.privileged {
                self.cached = true;
                // A may be set for requests that are denied (section 3.6.3), and may be what cannot
                // be done.
                let unset = word & accessed != accessed;
                let unwritable = backing.as_ref().is_some_and(|(mapped, _)| !mapped.write);
                let codes: &[u8] = match (unset, unwritable, snooped) {
                    (true, true, true) => &[0x81, 0x77],
                    (true, true, false) => &[0x81, 0x77, 0x90],
                    (true, false, false) => &[0x81, 0x90],
                    _ => &[0x81],
                };
                if unset && taken_now(&entry) {
                    self.extra.push((entry.at, accessed));
                }
                return Err(self.fault(codes));
            }
            if word & accessed != accessed {
                self.may_update(snooped, backing.as_ref())?;
                self.update(&entry, accessed)?;
            }
            if leaf {
                let offset = input & ((1 << shift) - 1);
                let page = target & (u64::MAX << shift);
                let output = page | offset;
                let denied = self.asks().is_none() && self.request.write && !writable;
                let mut found = Found {
                    write: writable,
                    shift,
                    ..Found::identity(output)
                };
                if let Some((stage, _)) = nested {
                    let mapped = self.second_stage(output, stage)?;
                    if denied {
                        self.cached = true;
                        return Err(self.fault(&[0x85]));
                    }
                    self.finish_second(&mapped, stage, writable)?;
                    found = Found {
                        address: mapped.address,
                        read: mapped.read,
                        write: writable && mapped.write,
                        shift: shift.min(mapped.shift),
                        snooped: mapped.snooped,
                        ..found
                    };
                }
                if denied {
                    self.cached = true;
                    return Err(self.fault(&[0x85]));
                }
                if self.dirties(found.write) && word & 0x40 == 0 {
                    self.may_update(snooped, backing.as_ref())?;
                    self.update(&entry, 0x40)?;
                }
                return Ok(found);
            }
            table = target;
        }
        unreachable!("level 1 is a leaf")
    }

    /// The second stage's translation of a first-stage entry (sheet D5, D6).
    fn table_access(&mut self, guest_at: u64, stage: &SecondStage, top: bool) -> Step<Mapped> {
        let mapped = self.second_stage(guest_at, stage)?;
        let unreadable = if top { 0x75 } else { 0x76 };
        if !mapped.read {
            self.cached = true;
            return Err(self.fault(&[unreadable]));
        }
        if stage.accessed_dirty && !mapped.write {
            self.cached = true;
            return Err(self.fault(&[0x77, unreadable]));
        }
        // The facts sheet leaves open whether reading a first-stage entry is a write of its
        // second-stage page even if no bit of the entry has to be set. The unit takes it
        // for one, as the CPU does with EPT; so D is required.
        self.dirty(&mapped, stage)?;
        Ok(mapped)
    }

    /// Whether A or D of a first-stage entry can be set.
    fn may_update(&mut self, snooped: bool, backing: Option<&(Mapped, &SecondStage)>) -> Step<()> {
        if let Some((mapped, _)) = backing
            && !mapped.write
        {
            let codes: &[u8] = if snooped { &[0x77] } else { &[0x77, 0x90] };
            return Err(self.fault(codes));
        }
        if !snooped {
            return Err(self.fault(&[0x90]));
        }
        Ok(())
    }

    fn first_reserved(&self, level: u32, leaf: bool) -> u64 {
        let mut reserved = self.facts.table_reserved();
        match (level, leaf) {
            (4 | 5, _) => reserved |= 0x80,
            (3, true) => {
                // 29:13; bit 12 is PAT.
                reserved |= 0x3fff_e000;
                if !self.facts.first_1g {
                    reserved |= 0x80;
                }
            }
            (2, true) => reserved |= 0x1f_e000,
            _ => {}
        }
        reserved
    }
}

fn taken_now(entry: &Taken) -> bool {
    entry.replaced.is_none()
}
