//! Types of every register, table entry and descriptor of VT-d, revision 5.10 of the architecture specification.
//!
//! Pure values: a layout, what is reserved in it, and what a capability changes about that. Behaviour is elsewhere.

pub mod context;
pub mod decoder;
pub mod descriptors;
pub(crate) mod device_tlb;
pub mod entry;
pub mod fault_reason;
pub mod first_stage;
pub mod gates;
pub(crate) mod ids;
pub(crate) mod invalidation;
pub mod irte;
pub(crate) mod page_request;
pub mod pasid;
pub mod registers;
pub mod root;
pub mod second_stage;
