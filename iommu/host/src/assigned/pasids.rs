//! Which PASIDs of a device the guest has entries for.

use std::ops::ControlFlow;

use crate::budget::{Budget, Exhausted};
use intel_vtd::spec::descriptors::PasidCacheScope;
use intel_vtd::spec::pasid::{DirectoryEntry, PasidEntry};
use intel_vtd::{GuestTables, Invalidation, Pasid, SourceId, TableMemory};

/// PASIDs of a directory entry: those of a table.
const PER_TABLE: u32 = 64;
/// Directory entries of a page.
const PER_PAGE: u32 = 512;

/// Which PASIDs of a device are to be looked at, as the guest may have changed their entries.
///
/// With caching mode, software says so of each entry that becomes present, too (section 6.1): by the PASID; or as part of more,
/// of which what was not present is domain 0.
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

/// Calls `found` with each PASID of `source` whose entry is present, in ascending order, until it breaks.
///
/// # Errors
/// The budget was used up first.
pub(crate) fn scan<T: TableMemory>(
    tables: &GuestTables<'_, T>,
    source: SourceId,
    budget: &mut Budget,
    mut found: impl FnMut(Pasid, &mut Budget) -> ControlFlow<Result<(), Exhausted>>,
) -> Result<(), Exhausted> {
    let (memory, gates) = (tables.memory(), tables.gates());
    let Some(directory) = tables.pasid_directory(source) else {
        return Ok(());
    };
    for index in 0..directory.pasids.div_ceil(PER_TABLE) {
        if index.is_multiple_of(PER_PAGE) {
            budget.step()?;
        }
        let address = directory.address + u64::from(index) * DirectoryEntry::SIZE;
        let Ok(word) = memory.read_u64(address) else {
            continue;
        };
        let entry = DirectoryEntry(word);
        if entry.validate(gates).is_err() {
            continue;
        }
        budget.step()?;
        for within in 0..PER_TABLE {
            let address = entry.table() + u64::from(within) * PasidEntry::SIZE;
            let is_present = memory.read_u64(address).is_ok_and(|word| word & 1 != 0);
            let pasid = Pasid::new(index * PER_TABLE + within)
                .filter(|pasid| is_present && pasid.get() < directory.pasids);
            if let Some(pasid) = pasid
                && let ControlFlow::Break(outcome) = found(pasid, budget)
            {
                return outcome;
            }
        }
    }
    Ok(())
}
