//! Devices, and the spaces that they are behind.

mod moves;
mod nested;
mod page_tables;
mod reports;
mod shadow;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::binding::Binding;
use super::device::{Device, Place};
use super::pasids::Asked;
use super::target::Target;
use crate::blocked::Blocked;
use crate::budget::Budget;
use crate::dirty::tracking::collect_guest_physical;
use crate::host_iommu::{HostIommu, HwptId, NestedInvalidation};
use crate::ioas::{AttachError, Attached, INVALID, Ioas};
use crate::nested::Nested;
use crate::resources::{Common, HostKey};
use crate::shadow::{Scratch, Shadow};
use intel_vtd::{GuestTables, Invalidation, TableMemory};
use moves::Moves;
pub(crate) use page_tables::add_memory_table;

/// Objects that the host did not take back: with more, no shadows are made.
const REMAINS: usize = 64;

/// What attaching requests costs of what a guest can have done for PASIDs in one exit.
const ATTACH_COST: u64 = 16;

/// Invalidations of a nested page table that are remembered until the exit ends.
const FORGOTTEN: usize = 16;

/// One iommufd, and the space on it that maps guest memory.
pub(crate) struct Host {
    pub(crate) key: HostKey,
    pub(crate) iommu: Arc<dyn HostIommu>,
    pub(crate) memory: Ioas,
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
    /// What is left of it for PASIDs.
    pasid_budget: Budget,
    /// What the host has forgotten of nested page tables during this exit; not more than [`FORGOTTEN`] for each.
    forgotten: BTreeMap<(HostKey, HwptId), Vec<NestedInvalidation>>,
    scratch: Scratch,
}

impl State {
    pub(crate) fn new(common: Common) -> Self {
        let limits = common.limits;
        Self {
            common,
            hosts: Vec::new(),
            domains: Vec::new(),
            nested: Vec::new(),
            devices: Vec::new(),
            run: 0,
            budget: Budget::new(limits.steps_per_exit),
            pasid_budget: Budget::new(limits.pasid_steps_per_exit),
            forgotten: BTreeMap::new(),
            scratch: Scratch::default(),
        }
    }

    /// Another exit of the guest begins.
    pub(crate) fn begin(&mut self) {
        self.run = self.run.wrapping_add(1);
        self.budget = Budget::new(self.common.limits.steps_per_exit);
        self.pasid_budget = Budget::new(self.common.limits.pasid_steps_per_exit);
        self.forgotten.clear();
    }

    /// Brings everything up to date that `invalidations` name.
    ///
    /// What is to be reached no more goes first, then shadows follow the guest's tables, then the host forgets what it keeps of
    /// first-stage tables, then devices are put behind others. So a device is attached to what is complete, and only what nobody
    /// uses any more is torn down.
    pub(crate) fn update<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
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
        let mut moves = Moves::new();
        if entries {
            self.retry_blocks();
            moves = self.moves(tables, invalidations);
            self.block_those(&mut moves);
        }
        self.refresh(tables, invalidations, all, &moves);
        self.invalidate_nested(invalidations, &moves);
        for (place, target) in &moves {
            self.put(Some(tables), *place, target);
        }
        self.sweep();
    }

    /// Puts one device where it belongs, with a budget of its own.
    pub(crate) fn place<T: TableMemory>(
        &mut self,
        tables: Option<&GuestTables<'_, T>>,
        index: usize,
    ) {
        let Some(source) = self.devices.get(index).map(|device| device.source) else {
            return;
        };
        let limits = self.common.limits;
        let of_guest = (self.budget, self.pasid_budget);
        self.budget = Budget::new(limits.steps_per_exit);
        // It is not the guest who asks for this one.
        let pasid_steps = limits.pasid_steps_per_exit.saturating_add(ATTACH_COST);
        self.pasid_budget = Budget::new(pasid_steps);
        let without = Place {
            device: index,
            pasid: None,
        };
        let mut moves = Moves::from([(without, Target::of(tables, source, None))]);
        if let Some(tables) = tables
            && self
                .devices
                .get(index)
                .is_some_and(|device| device.has_pasids)
        {
            let asked = Asked {
                all: true,
                ..Asked::default()
            };
            self.moves_of_pasids(tables, index, &asked, &mut moves);
        }
        self.block_those(&mut moves);
        for (place, target) in &moves {
            self.put(tables, *place, target);
        }
        (self.budget, self.pasid_budget) = of_guest;
        self.sweep();
    }

    /// Takes a device away, and what nobody uses any more.
    pub(crate) fn remove(&mut self, index: usize) {
        if index >= self.devices.len() {
            return;
        }
        let mut device = self.devices.swap_remove(index);
        let all: Vec<_> = device.bindings().map(|(pasid, _)| pasid).collect();
        // Those with PASIDs first, as the kernel itself does when it takes a device back.
        for pasid in all.into_iter().rev() {
            if let Err(error) = device.block(pasid, Blocked::Host(None), self.run) {
                let name = device.describe(pasid);
                self.common.report(|| not_detached(&name, &error));
            }
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

    /// Blocks what is to reach nothing.
    fn block_those(&mut self, moves: &mut Moves) {
        moves.retain(|place, target| match target {
            Target::Blocked(why) => {
                self.block(*place, *why);
                false
            }
            _ => true,
        });
    }

    /// Blocks all requests for which `is_meant` holds. Returns how many these are.
    fn block_all(&mut self, why: Blocked, is_meant: impl Fn(&Device, &Binding) -> bool) -> u64 {
        let places: Vec<_> = bindings(&self.devices)
            .filter(|(_, device, binding)| is_meant(device, binding))
            .map(|(place, ..)| place)
            .collect();
        for place in &places {
            self.block(*place, why);
        }
        u64::try_from(places.len()).unwrap_or(u64::MAX)
    }

    fn block(&mut self, place: Place, why: Blocked) {
        let Some(device) = self.devices.get_mut(place.device) else {
            return;
        };
        let outcome = device.block(place.pasid, why, self.run);
        let device = &*device;
        let statistics = &mut self.common.statistics;
        let is_asked_for = matches!(
            why,
            Blocked::Guest(_) | Blocked::FirstStage | Blocked::Missing(_) | Blocked::PasidZero
        );
        let counter = match (is_asked_for, place.pasid) {
            (true, None) => &mut statistics.blocks,
            (true, Some(_)) => &mut statistics.pasid_blocks,
            (false, None) => &mut statistics.failures,
            (false, Some(_)) => &mut statistics.pasid_failures,
        };
        *counter += 1;
        let name = || device.describe(place.pasid);
        if let Err(error) = outcome {
            self.common.report(|| not_detached(&name(), &error));
        }
        match why {
            Blocked::Guest(_) => {}
            _ if is_asked_for => self
                .common
                .report(|| format!("{} is blocked: {why}", name())),
            _ => self.common.report(|| {
                format!(
                    "{} is blocked until the guest sets it up anew: {why}",
                    name()
                )
            }),
        }
    }

    fn retry_blocks(&mut self) {
        for device in &mut self.devices {
            if let Err(error) = device.unstick() {
                self.common.report(|| not_detached(&device.name, &error));
            }
        }
    }

    /// Puts requests behind what they are to reach, which is completed before; or blocks them.
    fn put<T: TableMemory>(
        &mut self,
        tables: Option<&GuestTables<'_, T>>,
        place: Place,
        target: &Target,
    ) {
        let outcome = self.prepare(place).and_then(|()| match (target, tables) {
            (Target::Blocked(why), _) => Err(*why),
            (Target::GuestPhysical, _) => self.put_behind_memory(place),
            (Target::Shadow { stage, domain }, Some(tables)) => {
                self.put_behind_shadow(tables, place, stage, *domain)
            }
            (Target::Nested { first, below, tag }, Some(tables)) => {
                self.put_behind_first_stage(tables, place, *first, *below, *tag)
            }
            (Target::Shadow { .. } | Target::Nested { .. }, None) => Err(Blocked::Host(None)),
        });
        if let Err(why) = outcome {
            self.block(place, why);
        }
    }

    /// Makes room for a binding, if there can be one.
    fn prepare(&mut self, place: Place) -> Result<(), Blocked> {
        let device = self.devices.get_mut(place.device);
        let device = device.ok_or(Blocked::Host(None))?;
        device.open(place.pasid, self.common.limits.pasids)?;
        if let Some(pasid) = place.pasid {
            device.lacks(pasid).map_or(Ok(()), Err)?;
        }
        let cost = self.pasid_budget.steps(ATTACH_COST);
        cost.map_err(|_| Blocked::TooMuchWork)
    }

    /// Requests are where they belong.
    fn attached(&mut self, place: Place, attached: Attached) {
        let Some(device) = self.devices.get(place.device) else {
            return;
        };
        match place.pasid {
            None => self.common.statistics.attaches += 1,
            Some(_) => self.common.statistics.pasid_attaches += 1,
        }
        let name = || device.describe(place.pasid);
        log::debug!("{} is behind {:?} now", name(), device.binding(place.pasid));
        if let Some(error) = attached {
            self.common.statistics.recoveries += 1;
            self.common.report(|| {
                format!(
                    "{}: the host did not replace the page table at once ({error}), but did after it was detached",
                    name()
                )
            });
        }
    }

    /// Attaches requests to the space with all guest memory.
    pub(crate) fn put_behind_memory(&mut self, place: Place) -> Result<(), Blocked> {
        let Self {
            hosts,
            devices,
            common,
            ..
        } = self;
        let device = devices.get_mut(place.device).ok_or(Blocked::Host(None))?;
        let host = hosts
            .iter_mut()
            .find(|host| host.key == device.host)
            .ok_or(Blocked::Host(None))?;
        let (memory, binding) = (&mut host.memory, Binding::GuestPhysical);
        let suitable = memory.suitable(device.needs(place.pasid));
        let attached = match device.attach(place.pasid, &suitable, binding) {
            Err(AttachError::Incompatible) => {
                let client = device.client(place.pasid);
                add_memory_table(memory, &client, common).map_err(refused)?;
                let table = memory.tables.last().map(|table| table.id);
                let outcome = device.attach(place.pasid, table.as_slice(), binding);
                if let (Err(AttachError::Incompatible), Some(table)) = (&outcome, table) {
                    memory.remove_table(table, common);
                }
                outcome
            }
            outcome => outcome,
        }
        .map_err(not_attached)?;
        self.attached(place, attached);
        Ok(())
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
    pub(crate) fn ioases(&self) -> impl Iterator<Item = (&Ioas, Option<&Shadow>)> {
        let memory = self.hosts.iter().map(|host| (&host.memory, None));
        let shadows = self
            .domains
            .iter()
            .map(|domain| (&domain.shadow.ioas, Some(&domain.shadow)));
        memory.chain(shadows)
    }
}

/// Every binding of every device.
fn bindings(devices: &[Device]) -> impl Iterator<Item = (Place, &Device, &Binding)> {
    devices.iter().enumerate().flat_map(|(index, device)| {
        device.bindings().map(move |(pasid, binding)| {
            let place = Place {
                device: index,
                pasid,
            };
            (place, device, binding)
        })
    })
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
