//! Invalidations of second-stage tables, sorted by domain id for the shadows that they concern.

use std::collections::{BTreeMap, BTreeSet};

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
pub(crate) struct Named<'a> {
    everything: bool,
    /// Domains of which everything is named.
    domains: BTreeSet<u16>,
    /// Domains of which pages of a first stage are named: without one, it says that the entry
    /// changed which the tables hang from.
    first_stage_pages: BTreeSet<u16>,
    /// Pages that are named of a domain.
    blocks: BTreeMap<u16, Vec<&'a PageBlock>>,
}

impl<'a> Named<'a> {
    pub(crate) fn by(invalidations: &'a [Invalidation]) -> Self {
        let mut named = Self::default();
        for invalidation in invalidations {
            match invalidation {
                Invalidation::All | Invalidation::Iotlb(IotlbScope::Global) => {
                    named.everything = true;
                }
                Invalidation::Iotlb(IotlbScope::Domain(domain)) => {
                    named.domains.insert(*domain);
                }
                Invalidation::Iotlb(IotlbScope::Pages(domain, block)) => {
                    named.blocks.entry(*domain).or_default().push(block);
                }
                Invalidation::PasidIotlb { domain, scope, .. } => {
                    let domains = match scope {
                        PasidIotlbScope::Pages(_) => &mut named.first_stage_pages,
                        PasidIotlbScope::Pasid => &mut named.domains,
                    };
                    domains.insert(*domain);
                }
                Invalidation::Context(_)
                | Invalidation::PasidCache(_)
                | Invalidation::DeviceTlb { .. } => {}
            }
        }
        named
    }

    /// The shadows of which something is named.
    pub(crate) fn concerned(&self, users: &ShadowUsers) -> BTreeSet<ShadowKey> {
        if self.everything {
            return users.all().copied().collect();
        }
        let domains = self.domains.iter().chain(&self.first_stage_pages);
        let domains = domains.chain(self.blocks.keys());
        domains
            .flat_map(|domain| users.of_domain(*domain))
            .copied()
            .collect()
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
            self.domains.contains(&domain)
                || !shadow.key.parent && self.first_stage_pages.contains(&domain)
        };
        if self.everything || domains.clone().any(is_whole) {
            shadow.invalidate();
            return Ok(());
        }
        for domain in domains {
            let blocks = self.blocks.get(&domain).map_or(&[][..], Vec::as_slice);
            budget.steps(blocks.len() as u64 / BLOCKS_PER_STEP)?;
            blocks
                .iter()
                .for_each(|block| shadow.invalidate_block(block));
        }
        Ok(())
    }
}
