//! Placing requests behind shadows of the guest's second-stage tables.

use super::hwpts::add_shadow_hwpt;
use super::nested::no_parent;
use super::{Backing, Failure, not_attached, refused};
use crate::assigned::device::Device;
use crate::assigned::placement::Placement;
use crate::assigned::users::{Leaving, Users};
use crate::attach::AttachError;
use crate::blocked::Blocked;
use crate::ioas::Ioas;
use crate::resources::Resources;
use crate::shadow::named::Named;
use crate::shadow::{Scratch, Shadow, ShadowKey, Trouble};
use intel_vtd::{GuestTables, Pasid, TableMemory};

impl Backing {
    /// Puts requests behind the shadow of the second-stage tables of `wanted`.
    pub(super) fn put_behind_shadow<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
        device: &mut Device,
        pasid: Option<Pasid>,
        wanted: &Placement,
        resources: &mut Resources,
    ) -> Result<(), Failure> {
        let Some(key) = wanted.shadow() else {
            return self.put_behind_memory(device, pasid, resources);
        };
        let mut shadow = self.take_shadow(device, pasid, key, resources)?;
        let outcome = join(
            tables,
            &mut shadow,
            &mut self.scratch,
            device,
            pasid,
            wanted,
            resources,
        );
        self.give_back(shadow, &outcome);
        outcome
    }

    /// Puts requests behind first-stage tables on top of the shadow for `key`.
    pub(super) fn put_on_shadow<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
        device: &mut Device,
        pasid: Option<Pasid>,
        wanted: &Placement,
        key: ShadowKey,
        resources: &mut Resources,
    ) -> Result<(), Failure> {
        let mut shadow = self.take_shadow(device, pasid, key, resources)?;
        // What can only be read goes before the page table is made that does not take it.
        if device.client(pasid).info.no_read_only_parent() && !shadow.ioas.no_read_only {
            shadow.ioas.no_read_only = true;
            shadow.invalidate();
        }
        let scratch = &mut self.scratch;
        let outcome = complete_shared(tables, &mut shadow, scratch, resources)
            .and_then(|()| {
                self.nested
                    .put(&mut shadow.ioas, device, pasid, wanted, resources)
            })
            .and_then(|()| complete_own(tables, &mut shadow, scratch, resources));
        self.give_back(shadow, &outcome);
        outcome
    }

    /// Brings the shadows up to date of which something is `named`, and behind which someone stays.
    /// Returns of which it failed; after an interruption it is to be done again.
    pub(in crate::assigned) fn refresh<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
        named: &Named,
        users: &Users,
        leaving: &Leaving,
        resources: &mut Resources,
    ) -> Vec<Failure> {
        let mut failures = Vec::new();
        let mut concerned = std::mem::take(&mut self.concerned);
        named.find_concerned(&users.shadows, &mut concerned);
        if !self.unfinished.is_empty() {
            concerned.extend(std::mem::take(&mut self.unfinished));
            concerned.sort_unstable();
            concerned.dedup();
        }
        for key in concerned.drain(..) {
            let Some(shadow) = self.shadows.get_mut(&key) else {
                continue;
            };
            if !users.stay(&key, leaving) {
                if shadow.is_stale() {
                    self.unfinished.insert(key);
                }
                continue;
            }
            let domains = users.shadows.domains(&key);
            let mut outcome = named.invalidate(shadow, domains, &mut resources.exit.budget);
            if outcome.is_ok() && shadow.is_stale() {
                outcome = shadow.refresh(tables, resources, &mut self.scratch);
            }
            if matches!(outcome, Err(Trouble::Interrupted)) {
                self.unfinished.insert(key);
            }
            let failure = outcome.map_err(|trouble| Failure::of_shadow(key, trouble));
            failures.extend(failure.err());
        }
        self.concerned = concerned;
        failures
    }

    /// Has nobody join a shadow behind which nobody is any more, and leaves it to be swept.
    pub(in crate::assigned) fn abandon(&mut self, key: &ShadowKey) {
        self.abandoned.extend(self.shadows.remove(key));
    }

    /// Puts a shadow into the list, which was taken out for `outcome`.
    fn give_back(&mut self, shadow: Shadow, outcome: &Result<(), Failure>) {
        if matches!(outcome, Err(Failure::Interrupted)) {
            self.unfinished.insert(shadow.key);
        }
        self.shadows.insert(shadow.key, shadow);
    }

    /// Takes the shadow for `key` out of the list, or makes one.
    fn take_shadow(
        &mut self,
        device: &Device,
        pasid: Option<Pasid>,
        key: ShadowKey,
        resources: &mut Resources,
    ) -> Result<Shadow, Blocked> {
        if let Some(shadow) = self.shadows.remove(&key) {
            return Ok(shadow);
        }
        if resources.is_littered() {
            return Err(Blocked::Host(None));
        }
        let mut ioas = Ioas::allocate(&self.memory.host).map_err(refused)?;
        if let Err(error) = add_shadow_hwpt(&mut ioas, &device.client(pasid), key, resources) {
            ioas.destroy(resources);
            return Err(if key.parent {
                no_parent(error)
            } else {
                refused(error)
            });
        }
        resources.statistics.shadows_made += 1;
        self.new_shadows.push(key);
        Ok(Shadow::new(key, ioas, self.memory.id))
    }
}

/// Puts requests behind `shadow`.
fn join<T: TableMemory>(
    tables: &GuestTables<'_, T>,
    shadow: &mut Shadow,
    scratch: &mut Scratch,
    device: &mut Device,
    pasid: Option<Pasid>,
    wanted: &Placement,
    resources: &mut Resources,
) -> Result<(), Failure> {
    complete_shared(tables, shadow, scratch, resources)?;
    let is = device.placement(pasid);
    if is.and_then(Placement::shadow) == Some(shadow.key) {
        device.rename(pasid, *wanted);
        return complete_own(tables, shadow, scratch, resources);
    }
    let suitable = shadow.ioas.suitable(device.needs(pasid));
    let mut outcome = device.attach(pasid, &suitable, *wanted, resources);
    if matches!(outcome, Err(AttachError::Incompatible)) {
        let client = device.client(pasid);
        let added =
            add_shadow_hwpt(&mut shadow.ioas, &client, shadow.key, resources).map_err(refused)?;
        outcome = device.attach(pasid, &[added], *wanted, resources);
        if matches!(outcome, Err(AttachError::Incompatible)) {
            shadow.ioas.remove_hwpt(added, resources);
        }
    }
    outcome.map_err(not_attached)?;
    // A device that comes with reserved addresses leaves less to map.
    shadow.ioas.update_aperture().map_err(refused)?;
    complete_own(tables, shadow, scratch, resources)
}

/// As [`complete`], before somebody comes, who is to find it complete.
fn complete_shared<T: TableMemory>(
    tables: &GuestTables<'_, T>,
    shadow: &mut Shadow,
    scratch: &mut Scratch,
    resources: &mut Resources,
) -> Result<(), Failure> {
    match shadow.key.owner {
        None => complete(tables, shadow, scratch, resources),
        Some(_) => Ok(()),
    }
}

/// As [`complete`], after its owner has come: only then it is known where that has addresses
/// reserved.
fn complete_own<T: TableMemory>(
    tables: &GuestTables<'_, T>,
    shadow: &mut Shadow,
    scratch: &mut Scratch,
    resources: &mut Resources,
) -> Result<(), Failure> {
    match shadow.key.owner {
        None => Ok(()),
        Some(_) => complete(tables, shadow, scratch, resources),
    }
}

/// Compares all of a shadow with the guest's tables, which the guest may have filled without a word
/// to those behind it; once in an update, however many come.
fn complete<T: TableMemory>(
    tables: &GuestTables<'_, T>,
    shadow: &mut Shadow,
    scratch: &mut Scratch,
    resources: &mut Resources,
) -> Result<(), Failure> {
    if shadow.is_complete(resources) {
        return Ok(());
    }
    shadow.invalidate();
    let outcome = shadow.refresh(tables, resources, scratch);
    outcome.map_err(|trouble| Failure::of_shadow(shadow.key, trouble))
}
