//! What a shadow costs the host: memory for its areas, and for the page tables that the host's
//! IOMMU needs to translate them (section 3.7).
//!
//! An area of one page in a region of 2 MiB where nothing else is has a page table for itself, and
//! perhaps a table of each level above. So what a guest pays for is the regions that it touches,
//! not only the areas. Pages larger than 4 KiB, which the host takes where its own memory is in one
//! piece, make it less than is counted here.

use crate::run::Run;

/// Bytes for an area: the kernel's `struct iopt_area`, and what is kept here.
pub(crate) const AREA: u64 = 320;
/// Bytes for a table of any level.
const TABLE: u64 = 4096;
/// What an entry covers that leads to a table, as a power of two: of 2 MiB, of 1 GiB, and so on.
const LEVELS: [u8; 4] = [21, 30, 39, 48];

/// What is mapped nearest to an area.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Neighbours {
    /// The last address of the area before it.
    pub(crate) before: Option<u64>,
    /// The first address of the area behind it.
    pub(crate) behind: Option<u64>,
}

/// Bytes that an area adds to those that are there, of which the nearest are its `neighbours`: for
/// itself, and for the tables that none of the others needs.
pub(crate) fn added_by(area: &Run, neighbours: &Neighbours) -> u64 {
    let last = area.end() - 1;
    let tables = LEVELS.map(|level| {
        let is_shared = |one: u64, other: Option<u64>| {
            other.is_some_and(|other| other >> level == one >> level)
        };
        let is_first_shared = is_shared(area.input, neighbours.before);
        let is_last_shared = is_shared(last, neighbours.behind);
        match (last >> level) - (area.input >> level) {
            0 => u64::from(!is_first_shared && !is_last_shared),
            others => others + 1 - u64::from(is_first_shared) - u64::from(is_last_shared),
        }
    });
    AREA + TABLE * tables.iter().sum::<u64>()
}
