//! Invalidations of second-stage tables, sorted by domain id for the shadows that they concern.

use super::users::ShadowUsers;
use super::{Shadow, ShadowKey, Trouble};
use crate::budget::Budget;
use intel_vtd::Invalidation;
use intel_vtd::spec::descriptors::{IotlbScope, PageBlock, PasidIotlbScope};

/// Blocks of pages that a shadow is told of for a step of the budget. Reading the tables for them
/// costs steps, too, but not where there is nothing to read; and a guest can have as many shadows
/// under one domain id as it has PASIDs.
const BLOCKS_PER_STEP: u64 = 4;

/// What invalidations name of second-stage tables.
#[derive(Default)]
pub(crate) struct Named {
    everything: bool,
    /// Domains of which everything is named, in ascending order.
    domains: Vec<u16>,
    /// Domains of which pages of a first stage are named, in ascending order: without one, it says
    /// that the entry changed which the tables hang from.
    first_stage_pages: Vec<u16>,
    /// Pages that are named of domains, in ascending order of these.
    blocks: Vec<(u16, PageBlock)>,
}

impl Named {
    /// What `invalidations` name, in place of what it was; it keeps its memory.
    pub(crate) fn fill(&mut self, invalidations: &[Invalidation]) {
        self.everything = false;
        self.domains.clear();
        self.first_stage_pages.clear();
        self.blocks.clear();
        for invalidation in invalidations {
            match invalidation {
                Invalidation::All | Invalidation::Iotlb(IotlbScope::Global) => {
                    self.everything = true;
                }
                Invalidation::Iotlb(IotlbScope::Domain(domain)) => {
                    self.domains.push(*domain);
                }
                Invalidation::Iotlb(IotlbScope::Pages(domain, block)) => {
                    self.blocks.push((*domain, *block));
                }
                Invalidation::PasidIotlb { domain, scope, .. } => {
                    let domains = match scope {
                        PasidIotlbScope::Pages(_) => &mut self.first_stage_pages,
                        PasidIotlbScope::Pasid => &mut self.domains,
                    };
                    domains.push(*domain);
                }
                Invalidation::Context(_)
                | Invalidation::PasidCache(_)
                | Invalidation::DeviceTlb { .. } => {}
            }
        }
        for domains in [&mut self.domains, &mut self.first_stage_pages] {
            domains.sort_unstable();
            domains.dedup();
        }
        self.blocks.sort_by_key(|(domain, _)| *domain);
    }

    /// Adds the shadows of which something is named to an empty list, in ascending order.
    pub(crate) fn find_concerned(&self, users: &ShadowUsers, concerned: &mut Vec<ShadowKey>) {
        if self.everything {
            concerned.extend(users.all());
            return;
        }
        let mut add = |domain: u16| concerned.extend(users.of_domain(domain));
        self.domains.iter().for_each(|domain| add(*domain));
        self.first_stage_pages
            .iter()
            .for_each(|domain| add(*domain));
        let of_blocks = self.blocks.chunk_by(|(one, _), (other, _)| one == other);
        of_blocks
            .filter_map(|blocks| blocks.first())
            .for_each(|(domain, _)| add(*domain));
        concerned.sort_unstable();
        concerned.dedup();
    }

    /// The blocks that are named of `domain`, in the order in which they are.
    fn blocks_of(&self, domain: u16) -> &[(u16, PageBlock)] {
        let first = self.blocks.partition_point(|(other, _)| *other < domain);
        let rest = self.blocks.get(first..).unwrap_or_default();
        let count = rest.partition_point(|(other, _)| *other == domain);
        rest.get(..count).unwrap_or_default()
    }

    /// Tells a shadow, which the guest invalidates under `domains`, what is named of it.
    ///
    /// # Errors
    /// The guest has named too many blocks of pages in one exit.
    pub(crate) fn invalidate(
        &self,
        shadow: &mut Shadow,
        domains: impl Iterator<Item = u16> + Clone,
        budget: &mut Budget,
    ) -> Result<(), Trouble> {
        let is_whole = |domain: u16| {
            let is_in = |domains: &[u16]| domains.binary_search(&domain).is_ok();
            is_in(&self.domains) || !shadow.key.parent && is_in(&self.first_stage_pages)
        };
        let names_whole = !self.domains.is_empty() || !self.first_stage_pages.is_empty();
        if self.everything || names_whole && domains.clone().any(is_whole) {
            shadow.invalidate();
            return Ok(());
        }
        for domain in domains {
            let blocks = self.blocks_of(domain);
            budget.steps(blocks.len() as u64 / BLOCKS_PER_STEP)?;
            blocks
                .iter()
                .for_each(|(_, block)| shadow.invalidate_block(block));
        }
        Ok(())
    }
}
