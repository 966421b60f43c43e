//! A bound device: what the host can do for it, and what the unit in front of it can therefore be.

use std::sync::Arc;

use devices::vfio::{HostServices, Shown, VfioCdev};
use intel_vtd::{AddressWidth, UnitConfig};
use intel_vtd_host::HostCapabilities;
use intel_vtd_host::Iommufd;
use intel_vtd_host::{HostDeviceId, HostGroupId};

use super::claim::Claim;
use super::error::{AssignError, Why};
use super::remedy::Remedied;
use super::services;
use crate::config::{IommuConfig, VfioConfig};
use crate::kvm::AssignedFile;

/// A device that is bound to an iommufd. It reaches nothing yet. Dropping it gives it back to the
/// host.
pub(crate) struct BoundDevice {
    pub(super) config: VfioConfig,
    pub(super) capabilities: HostCapabilities,
    pub(super) services: HostServices,
    /// What its model shows the guest; nothing of these before [`check`](Self::check).
    pub(super) shown: Shown,
    pub(super) iommufd: Arc<Iommufd>,
    pub(super) id: HostDeviceId,
    pub(super) group: HostGroupId,
    pub(super) cdev: Arc<VfioCdev>,
    /// After the device's own file in the order of dropping, as all that follows.
    pub(super) _known_to_kvm: AssignedFile,
    pub(super) _claim: Claim,
}

impl BoundDevice {
    /// The device, for its model.
    pub(crate) fn cdev(&self) -> &Arc<VfioCdev> {
        &self.cdev
    }

    /// What the model is to show.
    pub(crate) const fn shown(&self) -> Shown {
        self.shown
    }

    /// First-stage tables are looked up for each function by itself.
    fn check_requester(&self) -> Result<(), Why> {
        let bridge = self.cdev.requester();
        bridge.map_or(Ok(()), |bridge| Err(Why::Bridge(bridge)))
    }

    /// What prevents first-stage translation of addresses as wide as `width`.
    fn check_first_stage(&self, width: AddressWidth) -> Result<(), Why> {
        self.check_requester()?;
        let remedied = |why| Remedied {
            why,
            first_stage: true,
        };
        let outcome = self.capabilities.check_first_stage(width.bits());
        Ok(outcome.map_err(remedied)?)
    }

    /// Refuses to go behind `unit`, or to reach memory up to `ram_end`, where the host cannot do
    /// that; and chooses what the guest is shown.
    pub(super) fn check(
        &mut self,
        unit: Option<&UnitConfig>,
        ram_end: u64,
    ) -> Result<(), AssignError> {
        let remedied = |why| Remedied {
            why,
            first_stage: unit.is_some_and(|unit| unit.stages().first()),
        };
        let check = || -> Result<Shown, Why> {
            if let Some(unit) = unit {
                if unit.stages().first() {
                    self.check_requester()?;
                }
                self.capabilities.check(unit).map_err(remedied)?;
            }
            self.capabilities.check_memory(ram_end).map_err(remedied)?;
            let chosen = services::choose(&self.config, &self.capabilities, self.services, unit);
            Ok(chosen?)
        };
        self.shown = check().map_err(|why| AssignError::device(&self.config, why))?;
        Ok(())
    }
}

/// `unit`, with the choice that `x-flts=auto` leaves open made, and said. `assigns` tells whether
/// devices may be assigned.
pub(crate) fn choose_first_stage(
    unit: IommuConfig,
    assigns: bool,
    devices: &[BoundDevice],
) -> IommuConfig {
    if unit.first_stage.is_some() {
        return unit;
    }
    let obstacle = || {
        devices.iter().find_map(|device| {
            let outcome = device.check_first_stage(unit.address_width);
            outcome.err().map(|why| (&device.config, why))
        })
    };
    let first_stage = if unit.page_requests {
        log::info!("x-flts=auto: on, as svm=on needs it");
        true
    } else if !assigns {
        log::info!("x-flts=auto: on, as no device of the host is assigned");
        true
    } else if devices.is_empty() {
        log::info!(
            "x-flts=auto: off, as devices of the host may be assigned later, and it is not known whether the host nests for \
             them; write x-flts=on if it does"
        );
        false
    } else if let Some((device, why)) = obstacle() {
        log::warn!("x-flts=auto: off, because of {device}: {why}");
        false
    } else {
        log::info!("x-flts=auto: on, as the host nests for every assigned device");
        true
    };
    IommuConfig {
        first_stage: Some(first_stage),
        ..unit
    }
}

/// What a unit in front of `devices` can be, if it is asked to be `config`. A machine without any
/// may get some later, of a host that is not known yet: its unit does not promise what a host may
/// lack.
pub(crate) fn limit(mut config: UnitConfig, devices: &[BoundDevice]) -> UnitConfig {
    config.snoop_control &= !devices.is_empty();
    for device in devices {
        let asked = config.input_width();
        config = device.capabilities.limit(config);
        let bits = config.input_width();
        if bits < asked {
            log::info!(
                "{}: the unit translates {bits} bits of address (CAP.MGAW), as the host's IOMMU does for this device",
                device.config
            );
        }
    }
    config
}
