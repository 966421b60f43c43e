//! The guest's tables, as the host side reads them.

use intel_vtd::spec::gates::Gates;
use intel_vtd::translate::Latched;

/// The guest's tables, and what the guest has latched.
pub(crate) struct Tables<'a, T: ?Sized> {
    pub(crate) memory: &'a T,
    pub(crate) gates: &'a Gates,
    pub(crate) latched: Latched,
}
