//! Port and memory accesses of the vCPUs, dispatched to whoever decodes them.
//!
//! The set of windows never changes while vCPUs run, so an access takes no lock here. PCI BARs move
//! inside of the apertures, which is the root complex's affair.

use std::sync::Arc;

use devices::ioapic::IoApic;
use pci::RootComplex;
use vm_device::bus::{MmioAddress, MmioAddressOffset, MmioRange, PioAddress, PioRange};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};
use vm_device::{DeviceMmio, DevicePio};

/// What the vCPUs can reach besides memory.
pub(crate) struct Bus {
    io: IoManager,
    ioapic: Arc<IoApic>,
}

/// Windows overlap: a mistake in the machine's map.
#[derive(Debug, thiserror::Error)]
#[error("internal error: the window at {0:#x} overlaps another; please report this")]
pub(crate) struct Overlap(u64);

impl Bus {
    /// A bus with nothing on it; the ends of level-triggered interrupts go to `ioapic`.
    pub(crate) fn new(ioapic: Arc<IoApic>) -> Self {
        Self {
            io: IoManager::new(),
            ioapic,
        }
    }

    /// Puts `device` on `size` ports from `base` on.
    pub(crate) fn add_pio(
        &mut self,
        base: u16,
        size: u16,
        device: Arc<dyn DevicePio + Send + Sync>,
    ) -> Result<(), Overlap> {
        let overlap = |_| Overlap(u64::from(base));
        let range = PioRange::new(PioAddress(base), size).map_err(overlap)?;
        self.io.register_pio(range, device).map_err(overlap)
    }

    /// Puts `device` on `size` bytes from `base` on.
    pub(crate) fn add_mmio(
        &mut self,
        base: u64,
        size: u64,
        device: Arc<dyn DeviceMmio + Send + Sync>,
    ) -> Result<(), Overlap> {
        let overlap = |_| Overlap(base);
        let range = MmioRange::new(MmioAddress(base), size).map_err(overlap)?;
        self.io.register_mmio(range, device).map_err(overlap)
    }

    /// A port is read; ones where nobody answers.
    pub(crate) fn pio_read(&self, port: u16, data: &mut [u8]) {
        if self.io.pio_read(PioAddress(port), data).is_err() {
            data.fill(0xff);
        }
    }

    /// A port is written.
    pub(crate) fn pio_write(&self, port: u16, data: &[u8]) {
        if self.io.pio_write(PioAddress(port), data).is_err() {
            log::trace!("write of {data:x?} to port {port:#x}, where nobody is");
        }
    }

    /// Memory that is not RAM is read; ones where nobody answers.
    pub(crate) fn mmio_read(&self, address: u64, data: &mut [u8]) {
        if self.io.mmio_read(MmioAddress(address), data).is_err() {
            log::trace!(
                "read of {} bytes at {address:#x}, where nobody is",
                data.len()
            );
            data.fill(0xff);
        }
    }

    /// Memory that is not RAM is written.
    pub(crate) fn mmio_write(&self, address: u64, data: &[u8]) {
        if self.io.mmio_write(MmioAddress(address), data).is_err() {
            log::trace!("write of {data:x?} at {address:#x}, where nobody is");
        }
    }

    /// A local APIC ended the level-triggered interrupt `vector`.
    pub(crate) fn end_of_interrupt(&self, vector: u8) {
        self.ioapic.eoi(vector);
    }
}

/// The root complex's configuration window.
pub(crate) struct Ecam(pub(crate) Arc<RootComplex>);

impl DeviceMmio for Ecam {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.0.read_ecam(offset, data);
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.0.write_ecam(offset, data);
    }
}

/// One of the root complex's apertures.
pub(crate) struct Aperture(pub(crate) Arc<RootComplex>);

impl DeviceMmio for Aperture {
    fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.0.read_mmio(base.0.saturating_add(offset), data);
    }

    fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.0.write_mmio(base.0.saturating_add(offset), data);
    }
}
