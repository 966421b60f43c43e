//! Where the requests of a device are that have one PASID, or none, and how far the host follows.

use std::io;
use std::sync::Arc;

use super::placement::Placement;
use crate::attach::{AttachError, Attached, attach, detach};
use crate::blocked::Blocked;
use crate::host_iommu::{Attachment, HwptId};
use crate::nested::Nested;
use intel_vtd::Pasid;

/// Requests with one PASID, or without.
pub(crate) struct Slot {
    pub(super) placement: Placement,
    /// The nested HWPT that they are behind, which lives for as long as anyone is.
    pub(super) nested: Option<Arc<Nested>>,
    /// The host did not block them, so they may reach what they reached before.
    stuck: bool,
    /// The exit of the guest in which they could not be put where they belong.
    failed_in: Option<u64>,
    /// Where they belong, while only others of the device's IOMMU group are in the way.
    pub(super) belongs: Option<Placement>,
}

impl Default for Slot {
    /// As the host has it at first.
    fn default() -> Self {
        Self {
            placement: Placement::Blocked(Blocked::Host(None)),
            nested: None,
            stuck: false,
            failed_in: None,
            belongs: None,
        }
    }
}

impl Slot {
    /// Whether they are where they are wanted, or were found in `exit` not to get there.
    pub(super) fn stays(&self, wanted: &Placement, exit: u64) -> bool {
        match (&self.placement, wanted) {
            (Placement::Blocked(is), Placement::Blocked(wanted)) => is == wanted && !self.stuck,
            (Placement::Blocked(_), _) => self.failed_in == Some(exit),
            (is, wanted) => is == wanted,
        }
    }

    /// They were found in `exit` not to get where they belong.
    pub(super) fn has_failed(&self, exit: u64) -> bool {
        matches!(self.placement, Placement::Blocked(_)) && self.failed_in == Some(exit)
    }

    /// They wait for the end of a reset, or could not be blocked.
    pub(super) const fn is_waiting(&self) -> bool {
        self.stuck || matches!(self.placement, Placement::Blocked(Blocked::Busy))
    }

    /// Nothing would be lost with it: the guest wants them to reach nothing, and they do not.
    pub(super) const fn is_idle(&self) -> bool {
        matches!(self.placement, Placement::Blocked(Blocked::Guest(_))) && !self.stuck
    }

    /// Blocks them.
    pub(super) fn block(
        &mut self,
        attachment: &dyn Attachment,
        pasid: Option<Pasid>,
        why: Blocked,
        exit: u64,
    ) -> io::Result<()> {
        let was = std::mem::replace(&mut self.placement, Placement::Blocked(why));
        self.nested = None;
        let is_apart = matches!(why, Blocked::GroupApart(_));
        self.failed_in = (!why.is_asked_for() && !is_apart).then_some(exit);
        self.belongs = self.belongs.filter(|_| is_apart);
        if !self.stuck && matches!(was, Placement::Blocked(_)) {
            return Ok(());
        }
        let outcome = detach(attachment, pasid);
        self.stuck = outcome.is_err();
        outcome
    }

    /// Blocks them for as long as it takes to put them elsewhere.
    pub(super) fn lift(
        &mut self,
        attachment: &dyn Attachment,
        pasid: Option<Pasid>,
    ) -> io::Result<()> {
        let outcome = self.block(attachment, pasid, Blocked::Host(None), 0);
        self.failed_in = None;
        outcome
    }

    /// Tries again to block them, if that was not possible before.
    pub(super) fn unstick(
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

    /// Puts them behind the first of `hwpts` that takes them. After an error they are blocked,
    /// unless they are stuck; but if there are none, they stay where they are.
    pub(super) fn attach(
        &mut self,
        attachment: &dyn Attachment,
        pasid: Option<Pasid>,
        hwpts: &[HwptId],
        placement: Placement,
    ) -> Result<Attached, AttachError> {
        if hwpts.is_empty() {
            return Err(AttachError::Incompatible);
        }
        self.unstick(attachment, pasid)
            .map_err(AttachError::Stuck)?;
        let outcome = attach(attachment, pasid, hwpts);
        self.nested = None;
        match &outcome {
            Ok(_) => {
                self.placement = placement;
                self.failed_in = None;
                self.belongs = None;
            }
            Err(error) => {
                self.stuck = matches!(error, AttachError::Stuck(_));
                self.placement = Placement::Blocked(Blocked::Host(None));
            }
        }
        outcome
    }
}
