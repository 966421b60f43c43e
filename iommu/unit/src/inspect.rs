//! What a unit is and does, for people who look for a mistake: in a guest's driver, in a device, or
//! in the unit.
//!
//! * [`Unit::describe`]: every register decoded, pending faults, counters;
//! * [`Unit::bindings`]: what translates the requests of each source and PASID;
//! * [`Unit::explain`]: the entries that the translation of one address reads, and how it ends.
//!
//! All of it may be called at any time from any thread, and changes nothing: no fault is recorded,
//! no accessed or dirty bit set, nothing cached or counted. What it answers implements
//! [`Display`](std::fmt::Display), and has fields for programs.

mod bindings;
mod decode;
mod entry;
mod explain;
mod field;
mod recorder;
mod registers;

use std::ops::Deref;

use vm_memory::GuestMemoryBackend;

pub use bindings::{Bound, SEARCHED_TABLES, SHOWN_PASIDS, SourceBindings, bindings_of};
pub use entry::{EntryKind, Leads, SecondStageInput, Step};
pub use explain::{Explanation, explain};
pub use field::{Field, FieldValue};
pub use registers::{PendingFault, RegisterDescription, UnitDescription};

use crate::spec::ids::{Pasid, SourceId};
use crate::translate::Binding;
use crate::unit::Unit;

impl<M: Deref<Target: GuestMemoryBackend>> Unit<M> {
    /// Every register decoded, pending faults and counters.
    ///
    /// It reads registers as the guest does, and waits for no command that is being carried out.
    pub fn describe(&self) -> UnitDescription {
        UnitDescription::of(self)
    }

    /// What translates untranslated requests of `source`, with `pasid` or without.
    pub fn binding_of(&self, source: SourceId, pasid: Option<Pasid>) -> Binding {
        self.dma_state().tables().binding(source, pasid)
    }

    /// What translates the requests of each of `sources`, and of their PASIDs.
    ///
    /// For each source up to 2^14 PASID directory entries and [`SEARCHED_TABLES`] PASID tables are
    /// looked at, whatever the guest has.
    pub fn bindings(&self, sources: impl IntoIterator<Item = SourceId>) -> Vec<SourceBindings> {
        let tables = self.dma_state().tables();
        sources
            .into_iter()
            .map(|source| bindings_of(&tables, source))
            .collect()
    }

    /// What a translation of `address` reads for `source`, with `pasid` or without, and how it
    /// ends.
    ///
    /// Tables are read as they are now; a device may still use what it cached before the guest's
    /// last invalidation.
    pub fn explain(&self, source: SourceId, pasid: Option<Pasid>, address: u64) -> Explanation {
        explain(&self.dma_state().tables(), source, pasid, address)
    }
}
