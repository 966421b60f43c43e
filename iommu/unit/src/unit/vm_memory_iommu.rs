//! A requester behind a unit as vm-memory's [`Iommu`], for code that wants a
//! [`vm_memory::IommuMemory`].

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use vm_memory::iommu::{Error, IotlbIterator, IovaRange};
use vm_memory::{GuestAddress, GuestMemoryBackend, Iommu, Iotlb, Permissions};

use super::Unit;
use crate::spec::ids::{Pasid, SourceId};

/// A requester behind a unit, as vm-memory's [`Iommu`]. Available with the feature `vm-memory-iommu`.
///
/// It translates by [`Unit::resolve_dma`], with its limits: nothing holds the guest's invalidations back
/// while the translated addresses are in use, and each translation walks the tables.
/// [`DmaView`](crate::DmaView) has neither limit.
pub struct UnitIommu<M> {
    unit: Arc<Unit<M>>,
    source: SourceId,
    pasid: Option<Pasid>,
}

impl<M> UnitIommu<M> {
    /// The requests of `source`, with `pasid` or without.
    pub fn new(unit: Arc<Unit<M>>, source: SourceId, pasid: Option<Pasid>) -> Self {
        Self {
            unit,
            source,
            pasid,
        }
    }
}

impl<M> fmt::Debug for UnitIommu<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnitIommu")
            .field("source", &self.source)
            .field("pasid", &self.pasid)
            .finish_non_exhaustive()
    }
}

impl<M> Iommu for UnitIommu<M>
where
    M: Clone + Deref<Target: GuestMemoryBackend> + Send + Sync,
{
    /// It holds one translation, and is shared with nobody.
    type IotlbGuard<'a>
        = Box<Iotlb>
    where
        Self: 'a;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Box<Iotlb>>, Error> {
        let failed = |reason: String| Error::CannotResolve {
            iova_range: IovaRange { base: iova, length },
            reason,
        };
        let GuestAddress(start) = iova;
        let bytes = u64::try_from(length).unwrap_or(u64::MAX);
        // Its table of ranges knows the address behind a range.
        if start.checked_add(bytes).is_none() {
            return Err(failed("the range goes beyond the last address".to_owned()));
        }
        let ranges = self
            .unit
            .resolve_dma(self.source, self.pasid, start, bytes, access)
            .map_err(|blocked| failed(blocked.to_string()))?;
        let mut iotlb = Box::new(Iotlb::new());
        let mut next = start;
        for range in ranges {
            let length = usize::try_from(range.length).unwrap_or(usize::MAX);
            let to = GuestAddress(range.address);
            iotlb.set_mapping(GuestAddress(next), to, length, access)?;
            next += range.length;
        }
        Iotlb::lookup(iotlb, iova, length, access)
            .map_err(|_| failed("the translation has gaps".to_owned()))
    }
}

#[cfg(test)]
mod vm_memory_iommu_test;
