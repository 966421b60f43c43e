//! What devices of the host write to guest memory, as its IOMMU tells: in the page tables that it has of
//! guest memory, or of what the guest's tables map.

use std::sync::Arc;

use intel_vtd_host::{AssignedDevices, DirtyTrackingError};
use vm_memory::GuestAddress;

use crate::memory::Memory;
use crate::memory::pages::Pages;

/// Follows what assigned devices write, until it is dropped. There is one at a time.
pub(crate) struct HostLog {
    devices: Arc<AssignedDevices<Memory>>,
    pub(super) memory: Memory,
}

impl HostLog {
    /// Begins with what `devices` write to `memory` from here on. They may be at work.
    ///
    /// # Errors
    /// The device that cannot be followed, and why.
    pub(crate) fn start(
        devices: &Arc<AssignedDevices<Memory>>,
        memory: &Memory,
    ) -> Result<Self, DirtyTrackingError> {
        devices.start_dirty_tracking()?;
        Ok(Self {
            devices: Arc::clone(devices),
            memory: Arc::clone(memory),
        })
    }

    /// What they have written since the last call, or the start. What they write meanwhile is in this or in
    /// the next.
    ///
    /// # Errors
    /// They are followed no more.
    pub(crate) fn pages(&self) -> Result<Pages, DirtyTrackingError> {
        let mut pages = Pages::none(&self.memory);
        let mut add = |address, count| pages.add(GuestAddress(address), count);
        self.devices.dirty_pages(&mut add)?;
        Ok(pages)
    }
}

impl Drop for HostLog {
    fn drop(&mut self) {
        self.devices.stop_dirty_tracking();
    }
}
