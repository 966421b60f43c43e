//! Devices behind the guest's first-stage tables.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::moves::Moves;
use super::page_tables::add_parent;
use super::{Domain, FORGOTTEN, Host, State, bindings, not_attached, refused};
use crate::assigned::binding::Binding;
use crate::assigned::device::{Device, Place};
use crate::blocked::Blocked;
use crate::host_iommu::{HwptId, NestedInvalidation, NestedOptions};
use crate::ioas::{AttachError, Ioas};
use crate::nested::batch::{ALL, Tag, User, batch};
use crate::nested::{Nested, NestedKey, missing};
use crate::resources::HostKey;
use crate::shadow::ShadowKey;
use intel_vtd::{FirstStage, GuestTables, Invalidation, SecondStage, TableMemory};

/// `EOPNOTSUPP`: what a kernel answers that does not nest, or not for this device.
const UNSUPPORTED: i32 = 95;

/// What nested page tables are put upon.
#[derive(Clone, Copy)]
enum Base {
    Memory,
    /// The shadow at this place.
    Shadow(usize),
}

impl State {
    /// How many nested page tables there are.
    pub(crate) fn nested(&self) -> usize {
        self.nested.len()
    }

    /// Puts a device behind first-stage tables, on top of guest memory or of the shadow of `below`.
    pub(super) fn put_behind_first_stage<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
        place: Place,
        first: FirstStage,
        below: Option<SecondStage>,
        tag: Tag,
    ) -> Result<(), Blocked> {
        let device = self.devices.get(place.device);
        let device = device.ok_or(Blocked::Host(None))?;
        let client = device.client(place.pasid);
        let (host, needs) = (device.host, client.needs);
        // Whatever the host would refuse only after it has taken the device from where it is.
        if let Some(what) = missing(&first, client.info) {
            return Err(Blocked::Missing(what));
        }
        let key = NestedKey { host, below, first };
        let base = match below {
            None => Base::Memory,
            Some(stage) => {
                let shadow = ShadowKey {
                    stage,
                    parent: true,
                };
                Base::Shadow(self.find_shadow(tables, place, shadow)?.1)
            }
        };
        if self.stays_behind(place, &key, tag)? {
            return Ok(());
        }
        let ioas = self.base(host, base);
        let parents = ioas.map(|ioas| ioas.parents(needs));
        for parent in parents.unwrap_or_default() {
            match self.attach_nested(place, parent, key, tag) {
                Err(AttachError::Incompatible) => {}
                outcome => return outcome.map_err(not_attached),
            }
        }
        let parent = self.add_parent(place, host, base)?;
        let outcome = self.attach_nested(place, parent, key, tag);
        if matches!(outcome, Err(AttachError::Incompatible)) {
            self.remove_parent(host, base, parent);
        }
        outcome.map_err(not_attached)?;
        if let Some(ioas) = self.base(host, base)
            && below.is_some()
        {
            // A device that comes with reserved addresses leaves less to map.
            ioas.update_aperture().map_err(refused)?;
        }
        Ok(())
    }

    /// Whether requests are behind these tables already. What was kept for them under whatever tag is forgotten.
    fn stays_behind(&mut self, place: Place, key: &NestedKey, tag: Tag) -> Result<bool, Blocked> {
        let device = self.devices.get(place.device);
        let Some(Binding::Nested {
            first,
            below,
            table,
            ..
        }) = device.and_then(|device| device.binding(place.pasid))
        else {
            return Ok(false);
        };
        if *first != key.first || *below != key.below {
            return Ok(false);
        }
        self.forget_all(key.host, *table)?;
        if let Some(device) = self.devices.get_mut(place.device)
            && let Some(Binding::Nested { tag: was, .. }) = device.binding_mut(place.pasid)
        {
            *was = tag;
        }
        Ok(true)
    }

    /// Puts requests behind the nested page table for `key` on top of `parent`, which is made if there is none.
    fn attach_nested(
        &mut self,
        place: Place,
        parent: HwptId,
        key: NestedKey,
        tag: Tag,
    ) -> Result<(), AttachError> {
        let needs = self.nested_options(place);
        let known = self.nested.iter().find(|nested| {
            nested.key == key && nested.parent == parent && nested.options.suit(&needs)
        });
        let id = match known.map(|nested| nested.id) {
            Some(id) => {
                // What it keeps may be from before the guest announced the tables for this device.
                if self.is_used(key.host, id) {
                    self.forget_all(key.host, id)
                        .map_err(|_| failed("the host does not invalidate the page table"))?;
                }
                id
            }
            None => self
                .make_nested(place, parent, key)
                .map_err(AttachError::Failed)?,
        };
        let device = self
            .devices
            .get_mut(place.device)
            .ok_or_else(|| failed("there is no such device"))?;
        let attached = device.attach_nested(place.pasid, id, &key, tag)?;
        self.attached(place, attached);
        Ok(())
    }

    fn nested_options(&self, place: Place) -> NestedOptions {
        let device = self.devices.get(place.device);
        device.map_or_else(NestedOptions::default, Device::nested_options)
    }

    fn make_nested(&mut self, place: Place, parent: HwptId, key: NestedKey) -> io::Result<HwptId> {
        let options = self.nested_options(place);
        let (Some(device), Some(host)) = (
            self.devices.get(place.device),
            self.hosts.iter().find(|host| host.key == key.host),
        ) else {
            return Err(io::Error::other("the device has no iommufd"));
        };
        if self.common.remains.len() > super::REMAINS {
            return Err(io::Error::other("the host takes back nothing"));
        }
        let device = device.client(place.pasid).device;
        let nested = Nested::allocate(&host.iommu, device, parent, key, options)?;
        let id = nested.id;
        self.common.statistics.nested_made += 1;
        self.nested.push(nested);
        Ok(id)
    }

    fn base(&mut self, host: HostKey, base: Base) -> Option<&mut Ioas> {
        space_of(&mut self.hosts, &mut self.domains, host, base)
    }

    /// Makes a page table that suits a device, to put nested ones upon.
    fn add_parent(&mut self, place: Place, host: HostKey, base: Base) -> Result<HwptId, Blocked> {
        let Self {
            hosts,
            domains,
            devices,
            common,
            ..
        } = self;
        let ioas = space_of(hosts, domains, host, base);
        let (Some(ioas), Some(device)) = (ioas, devices.get(place.device)) else {
            return Err(Blocked::Host(None));
        };
        add_parent(ioas, &device.client(place.pasid), common).map_err(no_parent)?;
        let table = ioas.tables.last().ok_or(Blocked::Host(None))?;
        Ok(table.id)
    }

    /// Gives back a page table that was of no use. What was put upon it goes first.
    fn remove_parent(&mut self, host: HostKey, base: Base, parent: HwptId) {
        self.sweep_nested();
        let Self {
            hosts,
            domains,
            common,
            ..
        } = self;
        if let Some(ioas) = space_of(hosts, domains, host, base) {
            ioas.remove_table(parent, common);
        }
    }

    /// Has the host forget what was invalidated of the tables that requests stay behind. If it does not, they are detached, and
    /// so what the guest asked for is true.
    pub(super) fn invalidate_nested(&mut self, invalidations: &[Invalidation], moves: &Moves) {
        let mut users: BTreeMap<(HostKey, HwptId), Vec<User>> = BTreeMap::new();
        for (place, device, binding) in bindings(&self.devices) {
            if let Binding::Nested { tag, table, .. } = *binding
                && !moves.contains_key(&place)
            {
                let user = User {
                    source: device.source,
                    requester: place.pasid,
                    tag,
                };
                users.entry((device.host, table)).or_default().push(user);
            }
        }
        for ((host, id), users) in users {
            let done = self.forgotten.get(&(host, id));
            let list = batch(invalidations, &users, done.map_or(&[], Vec::as_slice));
            if !list.is_empty() {
                // Those behind it are told of already.
                let _ = self.forget(host, id, &list);
            }
        }
    }

    fn forget_all(&mut self, host: HostKey, id: HwptId) -> Result<(), Blocked> {
        self.forget(host, id, &[ALL])
    }

    /// Invalidates, or detaches the requests for which that cannot be done, or for which the guest has had too much done in this
    /// exit: the host does it for each of them.
    fn forget(
        &mut self,
        host: HostKey,
        id: HwptId,
        list: &[NestedInvalidation],
    ) -> Result<(), Blocked> {
        let Some(nested) = self
            .nested
            .iter()
            .find(|nested| nested.key.host == host && nested.id == id)
        else {
            return Ok(());
        };
        let users =
            bindings(&self.devices).filter(|(_, device, binding)| uses(device, binding, host, id));
        let users = users.count().max(1);
        let cost = u64::try_from(users.saturating_mul(list.len())).unwrap_or(u64::MAX);
        if self.budget.steps(cost).is_err() {
            return Err(self.detach_all(host, id, Blocked::TooMuchWork));
        }
        let Err(error) = nested.invalidate(list, &mut self.common) else {
            if self.devices.iter().any(|device| device.has_ats) {
                let forgotten = self.forgotten.entry((host, id)).or_default();
                let room = FORGOTTEN.saturating_sub(forgotten.len());
                forgotten.extend(list.iter().take(room));
            }
            return Ok(());
        };
        Err(self.detach_all(host, id, Blocked::NotInvalidated(error.raw_os_error())))
    }

    /// Detaches everyone behind a nested page table that may keep what is to be forgotten.
    fn detach_all(&mut self, host: HostKey, id: HwptId, why: Blocked) -> Blocked {
        let blocked = self.block_all(why, |device, binding| uses(device, binding, host, id));
        self.common.statistics.invalidation_detaches += blocked;
        why
    }

    fn is_used(&self, host: HostKey, id: HwptId) -> bool {
        bindings(&self.devices).any(|(_, device, binding)| uses(device, binding, host, id))
    }

    /// Gives back the nested page tables that nobody uses.
    pub(super) fn sweep_nested(&mut self) {
        let used: BTreeSet<_> = bindings(&self.devices)
            .filter_map(|(_, device, binding)| Some((device.host, binding.nested()?)))
            .collect();
        let unused = self
            .nested
            .extract_if(.., |nested| !used.contains(&(nested.key.host, nested.id)));
        for unused in unused {
            unused.destroy(&mut self.common);
        }
    }
}

/// The space of `host` that page tables for `base` are over.
fn space_of<'a>(
    hosts: &'a mut [Host],
    domains: &'a mut [Domain],
    host: HostKey,
    base: Base,
) -> Option<&'a mut Ioas> {
    match base {
        Base::Memory => hosts
            .iter_mut()
            .find(|known| known.key == host)
            .map(|host| &mut host.memory),
        Base::Shadow(at) => domains.get_mut(at).map(|domain| &mut domain.shadow.ioas),
    }
}

/// Whether requests that are bound so are behind this nested page table.
fn uses(device: &Device, binding: &Binding, host: HostKey, table: HwptId) -> bool {
    device.host == host && binding.nested() == Some(table)
}

fn failed(why: &'static str) -> AttachError {
    AttachError::Failed(io::Error::other(why))
}

/// There is nothing to put nested page tables upon.
pub(super) fn no_parent(error: io::Error) -> Blocked {
    match error.raw_os_error() {
        Some(UNSUPPORTED) => Blocked::FirstStage,
        _ => refused(error),
    }
}
