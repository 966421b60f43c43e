//! The guest's translation tables as one value: memory, capabilities, latched state, caches (sec.
//! 3, 6.2 and 9).

use super::caches::{NoCaches, StructureCaches};
use super::request::Latched;
use crate::memory::TableMemory;
use crate::spec::gates::Gates;

/// The guest's translation tables: where they are, how to read them, and the caches in front of
/// them.
///
/// It is a snapshot of what the guest has latched; the tables themselves are read at each call.
///
/// `T` is guest memory, `C` the caches of section 6.2. [`NoCaches`] compiles to nothing.
pub struct GuestTables<'a, T, C = NoCaches> {
    memory: T,
    gates: &'a Gates,
    latched: Latched,
    caches: C,
}

impl<'a, T: TableMemory> GuestTables<'a, T> {
    /// Tables in `memory` without caches in front of them.
    #[inline]
    pub const fn new(memory: T, gates: &'a Gates, latched: Latched) -> Self {
        Self {
            memory,
            gates,
            latched,
            caches: NoCaches,
        }
    }
}

impl<'a, T: TableMemory, C: StructureCaches> GuestTables<'a, T, C> {
    /// Guest memory.
    #[inline]
    pub const fn memory(&self) -> &T {
        &self.memory
    }

    /// Capabilities and widths, against which entries are checked.
    #[inline]
    pub const fn gates(&self) -> &'a Gates {
        self.gates
    }

    /// What the guest has latched.
    #[inline]
    pub const fn latched(&self) -> &Latched {
        &self.latched
    }

    /// The caches in front of the tables.
    #[inline]
    pub(crate) const fn caches(&self) -> &C {
        &self.caches
    }

    /// The same tables in another memory, without caches.
    pub(crate) const fn in_memory<U: TableMemory>(&self, memory: U) -> GuestTables<'a, U> {
        GuestTables::new(memory, self.gates, self.latched)
    }

    /// The same tables behind `caches`.
    pub(crate) const fn behind<D: StructureCaches>(&self, caches: D) -> GuestTables<'a, &T, D> {
        GuestTables {
            memory: &self.memory,
            gates: self.gates,
            latched: self.latched,
            caches,
        }
    }

    /// What the caches became.
    pub(crate) fn into_caches(self) -> C {
        self.caches
    }
}
