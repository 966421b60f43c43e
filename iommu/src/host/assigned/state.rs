//! Devices, and the spaces that they are behind.

mod first_stage;

use std::io;
use std::sync::Arc;

use super::common::Common;
use super::device::{Binding, Device, HostKey};
use super::dirty::{self, collect_guest_physical};
use super::report::{DeviceBinding, DeviceReport};
use super::target::{Blocked, Tables, Target};
use crate::host::nested::Nested;
use crate::host::shadow::budget::Budget;
use crate::host::shadow::{Shadow, ShadowKey, Trouble};
use crate::host::space::{AttachError, Attached, Client, INVALID, Space};
use crate::host::{HostIommu, PageTableOptions};
use crate::memory::TableMemory;
use crate::spec::descriptors::{IotlbScope, PasidIotlbScope};
use crate::translate::SecondStage;
use crate::unit::Invalidation;

/// Objects that the host did not take back: with more, no shadows are made.
const REMAINS: usize = 64;

/// One iommufd, and the space on it that maps guest memory.
pub(crate) struct Host {
    pub(crate) key: HostKey,
    pub(crate) iommu: Arc<dyn HostIommu>,
    pub(crate) memory: Space,
}

struct Domain {
    host: HostKey,
    shadow: Shadow,
}

pub(crate) struct State {
    pub(crate) common: Common,
    pub(crate) hosts: Vec<Host>,
    domains: Vec<Domain>,
    nested: Vec<Nested>,
    pub(crate) devices: Vec<Device>,
    /// Which exit of the guest this is.
    run: u64,
    budget: Budget,
}

impl State {
    pub(crate) fn new(common: Common) -> Self {
        let budget = Budget::new(common.limits.steps_per_exit);
        Self {
            common,
            hosts: Vec::new(),
            domains: Vec::new(),
            nested: Vec::new(),
            devices: Vec::new(),
            run: 0,
            budget,
        }
    }

    /// Another exit of the guest begins.
    pub(crate) fn begin(&mut self) {
        self.run = self.run.wrapping_add(1);
        self.budget = Budget::new(self.common.limits.steps_per_exit);
    }

    /// Brings everything up to date that `invalidations` name.
    ///
    /// What is to be reached no more goes first, then shadows follow the guest's tables, then the host forgets what it keeps of
    /// first-stage tables, then devices are put behind others. So a device is attached to what is complete, and only what nobody
    /// uses any more is torn down.
    pub(crate) fn update<T: TableMemory + ?Sized>(
        &mut self,
        tables: &Tables<'_, T>,
        invalidations: &[Invalidation],
    ) {
        let all = invalidations.contains(&Invalidation::All);
        let entries = all
            || invalidations.iter().any(|invalidation| {
                matches!(
                    invalidation,
                    Invalidation::Context(_) | Invalidation::PasidCache(_)
                )
            });
        let mut moves = Vec::new();
        if entries {
            self.retry_blocks();
            for (index, device) in self.devices.iter().enumerate() {
                let target = Target::of(Some(tables), device.source);
                if !device.stays(&target, self.run) {
                    moves.push((index, target));
                }
            }
            for (index, target) in &moves {
                if let Target::Blocked(why) = target {
                    self.block(*index, *why);
                }
            }
            moves.retain(|(_, target)| !matches!(target, Target::Blocked(_)));
        }
        self.refresh(tables, invalidations, all, &moves);
        self.invalidate_nested(invalidations, &moves);
        for (index, target) in &moves {
            self.put(Some(tables), *index, target);
        }
        self.sweep();
    }

    /// Puts one device where it belongs, with a budget of its own.
    pub(crate) fn place<T: TableMemory + ?Sized>(
        &mut self,
        tables: Option<&Tables<'_, T>>,
        index: usize,
    ) {
        let Some(source) = self.devices.get(index).map(|device| device.source) else {
            return;
        };
        let of_guest = std::mem::replace(
            &mut self.budget,
            Budget::new(self.common.limits.steps_per_exit),
        );
        match Target::of(tables, source) {
            Target::Blocked(why) => self.block(index, why),
            target => self.put(tables, index, &target),
        }
        self.budget = of_guest;
        self.sweep();
    }

    /// Takes a device away, and what nobody uses any more.
    pub(crate) fn remove(&mut self, index: usize) {
        if index >= self.devices.len() {
            return;
        }
        let mut device = self.devices.swap_remove(index);
        if let Err(error) = device.block(Blocked::Host(None), self.run) {
            self.common.report(|| not_detached(&device.name, &error));
        }
        self.sweep();
        let Self {
            hosts,
            devices,
            common,
            ..
        } = self;
        for unused in hosts.extract_if(.., |host| {
            !devices.iter().any(|device| device.host == host.key)
        }) {
            if let Some(dirty) = &mut common.dirty {
                collect_guest_physical(&unused.memory, &common.ram, dirty);
            }
            unused.memory.destroy(common);
        }
    }

    /// Brings the shadows up to date that devices stay behind.
    fn refresh<T: TableMemory + ?Sized>(
        &mut self,
        tables: &Tables<'_, T>,
        invalidations: &[Invalidation],
        all: bool,
        moves: &[(usize, Target)],
    ) {
        let mut failed = Vec::new();
        for (at, domain) in self.domains.iter_mut().enumerate() {
            let Domain { host, shadow } = domain;
            let key = shadow.key;
            let leaves = |index: usize| {
                moves
                    .iter()
                    .any(|(moved, target)| *moved == index && target.shadow() != Some(key))
            };
            let mut devices = self.devices.iter().zip(0..);
            if !devices.any(|(device, index)| device.uses(*host, &key) && !leaves(index)) {
                continue;
            }
            let has_id = |id: u16| {
                self.devices
                    .iter()
                    .any(|device| device.uses(*host, &key) && device.domain() == Some(id))
            };
            let mut whole = all;
            for invalidation in invalidations {
                match invalidation {
                    Invalidation::Iotlb(IotlbScope::Global) => whole = true,
                    Invalidation::Iotlb(IotlbScope::Domain(id)) => whole |= has_id(*id),
                    // These are pages of the first stage.
                    Invalidation::PasidIotlb {
                        scope: PasidIotlbScope::Pages(_),
                        ..
                    } if key.parent => {}
                    // For tables of the second stage it says that the entry changed which they hang from.
                    Invalidation::PasidIotlb { domain, .. } => whole |= has_id(*domain),
                    Invalidation::Iotlb(IotlbScope::Pages(id, block)) if has_id(*id) => {
                        shadow.invalidate_block(block);
                    }
                    _ => {}
                }
            }
            if whole {
                shadow.invalidate();
            }
            if shadow.is_stale()
                && let Err(trouble) = shadow.refresh(tables, &mut self.common, &mut self.budget)
            {
                failed.push((at, trouble));
            }
        }
        for (at, trouble) in failed.into_iter().rev() {
            self.abandon(at, &trouble);
        }
    }

    /// Blocks the devices behind a shadow, which is not as the guest's tables are, and gives it back: nobody is to join it.
    fn abandon(&mut self, at: usize, trouble: &Trouble) -> Blocked {
        let why = match trouble {
            Trouble::TooManyAreas => Blocked::TooManyAreas,
            Trouble::TooMuchWork => Blocked::TooMuchWork,
            Trouble::Host(error) => Blocked::Host(error.raw_os_error()),
        };
        if at >= self.domains.len() {
            return why;
        }
        let Domain { host, shadow } = self.domains.remove(at);
        for index in 0..self.devices.len() {
            if self
                .devices
                .get(index)
                .is_some_and(|device| device.uses(host, &shadow.key))
            {
                self.block(index, why);
            }
        }
        self.sweep_nested();
        shadow.destroy(&mut self.common);
        why
    }

    fn block(&mut self, index: usize, why: Blocked) {
        let Some(device) = self.devices.get_mut(index) else {
            return;
        };
        let outcome = device.block(why, self.run);
        let (source, name) = (device.source, &device.name);
        if let Err(error) = outcome {
            self.common.report(|| not_detached(name, &error));
        }
        match why {
            Blocked::Guest(_) => self.common.statistics.blocks += 1,
            Blocked::FirstStage | Blocked::Missing(_) => {
                self.common.statistics.blocks += 1;
                self.common
                    .report(|| format!("{name} ({source}) is blocked: {why}"));
            }
            _ => {
                self.common.statistics.failures += 1;
                self.common.report(|| {
                    format!("{name} ({source}) is blocked until the guest sets it up anew: {why}")
                });
            }
        }
    }

    fn retry_blocks(&mut self) {
        for device in &mut self.devices {
            if let Err(error) = device.unstick() {
                self.common.report(|| not_detached(&device.name, &error));
            }
        }
    }

    /// Puts a device behind what it is to reach, which is completed before; or blocks it.
    fn put<T: TableMemory + ?Sized>(
        &mut self,
        tables: Option<&Tables<'_, T>>,
        index: usize,
        target: &Target,
    ) {
        let outcome = match (target, tables) {
            (Target::Blocked(why), _) => Err(*why),
            (Target::GuestPhysical, _) => self.put_behind_memory(index),
            (Target::Shadow { stage, domain }, Some(tables)) => {
                self.put_behind_shadow(tables, index, stage, *domain)
            }
            (Target::Nested { first, below, tag }, Some(tables)) => {
                self.put_behind_first_stage(tables, index, *first, *below, *tag)
            }
            (Target::Shadow { .. } | Target::Nested { .. }, None) => Err(Blocked::Host(None)),
        };
        if let Err(why) = outcome {
            self.block(index, why);
        }
    }

    /// A device is where it belongs.
    fn attached(&mut self, index: usize, attached: Attached) {
        self.common.statistics.attaches += 1;
        let Some(device) = self.devices.get(index) else {
            return;
        };
        log::debug!(
            "{} ({}) is behind {:?} now",
            device.name,
            device.source,
            device.binding
        );
        if let Some(error) = attached {
            self.common.statistics.recoveries += 1;
            let (source, name) = (device.source, &device.name);
            self.common.report(|| {
                format!(
                    "{name} ({source}): the host did not replace its page table at once ({error}), but did after the device was \
                     detached"
                )
            });
        }
    }

    /// Attaches a device to the space with all guest memory.
    pub(crate) fn put_behind_memory(&mut self, index: usize) -> Result<(), Blocked> {
        let Self {
            hosts,
            devices,
            common,
            ..
        } = self;
        let device = devices.get_mut(index).ok_or(Blocked::Host(None))?;
        let host = hosts
            .iter_mut()
            .find(|host| host.key == device.host)
            .ok_or(Blocked::Host(None))?;
        let binding = Binding::GuestPhysical;
        let attached = match device.attach(&host.memory, binding) {
            Err(AttachError::Incompatible) => {
                let client = device.client();
                add_memory_table(&mut host.memory, &client, common).map_err(refused)?;
                device.attach(&host.memory, binding)
            }
            outcome => outcome,
        }
        .map_err(not_attached)?;
        self.attached(index, attached);
        Ok(())
    }

    fn put_behind_shadow<T: TableMemory + ?Sized>(
        &mut self,
        tables: &Tables<'_, T>,
        index: usize,
        stage: &SecondStage,
        domain: u16,
    ) -> Result<(), Blocked> {
        let key = ShadowKey {
            stage: *stage,
            parent: false,
        };
        let (host, at) = self.find_shadow(tables, index, key)?;
        let Some(device) = self.devices.get_mut(index) else {
            return Err(Blocked::Host(None));
        };
        let binding = Binding::Shadow {
            stage: *stage,
            domain,
        };
        if device.uses(host, &key) {
            device.binding = binding;
            return Ok(());
        }
        let Some(shadow) = self.domains.get_mut(at).map(|domain| &mut domain.shadow) else {
            return Err(Blocked::Host(None));
        };
        let attached = match device.attach(&shadow.space, binding) {
            Err(AttachError::Incompatible) => {
                let client = device.client();
                let less_exact = add_shadow_table(&mut shadow.space, &client, key, &self.common)
                    .map_err(refused)?;
                if less_exact {
                    // Pages are to go that this page table makes readable.
                    self.complete(tables, at)?;
                }
                let (Some(device), Some(domain)) =
                    (self.devices.get_mut(index), self.domains.get(at))
                else {
                    return Err(Blocked::Host(None));
                };
                device.attach(&domain.shadow.space, binding)
            }
            outcome => outcome,
        }
        .map_err(not_attached)?;
        self.attached(index, attached);
        if let Some(domain) = self.domains.get_mut(at) {
            // A device that comes with reserved addresses leaves less to map.
            domain.shadow.space.update_aperture().map_err(refused)?;
        }
        Ok(())
    }

    /// The shadow for a device, complete.
    fn find_shadow<T: TableMemory + ?Sized>(
        &mut self,
        tables: &Tables<'_, T>,
        index: usize,
        key: ShadowKey,
    ) -> Result<(HostKey, usize), Blocked> {
        let host = self
            .devices
            .get(index)
            .map(|device| device.host)
            .ok_or(Blocked::Host(None))?;
        let known = self
            .domains
            .iter()
            .position(|domain| domain.host == host && domain.shadow.key == key);
        let at = match known {
            Some(at) => at,
            None => self.make_shadow(index, host, key)?,
        };
        // The guest may have filled the tables for this domain id without a word to the others.
        self.complete(tables, at)?;
        Ok((host, at))
    }

    /// Compares all of a shadow with the guest's tables.
    fn complete<T: TableMemory + ?Sized>(
        &mut self,
        tables: &Tables<'_, T>,
        at: usize,
    ) -> Result<(), Blocked> {
        let Some(domain) = self.domains.get_mut(at) else {
            return Err(Blocked::Host(None));
        };
        domain.shadow.invalidate();
        let outcome = domain
            .shadow
            .refresh(tables, &mut self.common, &mut self.budget);
        outcome.map_err(|trouble| self.abandon(at, &trouble))
    }

    fn make_shadow(
        &mut self,
        index: usize,
        host: HostKey,
        key: ShadowKey,
    ) -> Result<usize, Blocked> {
        let (Some(device), Some(host)) = (
            self.devices.get(index),
            self.hosts.iter().find(|known| known.key == host),
        ) else {
            return Err(Blocked::Host(None));
        };
        if self.common.remains.len() > REMAINS {
            // The host takes back nothing.
            return Err(Blocked::Host(None));
        }
        let mut space = Space::allocate(&host.iommu).map_err(refused)?;
        if let Err(error) = add_shadow_table(&mut space, &device.client(), key, &self.common) {
            space.destroy(&mut self.common);
            return Err(if key.parent {
                first_stage::no_parent(error)
            } else {
                refused(error)
            });
        }
        self.common.statistics.shadows_made += 1;
        self.domains.push(Domain {
            host: host.key,
            shadow: Shadow::new(key, space, host.memory.id),
        });
        Ok(self.domains.len() - 1)
    }

    /// Gives back what no device uses.
    fn sweep(&mut self) {
        self.common
            .remains
            .retain(|remains| remains.destroy().is_err());
        self.sweep_nested();
        let Self {
            domains,
            devices,
            common,
            ..
        } = self;
        for unused in domains.extract_if(.., |domain| {
            !devices
                .iter()
                .any(|device| device.uses(domain.host, &domain.shadow.key))
        }) {
            unused.shadow.destroy(common);
        }
    }

    /// Every space in use, and the areas that are mapped in it; those with all guest memory first.
    pub(crate) fn spaces(&self) -> impl Iterator<Item = (&Space, Option<&Shadow>)> {
        let memory = self.hosts.iter().map(|host| (&host.memory, None));
        let shadows = self
            .domains
            .iter()
            .map(|domain| (&domain.shadow.space, Some(&domain.shadow)));
        memory.chain(shadows)
    }

    pub(crate) fn reports(&self) -> impl Iterator<Item = DeviceReport> {
        self.devices.iter().map(|device| DeviceReport {
            source: device.source,
            name: Arc::clone(&device.name),
            binding: match device.binding {
                Binding::Blocked(why) => DeviceBinding::Blocked(why),
                Binding::GuestPhysical => DeviceBinding::GuestPhysical,
                Binding::Nested {
                    first, below, tag, ..
                } => DeviceBinding::Nested {
                    first,
                    below,
                    domain: tag.domain,
                    pasid: tag.pasid,
                },
                Binding::Shadow { stage, domain } => {
                    let shadow = self
                        .domains
                        .iter()
                        .find(|domain| device.uses(domain.host, &domain.shadow.key));
                    let areas = shadow.map(|domain| domain.shadow.areas());
                    DeviceBinding::Shadow {
                        stage,
                        domain,
                        areas: areas.map_or(0, |areas| areas.len()),
                        bytes: areas.map_or(0, |areas| areas.bytes()),
                    }
                }
            },
        })
    }
}

/// Makes a page table over all guest memory: a nesting parent where the host can, as it is what pages are shared from, and what
/// first-stage tables are put upon.
pub(crate) fn add_memory_table(
    space: &mut Space,
    client: &Client<'_>,
    common: &Common,
) -> io::Result<()> {
    let plain = PageTableOptions::default();
    let kinds = [tracking(PARENT), PARENT, tracking(plain), plain];
    add_table(space, client, &kinds, common).map(|_| ())
}

/// Makes a page table for a shadow: one with dirty tracking where the host can, as that makes it one of the second stage.
fn add_shadow_table(
    space: &mut Space,
    client: &Client<'_>,
    key: ShadowKey,
    common: &Common,
) -> io::Result<bool> {
    if key.parent {
        return add_parent(space, client, common);
    }
    let plain = PageTableOptions::default();
    add_table(space, client, &[tracking(plain), plain], common)
}

/// Makes a page table that nested ones can be put upon.
fn add_parent(space: &mut Space, client: &Client<'_>, common: &Common) -> io::Result<bool> {
    add_table(space, client, &[tracking(PARENT), PARENT], common)
}

const PARENT: PageTableOptions = PageTableOptions {
    nesting_parent: true,
    dirty_tracking: false,
    pasid: false,
};

const fn tracking(kind: PageTableOptions) -> PageTableOptions {
    PageTableOptions {
        dirty_tracking: true,
        ..kind
    }
}

fn add_table(
    space: &mut Space,
    client: &Client<'_>,
    kinds: &[PageTableOptions],
    common: &Common,
) -> io::Result<bool> {
    let can_track = client.info.dirty_tracking;
    let kinds: Vec<_> = kinds
        .iter()
        .filter(|kind| can_track || !kind.dirty_tracking)
        .copied()
        .collect();
    let less_exact = space.add_table(client, &kinds)?;
    if common.dirty.is_some()
        && let Some(table) = space.tables.last()
        && let Err(error) = dirty::switch_table(space, table, true)
    {
        // All that it can write counts as written then.
        log::warn!("{}: {error}", client.name);
    }
    Ok(less_exact)
}

fn not_detached(name: &str, error: &io::Error) -> String {
    format!("{name}: the host does not detach it from its page table: {error}")
}

fn refused(error: io::Error) -> Blocked {
    Blocked::Host(error.raw_os_error())
}

fn not_attached(error: AttachError) -> Blocked {
    match error {
        AttachError::Incompatible => Blocked::Host(Some(INVALID)),
        AttachError::Failed(error) | AttachError::Stuck(error) => refused(error),
    }
}
