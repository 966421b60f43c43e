//! Placing requests behind nested HWPTs of the guest's first-stage tables.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::hwpts::add_parent;
use super::{Backing, Failure, not_attached, refused};
use crate::assigned::device::Device;
use crate::assigned::placement::Placement;
use crate::assigned::users::{Leaving, Users};
use crate::attach::AttachError;
use crate::blocked::Blocked;
use crate::budget::{CALL, Spent};
use crate::host_iommu::{HwptId, NestedInvalidation};
use crate::ioas::Ioas;
use crate::nested::batch::{ALL, Lists, batches};
use crate::nested::{Nested, NestedKey, missing};
use crate::resources::Resources;
use intel_vtd::{GuestTables, Invalidation, Pasid, TableMemory, Unfinished};

/// `EOPNOTSUPP`: what a kernel answers that does not nest, or not for this device.
const EOPNOTSUPP: i32 = 95;

/// Invalidations of a nested HWPT that are remembered until the exit ends.
const FORGOTTEN: usize = 16;

/// The nested HWPTs of one iommufd. Whoever is behind one has it, too.
#[derive(Default)]
pub(crate) struct NestedHwpts {
    list: BTreeMap<HwptId, Arc<Nested>>,
    /// By what they are of, and the page tables that they are on top of.
    places: BTreeMap<(NestedKey, HwptId), Vec<HwptId>>,
    /// Those that were made since the last [`sweep`](Self::sweep_left).
    new: Vec<HwptId>,
    /// What the host has forgotten of them during this exit; not more than [`FORGOTTEN`] for each.
    forgotten: Lists,
    /// Some device may be told by itself what it is to forget.
    pub(crate) have_ats: bool,
}

impl Backing {
    /// Puts requests behind the first-stage tables of `wanted`, on top of guest memory or of a
    /// shadow.
    pub(super) fn put_behind_first_stage<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
        device: &mut Device,
        pasid: Option<Pasid>,
        wanted: &Placement,
        resources: &mut Resources,
    ) -> Result<(), Failure> {
        // Whatever the host would refuse only after it has taken the device from where it is.
        if let Placement::Nested { first, .. } = wanted
            && let Some(what) = missing(first, device.client(pasid).info)
        {
            return Err(Blocked::Missing(what).into());
        }
        match wanted.shadow() {
            None => self
                .nested
                .put(&mut self.memory, device, pasid, wanted, resources),
            Some(key) => self.put_on_shadow(tables, device, pasid, wanted, key, resources),
        }
    }
}

impl NestedHwpts {
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Another exit of the guest begins.
    pub(crate) fn begin_exit(&mut self) {
        self.forgotten.clear();
    }

    /// Puts requests behind the first-stage tables of `wanted` on top of `base`.
    pub(super) fn put(
        &mut self,
        base: &mut Ioas,
        device: &mut Device,
        pasid: Option<Pasid>,
        wanted: &Placement,
        resources: &mut Resources,
    ) -> Result<(), Failure> {
        let Placement::Nested { first, below, .. } = *wanted else {
            return Ok(());
        };
        let key = NestedKey { below, first };
        if let Some(nested) = device.nested(pasid, &key) {
            // What was kept under whatever tag is to be forgotten.
            let id = nested.id;
            self.forget_all(id, resources)?;
            device.rename(pasid, *wanted);
            return Ok(());
        }
        for parent in base.parents(device.needs(pasid)) {
            match self.attach(base, parent, device, pasid, wanted, key, resources)? {
                Err(AttachError::Incompatible) => {}
                outcome => return Ok(outcome.map_err(not_attached)?),
            }
        }
        let parent = add_parent(base, &device.client(pasid), resources).map_err(no_parent)?;
        let outcome = self.attach(base, parent, device, pasid, wanted, key, resources)?;
        if matches!(outcome, Err(AttachError::Incompatible)) {
            // What was put upon it goes first.
            self.clear(parent, resources);
            base.remove_hwpt(parent, resources);
        }
        outcome.map_err(not_attached)?;
        if below.is_some() {
            // A device that comes with reserved addresses leaves less to map.
            base.update_aperture().map_err(refused)?;
        }
        Ok(())
    }

    /// Puts requests behind the nested HWPT for `key` on top of `parent`, which is made if there is
    /// none.
    #[allow(clippy::too_many_arguments)] // What is attached, to what, on what.
    fn attach(
        &mut self,
        base: &Ioas,
        parent: HwptId,
        device: &mut Device,
        pasid: Option<Pasid>,
        wanted: &Placement,
        key: NestedKey,
        resources: &mut Resources,
    ) -> Result<Result<(), AttachError>, Failure> {
        let options = device.nested_options();
        let known = self.places.get(&(key, parent)).into_iter().flatten();
        let mut known = known.filter_map(|id| self.list.get(id));
        let known = known.find(|nested| nested.options.suit(&options));
        let nested = match known {
            Some(nested) => {
                let (id, is_used) = (nested.id, users(nested) != 0);
                let nested = Arc::downgrade(nested);
                // What it keeps may be from before the guest announced the tables for this device.
                if is_used {
                    self.forget_all(id, resources)?;
                }
                nested.upgrade()
            }
            None => None,
        };
        let nested = match nested {
            Some(nested) => nested,
            None => {
                if resources.is_littered() {
                    return Err(Blocked::Host(None).into());
                }
                let id = device.client(pasid).device;
                let nested = Nested::allocate(&base.host, id, parent, key, options);
                let nested = Arc::new(nested.map_err(refused)?);
                resources.statistics.nested_made += 1;
                self.new.push(nested.id);
                let same = self.places.entry((key, parent)).or_default();
                same.push(nested.id);
                self.list.insert(nested.id, Arc::clone(&nested));
                nested
            }
        };
        Ok(device.attach_nested(pasid, &nested, *wanted, resources))
    }

    /// Has the host forget what was invalidated of the tables that some of `users` stay behind.
    /// Returns of which it did not.
    pub(in crate::assigned) fn invalidate(
        &mut self,
        invalidations: &[Invalidation],
        users: &Users,
        leaving: &Leaving,
        resources: &mut Resources,
    ) -> Vec<Failure> {
        let mut failures = Vec::new();
        for (id, list) in batches(invalidations, &users.nested, &self.forgotten) {
            if !list.is_empty() && users.stay_nested(id, leaving) {
                failures.extend(self.forget(id, &list, resources).err());
            }
        }
        failures
    }

    fn forget_all(&mut self, id: HwptId, resources: &mut Resources) -> Result<(), Failure> {
        self.forget(id, &[ALL], resources)
    }

    /// Invalidates, for as much as the guest can have done in this exit: the host does it for each
    /// of those behind the HWPT.
    fn forget(
        &mut self,
        id: HwptId,
        list: &[NestedInvalidation],
        resources: &mut Resources,
    ) -> Result<(), Failure> {
        let Some(nested) = self.list.get(&id) else {
            return Ok(());
        };
        let users = users(nested).max(1);
        let cost = u64::try_from(users.saturating_mul(list.len())).unwrap_or(u64::MAX);
        let cost = cost.saturating_mul(CALL);
        match resources.exit.budget.steps(cost) {
            Ok(()) => {}
            Err(Spent::Exhausted) => return Err(Failure::Nested(id, Blocked::TooMuchWork)),
            Err(Spent::Interrupted) => return Err(Failure::Interrupted),
        }
        if let Err(error) = nested.invalidate(list, resources) {
            let why = Blocked::NotInvalidated(error.raw_os_error());
            return Err(Failure::Nested(id, why));
        }
        if self.have_ats {
            let forgotten = self.forgotten.entry(id).or_default();
            let room = FORGOTTEN.saturating_sub(forgotten.len());
            forgotten.extend(list.iter().take(room));
        }
        Ok(())
    }

    /// Gives back those of `left`, and new ones, that nobody is behind.
    ///
    /// # Errors
    /// They are more than the call is for; the rest is remembered.
    pub(super) fn sweep_left(
        &mut self,
        left: Vec<HwptId>,
        resources: &mut Resources,
    ) -> Result<(), Unfinished> {
        self.new.extend(left);
        while let Some(id) = self.new.last().copied() {
            if self.list.get(&id).is_some_and(|nested| users(nested) == 0) {
                resources.exit.budget.owed(CALL)?;
                self.remove(id, resources);
            }
            self.new.pop();
        }
        Ok(())
    }

    /// Gives those on top of `parent` back that nobody is behind.
    fn clear(&mut self, parent: HwptId, resources: &mut Resources) {
        let on_top = self.list.values().filter(|nested| nested.parent == parent);
        let unused = on_top.filter(|nested| users(nested) == 0);
        let unused: Vec<_> = unused.map(|nested| nested.id).collect();
        for id in unused {
            self.remove(id, resources);
        }
    }

    fn remove(&mut self, id: HwptId, resources: &mut Resources) {
        let Some(unused) = self.list.remove(&id) else {
            return;
        };
        let place = (unused.key, unused.parent);
        if let Some(same) = self.places.get_mut(&place) {
            same.retain(|other| *other != id);
            if same.is_empty() {
                self.places.remove(&place);
            }
        }
        unused.destroy(resources);
    }
}

/// How many are behind it, besides the list that it is in.
fn users(nested: &Arc<Nested>) -> usize {
    Arc::strong_count(nested) - 1
}

/// There is nothing to put nested HWPTs upon.
pub(super) fn no_parent(error: io::Error) -> Blocked {
    match error.raw_os_error() {
        Some(EOPNOTSUPP) => Blocked::FirstStage,
        _ => refused(error),
    }
}
