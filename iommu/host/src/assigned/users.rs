//! Which requests go through which shadow and nested HWPT: what the guest invalidates is found by
//! its name, not by looking at all that there is.

use std::collections::BTreeMap;

use super::device::Device;
use super::moves::Moves;
use super::placement::Placement;
#[cfg(test)]
use super::testing::{count_looks, take_looks};
use crate::host_iommu::HwptId;
use crate::index::Requester;
use crate::nested::users::NestedUsers;
use crate::shadow::ShadowKey;
use crate::shadow::users::ShadowUsers;
use intel_vtd::{Pasid, SourceId};

/// Index of the requests of one iommufd's devices.
#[derive(Default)]
pub(crate) struct Users {
    pub(super) shadows: ShadowUsers,
    pub(super) nested: NestedUsers,
}

/// How many requests are about to leave a shadow, or a nested HWPT.
#[derive(Default)]
pub(crate) struct Leaving {
    shadows: BTreeMap<ShadowKey, usize>,
    nested: BTreeMap<HwptId, usize>,
}

impl Users {
    /// Takes over what became of requests since this was done before.
    pub(super) fn follow(&mut self, devices: &mut [Device]) {
        for device in devices {
            for pasid in device.take_changed() {
                self.set((device.source, pasid), device);
            }
        }
    }

    /// A device is there no more.
    pub(super) fn forget(&mut self, source: SourceId, pasids: impl Iterator<Item = Option<Pasid>>) {
        for pasid in pasids {
            self.shadows.set((source, pasid), None);
            self.nested.set((source, pasid), None);
        }
    }

    fn set(&mut self, requester: Requester, device: &Device) {
        let (_, pasid) = requester;
        let placement = device.placement(pasid);
        let shadow = placement.and_then(|placement| placement.shadow().zip(placement.domain()));
        self.shadows.set(requester, shadow);
        let nested = match placement {
            Some(Placement::Nested { tag, .. }) => device.hwpt(pasid).map(|hwpt| (hwpt, *tag)),
            _ => None,
        };
        self.nested.set(requester, nested);
    }

    /// Whether someone stays behind a shadow.
    pub(super) fn stay(&self, key: &ShadowKey, leaving: &Leaving) -> bool {
        self.shadows.count(key) > leaving.shadows.get(key).copied().unwrap_or(0)
    }

    /// Whether someone stays behind a nested HWPT.
    pub(super) fn stay_nested(&self, id: HwptId, leaving: &Leaving) -> bool {
        self.nested.count(id) > leaving.nested.get(&id).copied().unwrap_or(0)
    }
}

impl Leaving {
    /// By `moves` of `devices`, in the same order.
    pub(super) fn of(devices: &[Device], moves: &[Moves]) -> Self {
        let mut leaving = Self::default();
        for (device, moves) in devices.iter().zip(moves) {
            for (pasid, target) in moves {
                let shadow = device.placement(*pasid).and_then(Placement::shadow);
                if let Some(key) = shadow
                    && target.shadow() != Some(key)
                {
                    *leaving.shadows.entry(key).or_default() += 1;
                }
                if let Some(id) = device.hwpt(*pasid) {
                    *leaving.nested.entry(id).or_default() += 1;
                }
            }
        }
        leaving
    }
}

#[cfg(test)]
impl Users {
    /// Panics if it is not what `devices` say.
    pub(super) fn check(&self, devices: &[Device]) {
        let looks = take_looks();
        let mut all = Self::default();
        for device in devices {
            for (pasid, _) in device.placements() {
                all.set((device.source, pasid), device);
            }
        }
        assert!(self.shadows.is_same(&all.shadows));
        assert!(self.nested.is_same(&all.nested));
        take_looks();
        count_looks(looks);
    }
}
