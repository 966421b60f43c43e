//! PASIDs of a device that the guest has entries for, and of which it may have changed them.

use crate::budget::{Budget, Spent};
use intel_vtd::spec::descriptors::PasidCacheScope;
use intel_vtd::spec::pasid::{DirectoryEntry, PasidEntry};
use intel_vtd::{GuestTables, Invalidation, Pasid, PasidDirectory, SourceId, TableMemory};

/// PASIDs of a directory entry: those of a table.
const PER_TABLE: u32 = 64;
/// Directory entries of a page.
const PER_PAGE: u32 = 512;

/// Which PASIDs of a device are to be looked at, as the guest may have changed their entries.
///
/// With caching mode, software says so of each entry that becomes present, too (section 6.1): by
/// the PASID; or as part of more, of which what was not present is domain 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    /// All that there are: known ones, and what the directory has besides.
    pub(crate) all: bool,
    /// All that are known.
    pub(crate) known: bool,
    /// These.
    pub(crate) named: Vec<Pasid>,
}

impl Asked {
    pub(crate) fn by(invalidations: &[Invalidation], source: SourceId) -> Self {
        let mut asked = Self::default();
        for invalidation in invalidations {
            match *invalidation {
                Invalidation::All
                | Invalidation::PasidCache(PasidCacheScope::Global | PasidCacheScope::Domain(0)) => {
                    asked.all = true
                }
                Invalidation::Context(scope) => asked.all |= scope.concerns(source),
                Invalidation::PasidCache(PasidCacheScope::Domain(_)) => asked.known = true,
                Invalidation::PasidCache(PasidCacheScope::Pasid(_, pasid)) => {
                    asked.named.extend(Pasid::new(pasid));
                }
                Invalidation::Iotlb(_)
                | Invalidation::PasidIotlb { .. }
                | Invalidation::DeviceTlb { .. } => {}
            }
        }
        asked.known |= asked.all;
        asked
    }
}

/// The PASIDs of a device that are to be looked at: known ones, named ones, and those of which the
/// directory has a present entry.
pub(crate) struct Candidates<'a, T> {
    tables: &'a GuestTables<'a, T>,
    source: SourceId,
    listed: std::vec::IntoIter<Pasid>,
    scan: Option<Scan<'a, T>>,
    is_scanning: bool,
}

impl<'a, T: TableMemory> Candidates<'a, T> {
    pub(crate) fn new(
        tables: &'a GuestTables<'a, T>,
        source: SourceId,
        asked: &Asked,
        known: impl Iterator<Item = Pasid>,
    ) -> Self {
        let known = asked.known.then_some(known).into_iter().flatten();
        let listed: Vec<_> = known.chain(asked.named.iter().copied()).collect();
        let scan = asked.all.then(|| Scan::new(tables, source));
        Self {
            tables,
            source,
            listed: listed.into_iter(),
            scan: scan.flatten(),
            is_scanning: false,
        }
    }

    /// After the last one: those of the directory, too, if that was not looked through. Returns
    /// whether there may be some.
    pub(crate) fn go_on(&mut self) -> bool {
        if self.scan.is_some() {
            return false;
        }
        self.scan = Scan::new(self.tables, self.source);
        self.scan.is_some()
    }

    /// Whether the last one was found in the directory, in which there are known ones, too.
    pub(crate) const fn is_scanning(&self) -> bool {
        self.is_scanning
    }

    /// The next one, or why it was not looked for to the end.
    pub(crate) fn next(&mut self, budget: &mut Budget) -> Option<Result<Pasid, Spent>> {
        if let Some(pasid) = self.listed.next() {
            return Some(Ok(pasid));
        }
        self.is_scanning = true;
        self.scan.as_mut()?.next(budget)
    }
}

/// Finds the PASIDs of a device whose entries are present, in ascending order (section 9.5, 9.6).
struct Scan<'a, T> {
    tables: &'a GuestTables<'a, T>,
    directory: PasidDirectory,
    /// The next entry of the directory.
    index: u32,
    /// The table that is read, and the next of its entries.
    table: Option<(u64, u32)>,
}

impl<'a, T: TableMemory> Scan<'a, T> {
    /// `None` if the device has no directory.
    fn new(tables: &'a GuestTables<'a, T>, source: SourceId) -> Option<Self> {
        let directory = tables.pasid_directory(source)?;
        Some(Self {
            tables,
            directory,
            index: 0,
            table: None,
        })
    }

    fn next(&mut self, budget: &mut Budget) -> Option<Result<Pasid, Spent>> {
        loop {
            if let Some(pasid) = self.next_of_table() {
                return Some(Ok(pasid));
            }
            if self.index >= self.directory.pasids.div_ceil(PER_TABLE) {
                return None;
            }
            if let Err(error) = self.open_table(budget) {
                return Some(Err(error));
            }
        }
    }

    /// The next PASID of the open table.
    fn next_of_table(&mut self) -> Option<Pasid> {
        let (table, next) = self.table.as_mut()?;
        while *next < PER_TABLE {
            let within = *next;
            *next += 1;
            let address = *table + u64::from(within) * PasidEntry::SIZE;
            let entry = self.tables.memory().read_u64(address);
            let is_present = entry.is_ok_and(|word| word & 1 != 0);
            let pasid = Pasid::new((self.index - 1) * PER_TABLE + within)
                .filter(|pasid| is_present && pasid.get() < self.directory.pasids);
            if pasid.is_some() {
                return pasid;
            }
        }
        self.table = None;
        None
    }

    /// Opens the table of the next entry of the directory, if it has one.
    fn open_table(&mut self, budget: &mut Budget) -> Result<(), Spent> {
        if self.index.is_multiple_of(PER_PAGE) {
            budget.pasid_step()?;
        }
        let address = self.directory.address + u64::from(self.index) * DirectoryEntry::SIZE;
        self.index += 1;
        let entry = self.tables.memory().read_u64(address).map(DirectoryEntry);
        if let Ok(entry) = entry
            && entry.validate(self.tables.gates()).is_ok()
        {
            budget.pasid_step()?;
            self.table = Some((entry.table(), 0));
        }
        Ok(())
    }
}
