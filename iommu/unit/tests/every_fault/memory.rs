//! Guest memory that can go away between two accesses, as a host takes it away: only so does an update of an entry fail after
//! the entry was read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::BS;
use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, GuestRegionMmap, MemoryRegionAddress, VolatileSlice,
};

pub(super) type Memory = Arc<GuestRegionCollection<Region>>;

/// End of memory, which begins at 0.
const END: usize = 0x100_0000;

/// Of no word.
const NOWHERE: u64 = u64::MAX;

/// Memory in one piece, of which one word can be accessed once more and then no longer.
pub(super) struct Region {
    backing: GuestRegionMmap<()>,
    leaving: AtomicU64,
    gone: AtomicU64,
}

pub(super) fn memory() -> Memory {
    let backing = GuestRegionMmap::from_range(GuestAddress(0), END, None).unwrap();
    let region = Region {
        backing,
        leaving: AtomicU64::new(NOWHERE),
        gone: AtomicU64::new(NOWHERE),
    };
    Arc::new(GuestRegionCollection::from_regions(vec![region]).unwrap())
}

impl Region {
    /// The word at `address` goes away after the next access.
    pub(super) fn lose_after_next_access(&self, address: u64) {
        self.leaving.store(address, Ordering::SeqCst);
    }
}

impl GuestMemoryRegion for Region {
    type B = ();

    fn len(&self) -> u64 {
        self.backing.len()
    }

    fn start_addr(&self) -> GuestAddress {
        self.backing.start_addr()
    }

    fn bitmap(&self) -> BS<'_, Self::B> {}

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, Self::B>>, GuestMemoryError> {
        if offset.0 == self.gone.load(Ordering::SeqCst) {
            return Err(GuestMemoryError::HostAddressNotAvailable);
        }
        if offset.0 == self.leaving.load(Ordering::SeqCst) {
            self.gone.store(offset.0, Ordering::SeqCst);
        }
        self.backing.get_slice(offset, count)
    }
}

impl GuestMemoryRegionBytes for Region {}
