//! From the address range of a device to guest-physical ranges, for a VMM that wants addresses and
//! not a transaction.

use std::ops::Deref;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::{GuestMemoryBackend, Permissions};

use super::Unit;
use crate::spec::ids::{Pasid, SourceId};

/// A range of guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysicalRange {
    /// Address of the first byte.
    pub address: u64,
    /// Length in bytes.
    pub length: u64,
}

/// A page of the range may not be accessed so. The fault is recorded, unless the guest disabled
/// that.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the request is blocked at address {address:#x}")]
pub struct DmaBlocked {
    /// The first address that is blocked, as the device says it.
    pub address: u64,
}

impl<M: Clone + Deref<Target: GuestMemoryBackend>> Unit<M> {
    /// Where the `length` bytes from `address` on are in guest-physical memory, if `source`, with `pasid` or
    /// without, accesses them as `access` says. Neighbours in memory are one range; whether there is
    /// memory is not looked at.
    ///
    /// To the guest this is the access itself: accessed and dirty flags are set, and a fault is recorded. Up to
    /// one range for each page of 4 KiB is returned, so the caller bounds `length`.
    ///
    /// **The ranges are not protected**: once this has returned, the guest may invalidate what led to them
    /// and be told that no device uses them any more. A [`DmaTransaction`](crate::DmaTransaction) holds that
    /// back, and has caches, which this has not. So this is for a caller that has other means, such as
    /// a [`TranslationObserver`](crate::TranslationObserver) that waits for what it has begun.
    ///
    /// # Errors
    /// A part is blocked, or the range goes beyond the last address.
    pub fn resolve_dma(
        self: &Arc<Self>,
        source: SourceId,
        pasid: Option<Pasid>,
        address: u64,
        length: u64,
        access: Permissions,
    ) -> Result<Vec<PhysicalRange>, DmaBlocked> {
        if length == 0 {
            return Ok(Vec::new());
        }
        let last = address
            .checked_add(length - 1)
            .ok_or(DmaBlocked { address })?;
        let mut view = self.port(source).view();
        let transaction = view.begin_pasid(pasid);
        if transaction.is_identity() {
            return Ok(vec![PhysicalRange { address, length }]);
        }
        let mut ranges: Vec<PhysicalRange> = Vec::new();
        let mut next = address;
        loop {
            let found = transaction
                .translated(next, access)
                .ok_or(DmaBlocked { address: next })?;
            let end = last.min(next | ((1 << found.page_shift) - 1));
            let length = end - next + 1;
            match ranges.last_mut() {
                Some(before) if before.address + before.length == found.address => {
                    before.length += length;
                }
                _ => ranges.push(PhysicalRange {
                    address: found.address,
                    length,
                }),
            }
            if end == last {
                return Ok(ranges);
            }
            next = end + 1;
        }
    }
}

#[cfg(test)]
pub(super) mod resolve_dma_test;
