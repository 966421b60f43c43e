//! Reports on assigned devices: where each is, for people and for tests.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::device::Device;
use super::placement::Placement;
use crate::blocked::Blocked;
use crate::host_iommu::HostGroupId;
use crate::shadow::{Shadow, ShadowKey};
use intel_vtd::{Pasid, SourceId};

/// Where requests of a device are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlacementReport {
    /// What they reach.
    pub placement: Placement,
    /// Where the guest wants them, if they are blocked for other devices of the IOMMU group.
    pub belongs: Option<Placement>,
    /// Areas of the shadow that they are behind, if they are behind one.
    pub areas: usize,
    /// Bytes that it maps.
    pub bytes: u64,
}

/// A device, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceReport {
    /// Who the requests come from.
    pub source: SourceId,
    /// What the user calls it.
    pub name: Arc<str>,
    /// Its IOMMU group of the host.
    pub group: HostGroupId,
    /// Where its requests without PASID are.
    pub without_pasid: PlacementReport,
    /// Where its requests with PASIDs are, in ascending order; those that are not listed are
    /// blocked, as the guest has no entry for them.
    pub pasids: Vec<(Pasid, PlacementReport)>,
}

impl DeviceReport {
    /// Of a device that is behind one of `shadows`, or elsewhere.
    pub(super) fn new(device: &Device, shadows: &BTreeMap<ShadowKey, Shadow>) -> Self {
        let mut pasids = Vec::new();
        let mut without_pasid =
            PlacementReport::new(Placement::Blocked(Blocked::Host(None)), None, shadows);
        for (pasid, placement) in device.placements() {
            let report = PlacementReport::new(*placement, device.belonging(pasid), shadows);
            match pasid {
                None => without_pasid = report,
                Some(pasid) => pasids.push((pasid, report)),
            }
        }
        Self {
            source: device.source,
            name: Arc::clone(&device.name),
            group: device.group,
            without_pasid,
            pasids,
        }
    }
}

impl PlacementReport {
    fn new(
        placement: Placement,
        belongs: Option<Placement>,
        shadows: &BTreeMap<ShadowKey, Shadow>,
    ) -> Self {
        let key = placement.shadow();
        let key = key.filter(|key| !key.parent);
        let shadow = key.and_then(|key| shadows.get(&key));
        let areas = shadow.map(Shadow::areas);
        Self {
            placement,
            belongs,
            areas: areas.map_or(0, |areas| areas.len()),
            bytes: areas.map_or(0, |areas| areas.bytes()),
        }
    }
}

impl fmt::Display for DeviceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.source, self.name, self.without_pasid)?;
        self.pasids
            .iter()
            .try_for_each(|(pasid, report)| write!(f, "\n  PASID {pasid}: {report}"))
    }
}

impl fmt::Display for PlacementReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.placement)?;
        if let Some(belongs) = &self.belongs {
            write!(f, " (the guest wants: {belongs})")?;
        }
        if matches!(self.placement, Placement::Shadow { .. }) {
            write!(f, ": {} KiB in {} areas", self.bytes / 1024, self.areas)?;
        }
        Ok(())
    }
}
