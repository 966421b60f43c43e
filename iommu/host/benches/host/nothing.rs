//! A host that does nothing, and that at once: what is left is what the host side costs itself.

use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use intel_vtd::Pasid;
use intel_vtd_host::fake::{FakeFeatures, FakeHost};
use intel_vtd_host::{
    Attachment, HardwareInfo, HostDeviceId, HostIommu, HostMemory, HwptId, HwptOptions, IoasId,
    NestedInvalidation, NestedOptions, NestedTable, ObjectId, Rights, SharedMapping,
};

/// One iommufd. It says what the fake host says about its devices, and names objects.
pub(crate) struct Nothing {
    fake: Arc<FakeHost>,
    objects: AtomicU32,
}

impl Nothing {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            fake: FakeHost::new(),
            objects: AtomicU32::new(0),
        })
    }

    /// One more device, which nests and has PASIDs.
    pub(crate) fn bind(&self) -> HostDeviceId {
        let features = FakeFeatures {
            nesting: true,
            first_stage: true,
            pasid_bits: 20,
            ..FakeFeatures::default()
        };
        self.fake.bind(features).0
    }

    fn name(&self) -> u32 {
        self.objects.fetch_add(1, Ordering::Relaxed)
    }
}

impl HostIommu for Nothing {
    fn allocate_ioas(&self) -> io::Result<IoasId> {
        Ok(IoasId(self.name()))
    }

    fn destroy(&self, _: ObjectId) -> io::Result<()> {
        Ok(())
    }

    fn address_ranges(&self, _: IoasId) -> io::Result<(Vec<RangeInclusive<u64>>, u64)> {
        Ok((vec![0..=0xffff_ffff_ffff], 4096))
    }

    fn map(&self, _: IoasId, _: u64, _: &HostMemory<'_>, _: Rights) -> io::Result<()> {
        Ok(())
    }

    fn share(&self, _: &SharedMapping) -> io::Result<()> {
        Ok(())
    }

    fn unmap(&self, _: IoasId, _: u64, length: u64) -> io::Result<u64> {
        Ok(length)
    }

    fn allocate_hwpt(&self, _: HostDeviceId, _: IoasId, _: HwptOptions) -> io::Result<HwptId> {
        Ok(HwptId(self.name()))
    }

    fn allocate_nested(
        &self,
        _: HostDeviceId,
        _: HwptId,
        _: &NestedTable,
        _: NestedOptions,
    ) -> io::Result<HwptId> {
        Ok(HwptId(self.name()))
    }

    fn invalidate(&self, _: HwptId, list: &[NestedInvalidation]) -> (usize, io::Result<()>) {
        (list.len(), Ok(()))
    }

    fn hardware_info(&self, device: HostDeviceId) -> io::Result<HardwareInfo> {
        self.fake.hardware_info(device)
    }

    fn set_dirty_tracking(&self, _: HwptId, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn dirty_pages(&self, _: HwptId, _: u64, _: u64, _: u64, _: &mut [u64]) -> io::Result<()> {
        Ok(())
    }
}

/// Its devices' place in VFIO.
pub(crate) struct NoAttachment;

impl Attachment for NoAttachment {
    fn attach(&self, _: Option<Pasid>, _: HwptId) -> io::Result<()> {
        Ok(())
    }

    fn detach(&self, _: Option<Pasid>) -> io::Result<()> {
        Ok(())
    }
}
