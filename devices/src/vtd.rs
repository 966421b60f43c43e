//! Puts a VT-d unit's register window on the machine's MMIO bus, with a thread for what accesses
//! leave to be done.

mod background;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use intel_vtd::Unit;

use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use crate::Memory;
use background::Background;

/// The register window of a remapping unit. The unit decides what an access of any offset and length means.
pub struct VtdMmio {
    unit: Arc<Unit<Memory>>,
    /// Ends with the window.
    background: Background,
}

impl VtdMmio {
    /// The window of `unit`, whose register writes hold no vCPU longer than the default of [`InlineBudget`] from now on.
    ///
    /// [`InlineBudget`]: intel_vtd::InlineBudget
    ///
    /// # Errors
    /// When there can be no further thread.
    pub fn start(unit: Arc<Unit<Memory>>) -> io::Result<Self> {
        let background = Background::start(&unit)?;
        Ok(Self { unit, background })
    }

    /// Has the unit carry nothing out that accesses have left, until [`resume`](Self::resume). Whether
    /// what was under way has been left by `until`. Nobody accesses the window meanwhile.
    #[must_use]
    pub fn park(&self, until: Instant) -> bool {
        self.background.hold(until)
    }

    /// Has the unit go on after [`park`](Self::park).
    pub fn resume(&self) {
        self.background.release();
    }
}

impl DeviceMmio for VtdMmio {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.unit.read(offset, data);
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.unit.write(offset, data);
    }
}

#[cfg(test)]
mod vtd_test;
