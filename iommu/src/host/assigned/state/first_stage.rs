//! Devices behind the guest's first-stage tables.

use std::io;

use super::{Domain, Host, State, add_parent, not_attached, refused};
use crate::host::assigned::device::{Binding, HostKey};
use crate::host::assigned::target::{Blocked, Tables, Target};
use crate::host::nested::batch::{ALL, Tag, User, batch};
use crate::host::nested::{Nested, NestedKey, missing};
use crate::host::shadow::ShadowKey;
use crate::host::space::{AttachError, Space};
use crate::host::{NestedInvalidation, ObjectId};
use crate::memory::TableMemory;
use crate::translate::{FirstStage, SecondStage};
use crate::unit::Invalidation;

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
    pub(super) fn put_behind_first_stage<T: TableMemory + ?Sized>(
        &mut self,
        tables: &Tables<'_, T>,
        index: usize,
        first: FirstStage,
        below: Option<SecondStage>,
        tag: Tag,
    ) -> Result<(), Blocked> {
        let device = self.devices.get(index).ok_or(Blocked::Host(None))?;
        let host = device.host;
        // Whatever the host would refuse only after it has taken the device from where it is.
        if let Some(what) = missing(&first, device.client().info) {
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
                Base::Shadow(self.find_shadow(tables, index, shadow)?.1)
            }
        };
        if self.stays_behind(index, &key, tag)? {
            return Ok(());
        }
        let parents: Vec<_> = self
            .base(host, base)
            .map(|space| space.parents().collect())
            .unwrap_or_default();
        for parent in parents {
            match self.attach_nested(index, parent, key, tag) {
                Err(AttachError::Incompatible) => {}
                outcome => return outcome.map_err(not_attached),
            }
        }
        let parent = self.add_parent(index, host, base)?;
        self.attach_nested(index, parent, key, tag)
            .map_err(not_attached)?;
        if let Some(space) = self.base(host, base)
            && below.is_some()
        {
            // A device that comes with reserved addresses leaves less to map.
            space.update_aperture().map_err(refused)?;
        }
        Ok(())
    }

    /// Whether a device is behind these tables already. What was kept for it under whatever tag is forgotten.
    fn stays_behind(&mut self, index: usize, key: &NestedKey, tag: Tag) -> Result<bool, Blocked> {
        let Some(id) = self
            .devices
            .get(index)
            .and_then(|device| match device.binding {
                Binding::Nested {
                    first,
                    below,
                    table,
                    ..
                } if first == key.first && below == key.below => Some(table),
                _ => None,
            })
        else {
            return Ok(false);
        };
        self.forget_all(key.host, id)?;
        if let Some(device) = self.devices.get_mut(index)
            && let Binding::Nested { tag: was, .. } = &mut device.binding
        {
            *was = tag;
        }
        Ok(true)
    }

    /// Puts a device behind the nested page table for `key` on top of `parent`, which is made if there is none.
    fn attach_nested(
        &mut self,
        index: usize,
        parent: ObjectId,
        key: NestedKey,
        tag: Tag,
    ) -> Result<(), AttachError> {
        let known = self
            .nested
            .iter()
            .find(|nested| nested.key == key && nested.parent == parent)
            .map(|nested| nested.id);
        let id = match known {
            Some(id) => {
                // What it keeps may be from before the guest announced the tables for this device.
                if self.is_used(key.host, id) {
                    self.forget_all(key.host, id)
                        .map_err(|_| failed("the host does not invalidate the page table"))?;
                }
                id
            }
            None => self
                .make_nested(index, parent, key)
                .map_err(AttachError::Failed)?,
        };
        let device = self
            .devices
            .get_mut(index)
            .ok_or_else(|| failed("there is no such device"))?;
        let attached = device.attach_nested(id, &key, tag)?;
        self.attached(index, attached);
        Ok(())
    }

    fn make_nested(
        &mut self,
        index: usize,
        parent: ObjectId,
        key: NestedKey,
    ) -> io::Result<ObjectId> {
        let (Some(device), Some(host)) = (
            self.devices.get(index),
            self.hosts.iter().find(|host| host.key == key.host),
        ) else {
            return Err(io::Error::other("the device has no iommufd"));
        };
        if self.common.remains.len() > super::REMAINS {
            return Err(io::Error::other("the host takes back nothing"));
        }
        let nested = Nested::allocate(&host.iommu, device.client().device, parent, key)?;
        let id = nested.id;
        self.common.statistics.nested_made += 1;
        self.nested.push(nested);
        Ok(id)
    }

    fn base(&mut self, host: HostKey, base: Base) -> Option<&mut Space> {
        space_of(&mut self.hosts, &mut self.domains, host, base)
    }

    /// Makes a page table that suits a device, to put nested ones upon.
    fn add_parent(&mut self, index: usize, host: HostKey, base: Base) -> Result<ObjectId, Blocked> {
        let Self {
            hosts,
            domains,
            devices,
            common,
            ..
        } = self;
        let space = space_of(hosts, domains, host, base);
        let (Some(space), Some(device)) = (space, devices.get(index)) else {
            return Err(Blocked::Host(None));
        };
        add_parent(space, &device.client(), common).map_err(no_parent)?;
        let table = space.tables.last().ok_or(Blocked::Host(None))?;
        Ok(table.id)
    }

    /// Has the host forget what was invalidated of the tables that devices stay behind. If it does not, they are detached, and
    /// so what the guest asked for is true.
    pub(super) fn invalidate_nested(
        &mut self,
        invalidations: &[Invalidation],
        moves: &[(usize, Target)],
    ) {
        let batches: Vec<(HostKey, ObjectId, Vec<_>)> = self
            .nested
            .iter()
            .map(|nested| {
                let stay = (0..)
                    .zip(&self.devices)
                    .filter(|(index, _)| moves.iter().all(|(moved, _)| moved != index));
                let users: Vec<User> = stay
                    .filter_map(|(_, device)| device.user_of(nested))
                    .collect();
                (nested.key.host, nested.id, batch(invalidations, &users))
            })
            .filter(|(.., batch)| !batch.is_empty())
            .collect();
        for (host, id, batch) in batches {
            // The devices are told of already.
            let _ = self.forget(host, id, &batch);
        }
    }

    fn forget_all(&mut self, host: HostKey, id: ObjectId) -> Result<(), Blocked> {
        self.forget(host, id, &[ALL])
    }

    /// Invalidates, or detaches the devices for which that cannot be done.
    fn forget(
        &mut self,
        host: HostKey,
        id: ObjectId,
        list: &[NestedInvalidation],
    ) -> Result<(), Blocked> {
        let Some(nested) = self
            .nested
            .iter()
            .find(|nested| nested.key.host == host && nested.id == id)
        else {
            return Ok(());
        };
        let Err(error) = nested.invalidate(list, &mut self.common) else {
            return Ok(());
        };
        let why = Blocked::NotInvalidated(error.raw_os_error());
        for index in 0..self.devices.len() {
            if self.devices.get(index).is_some_and(
                |device| matches!(device.binding, Binding::Nested { table, .. } if table == id && device.host == host),
            ) {
                self.common.statistics.invalidation_detaches += 1;
                self.block(index, why);
            }
        }
        Err(why)
    }

    fn is_used(&self, host: HostKey, id: ObjectId) -> bool {
        self.nested
            .iter()
            .filter(|nested| nested.key.host == host && nested.id == id)
            .any(|nested| {
                self.devices
                    .iter()
                    .any(|device| device.user_of(nested).is_some())
            })
    }

    /// Gives back the nested page tables that no device uses.
    pub(super) fn sweep_nested(&mut self) {
        let Self {
            nested,
            devices,
            common,
            ..
        } = self;
        for unused in nested.extract_if(.., |nested| {
            !devices
                .iter()
                .any(|device| device.user_of(nested).is_some())
        }) {
            unused.destroy(common);
        }
    }
}

/// The space of `host` that page tables for `base` are over.
fn space_of<'a>(
    hosts: &'a mut [Host],
    domains: &'a mut [Domain],
    host: HostKey,
    base: Base,
) -> Option<&'a mut Space> {
    match base {
        Base::Memory => hosts
            .iter_mut()
            .find(|known| known.key == host)
            .map(|host| &mut host.memory),
        Base::Shadow(at) => domains.get_mut(at).map(|domain| &mut domain.shadow.space),
    }
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
