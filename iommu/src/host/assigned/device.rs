//! One assigned device.

use std::io;
use std::sync::Arc;

use super::target::{Blocked, Target};
use crate::host::space::{AttachError, Client, Space, detach};
use crate::host::{Attachment, HardwareInfo, HostDeviceId, HostIommu};
use crate::spec::ids::SourceId;
use crate::translate::SecondStage;

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
}

/// Names one of the machine's iommufds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostKey(pub(crate) u64);

/// Where a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binding {
    Blocked(Blocked),
    GuestPhysical,
    /// The shadow of these tables on the device's iommufd.
    Shadow {
        stage: SecondStage,
        domain: u16,
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
            _ => false,
        }
    }

    /// Whether it uses the shadow of `stage` on `host`.
    pub(crate) fn uses(&self, host: HostKey, stage: &SecondStage) -> bool {
        self.host == host
            && matches!(&self.binding, Binding::Shadow { stage: used, .. } if used == stage)
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
    pub(crate) fn attach(&mut self, space: &Space, binding: Binding) -> Result<(), AttachError> {
        self.unstick().map_err(AttachError::Stuck)?;
        let outcome = space.attach(&*self.attachment);
        match &outcome {
            Ok(()) => {
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
