//! One assigned device: its requests without PASID, and with each PASID that the guest has an entry
//! for.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::placement::Placement;
use super::slot::Slot;
use crate::attach::AttachError;
use crate::blocked::Blocked;
use crate::host_iommu::{
    Attachment, FaultQueueId, HardwareInfo, HostDeviceId, HostGroupId, HostIommu, HwptId,
    NestedOptions,
};
use crate::ioas::{Client, Needs};
use crate::nested::{Nested, NestedKey};
use crate::page_requests::PageRequestPath;
use crate::resources::Resources;
use intel_vtd::spec::fault_reason::FaultReason;
use intel_vtd::{GuestTables, Pasid, SourceId, TableMemory};

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
    /// The group that the host's IOMMU has it in. Devices of one group are placed together; where
    /// the guest wants them in different places, all of them are blocked.
    pub group: HostGroupId,
    /// How it is put behind page tables. It is behind none.
    pub attachment: Arc<dyn Attachment>,
    /// The guest is shown the device's PASID capability, so requests with PASIDs follow the guest's
    /// tables, too. Without, they reach nothing.
    pub pasids: bool,
    /// The guest is shown the device's ATS capability, so it invalidates the device's own
    /// translations, too. Without, such an invalidation names a device that has none, and times
    /// out.
    pub ats: bool,
    /// The guest is shown the device's PRI capability: its page requests go this way. Without, the
    /// host answers them. It also does for a device with others of its group beside it, as it does
    /// not tell whose page requests are whose.
    pub page_requests: Option<PageRequestPath>,
}

/// An assigned device of an iommufd.
pub(crate) struct Device {
    pub(crate) source: SourceId,
    pub(crate) name: Arc<str>,
    pub(crate) group: HostGroupId,
    id: HostDeviceId,
    info: HardwareInfo,
    attachment: Arc<dyn Attachment>,
    pub(crate) has_pasids: bool,
    pub(crate) has_ats: bool,
    page_requests: Option<FaultQueueId>,
    /// The host takes no page tables with dirty tracking for PASIDs.
    untracked_pasids: bool,
    /// It has addresses reserved at which others have pages, so its shadows are its own.
    owns_shadows: bool,
    /// There are other devices of its group.
    is_sharing: bool,
    /// What it is behind must be page tables for PASIDs, for any device of its group.
    pasid_tables: bool,
    without: Slot,
    /// PASIDs that are not here are blocked.
    with: BTreeMap<Pasid, Slot>,
    /// The guest may have entries for PASIDs that are not here, for want of room.
    pub(crate) has_more: Cell<bool>,
    /// PASIDs of which an interruption has left something to do.
    pub(crate) unfinished: Vec<Pasid>,
    /// Requests that may be elsewhere since [`take_changed`](Self::take_changed).
    changed: Vec<Option<Pasid>>,
    /// Some of them may be stuck.
    maybe_stuck: bool,
}

impl Device {
    pub(crate) fn new(device: AssignedDevice, info: HardwareInfo) -> Self {
        Self {
            source: device.source,
            name: device.name.into(),
            group: device.group,
            id: device.id,
            info,
            attachment: device.attachment,
            has_pasids: device.pasids,
            has_ats: device.ats,
            page_requests: device.page_requests.map(|path| path.queue),
            untracked_pasids: false,
            owns_shadows: false,
            is_sharing: false,
            pasid_tables: device.pasids,
            without: Slot::default(),
            with: BTreeMap::new(),
            has_more: Cell::new(false),
            unfinished: Vec::new(),
            changed: Vec::new(),
            maybe_stuck: false,
        }
    }

    /// Where its requests with `pasid` belong, as the guest's tables say.
    pub(crate) fn wanted<T: TableMemory>(
        &self,
        tables: Option<&GuestTables<'_, T>>,
        pasid: Option<Pasid>,
    ) -> Placement {
        if pasid.is_some() && !self.has_pasids {
            return Placement::Blocked(Blocked::Guest(FaultReason::PasidDisabled));
        }
        let wanted = Placement::wanted(tables, self.source, pasid);
        // The kernel takes no account of what is reserved for requests with PASIDs.
        let is_owner = self.owns_shadows && !self.is_sharing && pasid.is_none();
        wanted.owned_by(is_owner.then_some(self.source))
    }

    /// It gets shadows of its own from now on, unless others of its group are to be behind the same.
    /// Returns whether it had none before.
    pub(crate) fn own_shadows(&mut self) -> bool {
        !self.is_sharing && !std::mem::replace(&mut self.owns_shadows, true)
    }

    /// Whether the host may have refused requests with `pasid` for the dirty tracking of the page
    /// tables, which it does not tell otherwise. These are without from now on.
    pub(crate) fn untrack(&mut self, pasid: Option<Pasid>) -> bool {
        let may_be = pasid.is_some() && self.info.dirty_tracking && !self.untracked_pasids;
        self.untracked_pasids |= may_be;
        may_be
    }

    /// It was not that.
    pub(crate) fn track_again(&mut self) {
        self.untracked_pasids = false;
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
            pasids: self.pasid_tables,
            untracked: pasid.is_some() && self.untracked_pasids,
        }
    }

    /// Which nested page tables are for it.
    pub(crate) const fn nested_options(&self) -> NestedOptions {
        NestedOptions {
            pasid: self.pasid_tables,
            page_requests: if self.is_sharing {
                None
            } else {
                self.page_requests
            },
        }
    }

    pub(crate) const fn is_sharing(&self) -> bool {
        self.is_sharing
    }

    /// Whether there are others of its group, and any of them has PASIDs. Tells whether it needs
    /// other page tables now.
    pub(crate) fn share(&mut self, is_sharing: bool, pasids: bool) -> bool {
        let before = (self.pasid_tables, self.nested_options());
        self.is_sharing = is_sharing;
        self.pasid_tables = pasids;
        before != (self.pasid_tables, self.nested_options())
    }

    /// What messages call its requests with `pasid`.
    pub(crate) fn describe(&self, pasid: Option<Pasid>) -> String {
        let Self { name, source, .. } = self;
        match pasid {
            None => format!("{name} ({source})"),
            Some(pasid) => format!("{name} ({source}) with PASID {pasid}"),
        }
    }

    /// Where requests are; `None` for a PASID that is blocked as the guest wants it.
    pub(crate) fn placement(&self, pasid: Option<Pasid>) -> Option<&Placement> {
        self.slot(pasid).map(|slot| &slot.placement)
    }

    /// All placements: of requests without PASID first, and then by PASID.
    pub(crate) fn placements(&self) -> impl Iterator<Item = (Option<Pasid>, &Placement)> {
        self.slots().map(|(pasid, slot)| (pasid, &slot.placement))
    }

    /// Whether requests are blocked for a limit.
    pub(crate) fn is_over_limit(&self, pasid: Option<Pasid>) -> bool {
        let placement = self.placement(pasid);
        matches!(placement, Some(Placement::Blocked(why)) if why.is_limit())
    }

    /// The nested HWPT that requests are behind.
    pub(crate) fn hwpt(&self, pasid: Option<Pasid>) -> Option<HwptId> {
        let nested = self.slot(pasid)?.nested.as_ref();
        nested.map(|nested| nested.id)
    }

    /// The requests that may be elsewhere than when this was asked before.
    pub(crate) fn take_changed(&mut self) -> Vec<Option<Pasid>> {
        std::mem::take(&mut self.changed)
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

    /// Whether it can make requests with `pasid`, or without.
    pub(crate) fn can_have(&self, pasid: Option<Pasid>) -> bool {
        pasid.is_none_or(|pasid| self.lacks(pasid).is_none())
    }

    /// Whether requests are behind a page table.
    pub(crate) fn is_placed(&self, pasid: Option<Pasid>) -> bool {
        let placement = self.placement(pasid);
        placement.is_some_and(|placement| !matches!(placement, Placement::Blocked(_)))
    }

    /// Whether they were found in `exit` not to get where they belong.
    pub(crate) fn has_failed(&self, pasid: Option<Pasid>, exit: u64) -> bool {
        self.slot(pasid).is_some_and(|slot| slot.has_failed(exit))
    }

    /// The requests that wait for the end of a reset, or that could not be blocked.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = Option<Pasid>> {
        let waiting = self.slots().filter(|(_, slot)| slot.is_waiting());
        waiting.map(|(pasid, _)| pasid)
    }

    /// Where they belong, while others of its group are in the way.
    pub(crate) fn belonging(&self, pasid: Option<Pasid>) -> Option<Placement> {
        self.slot(pasid)?.belongs
    }

    /// They belong there, and others of its group are in the way. Tells whether that is new.
    pub(crate) fn belongs(&mut self, pasid: Option<Pasid>, placement: Placement) -> bool {
        // They are not elsewhere because of it.
        let slot = match pasid {
            None => Some(&mut self.without),
            Some(pasid) => self.with.get_mut(&pasid),
        };
        slot.is_some_and(|slot| slot.belongs.replace(placement) != Some(placement))
    }

    /// Detaches requests for as long as it takes to put them elsewhere, with all of the group.
    pub(crate) fn lift(&mut self, pasid: Option<Pasid>, resources: &mut Resources) {
        if !self.is_placed(pasid) {
            return;
        }
        let attachment = Arc::clone(&self.attachment);
        let slot = self.slot_mut(pasid);
        let outcome = slot.map_or(Ok(()), |slot| slot.lift(&*attachment, pasid));
        if let Err(error) = outcome {
            let name = self.describe(pasid);
            resources.report(|| not_detached(&name, &error));
        }
    }

    /// As [`lift`](Self::lift), for all requests.
    pub(crate) fn lift_all(&mut self, resources: &mut Resources) {
        let pasids: Vec<_> = self.slots().map(|(pasid, _)| pasid).collect();
        for pasid in pasids.into_iter().rev() {
            self.lift(pasid, resources);
        }
    }

    fn slots(&self) -> impl Iterator<Item = (Option<Pasid>, &Slot)> {
        #[cfg(test)]
        super::testing::count_looks(1 + self.with.len());
        let with = self.with.iter().map(|(pasid, slot)| (Some(*pasid), slot));
        std::iter::once((None, &self.without)).chain(with)
    }

    fn slot(&self, pasid: Option<Pasid>) -> Option<&Slot> {
        match pasid {
            None => Some(&self.without),
            Some(pasid) => self.with.get(&pasid),
        }
    }

    fn slot_mut(&mut self, pasid: Option<Pasid>) -> Option<&mut Slot> {
        self.changed.push(pasid);
        self.maybe_stuck = true;
        match pasid {
            None => Some(&mut self.without),
            Some(pasid) => self.with.get_mut(&pasid),
        }
    }

    /// Makes room for requests with `pasid`, if there are fewer than `limit` PASIDs.
    pub(crate) fn open(&mut self, pasid: Option<Pasid>, limit: usize) -> Result<(), Blocked> {
        let Some(pasid) = pasid else {
            return Ok(());
        };
        if self.with.len() >= limit && !self.with.contains_key(&pasid) {
            self.has_more.set(true);
            return Err(Blocked::TooManyPasids);
        }
        self.with.entry(pasid).or_default();
        Ok(())
    }

    /// Whether requests are where they are wanted, or were found in `exit` not to get there.
    pub(crate) fn stays(&self, pasid: Option<Pasid>, wanted: &Placement, exit: u64) -> bool {
        match self.slot(pasid) {
            Some(slot) => slot.stays(wanted, exit),
            None => matches!(wanted, Placement::Blocked(_)),
        }
    }

    /// Blocks requests, and counts and logs it.
    pub(crate) fn block(&mut self, pasid: Option<Pasid>, why: Blocked, resources: &mut Resources) {
        let attachment = Arc::clone(&self.attachment);
        let outcome = self.slot_mut(pasid).map_or(Ok(()), |slot| {
            slot.block(&*attachment, pasid, why, resources.exit.number)
        });
        self.prune(pasid);
        let statistics = &mut resources.statistics;
        let is_asked_for = matches!(
            why,
            Blocked::Guest(_) | Blocked::FirstStage | Blocked::Missing(_) | Blocked::PasidZero
        );
        let counter = match (is_asked_for, pasid) {
            (true, None) => &mut statistics.blocks,
            (true, Some(_)) => &mut statistics.pasid_blocks,
            (false, None) => &mut statistics.failures,
            (false, Some(_)) => &mut statistics.pasid_failures,
        };
        *counter += 1;
        let name = || self.describe(pasid);
        resources.has_waiting |= outcome.is_err() || why == Blocked::Busy;
        if let Err(error) = outcome {
            resources.report(|| not_detached(&name(), &error));
        }
        match why {
            // The group has a message of its own.
            Blocked::Guest(_) | Blocked::GroupApart(_) => {}
            _ if is_asked_for || why == Blocked::Busy => {
                resources.report(|| format!("{} is blocked: {why}", name()));
            }
            _ => {
                let why = resources.limits.explain(why);
                resources.report(|| {
                    format!(
                        "{} is blocked until the guest sets it up anew: {why}",
                        name()
                    )
                });
            }
        }
    }

    /// Blocks all requests for which `is_meant` holds. Returns how many these are.
    pub(crate) fn block_those(
        &mut self,
        why: Blocked,
        resources: &mut Resources,
        is_meant: impl Fn(&Placement, Option<HwptId>) -> bool,
    ) -> u64 {
        let meant = self.slots().filter(|(_, slot)| {
            is_meant(
                &slot.placement,
                slot.nested.as_ref().map(|nested| nested.id),
            )
        });
        let meant: Vec<_> = meant.map(|(pasid, _)| pasid).collect();
        for pasid in &meant {
            self.block(*pasid, why, resources);
        }
        u64::try_from(meant.len()).unwrap_or(u64::MAX)
    }

    /// Blocks everything, for the device is to go.
    pub(crate) fn release(&mut self, resources: &mut Resources) {
        let pasids: Vec<_> = self.slots().map(|(pasid, _)| pasid).collect();
        // Those with PASIDs first, as the kernel itself does when it takes a device back.
        for pasid in pasids.into_iter().rev() {
            let attachment = Arc::clone(&self.attachment);
            let exit = resources.exit.number;
            if let Some(slot) = self.slot_mut(pasid)
                && let Err(error) = slot.block(&*attachment, pasid, Blocked::Host(None), exit)
            {
                let name = self.describe(pasid);
                resources.report(|| not_detached(&name, &error));
            }
        }
    }

    /// Tries again to block what could not be blocked before.
    pub(crate) fn unstick(&mut self, resources: &mut Resources) {
        if !self.maybe_stuck {
            return;
        }
        let mut outcome = self.without.unstick(&*self.attachment, None);
        for (pasid, slot) in &mut self.with {
            outcome = outcome.and(slot.unstick(&*self.attachment, Some(*pasid)));
        }
        self.with.retain(|_, slot| !slot.is_idle());
        self.maybe_stuck = outcome.is_err();
        if let Err(error) = outcome {
            resources.report(|| not_detached(&self.name, &error));
        }
    }

    /// Forgets requests with `pasid` if nothing is lost with them.
    fn prune(&mut self, pasid: Option<Pasid>) {
        if let Some(pasid) = pasid
            && self.with.get(&pasid).is_some_and(Slot::is_idle)
        {
            self.with.remove(&pasid);
        }
    }

    /// Puts requests behind the first of `hwpts` that takes them, and counts and logs it. After an
    /// error they are blocked, unless they are stuck; but if there are none, they stay where they
    /// are.
    pub(crate) fn attach(
        &mut self,
        pasid: Option<Pasid>,
        hwpts: &[HwptId],
        placement: Placement,
        resources: &mut Resources,
    ) -> Result<(), AttachError> {
        self.changed.push(pasid);
        self.maybe_stuck = true;
        let slot = match pasid {
            None => &mut self.without,
            Some(pasid) => self.with.entry(pasid).or_default(),
        };
        let recovered = slot.attach(&*self.attachment, pasid, hwpts, placement)?;
        let name = || self.describe(pasid);
        match pasid {
            None => resources.statistics.attaches += 1,
            Some(_) => resources.statistics.pasid_attaches += 1,
        }
        log::debug!("{} is behind {placement:?} now", name());
        if let Some(error) = recovered {
            resources.statistics.recoveries += 1;
            resources.report(|| {
                format!(
                    "{}: the host did not replace the page table at once ({error}), but did after it was detached",
                    name()
                )
            });
        }
        Ok(())
    }

    /// Puts requests behind a nested HWPT, as [`attach`](Self::attach) does.
    pub(crate) fn attach_nested(
        &mut self,
        pasid: Option<Pasid>,
        nested: &Arc<Nested>,
        placement: Placement,
        resources: &mut Resources,
    ) -> Result<(), AttachError> {
        self.attach(pasid, &[nested.id], placement, resources)?;
        if let Some(slot) = self.slot_mut(pasid) {
            slot.nested = Some(Arc::clone(nested));
        }
        Ok(())
    }

    /// The nested HWPT that requests are behind, if it is of these tables.
    pub(crate) fn nested(&self, pasid: Option<Pasid>, key: &NestedKey) -> Option<&Arc<Nested>> {
        let nested = self.slot(pasid)?.nested.as_ref();
        nested.filter(|nested| nested.key == *key)
    }

    /// The guest calls what requests are behind by another name.
    pub(crate) fn rename(&mut self, pasid: Option<Pasid>, placement: Placement) {
        if let Some(slot) = self.slot_mut(pasid) {
            slot.placement = placement;
        }
    }
}

fn not_detached(name: &str, error: &io::Error) -> String {
    format!("{name}: the host does not detach it from its page table: {error}")
}
