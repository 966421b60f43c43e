//! A walk down the tables of one stage, step by step (sec. 3.6 and 3.7).

use super::caches::{Stage, StructureCaches, UpperEntry};

/// The table that a walk reads next, and what the entries above it grant.
pub(super) struct Descent {
    stage: Stage,
    input: u64,
    table: u64,
    level: u8,
    top: u8,
    rights: (bool, bool),
}

impl Descent {
    /// Before the top table, of level `top`, or below the lowest entry on the way of `input` that
    /// `caches` have.
    #[inline]
    pub(super) fn begin(
        caches: &impl StructureCaches,
        stage: Stage,
        input: u64,
        table: u64,
        top: u8,
    ) -> Self {
        let mut descent = Self {
            stage,
            input,
            table,
            level: top,
            top,
            rights: (true, true),
        };
        if let Some(upper) = caches.upper(stage, input) {
            descent.rights = upper.rights;
            descent.table = upper.table;
            descent.level = upper.level - 1;
        }
        descent
    }

    /// The level of the table, 5 to 1.
    pub(super) const fn level(&self) -> u8 {
        self.level
    }

    /// Whether it is the top table.
    pub(super) const fn is_top(&self) -> bool {
        self.level == self.top
    }

    /// Where the entry for the input is.
    pub(super) const fn entry_address(&self) -> u64 {
        self.table + (self.input >> self.page_shift() & 0x1ff) * 8
    }

    /// Log2 of the bytes that an entry of the table is for.
    pub(super) const fn page_shift(&self) -> u8 {
        12 + 9 * (self.level - 1)
    }

    /// What all entries so far grant: U/S and R/W in a first stage, reading and writing in a second
    /// one.
    pub(super) const fn rights(&self) -> (bool, bool) {
        self.rights
    }

    /// Leaves of the rights what an entry grants as well.
    pub(super) const fn narrow(&mut self, (first, second): (bool, bool)) {
        self.rights = (self.rights.0 & first, self.rights.1 & second);
    }

    /// Where the input is in the page at `page` that a leaf maps.
    pub(super) const fn within(&self, page: u64) -> u64 {
        page | self.input & !(u64::MAX << self.page_shift())
    }

    /// Goes on in the table that an entry points to. It is of no leaf, so there is a level below.
    #[inline]
    pub(super) fn follow(&mut self, caches: &impl StructureCaches, table: u64) {
        let upper = UpperEntry {
            level: self.level,
            table,
            rights: self.rights,
        };
        caches.found_upper(self.stage, self.input, upper);
        self.table = table;
        self.level -= 1;
    }
}
