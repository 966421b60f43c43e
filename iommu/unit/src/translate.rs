//! From a request to a guest-physical address (sec. 3, 7 and 9).
//!
//! [`GuestTables::resolve`] finds out what translates the requests of a (source-id, PASID): a
//! canonical [`Binding`]. [`GuestTables::translate`] then walks the tables of that binding. Both
//! are functions of guest memory, of what the guest has latched by commands, and of the
//! capabilities; they keep nothing.

mod accessed_dirty;
mod answer;
mod binding;
mod caches;
mod descent;
mod first_stage;
mod guest_tables;
mod interrupt_range;
mod paging_cache;
mod request;
mod resolve;
mod rights;
mod second_stage;
mod structures;
mod tag;
mod walk;

pub use binding::{Binding, FirstStage, Resolved, SecondStage};
pub use caches::{NoCaches, Stage, StructureCaches, UpperEntry};
pub use guest_tables::GuestTables;
pub(crate) use interrupt_range::is_interrupt_range;
pub(crate) use paging_cache::{PagingCache, Permitted};
pub use request::{
    Access, Fault, Latched, Request, RequestKind, RootPointer, Translation, TranslationType,
};
pub use resolve::PasidDirectory;
pub(crate) use tag::Tag;

pub(crate) use crate::spec::gates::Gates;

#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
#[allow(missing_docs, reason = "fixtures of tests")]
pub mod testing;

#[cfg(test)]
mod accessed_dirty_test;
#[cfg(test)]
mod first_stage_test;
#[cfg(test)]
mod legacy_test;
#[cfg(test)]
mod nested_test;
#[cfg(test)]
mod property_test;
#[cfg(test)]
mod scalable_test;
#[cfg(test)]
mod second_stage_test;
