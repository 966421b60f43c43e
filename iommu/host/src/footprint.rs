//! What a shadow costs the host: memory for its areas, and for the page tables that the host's
//! IOMMU needs to translate them (section 3.7).
//!
//! An area of one page in a region of 2 MiB where nothing else is has a page table for itself, and
//! perhaps a table of each level above. So what a guest pays for is the regions that it touches,
//! not only the areas. Pages larger than 4 KiB, which the host takes where its own memory is in one
//! piece, make it less than is counted here.

use std::collections::BTreeMap;

use crate::run::Run;

/// Bytes for an area: the kernel's `struct iopt_area`, and what is kept here.
pub(crate) const AREA: u64 = 320;
/// Bytes for a table of any level.
const TABLE: u64 = 4096;
/// What an entry covers that leads to a table, as a power of two: of 2 MiB, of 1 GiB, and so on.
const LEVELS: [u8; 4] = [21, 30, 39, 48];

/// Bytes that the areas of one shadow cost.
#[derive(Debug, Default)]
pub(crate) struct Footprint {
    /// How many begin or end in a region, or have regions within it that are touched, by the size
    /// of the region as a power of two, and its number.
    regions: BTreeMap<(u8, u64), u32>,
    bytes: u64,
}

impl Footprint {
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// An area comes. Areas do not reach over a multiple of 1 GiB.
    pub(crate) fn add(&mut self, area: &Run) {
        self.bytes += own_bytes(area);
        let (first, last) = ends(area);
        self.touch(first);
        if last != first {
            self.touch(last);
        }
    }

    /// An area goes.
    pub(crate) fn remove(&mut self, area: &Run) {
        self.bytes -= own_bytes(area);
        let (first, last) = ends(area);
        self.leave(first);
        if last != first {
            self.leave(last);
        }
    }

    fn touch(&mut self, region: u64) {
        for level in LEVELS {
            let number = region >> (level - LEVELS[0]);
            let count = self.regions.entry((level, number)).or_default();
            *count += 1;
            if *count > 1 {
                break;
            }
            self.bytes += TABLE;
        }
    }

    fn leave(&mut self, region: u64) {
        for level in LEVELS {
            let place = (level, region >> (level - LEVELS[0]));
            let Some(count) = self.regions.get_mut(&place) else {
                break;
            };
            *count -= 1;
            if *count > 0 {
                break;
            }
            self.regions.remove(&place);
            self.bytes -= TABLE;
        }
    }
}

/// The regions of 2 MiB that an area begins and ends in.
const fn ends(area: &Run) -> (u64, u64) {
    let last = area.end() - 1;
    (area.input >> LEVELS[0], last >> LEVELS[0])
}

/// Bytes for an area itself, and for tables of regions that it has for itself.
const fn own_bytes(area: &Run) -> u64 {
    let (first, last) = ends(area);
    let within = (last - first).saturating_sub(1);
    AREA + within * TABLE
}

#[cfg(test)]
mod footprint_test;
