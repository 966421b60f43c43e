//! One assigned device.

use std::io;
use std::sync::Arc;

use super::target::{Blocked, Target};
use crate::host::nested::batch::{Tag, User};
use crate::host::nested::{Nested, NestedKey};
use crate::host::shadow::ShadowKey;
use crate::host::space::{AttachError, Attached, Client, Space, attach, detach};
use crate::host::{Attachment, HardwareInfo, HostDeviceId, HostIommu, ObjectId};
use crate::spec::ids::SourceId;
use crate::translate::{FirstStage, SecondStage};

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
}

/// Names one of the machine's iommufds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostKey(pub(crate) u64);

/// Where a device is: its requests without PASID, which are all that it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binding {
    Blocked(Blocked),
    GuestPhysical,
    /// The shadow of these tables on the device's iommufd.
    Shadow {
        stage: SecondStage,
        domain: u16,
    },
    /// A nested page table of these tables on the device's iommufd.
    Nested {
        first: FirstStage,
        below: Option<SecondStage>,
        tag: Tag,
        table: ObjectId,
    },
}

pub(crate) struct Device {
    pub(crate) source: SourceId,
    pub(crate) name: Arc<str>,
    pub(crate) host: HostKey,
    id: HostDeviceId,
    info: HardwareInfo,
    attachment: Arc<dyn Attachment>,
    pub(crate) binding: Binding,
    /// The host did not block it, so it may reach what it reached before.
    stuck: bool,
    /// The run of the invalidation queue in which it could not be put where it belongs.
    failed_in: Option<u64>,
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
            binding: Binding::Blocked(Blocked::Host(None)),
            stuck: false,
            failed_in: None,
        }
    }

    pub(crate) fn client(&self) -> Client<'_> {
        Client {
            name: &self.name,
            device: self.id,
            info: &self.info,
        }
    }

    /// Whether the device is where `target` wants it, or was found in `run` not to get there.
    pub(crate) fn stays(&self, target: &Target, run: u64) -> bool {
        match (&self.binding, target) {
            (Binding::Blocked(is), Target::Blocked(wanted)) => is == wanted && !self.stuck,
            (Binding::Blocked(_), _) => self.failed_in == Some(run),
            (Binding::GuestPhysical, Target::GuestPhysical) => true,
            (
                Binding::Shadow { stage, domain },
                Target::Shadow {
                    stage: wanted,
                    domain: wanted_domain,
                },
            ) => stage == wanted && domain == wanted_domain,
            (
                Binding::Nested {
                    first, below, tag, ..
                },
                Target::Nested {
                    first: wanted,
                    below: wanted_below,
                    tag: wanted_tag,
                },
            ) => first == wanted && below == wanted_below && tag == wanted_tag,
            _ => false,
        }
    }

    /// Whether it uses this shadow on `host`, be it through a nested page table.
    pub(crate) fn uses(&self, host: HostKey, shadow: &ShadowKey) -> bool {
        let used = match self.binding {
            Binding::Shadow { stage, .. } => Some((stage, false)),
            Binding::Nested { below, .. } => below.map(|stage| (stage, true)),
            Binding::Blocked(_) | Binding::GuestPhysical => None,
        };
        self.host == host && used == Some((shadow.stage, shadow.parent))
    }

    /// DID, under which the guest invalidates what it is behind.
    pub(crate) const fn domain(&self) -> Option<u16> {
        match self.binding {
            Binding::Shadow { domain, .. }
            | Binding::Nested {
                tag: Tag { domain, .. },
                ..
            } => Some(domain),
            Binding::Blocked(_) | Binding::GuestPhysical => None,
        }
    }

    /// As a user of this nested page table, if it is one.
    pub(crate) fn user_of(&self, nested: &Nested) -> Option<User> {
        match self.binding {
            Binding::Nested { tag, table, .. }
                if table == nested.id && self.host == nested.key.host =>
            {
                Some(User {
                    source: self.source,
                    tag,
                })
            }
            _ => None,
        }
    }

    /// Blocks it.
    pub(crate) fn block(&mut self, why: Blocked, run: u64) -> io::Result<()> {
        let was = std::mem::replace(&mut self.binding, Binding::Blocked(why));
        self.failed_in = (!why.is_asked_for()).then_some(run);
        if !self.stuck && matches!(was, Binding::Blocked(_)) {
            return Ok(());
        }
        let outcome = detach(&*self.attachment);
        self.stuck = outcome.is_err();
        outcome
    }

    /// Tries again to block it, if that was not possible before.
    pub(crate) fn unstick(&mut self) -> io::Result<()> {
        if self.stuck {
            detach(&*self.attachment)?;
            self.stuck = false;
        }
        Ok(())
    }

    /// Puts it behind a page table of `space`. After an error it is blocked, unless it is stuck.
    pub(crate) fn attach(
        &mut self,
        space: &Space,
        binding: Binding,
    ) -> Result<Attached, AttachError> {
        self.attach_by(binding, |attachment| space.attach(attachment))
    }

    /// Puts it behind a nested page table. After an error it is blocked, unless it is stuck.
    pub(crate) fn attach_nested(
        &mut self,
        table: ObjectId,
        key: &NestedKey,
        tag: Tag,
    ) -> Result<Attached, AttachError> {
        let binding = Binding::Nested {
            first: key.first,
            below: key.below,
            tag,
            table,
        };
        self.attach_by(binding, |attachment| attach(attachment, table))
    }

    fn attach_by(
        &mut self,
        binding: Binding,
        attach: impl FnOnce(&dyn Attachment) -> Result<Attached, AttachError>,
    ) -> Result<Attached, AttachError> {
        self.unstick().map_err(AttachError::Stuck)?;
        let outcome = attach(&*self.attachment);
        match &outcome {
            Ok(_) => {
                self.binding = binding;
                self.failed_in = None;
            }
            Err(error) => {
                self.stuck = matches!(error, AttachError::Stuck(_));
                self.binding = Binding::Blocked(Blocked::Host(None));
            }
        }
        outcome
    }
}
