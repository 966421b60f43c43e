//! One assigned device: its requests without PASID, and with each PASID that the guest has an entry for.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::binding::{Binding, Slot};
use super::target::Target;
use crate::blocked::Blocked;
use crate::host_iommu::{
    Attachment, FaultQueueId, HardwareInfo, HostDeviceId, HostIommu, HwptId, NestedOptions,
};
use crate::ioas::{AttachError, Attached, Client, Needs, attach, attach_to_one};
use crate::nested::NestedKey;
use crate::nested::batch::Tag;
use crate::page_requests::PageRequestPath;
use crate::resources::HostKey;
use crate::shadow::ShadowKey;
use intel_vtd::{Pasid, SourceId};

/// What a machine is given to assign a device.
#[derive(Clone)]
pub struct AssignedDevice {
    /// Who the requests of the device come from, as the guest sees it.
    pub source: SourceId,
    /// What the user calls it; for messages.
    pub name: String,
    /// The iommufd that it is bound to. Devices of one iommufd are given clones of one `Arc`.
    pub host: Arc<dyn HostIommu>,
    /// What the iommufd calls it.
    pub id: HostDeviceId,
    /// How it is put behind page tables. It is behind none.
    pub attachment: Arc<dyn Attachment>,
    /// The guest is shown the device's PASID capability, so requests with PASIDs follow the guest's tables, too. Without, they
    /// reach nothing.
    pub pasids: bool,
    /// The guest is shown the device's ATS capability, so it invalidates the device's own translations, too. Without, such an
    /// invalidation names a device that has none, and times out.
    pub ats: bool,
    /// The guest is shown the device's PRI capability: its page requests go this way. Without, the host answers them.
    pub page_requests: Option<PageRequestPath>,
}

/// Names requests of a device, which is at this place in the list: those with a PASID, or those without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) device: usize,
    pub(crate) pasid: Option<Pasid>,
}

pub(crate) struct Device {
    pub(crate) source: SourceId,
    pub(crate) name: Arc<str>,
    pub(crate) host: HostKey,
    id: HostDeviceId,
    info: HardwareInfo,
    attachment: Arc<dyn Attachment>,
    pub(crate) has_pasids: bool,
    pub(crate) has_ats: bool,
    page_requests: Option<FaultQueueId>,
    without: Slot,
    /// PASIDs that are not here are blocked.
    with: BTreeMap<Pasid, Slot>,
}

impl Device {
    pub(crate) fn new(device: AssignedDevice, info: HardwareInfo, host: HostKey) -> Self {
        Self {
            source: device.source,
            name: device.name.into(),
            host,
            id: device.id,
            info,
            attachment: device.attachment,
            has_pasids: device.pasids,
            has_ats: device.ats,
            page_requests: device.page_requests.map(|path| path.queue),
            without: Slot::default(),
            with: BTreeMap::new(),
        }
    }

    pub(crate) fn client(&self, pasid: Option<Pasid>) -> Client<'_> {
        Client {
            name: &self.name,
            device: self.id,
            info: &self.info,
            needs: self.needs(pasid),
        }
    }

    /// Which page tables are for its requests with `pasid`.
    pub(crate) fn needs(&self, pasid: Option<Pasid>) -> Needs {
        Needs {
            pasids: self.has_pasids,
            with_pasid: pasid.is_some(),
        }
    }

    /// Which nested page tables are for it.
    pub(crate) const fn nested_options(&self) -> NestedOptions {
        NestedOptions {
            pasid: self.has_pasids,
            page_requests: self.page_requests,
        }
    }

    /// What messages call its requests with `pasid`.
    pub(crate) fn describe(&self, pasid: Option<Pasid>) -> String {
        let Self { name, source, .. } = self;
        match pasid {
            None => format!("{name} ({source})"),
            Some(pasid) => format!("{name} ({source}) with PASID {pasid}"),
        }
    }

    pub(crate) fn binding(&self, pasid: Option<Pasid>) -> Option<&Binding> {
        self.slot(pasid).map(|slot| &slot.binding)
    }

    pub(crate) fn binding_mut(&mut self, pasid: Option<Pasid>) -> Option<&mut Binding> {
        self.slot_mut(pasid).map(|slot| &mut slot.binding)
    }

    /// All bindings: of requests without PASID first, and then by PASID.
    pub(crate) fn bindings(&self) -> impl Iterator<Item = (Option<Pasid>, &Binding)> {
        let with = self
            .with
            .iter()
            .map(|(pasid, slot)| (Some(*pasid), &slot.binding));
        std::iter::once((None, &self.without.binding)).chain(with)
    }

    /// The PASIDs that are bound, or that belong elsewhere than where they are.
    pub(crate) fn pasids(&self) -> impl ExactSizeIterator<Item = Pasid> {
        self.with.keys().copied()
    }

    /// Why the host has no such PASID for the device.
    pub(crate) fn lacks(&self, pasid: Pasid) -> Option<Blocked> {
        let bits = self.info.pasid_bits;
        let beyond = pasid.get().checked_shr(u32::from(bits)) != Some(0);
        match pasid {
            // It is the host's name for requests without PASID.
            Pasid::ZERO => Some(Blocked::PasidZero),
            _ if beyond => Some(Blocked::PasidTooLarge { bits }),
            _ => None,
        }
    }

    fn slot(&self, pasid: Option<Pasid>) -> Option<&Slot> {
        match pasid {
            None => Some(&self.without),
            Some(pasid) => self.with.get(&pasid),
        }
    }

    fn slot_mut(&mut self, pasid: Option<Pasid>) -> Option<&mut Slot> {
        match pasid {
            None => Some(&mut self.without),
            Some(pasid) => self.with.get_mut(&pasid),
        }
    }

    /// Makes room for a binding of `pasid`, if there are fewer than `limit`.
    pub(crate) fn open(&mut self, pasid: Option<Pasid>, limit: usize) -> Result<(), Blocked> {
        let Some(pasid) = pasid else {
            return Ok(());
        };
        if self.with.len() >= limit && !self.with.contains_key(&pasid) {
            return Err(Blocked::TooManyPasids);
        }
        self.with.entry(pasid).or_default();
        Ok(())
    }

    /// Whether the requests are where `target` wants them, or were found in `run` not to get there.
    pub(crate) fn stays(&self, pasid: Option<Pasid>, target: &Target, run: u64) -> bool {
        match self.slot(pasid) {
            Some(slot) => slot.stays(target, run),
            None => matches!(target, Target::Blocked(_)),
        }
    }

    /// Whether any of its requests go through this shadow on `host`.
    pub(crate) fn uses(&self, host: HostKey, shadow: &ShadowKey) -> bool {
        self.host == host
            && self
                .bindings()
                .any(|(_, binding)| binding.shadow().as_ref() == Some(shadow))
    }

    /// Blocks requests.
    pub(crate) fn block(&mut self, pasid: Option<Pasid>, why: Blocked, run: u64) -> io::Result<()> {
        let attachment = Arc::clone(&self.attachment);
        let Some(slot) = self.slot_mut(pasid) else {
            return Ok(());
        };
        let outcome = slot.block(&*attachment, pasid, why, run);
        self.prune();
        outcome
    }

    /// Tries again to block what could not be blocked before. Returns the last error.
    pub(crate) fn unstick(&mut self) -> io::Result<()> {
        let mut outcome = self.without.unstick(&*self.attachment, None);
        for (pasid, slot) in &mut self.with {
            outcome = outcome.and(slot.unstick(&*self.attachment, Some(*pasid)));
        }
        self.prune();
        outcome
    }

    fn prune(&mut self) {
        self.with.retain(|_, slot| !slot.is_idle());
    }

    /// Puts requests behind the first of `tables` that takes them. After an error they are blocked, unless they are stuck; but if
    /// there are no tables, they stay where they are.
    pub(crate) fn attach(
        &mut self,
        pasid: Option<Pasid>,
        tables: &[HwptId],
        binding: Binding,
    ) -> Result<Attached, AttachError> {
        if tables.is_empty() {
            return Err(AttachError::Incompatible);
        }
        self.attach_by(pasid, binding, |attachment| {
            attach_to_one(attachment, pasid, tables)
        })
    }

    /// Puts requests behind a nested page table. After an error they are blocked, unless they are stuck.
    pub(crate) fn attach_nested(
        &mut self,
        pasid: Option<Pasid>,
        table: HwptId,
        key: &NestedKey,
        tag: Tag,
    ) -> Result<Attached, AttachError> {
        let binding = Binding::Nested {
            first: key.first,
            below: key.below,
            tag,
            table,
        };
        self.attach_by(pasid, binding, |attachment| {
            attach(attachment, pasid, table)
        })
    }

    fn attach_by(
        &mut self,
        pasid: Option<Pasid>,
        binding: Binding,
        attach: impl FnOnce(&dyn Attachment) -> Result<Attached, AttachError>,
    ) -> Result<Attached, AttachError> {
        let attachment = Arc::clone(&self.attachment);
        let slot = self.slot_mut(pasid).ok_or(AttachError::Incompatible)?;
        slot.attach(&*attachment, pasid, binding, || attach(&*attachment))
    }
}
