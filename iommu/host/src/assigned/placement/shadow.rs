//! Requests behind shadows of the guest's second-stage tables.

use super::moves::Moves;
use super::nested::no_parent;
use super::page_tables::add_shadow_table;
use super::{Domain, REMAINS, State, bindings, not_attached, refused};
use crate::assigned::binding::Binding;
use crate::assigned::device::Place;
use crate::blocked::Blocked;
use crate::host_iommu::HwptId;
use crate::ioas::{AttachError, Ioas};
use crate::resources::HostKey;
use crate::shadow::{Shadow, ShadowKey, Trouble};
use intel_vtd::spec::descriptors::{IotlbScope, PasidIotlbScope};
use intel_vtd::{GuestTables, Invalidation, SecondStage, TableMemory};

/// How many bindings are compared with shadows for a step of the budget. A guest with as many PASIDs as it can have, each behind
/// tables of its own, would have millions compared by one write to its queue's tail.
const COMPARISONS: u64 = 64;

impl State {
    /// Brings the shadows up to date that requests stay behind.
    pub(super) fn refresh<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
        invalidations: &[Invalidation],
        all: bool,
        moves: &Moves,
    ) {
        let comparisons = self
            .domains
            .len()
            .saturating_mul(bindings(&self.devices).count())
            .saturating_mul(invalidations.len() + 1);
        let cost = u64::try_from(comparisons).unwrap_or(u64::MAX) / COMPARISONS;
        if self.budget.steps(cost).is_err() {
            for at in (0..self.domains.len()).rev() {
                self.abandon(at, &Trouble::TooMuchWork);
            }
        }
        let mut failed = Vec::new();
        for (at, domain) in self.domains.iter_mut().enumerate() {
            let Domain { host, shadow } = domain;
            let key = shadow.key;
            let users = || {
                bindings(&self.devices).filter(|(_, device, binding)| {
                    device.host == *host && binding.shadow() == Some(key)
                })
            };
            let leaves = |place: &Place| {
                let target = moves.get(place);
                target.is_some_and(|target| target.shadow() != Some(key))
            };
            if users().all(|(place, ..)| leaves(&place)) {
                continue;
            }
            let has_id = |id: u16| users().any(|(.., binding)| binding.domain() == Some(id));
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
                && let Err(trouble) = shadow.refresh(
                    tables,
                    &mut self.common,
                    &mut self.budget,
                    &mut self.scratch,
                )
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
        self.block_all(why, |device, binding| {
            device.host == host && binding.shadow() == Some(shadow.key)
        });
        self.sweep_nested();
        shadow.destroy(&mut self.common);
        why
    }

    /// Puts requests behind the shadow of second-stage tables.
    pub(super) fn put_behind_shadow<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
        place: Place,
        stage: &SecondStage,
        domain: u16,
    ) -> Result<(), Blocked> {
        let key = ShadowKey {
            stage: *stage,
            parent: false,
        };
        let (_, at) = self.find_shadow(tables, place, key)?;
        let binding = Binding::Shadow {
            stage: *stage,
            domain,
        };
        let device = self.devices.get_mut(place.device);
        let device = device.ok_or(Blocked::Host(None))?;
        if let Some(is @ Binding::Shadow { .. }) = device.binding_mut(place.pasid)
            && is.shadow() == Some(key)
        {
            *is = binding;
            return Ok(());
        }
        let domain = self.domains.get(at).ok_or(Blocked::Host(None))?;
        let suitable = domain.shadow.ioas.suitable(device.needs(place.pasid));
        let attached = match device.attach(place.pasid, &suitable, binding) {
            Err(AttachError::Incompatible) => {
                let table = self.add_shadow_table(tables, place, at)?;
                let (Some(device), Some(domain)) =
                    (self.devices.get_mut(place.device), self.domains.get_mut(at))
                else {
                    return Err(Blocked::Host(None));
                };
                let ioas = &mut domain.shadow.ioas;
                let outcome = device.attach(place.pasid, &[table], binding);
                if matches!(outcome, Err(AttachError::Incompatible)) {
                    ioas.remove_table(table, &mut self.common);
                }
                outcome
            }
            outcome => outcome,
        }
        .map_err(not_attached)?;
        self.attached(place, attached);
        if let Some(domain) = self.domains.get_mut(at) {
            // A device that comes with reserved addresses leaves less to map.
            domain.shadow.ioas.update_aperture().map_err(refused)?;
        }
        Ok(())
    }

    /// Makes one more page table over the shadow at `at`, which suits the requests at `place`.
    fn add_shadow_table<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
        place: Place,
        at: usize,
    ) -> Result<HwptId, Blocked> {
        let (Some(device), Some(domain)) =
            (self.devices.get(place.device), self.domains.get_mut(at))
        else {
            return Err(Blocked::Host(None));
        };
        let (client, shadow) = (device.client(place.pasid), &mut domain.shadow);
        let less_exact = add_shadow_table(&mut shadow.ioas, &client, shadow.key, &mut self.common)
            .map_err(refused)?;
        let table = shadow.ioas.tables.last().map(|table| table.id);
        if less_exact {
            // Pages are to go that this page table makes readable.
            self.complete(tables, at)?;
        }
        table.ok_or(Blocked::Host(None))
    }

    /// The shadow for a device, complete.
    pub(super) fn find_shadow<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
        place: Place,
        key: ShadowKey,
    ) -> Result<(HostKey, usize), Blocked> {
        let host = self
            .devices
            .get(place.device)
            .map(|device| device.host)
            .ok_or(Blocked::Host(None))?;
        let known = self
            .domains
            .iter()
            .position(|domain| domain.host == host && domain.shadow.key == key);
        let at = match known {
            Some(at) => at,
            None => self.make_shadow(place, host, key)?,
        };
        // The guest may have filled the tables for this domain id without a word to the others.
        self.complete(tables, at)?;
        Ok((host, at))
    }

    /// Compares all of a shadow with the guest's tables.
    fn complete<T: TableMemory>(
        &mut self,
        tables: &GuestTables<'_, T>,
        at: usize,
    ) -> Result<(), Blocked> {
        let Some(domain) = self.domains.get_mut(at) else {
            return Err(Blocked::Host(None));
        };
        domain.shadow.invalidate();
        let outcome = domain.shadow.refresh(
            tables,
            &mut self.common,
            &mut self.budget,
            &mut self.scratch,
        );
        outcome.map_err(|trouble| self.abandon(at, &trouble))
    }

    fn make_shadow(
        &mut self,
        place: Place,
        host: HostKey,
        key: ShadowKey,
    ) -> Result<usize, Blocked> {
        let (Some(device), Some(host)) = (
            self.devices.get(place.device),
            self.hosts.iter().find(|known| known.key == host),
        ) else {
            return Err(Blocked::Host(None));
        };
        if self.common.remains.len() > REMAINS {
            // The host takes back nothing.
            return Err(Blocked::Host(None));
        }
        let mut ioas = Ioas::allocate(&host.iommu).map_err(refused)?;
        if let Err(error) = add_shadow_table(
            &mut ioas,
            &device.client(place.pasid),
            key,
            &mut self.common,
        ) {
            ioas.destroy(&mut self.common);
            return Err(if key.parent {
                no_parent(error)
            } else {
                refused(error)
            });
        }
        self.common.statistics.shadows_made += 1;
        self.domains.push(Domain {
            host: host.key,
            shadow: Shadow::new(key, ioas, host.memory.id),
        });
        Ok(self.domains.len() - 1)
    }
}
