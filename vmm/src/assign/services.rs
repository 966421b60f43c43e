//! PASIDs, ATS and PRI of assigned devices: which of them the guest is shown, of what was asked for
//! and the unit and the host have.

use std::fmt;

use devices::vfio::{HostServices, HostState, Pasids, Shown};
use intel_vtd::UnitConfig;
use intel_vtd_host::HostCapabilities;
use thiserror::Error;

use crate::config::VfioConfig;

/// Why a capability cannot be shown. Each says what to write instead of `on`.
#[derive(Debug, Error)]
pub(crate) enum Hidden {
    #[error(
        "pasid=on shows the guest a device with PASIDs, and there is no remapping unit that takes them; add \
         `--device intel-iommu,pasid-bits=20`, or drop pasid=on"
    )]
    NoUnitWithPasids,
    #[error(
        "pasid=on shows the guest a device with PASIDs, and the host offers none for this one (IOMMU_GET_HW_INFO tells of 0 bits): \
         the device, a port before it or the host's IOMMU lacks them, or the host runs without intel_iommu=on,sm_on; drop pasid=on"
    )]
    NoHostPasids,
    #[error(
        "pasid=on shows the guest a device with PASIDs, and with x-flts=off their tables are second-stage ones, of which the host's \
         kernel puts none behind PASIDs where it has first-stage ones; write x-flts=on, or drop pasid=on"
    )]
    SecondStage,
    #[error(
        "ats=on shows the guest a device that keeps translations, and there is no remapping unit that lets it; add \
         `--device intel-iommu,device-iotlb=on`, or drop ats=on"
    )]
    NoUnitWithDeviceTlbs,
    #[error(
        "ats=on shows the guest a device that keeps translations, and this one has no ATS capability; drop ats=on"
    )]
    NoAts,
    #[error(
        "ats=on shows the guest a device that keeps translations, and the host's kernel has not enabled ATS in this one: the \
         host's IOMMU or its ACPI tables do not allow it, or the host runs with pci=noats; drop ats=on"
    )]
    HostAtsDisabled,
    #[error(
        "ats=on shows the guest a device that keeps translations, and the host's IOMMU does not let this one do so (IOMMU_GET_HW_INFO \
         says IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED); drop ats=on"
    )]
    HostAtsUnsupported,
    #[error(
        "pri=on shows the guest a device that asks for pages, and there is no remapping unit that takes such requests; add \
         `--device intel-iommu,device-iotlb=on,pasid-bits=20,svm=on`, or drop pri=on"
    )]
    NoUnitWithPageRequests,
    #[error(
        "pri=on shows the guest a device that asks for pages, which takes one that keeps translations, and ATS is hidden; write \
         ats=on, or drop pri=on"
    )]
    NoAtsForPri,
    #[error(
        "pri=on shows the guest a device that asks for pages, and this one has no PRI capability; drop pri=on"
    )]
    NoPri,
    #[error(
        "pri=on shows the guest a device that asks for pages, and the host's kernel has not enabled PRI in this one: the host's \
         IOMMU takes no page requests, or runs without intel_iommu=on,sm_on; drop pri=on"
    )]
    HostPriDisabled,
}

/// What the guest is shown of a device.
///
/// # Errors
/// Something was asked for that cannot be had.
pub(super) fn choose(
    config: &VfioConfig,
    host: &HostCapabilities,
    services: HostServices,
    unit: Option<&UnitConfig>,
) -> Result<Shown, Hidden> {
    let ats = wanted(
        config,
        "ats",
        config.ats,
        device_tlb(host, services.ats, unit),
    )?
    .is_some();
    let page_requests = page_requests(services.pri, ats, unit);
    Ok(Shown {
        pasids: wanted(config, "pasid", config.pasid, pasids(host, unit))?,
        ats,
        pri: wanted(config, "pri", config.pri, page_requests)?.is_some(),
    })
}

/// `possible`, if it is wanted: `None` takes it where it can be had.
fn wanted<T>(
    config: &VfioConfig,
    key: &str,
    on: Option<bool>,
    possible: Result<T, Hidden>,
) -> Result<Option<T>, Hidden> {
    match (on, possible) {
        (Some(false), _) => Ok(None),
        (_, Ok(shown)) => Ok(Some(shown)),
        (Some(true), Err(why)) => Err(why),
        // That the unit has no such thing is what was asked for.
        (
            None,
            Err(
                Hidden::NoUnitWithPasids
                | Hidden::NoUnitWithDeviceTlbs
                | Hidden::NoUnitWithPageRequests,
            ),
        ) => Ok(None),
        (None, Err(why)) => {
            log::debug!("{config}: {key}=auto hides the capability, for: {why}");
            Ok(None)
        }
    }
}

fn pasids(host: &HostCapabilities, unit: Option<&UnitConfig>) -> Result<Pasids, Hidden> {
    let scalable = unit
        .and_then(|unit| unit.scalable)
        .filter(|scalable| scalable.pasid_bits != 0)
        .ok_or(Hidden::NoUnitWithPasids)?;
    if host.pasid_bits == 0 {
        return Err(Hidden::NoHostPasids);
    }
    if !scalable.stages.first() && host.intel.is_none_or(|intel| intel.caps.ecap.fsts()) {
        return Err(Hidden::SecondStage);
    }
    Ok(Pasids {
        // The guest goes by the narrower of the device and the unit.
        bits: host.pasid_bits.min(scalable.pasid_bits),
        privileged: host.privileged_pasids && scalable.walks.supervisor_requests,
    })
}

fn device_tlb(
    host: &HostCapabilities,
    ats: HostState,
    unit: Option<&UnitConfig>,
) -> Result<(), Hidden> {
    if !unit.is_some_and(|unit| unit.device_tlb) {
        return Err(Hidden::NoUnitWithDeviceTlbs);
    }
    match ats {
        HostState::Absent => Err(Hidden::NoAts),
        HostState::Disabled => Err(Hidden::HostAtsDisabled),
        HostState::Enabled if !host.ats => Err(Hidden::HostAtsUnsupported),
        HostState::Enabled => Ok(()),
    }
}

fn page_requests(pri: HostState, ats: bool, unit: Option<&UnitConfig>) -> Result<(), Hidden> {
    if !unit.is_some_and(UnitConfig::page_requests) {
        return Err(Hidden::NoUnitWithPageRequests);
    }
    match pri {
        HostState::Absent => Err(Hidden::NoPri),
        HostState::Disabled => Err(Hidden::HostPriDisabled),
        HostState::Enabled if !ats => Err(Hidden::NoAtsForPri),
        HostState::Enabled => Ok(()),
    }
}

/// For people: one line.
pub(super) struct Description(pub(super) Shown);

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.pasids {
            Some(Pasids { bits, .. }) => write!(f, "{bits}-bit PASIDs")?,
            None => f.write_str("no PASIDs")?,
        }
        f.write_str(if self.0.ats { ", ATS" } else { ", no ATS" })?;
        f.write_str(if self.0.pri { ", PRI" } else { ", no PRI" })
    }
}

#[cfg(test)]
mod services_test;
