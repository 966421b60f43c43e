//! What there is to say about devices.

use std::sync::Arc;

use super::State;
use crate::assigned::binding::Binding;
use crate::assigned::device::Device;
use crate::assigned::report::{DeviceBinding, DeviceReport};
use crate::blocked::Blocked;

impl State {
    pub(crate) fn reports(&self) -> impl Iterator<Item = DeviceReport> {
        self.devices.iter().map(|device| {
            let mut pasids = Vec::new();
            let mut binding = DeviceBinding::Blocked(Blocked::Host(None));
            for (pasid, is) in device.bindings() {
                let is = self.report(device, is);
                match pasid {
                    None => binding = is,
                    Some(pasid) => pasids.push((pasid, is)),
                }
            }
            DeviceReport {
                source: device.source,
                name: Arc::clone(&device.name),
                binding,
                pasids,
            }
        })
    }

    fn report(&self, device: &Device, binding: &Binding) -> DeviceBinding {
        match *binding {
            Binding::Blocked(why) => DeviceBinding::Blocked(why),
            Binding::GuestPhysical => DeviceBinding::GuestPhysical,
            Binding::Nested {
                first, below, tag, ..
            } => DeviceBinding::Nested {
                first,
                below,
                domain: tag.domain,
                pasid: tag.pasid,
            },
            Binding::Shadow { stage, domain } => {
                let key = binding.shadow();
                let shadow = self
                    .domains
                    .iter()
                    .find(|domain| domain.host == device.host && Some(domain.shadow.key) == key);
                let areas = shadow.map(|domain| domain.shadow.areas());
                DeviceBinding::Shadow {
                    stage,
                    domain,
                    areas: areas.map_or(0, |areas| areas.len()),
                    bytes: areas.map_or(0, |areas| areas.bytes()),
                }
            }
        }
    }
}
