//! Where the requests of a device are that have one PASID, or none.

use std::io;

use super::target::Target;
use crate::blocked::Blocked;
use crate::host_iommu::{Attachment, HwptId};
use crate::ioas::{AttachError, Attached, detach};
use crate::nested::batch::Tag;
use crate::shadow::ShadowKey;
use intel_vtd::{FirstStage, Pasid, SecondStage};

/// What requests reach.
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
        table: HwptId,
    },
}

impl Binding {
    /// What the guest wanted when it was bound so.
    const fn target(&self) -> Target {
        match *self {
            Self::Blocked(why) => Target::Blocked(why),
            Self::GuestPhysical => Target::GuestPhysical,
            Self::Shadow { stage, domain } => Target::Shadow { stage, domain },
            Self::Nested {
                first, below, tag, ..
            } => Target::Nested { first, below, tag },
        }
    }

    /// The shadow that it goes through.
    pub(crate) fn shadow(&self) -> Option<ShadowKey> {
        self.target().shadow()
    }

    /// DID, under which the guest invalidates what it goes through.
    pub(crate) const fn domain(&self) -> Option<u16> {
        match *self {
            Self::Shadow { domain, .. }
            | Self::Nested {
                tag: Tag { domain, .. },
                ..
            } => Some(domain),
            Self::Blocked(_) | Self::GuestPhysical => None,
        }
    }

    /// The nested page table that it is.
    pub(crate) const fn nested(&self) -> Option<HwptId> {
        match *self {
            Self::Nested { table, .. } => Some(table),
            _ => None,
        }
    }
}

/// The binding of one PASID of a device, or of its requests without, and how far the host follows.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) binding: Binding,
    /// The host did not block it, so it may reach what it reached before.
    stuck: bool,
    /// The run of the invalidation queue in which it could not be put where it belongs.
    failed_in: Option<u64>,
}

impl Default for Slot {
    /// As the host has it at first.
    fn default() -> Self {
        Self {
            binding: Binding::Blocked(Blocked::Host(None)),
            stuck: false,
            failed_in: None,
        }
    }
}

impl Slot {
    /// Whether it is where `target` wants it, or was found in `run` not to get there.
    pub(crate) fn stays(&self, target: &Target, run: u64) -> bool {
        match (&self.binding, target) {
            (Binding::Blocked(is), Target::Blocked(wanted)) => is == wanted && !self.stuck,
            (Binding::Blocked(_), _) => self.failed_in == Some(run),
            (binding, target) => binding.target() == *target,
        }
    }

    /// Nothing would be lost with it: the guest wants it to reach nothing, and it does not.
    pub(crate) const fn is_idle(&self) -> bool {
        matches!(self.binding, Binding::Blocked(Blocked::Guest(_))) && !self.stuck
    }

    /// Blocks it.
    pub(crate) fn block(
        &mut self,
        attachment: &dyn Attachment,
        pasid: Option<Pasid>,
        why: Blocked,
        run: u64,
    ) -> io::Result<()> {
        let was = std::mem::replace(&mut self.binding, Binding::Blocked(why));
        self.failed_in = (!why.is_asked_for()).then_some(run);
        if !self.stuck && matches!(was, Binding::Blocked(_)) {
            return Ok(());
        }
        let outcome = detach(attachment, pasid);
        self.stuck = outcome.is_err();
        outcome
    }

    /// Tries again to block it, if that was not possible before.
    pub(crate) fn unstick(
        &mut self,
        attachment: &dyn Attachment,
        pasid: Option<Pasid>,
    ) -> io::Result<()> {
        if self.stuck {
            detach(attachment, pasid)?;
            self.stuck = false;
        }
        Ok(())
    }

    /// Has `attach` put it where `binding` says. After an error it is blocked, unless it is stuck.
    pub(crate) fn attach(
        &mut self,
        attachment: &dyn Attachment,
        pasid: Option<Pasid>,
        binding: Binding,
        attach: impl FnOnce() -> Result<Attached, AttachError>,
    ) -> Result<Attached, AttachError> {
        self.unstick(attachment, pasid)
            .map_err(AttachError::Stuck)?;
        let outcome = attach();
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
