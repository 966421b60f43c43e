//! What the devices of one iommufd are put behind: all guest memory, shadows of second-stage
//! tables, and nested HWPTs.

pub(super) mod hwpts;
mod nested;
mod shadow;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::device::Device;
use super::placement::Placement;
use super::users::Users;
use crate::attach::{AttachError, EADDRINUSE, EBUSY, EINVAL};
use crate::blocked::Blocked;
use crate::budget::Spent;
use crate::dirty::tracking::{collect_guest_physical, start};
use crate::host_iommu::HwptId;
use crate::ioas::Ioas;
use crate::resources::Resources;
use crate::shadow::{Scratch, Shadow, ShadowKey, Trouble};
use hwpts::add_memory_hwpt;
use intel_vtd::{GuestTables, Pasid, TableMemory, Unfinished};
pub(super) use nested::NestedHwpts;

/// What the devices of one iommufd are put behind.
pub(crate) struct Backing {
    /// Maps all guest memory.
    pub(super) memory: Ioas,
    pub(super) shadows: BTreeMap<ShadowKey, Shadow>,
    /// Shadows that were made since the last [`sweep`](Self::sweep).
    new_shadows: Vec<ShadowKey>,
    /// Shadows that nobody is behind or joins any more, for [`sweep`](Self::sweep) to give back.
    abandoned: Vec<Shadow>,
    /// Shadows of which an interruption has left something to do.
    unfinished: BTreeSet<ShadowKey>,
    pub(super) nested: NestedHwpts,
    scratch: Scratch,
    /// Memory for the list of shadows that an update concerns.
    concerned: Vec<ShadowKey>,
}

/// Why requests are not where they belong, and who is to be blocked besides.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody.
    Requests(Blocked),
    /// All that are behind this shadow, which is not as the guest's tables are.
    Shadow(ShadowKey, Blocked),
    /// All that are behind this nested HWPT, of which the host keeps what it is to forget.
    Nested(HwptId, Blocked),
    /// Nobody, not even these requests: the call is to end, and will be made again.
    Interrupted,
}

impl Failure {
    /// Of the shadow for `key`.
    fn of_shadow(key: ShadowKey, trouble: Trouble) -> Self {
        match trouble {
            Trouble::Interrupted => Self::Interrupted,
            Trouble::TooManyAreas => Self::Shadow(key, Blocked::TooManyAreas),
            Trouble::TooMuchWork => Self::Shadow(key, Blocked::TooMuchWork),
            Trouble::Host(error) => Self::Shadow(key, refused(error)),
        }
    }
}

impl From<Blocked> for Failure {
    fn from(why: Blocked) -> Self {
        Self::Requests(why)
    }
}

impl From<Spent> for Failure {
    fn from(spent: Spent) -> Self {
        match spent {
            Spent::Exhausted => Self::Requests(Blocked::TooMuchWork),
            Spent::Interrupted => Self::Interrupted,
        }
    }
}

impl Backing {
    /// Nothing but `memory`, which maps all guest memory.
    pub(super) fn new(memory: Ioas, resources: &mut Resources) -> Self {
        if resources.dirty.is_some()
            && let Err(error) = start(&memory)
        {
            // All that it can write counts as written then.
            resources.report(|| error.to_string());
        }
        Self {
            memory,
            shadows: BTreeMap::new(),
            new_shadows: Vec::new(),
            abandoned: Vec::new(),
            unfinished: BTreeSet::new(),
            nested: NestedHwpts::default(),
            scratch: Scratch::default(),
            concerned: Vec::new(),
        }
    }

    /// Puts requests of a device behind what they are to reach, which is completed before. Without
    /// tables there is no unit.
    ///
    /// # Errors
    /// They are not there, and are to be [blocked](Device::block), unless it was interrupted.
    pub(super) fn put<T: TableMemory>(
        &mut self,
        tables: Option<&GuestTables<'_, T>>,
        device: &mut Device,
        pasid: Option<Pasid>,
        wanted: &Placement,
        resources: &mut Resources,
    ) -> Result<(), Failure> {
        device.open(pasid, resources.limits.pasids)?;
        if let Some(why) = pasid.and_then(|pasid| device.lacks(pasid)) {
            return Err(why.into());
        }
        let mut outcome = self.try_to_put(tables, device, pasid, wanted, resources);
        // Others have pages where the device has reserved regions.
        if matches!(outcome, Err(Failure::Requests(Blocked::Reserved)))
            && wanted.shadow().is_some()
            && device.own_shadows()
        {
            let own = wanted.owned_by(Some(device.source));
            outcome = self.try_to_put(tables, device, pasid, &own, resources);
        }
        let Err(Failure::Requests(Blocked::Host(Some(EINVAL)))) = outcome else {
            return outcome;
        };
        if !device.untrack(pasid) {
            return outcome;
        }
        let outcome = self.try_to_put(tables, device, pasid, wanted, resources);
        if outcome.is_err() {
            device.track_again();
        }
        outcome
    }

    fn try_to_put<T: TableMemory>(
        &mut self,
        tables: Option<&GuestTables<'_, T>>,
        device: &mut Device,
        pasid: Option<Pasid>,
        wanted: &Placement,
        resources: &mut Resources,
    ) -> Result<(), Failure> {
        resources.exit.budget.attach()?;
        let Some(tables) = tables else {
            return self.put_behind_memory(device, pasid, resources);
        };
        match wanted {
            Placement::Blocked(why) => Err((*why).into()),
            Placement::GuestPhysical => self.put_behind_memory(device, pasid, resources),
            Placement::Shadow { .. } => {
                self.put_behind_shadow(tables, device, pasid, wanted, resources)
            }
            Placement::Nested { .. } => {
                self.put_behind_first_stage(tables, device, pasid, wanted, resources)
            }
        }
    }

    /// Attaches requests to the IOAS with all guest memory.
    fn put_behind_memory(
        &mut self,
        device: &mut Device,
        pasid: Option<Pasid>,
        resources: &mut Resources,
    ) -> Result<(), Failure> {
        let placement = Placement::GuestPhysical;
        let suitable = self.memory.suitable(device.needs(pasid));
        let mut outcome = device.attach(pasid, &suitable, placement, resources);
        if matches!(outcome, Err(AttachError::Incompatible)) {
            let client = device.client(pasid);
            let added = add_memory_hwpt(&mut self.memory, &client, resources).map_err(refused)?;
            outcome = device.attach(pasid, &[added], placement, resources);
            if matches!(outcome, Err(AttachError::Incompatible)) {
                self.memory.remove_hwpt(added, resources);
            }
        }
        outcome.map_err(|error| not_attached(error).into())
    }

    /// Gives back what has no `users` any more, or never had any.
    ///
    /// # Errors
    /// There is more of it than the call is for; the rest is remembered.
    pub(super) fn sweep(
        &mut self,
        users: &mut Users,
        resources: &mut Resources,
    ) -> Result<(), Unfinished> {
        self.nested
            .sweep_left(users.nested.take_left(), resources)?;
        self.new_shadows.append(&mut users.shadows.take_left());
        for key in self.new_shadows.drain(..) {
            if users.shadows.count(&key) == 0 {
                self.abandoned.extend(self.shadows.remove(&key));
            }
        }
        while let Some(unused) = self.abandoned.last() {
            resources.exit.budget.owed(unused.cost_of_destruction())?;
            if let Some(unused) = self.abandoned.pop() {
                unused.destroy(resources);
            }
        }
        Ok(())
    }

    /// Nobody is behind it any more, and it has no shadows: what is to be given back, under no lock.
    pub(super) fn close(self, resources: &mut Resources) -> Ioas {
        if let Some(dirty) = &mut resources.dirty {
            collect_guest_physical(&self.memory, &resources.ram, dirty);
        }
        self.memory
    }

    /// Every IOAS in use, and the shadow that it is of; the one with all guest memory first.
    pub(super) fn ioases(&self) -> impl Iterator<Item = (&Ioas, Option<&Shadow>)> {
        // From those that are still to be given back, pages are to be taken that were written.
        let shadows = self.shadows.values().chain(&self.abandoned);
        let shadows = shadows.map(|shadow| (&shadow.ioas, Some(shadow)));
        std::iter::once((&self.memory, None)).chain(shadows)
    }
}

fn refused(error: io::Error) -> Blocked {
    Blocked::Host(error.raw_os_error())
}

fn not_attached(error: AttachError) -> Blocked {
    match error {
        AttachError::Incompatible => Blocked::Host(Some(EINVAL)),
        AttachError::Failed(error) if error.raw_os_error() == Some(EADDRINUSE) => Blocked::Reserved,
        AttachError::Failed(error) if error.raw_os_error() == Some(EBUSY) => Blocked::Busy,
        AttachError::Failed(error) | AttachError::Stuck(error) => refused(error),
    }
}
