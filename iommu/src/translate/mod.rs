//! From a request to a guest-physical address (sec. 3, 7 and 9).
//!
//! [`resolve`] finds out what translates the requests of a (source-id, PASID): a canonical [`Binding`].
//! [`translate`] then walks the tables of that binding. Both are functions of guest memory, of what the guest
//! has latched by commands, and of the capabilities; they keep nothing.

mod gates;
mod request;

pub use gates::Gates;
pub use request::{
    Access, Fault, Latched, Request, RequestKind, RootPointer, Translation, TranslationType,
};

use crate::memory::TableMemory;

/// Translates one request.
///
/// # Errors
/// The fault for which the request is blocked. It is for the caller to record it.
pub fn translate<T: TableMemory + ?Sized>(
    _memory: &T,
    _gates: &Gates,
    _latched: &Latched,
    request: &Request,
) -> Result<Translation, Fault> {
    Err(Fault::new(
        crate::spec::fault_reason::FaultReason::RootFetch,
        false,
        request.kind,
    ))
}

/// What is permitted at the address of `request`, without requiring anything.
///
/// # Errors
/// As [`translate`], apart from missing permissions.
pub fn probe<T: TableMemory + ?Sized>(
    memory: &T,
    gates: &Gates,
    latched: &Latched,
    request: &Request,
) -> Result<Translation, Fault> {
    translate(memory, gates, latched, request)
}
