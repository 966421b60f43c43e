//! Puts a VT-d unit's register window on the machine's MMIO bus.

use std::sync::Arc;

use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use crate::Memory;

/// The register window of a remapping unit. The unit decides what an access of any offset and length means.
pub struct VtdMmio(pub Arc<iommu::Unit<Memory>>);

impl DeviceMmio for VtdMmio {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.0.write(offset, data);
    }
}
