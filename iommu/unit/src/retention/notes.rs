//! Notes of a walk: the entries that it has used, for the caches to keep.

use crate::translate::{Resolved, Stage, UpperEntry};

/// What a walk has used.
#[derive(Default)]
pub(crate) struct Notes {
    pub(crate) context: Option<([u64; 4], Option<u16>)>,
    /// PASID, entry, FPD of the directory entry, domain.
    pub(crate) pasid: Option<(u32, [u64; 8], bool, u16)>,
    pub(crate) resolved: Option<Resolved>,
    /// With the input of their stage.
    pub(crate) uppers: Vec<(Stage, u64, UpperEntry)>,
}
