//! Page tables of one address space, built page by page (sections 9.7 and 9.8).
//!
//! The builder remembers where its tables are, and writes every entry on the way again: so it
//! repairs what a test broke.

use std::collections::HashMap;

use crate::ram::Ram;

/// Hands out pages of a range, never twice.
#[derive(Debug)]
pub struct Pages {
    next: u64,
    end: u64,
}

impl Pages {
    /// The pages of `start..end`.
    pub fn new(start: u64, end: u64) -> Self {
        Self { next: start, end }
    }

    /// A page that nobody else has, zeroed.
    pub fn take(&mut self, ram: &mut Ram) -> Option<u64> {
        if self.next >= self.end {
            return None;
        }
        let page = self.next;
        self.next += 4096;
        ram.store(page, &[0; 512]);
        Some(page)
    }
}

/// Which entry format a space has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Section 9.7.
    First,
    /// Section 9.8.
    Second,
}

/// One address space.
#[derive(Debug)]
pub struct Space {
    /// Entry format.
    pub stage: Stage,
    /// Number of levels.
    pub levels: u32,
    /// Memory address of the top table.
    pub top: u64,
    /// Added to memory addresses of tables in pointers: tables of a nested first stage are at
    /// guest addresses.
    pub shift: u64,
    tables: HashMap<(u32, u64), u64>,
}

/// Where an entry is, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its memory address.
    pub at: u64,
    /// 1 for an entry of the lowest table.
    pub level: u32,
    /// First input address that uses it.
    pub input: u64,
}

impl Space {
    /// A space with an empty top table.
    pub fn new(
        stage: Stage,
        levels: u32,
        shift: u64,
        pages: &mut Pages,
        ram: &mut Ram,
    ) -> Option<Self> {
        Some(Self {
            stage,
            levels,
            top: pages.take(ram)?,
            shift,
            tables: HashMap::new(),
        })
    }

    /// What goes into the entry that points to this space.
    pub fn pointer(&self) -> u64 {
        self.top + self.shift
    }

    /// All entries on the way to `input`, from the top down to that of `level`. Makes the tables
    /// that are missing.
    pub fn slots(
        &mut self,
        input: u64,
        level: u32,
        pages: &mut Pages,
        ram: &mut Ram,
    ) -> Option<Vec<Slot>> {
        let mut slots = Vec::new();
        let mut table = self.top;
        for at_level in (level..=self.levels).rev() {
            let bits = 12 + 9 * (at_level - 1);
            slots.push(Slot {
                at: table + (input >> bits & 0x1ff) * 8,
                level: at_level,
                input: input >> bits << bits,
            });
            if at_level > level {
                let key = (at_level, input >> bits);
                table = match self.tables.get(&key) {
                    Some(table) => *table,
                    None => {
                        let new = pages.take(ram)?;
                        self.tables.insert(key, new);
                        new
                    }
                };
            }
        }
        Some(slots)
    }

    /// An entry that points to the table at memory address `table`.
    pub fn table_entry(&self, table: u64) -> u64 {
        match self.stage {
            Stage::First => (table + self.shift) | 0x7,
            Stage::Second => (table + self.shift) | 0x3,
        }
    }

    /// Maps `input` to `target` with a leaf of `level` whose low bits are `flags`; PS is added for
    /// large pages.
    pub fn map(
        &mut self,
        input: u64,
        target: u64,
        level: u32,
        flags: u64,
        pages: &mut Pages,
        ram: &mut Ram,
    ) -> Option<Vec<Slot>> {
        let slots = self.slots(input, level, pages, ram)?;
        for (upper, lower) in slots.iter().zip(slots.iter().skip(1)) {
            ram_update(ram, upper.at, self.table_entry(lower.at & !0xfff));
        }
        let leaf = slots.last()?;
        let large = if level > 1 { 0x80 } else { 0 };
        ram_update(ram, leaf.at, target | flags | large);
        Some(slots)
    }
}

/// Stores a word unless it is there already, apart from the bits that hardware sets.
fn ram_update(ram: &mut Ram, at: u64, word: u64) {
    if ram.load(at) & !0x360 != word & !0x360 || word & 0x360 != 0 {
        ram.store(at, &[word]);
    }
}
