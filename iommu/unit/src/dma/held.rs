//! Translations for a device whose accesses somebody else makes, such as a vhost back end in the
//! host's kernel: the requests are untranslated ones (section 3.14), and what was answered is kept
//! out there, as an IOTLB of the unit would keep it (section 6.2).

use std::ops::{Deref, RangeInclusive};

use vm_memory::{GuestMemoryBackend, Permissions};

use super::transaction::{DmaTransaction, permits};
use super::used::Domains;
use crate::spec::descriptors::{IotlbScope, PasidCacheScope, PasidIotlbScope};
use crate::spec::ids::SourceId;
use crate::spec::invalidation::Invalidation;
use crate::translate::{Access, RequestKind, Translation, TranslationType};

/// All addresses.
const ALL: RangeInclusive<u64> = 0..=u64::MAX;

/// A block of device addresses, and where it is in guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldTranslation {
    /// The first device address of the block.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// The guest-physical address of `first`. Whether there is memory is not looked at.
    pub address: u64,
    /// Reads are permitted.
    pub readable: bool,
    /// Writes are permitted, and the page is marked dirty: the unit hears of none of them.
    pub writable: bool,
    /// The domain id under which it is cached; `None` where nothing is translated.
    domain: Option<u16>,
    /// First-stage tables are involved.
    first_stage: bool,
}

impl HeldTranslation {
    /// Addresses stand for themselves: there is no unit, or translation is off.
    const IDENTITY: Self = Self {
        first: 0,
        last: u64::MAX,
        address: 0,
        readable: true,
        writable: true,
        domain: None,
        first_stage: false,
    };

    fn of(input: u64, translation: Translation) -> Self {
        let inside = (1_u64 << translation.page_shift) - 1;
        Self {
            first: input & !inside,
            last: input | inside,
            address: translation.address & !inside,
            readable: translation.readable,
            writable: translation.writable && translation.dirty,
            domain: Some(translation.domain),
            first_stage: matches!(
                translation.translated_by,
                Some(TranslationType::FirstStage | TranslationType::Nested)
            ),
        }
    }

    fn permits(&self, access: Permissions) -> bool {
        permits((self.readable, self.writable), access)
    }
}

impl<M: Deref<Target: GuestMemoryBackend>> DmaTransaction<'_, M> {
    /// Requests an access to `address`, to be made by somebody else: once, or as often as it likes
    /// until an invalidation takes the translation back.
    ///
    /// To the guest this is the access itself: accessed and dirty flags are set, and a fault is
    /// recorded. What is permitted besides is answered, too, and a page that may be written is
    /// marked dirty where it can be: who holds the answer need not ask again to write.
    ///
    /// The answer is to be handed over within this transaction. Then an observer of translations
    /// that takes back what [`HeldTranslations::concerned`] tells finds each answer from before the
    /// invalidation in place, and later ones are of the tables as they are by then.
    ///
    /// `None`: the access is blocked, or the device's gate is closed.
    pub fn grant(&self, address: u64, access: Permissions) -> Option<HeldTranslation> {
        if !self.is_open() {
            return None;
        }
        if self.is_identity() {
            return Some(HeldTranslation::IDENTITY);
        }
        let mut held = None;
        // Both permissions are two requests, so that a fault names the one that is missing.
        if access != Permissions::Read {
            held = Some(self.requested(address, Access::Write)?);
        }
        if held.is_none_or(|held| access != Permissions::Write && !held.readable) {
            held = Some(self.requested(address, Access::Read)?);
        }
        let held = held.filter(|held| held.permits(access))?;
        if held.writable {
            return Some(held);
        }
        // Nobody has asked to write: that it cannot be is no fault.
        let dirtied = self.attempted(address).filter(|held| held.permits(access));
        Some(dirtied.unwrap_or(held))
    }

    fn requested(&self, address: u64, access: Access) -> Option<HeldTranslation> {
        let (lookup, source) = self.lookup()?;
        self.count_walk();
        let request = self.request(source, address, access, RequestKind::Untranslated);
        let translation = lookup.translate(&request).ok()?;
        Some(HeldTranslation::of(address, lookup.together(translation)))
    }

    /// The same for a write, without a report of what is missing.
    fn attempted(&self, address: u64) -> Option<HeldTranslation> {
        let (lookup, source) = self.lookup()?;
        let request = self.request(source, address, Access::Write, RequestKind::Untranslated);
        let translation = lookup.attempt(&request).ok()?;
        Some(HeldTranslation::of(address, lookup.together(translation)))
    }
}

/// Under what the translations of one device are cached that somebody holds for it: tells which of
/// them an invalidation takes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldTranslations {
    any: bool,
    domains: Domains,
    first_stage: bool,
}

impl HeldTranslations {
    /// Adds one. To be called once it is handed over, within the transaction that it is from: whoever
    /// clears this meanwhile, as everything is taken back, does not forget it.
    pub fn add(&mut self, held: &HeldTranslation) {
        self.any = true;
        self.first_stage |= held.first_stage;
        if let Some(domain) = held.domain {
            self.domains = self.domains.and(domain);
        }
    }

    /// Nothing is held any more.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The device addresses of which nothing may be held any more that requests of `source` without
    /// PASID were answered before `invalidation`. It may be more than was named.
    ///
    /// Switching translation on or off takes everything back. So does a new root table.
    pub fn concerned(
        &self,
        source: SourceId,
        invalidation: &Invalidation,
    ) -> Option<RangeInclusive<u64>> {
        if !self.any {
            return None;
        }
        match *invalidation {
            Invalidation::All
            | Invalidation::Iotlb(IotlbScope::Global)
            | Invalidation::PasidCache(PasidCacheScope::Global) => Some(ALL),
            Invalidation::Context(scope) => scope.concerns(source).then_some(ALL),
            Invalidation::PasidCache(
                PasidCacheScope::Domain(domain) | PasidCacheScope::Pasid(domain, _),
            )
            | Invalidation::Iotlb(IotlbScope::Domain(domain))
            | Invalidation::PasidIotlb {
                domain,
                scope: PasidIotlbScope::Pasid,
                ..
            } => self.domains.may_include(domain).then_some(ALL),
            // Section 6.5.2.3: of first-stage translations of the domain, it is all of them.
            Invalidation::Iotlb(IotlbScope::Pages(domain, block)) => self
                .domains
                .may_include(domain)
                .then(|| if self.first_stage { ALL } else { block.span() }),
            Invalidation::PasidIotlb {
                domain,
                scope: PasidIotlbScope::Pages(block),
                ..
            } => self.domains.may_include(domain).then(|| block.span()),
            // This is not a device-TLB, and software does not know of it.
            Invalidation::DeviceTlb { .. } => None,
        }
    }
}

#[cfg(test)]
mod held_test;
