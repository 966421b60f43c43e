//! The state of an assigned device: what its driver in the host says that it is like, and what the guest
//! has made of the function.

use pci::MsixState;
use pci::capability::{msix, pcie};
use pci::{BarKind, Command};
use serde::{Deserialize, Serialize};
use state::{Bytes, RestoreError, SaveError, Section};

use super::{Control, Mode, VfioPci};
use crate::vfio::capabilities::CONTROL_FORWARDED;

const KIND: &str = "vfio-pci";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VfioState {
    config: Bytes,
    bars: Vec<BarState>,
    /// The table; without its pending bits, which are in `pending`.
    table: Option<MsixState>,
    /// Vectors that the device has signalled while they were masked.
    pending: Vec<u16>,
    /// The interrupt pin is high, and masked until its interrupt has ended.
    pin: bool,
    /// What the driver says.
    device: Bytes,
}

/// A BAR that the guest sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BarState {
    index: usize,
    size: u64,
    wide: bool,
    prefetchable: bool,
}

impl VfioPci {
    pub(super) fn save_function(&self) -> Result<Section, SaveError> {
        let migration = self.migration.as_ref();
        let migration = migration.ok_or_else(|| SaveError::new(super::CANNOT_MOVE))?;
        if !self.motion.is_stopped() {
            return Err(SaveError::new("it is at work; pause the guest before"));
        }
        let device = migration.save().map_err(|error| {
            // It may have been reset, and run, by that.
            self.motion.has_failed(&error);
            SaveError::new(error)
        })?;
        let control = self.control.lock();
        let state = VfioState {
            config: control.config.save(),
            bars: bars(&control),
            table: self.msix.as_ref().map(|(_, table)| table.save()),
            pending: pending(&control),
            pin: self.intx.is_asserted(),
            device: Bytes::new(&device),
        };
        Section::new(KIND, VERSION, &state)
    }

    /// Of a device that was just taken over. It is stopped then, until it is to go on.
    pub(super) fn restore_function(&self, section: &Section) -> Result<(), RestoreError> {
        let state: VfioState = section.read(KIND, VERSION)?;
        let migration = self
            .migration
            .as_ref()
            .ok_or_else(|| RestoreError::damaged("the device of this host", super::CANNOT_MOVE))?;
        let mut control = self.control.lock();
        let [saved, here] = [&state.bars, &bars(&control)].map(|bars| format!("{bars:?}"));
        RestoreError::unless_equal("the BARs", saved, here)?;
        let [saved, here] = [state.table.is_some(), self.msix.is_some()];
        RestoreError::unless_equal("whether it has MSI-X", saved, here)?;
        control.config.restore(&state.config)?;
        if control.config.power_state() != 0 {
            let why = "it is asleep, and no such device is saved";
            return Err(RestoreError::damaged("its power state", why));
        }
        if let (Some((layout, table)), Some(saved)) = (&self.msix, &state.table) {
            let bits = control.config.u16(layout.offset + msix::CONTROL);
            let control = (bits & msix::ENABLE != 0, bits & msix::FUNCTION_MASK != 0);
            table.restore(saved, control)?;
        }
        // First, as it is stopped by that: what follows has it do nothing.
        self.motion.is_moved();
        let loaded = migration.load(state.device.as_slice());
        loaded.map_err(|error| RestoreError::host("the device", error))?;
        if let Some(offset) = control.config.layout.pcie {
            let register = offset + pcie::DEVICE_CONTROL;
            let value = control.config.u16(register);
            self.update_host(register, CONTROL_FORWARDED, value);
        }
        let disabled = control.config.command() & Command::INTX_DISABLE != 0;
        self.intx.set_quiet(disabled);
        self.write_host_command(&control);
        self.follow_interrupts(&mut control, true);
        self.restore_pending(&mut control, &state.pending)?;
        if state.pin {
            self.intx.restore_asserted();
        }
        self.show_windows(&control);
        Ok(())
    }

    fn restore_pending(&self, control: &mut Control, pending: &[u16]) -> Result<(), RestoreError> {
        let vectors = match &mut control.mode {
            Mode::Msi(Some(vectors), _) | Mode::Msix(Some(vectors)) => vectors,
            _ if pending.is_empty() => return Ok(()),
            _ => {
                let why = "it has no vectors";
                return Err(RestoreError::damaged("pending interrupts", why));
            }
        };
        for vector in pending {
            vectors.restore_pending(*vector).map_err(|error| {
                let why = format_args!("vector {vector}: {error}");
                RestoreError::damaged("pending interrupts", why)
            })?;
        }
        Ok(())
    }
}

fn bars(control: &Control) -> Vec<BarState> {
    let bars = control.config.bars.iter();
    bars.map(|bar| BarState {
        index: bar.index,
        size: bar.size,
        wide: matches!(bar.kind, BarKind::Memory64 { .. }),
        prefetchable: matches!(bar.kind, BarKind::Memory64 { prefetchable: true }),
    })
    .collect()
}

/// Vectors that are pending.
fn pending(control: &Control) -> Vec<u16> {
    match &control.mode {
        Mode::Msi(Some(vectors), _) | Mode::Msix(Some(vectors)) => vectors.pending(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod saved_test;
