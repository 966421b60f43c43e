//! What page tables of a kind translate for a device (`IOMMU_IOAS_IOVA_RANGES`), found out with one
//! over an empty address space.

use std::io;
use std::ops::RangeInclusive;

use crate::host_iommu::{HostDeviceId, HostIommu, HwptOptions};
use crate::ram::INTERRUPTS;

/// What a kind of page table translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableReach {
    /// All addresses of so many bits, but for those of interrupts.
    pub address_bits: u8,
    /// The smallest mapping.
    pub page_size: u64,
}

/// Why it is not known what a kind of page table translates: there is none, or something else went
/// wrong.
pub(super) enum Refused {
    Table(io::Error),
    Other(io::Error),
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Table(error) | Refused::Other(error) => error,
        }
    }
}

/// What a page table for `device` with `options` translates, found out with one over an empty
/// address space.
pub(super) fn reach(
    host: &dyn HostIommu,
    device: HostDeviceId,
    options: HwptOptions,
) -> Result<TableReach, Refused> {
    let ioas = host.allocate_ioas().map_err(Refused::Other)?;
    let outcome = host
        .allocate_hwpt(device, ioas, options)
        .map_err(Refused::Table)
        .and_then(|table| {
            let ranges = host.address_ranges(ioas).map_err(Refused::Other);
            host.destroy(table.into()).map_err(Refused::Other)?;
            ranges
        });
    let destroyed = host.destroy(ioas.into()).map_err(Refused::Other);
    let (ranges, page_size) = outcome?;
    destroyed?;
    Ok(TableReach {
        address_bits: address_bits(&ranges),
        page_size,
    })
}

/// The greatest number of bits of which all addresses are in `ranges`, but for those of interrupts.
pub(super) fn address_bits(ranges: &[RangeInclusive<u64>]) -> u8 {
    let interrupts = INTERRUPTS.start..=INTERRUPTS.end - 1;
    let mut sorted: Vec<_> = ranges.iter().chain([&interrupts]).cloned().collect();
    sorted.sort_unstable_by_key(|range| *range.start());
    // The first address that is in none.
    let mut end = Some(0);
    for range in sorted {
        match end {
            Some(address) if *range.start() <= address => {
                end = range.end().checked_add(1).map(|next| next.max(address));
            }
            _ => break,
        }
    }
    match end {
        Some(end) => u8::try_from(end.checked_ilog2().unwrap_or(0)).unwrap_or(0),
        None => 64,
    }
}
