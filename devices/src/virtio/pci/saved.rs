//! The state of a virtio function.

use pci::ConfigState;
use serde::{Deserialize, Serialize};
use state::{Bytes, RestoreError, SaveError, Section};

use super::VirtioPci;
use super::link::saved::LinkState;
use super::state::saved::DeviceState;
use crate::virtio::device::DeviceKind;

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VirtioState {
    config: ConfigState,
    transport: LinkState,
    device: DeviceState,
    /// The device's configuration, if it never changes; one that does is part of the device.
    device_config: Bytes,
}

impl VirtioPci {
    pub(super) fn save_function(&self) -> Result<Section, SaveError> {
        if let Some(why) = self.unsavable {
            return Err(SaveError::new(why));
        }
        let config = self.config.lock().save();
        let device = self.state.lock().save(&self.link)?;
        let state = VirtioState {
            config,
            transport: self.link.save(),
            device,
            device_config: Bytes::new(&self.device_config),
        };
        Section::new(name(self.kind), VERSION, &state)
    }

    /// Of a function that was just created. If a driver is at work, the device's threads are started,
    /// and parked.
    pub(super) fn restore_function(&self, section: &Section) -> Result<(), RestoreError> {
        let state: VirtioState = section.read(name(self.kind), VERSION)?;
        self.check_device_config(state.device_config.as_slice())?;
        let control = {
            let mut config = self.config.lock();
            config.restore(&state.config)?;
            config.msix_control().unwrap_or_default()
        };
        self.link.restore(&state.transport, control)?;
        self.state.lock().restore(&state.device, &self.link)
    }

    fn check_device_config(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let here = self.device_config.as_slice();
        let part = |bytes: &[u8], range: std::ops::Range<usize>| {
            bytes.get(range).unwrap_or_default().to_vec()
        };
        match self.kind {
            DeviceKind::Block => {
                let sectors = |bytes| {
                    let bytes: Vec<u8> = part(bytes, 0..8);
                    let sectors = bytes.try_into().map_or(0, u64::from_le_bytes);
                    format!("{sectors} sectors")
                };
                RestoreError::unless_equal("its size", sectors(saved), sectors(here))?;
            }
            DeviceKind::Net => {
                let address = |bytes| {
                    let bytes = part(bytes, 0..6);
                    let digits: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                    digits.join(":")
                };
                RestoreError::unless_equal("its address", address(saved), address(here))?;
            }
            _ => {}
        }
        let digits =
            |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
        RestoreError::unless_equal("its configuration", digits(saved), digits(here))
    }
}

/// What the state of such a function is called.
fn name(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Net => "virtio-net",
        DeviceKind::Block => "virtio-blk",
        DeviceKind::Console => "virtio-console",
        DeviceKind::Entropy => "virtio-rng",
        DeviceKind::Vsock => "virtio-vsock",
        DeviceKind::Balloon => "virtio-balloon",
        DeviceKind::Memory => "virtio-mem",
    }
}

#[cfg(test)]
mod saved_test;
