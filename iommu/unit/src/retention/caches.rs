//! The caches of section 6.2 by their tags, and what each invalidation takes out of them.
//!
//! Everything that leaves is found through an ordered index, so that an invalidation costs no more than what it takes out: a
//! guest fills its queue with them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;

use super::recorder::Notes;
use crate::spec::descriptors::{
    ContextScope, IotlbScope, PageBlock, PasidCacheScope, PasidIotlbScope, ignored_bits,
};
use crate::spec::ids::{Pasid, SourceId};
use crate::spec::invalidation::Invalidation;
use crate::translate::{
    Binding, Request, Resolved, SecondStage, Stage, Tag, Translation, TranslationType, UpperEntry,
};

/// The most entries that each cache has. The next one empties it: what software cannot rely on to stay may go at any time.
const LIMIT: usize = 0x1_0000;

/// The whole of what an index has of one domain and more: the least and the greatest of the other parts of its keys.
const PASIDS: RangeInclusive<u32> = 0..=u32::MAX;
const PAGES: RangeInclusive<u64> = 0..=u64::MAX;

/// A page as requests name it (6.2.4): no domain is looked up before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct PageKey {
    page: u64,
    source: u16,
    /// PASID and privilege, as in [`Tag`].
    requester: u32,
}

impl PageKey {
    const LEAST: Self = Self {
        page: 0,
        source: 0,
        requester: 0,
    };

    fn of(request: &Request) -> Self {
        Self {
            page: request.address >> 12,
            source: request.source.0,
            requester: Tag::new(0, request.pasid, request.privileged).requester(),
        }
    }

    /// The keys of `pages`, whoever asked.
    fn range(pages: &RangeInclusive<u64>) -> (Self, Self) {
        let greatest = Self {
            page: *pages.end(),
            source: u16::MAX,
            requester: u32::MAX,
        };
        let least = Self {
            page: *pages.start(),
            ..Self::LEAST
        };
        (least, greatest)
    }
}

/// An entry of the IOTLB: a page of 4 KiB, be it a piece of a larger one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    /// For the first byte.
    pub(crate) translation: Translation,
    /// PASID of the request, or RID_PASID.
    pasid: u32,
    pub(crate) fault_disable: bool,
    pub(crate) legacy: bool,
}

impl Page {
    /// Whether the address of the request went through a first stage.
    fn is_first(&self) -> bool {
        matches!(
            self.translation.translated_by,
            Some(TranslationType::FirstStage | TranslationType::Nested)
        )
    }
}

/// What each cache holds.
#[derive(Default)]
pub(crate) struct Store {
    contexts: HashMap<u16, ([u64; 4], Option<u16>)>,
    /// Domain, which only legacy entries have, and source.
    contexts_by_domain: BTreeSet<(Option<u16>, u16)>,
    pasids: HashMap<(u16, u32), ([u64; 8], bool, u16)>,
    /// Domain, PASID, source.
    pasids_by_domain: BTreeSet<(u16, u32, u16)>,
    /// Domain, PASID, level, bits of the input above what the entry is for.
    first: BTreeMap<(u16, u32, u8, u64), (Binding, UpperEntry)>,
    /// Domain, level, bits of the input.
    second: BTreeMap<(u16, u8, u64), (SecondStage, UpperEntry)>,
    pages: HashMap<PageKey, Page>,
    /// Domain, whether through a first stage, PASID.
    pages_by_pasid: BTreeSet<(u16, bool, u32, PageKey)>,
    /// Domain, of pages that are not through a first stage.
    pages_by_domain: BTreeSet<(u16, PageKey)>,
    /// The first generation of transactions that may add something: others may have read what was invalidated since.
    pub(crate) floor: u64,
    /// MGAW: the width of the addresses that domain-wide invalidations name.
    guest_width: u8,
}

impl Store {
    pub(crate) fn new(guest_width: u8) -> Self {
        Self {
            guest_width,
            ..Self::default()
        }
    }

    pub(crate) fn page(&self, request: &Request) -> Option<&Page> {
        self.pages.get(&PageKey::of(request))
    }

    pub(crate) fn context(&self, source: SourceId) -> Option<[u64; 4]> {
        self.contexts.get(&source.0).map(|(words, _)| *words)
    }

    pub(crate) fn pasid(&self, source: SourceId, pasid: Pasid) -> Option<([u64; 8], bool)> {
        let (words, disable, _) = self.pasids.get(&(source.0, pasid.get()))?;
        Some((*words, *disable))
    }

    /// The lowest entry above `input` that was found under the same tables: domains have one set of them each.
    pub(crate) fn upper(
        &self,
        resolved: &Resolved,
        stage: Stage,
        input: u64,
    ) -> Option<UpperEntry> {
        let domain = resolved.domain;
        (2..=5).find_map(|level| match stage {
            Stage::First => {
                let key = (domain, number(resolved), level, prefix(input, level));
                let (binding, entry) = self.first.get(&key)?;
                (*binding == resolved.binding).then_some(*entry)
            }
            Stage::Second => {
                let (tables, entry) = self.second.get(&(domain, level, prefix(input, level)))?;
                (Some(*tables) == second_stage(&resolved.binding)).then_some(*entry)
            }
        })
    }

    /// Remembers what a request that was let through has used, and what it got.
    pub(crate) fn keep(&mut self, notes: &Notes, request: &Request, found: Option<&Translation>) {
        if let Some((words, domain)) = notes.context {
            self.keep_context(request.source.0, words, domain);
        }
        if let Some((pasid, words, disable, domain)) = notes.pasid {
            self.keep_pasid((request.source.0, pasid), words, disable, domain);
        }
        let Some(resolved) = &notes.resolved else {
            return;
        };
        for (stage, input, entry) in &notes.uppers {
            self.keep_upper(resolved, *stage, *input, *entry);
        }
        if let Some(translation) = found {
            let page = Page {
                translation: Translation {
                    address: translation.address & !0xfff,
                    page_shift: 12,
                    ..*translation
                },
                pasid: number(resolved),
                fault_disable: resolved.fault_disable,
                legacy: resolved.legacy,
            };
            self.keep_page(PageKey::of(request), page);
        }
    }

    fn keep_context(&mut self, source: u16, words: [u64; 4], domain: Option<u16>) {
        if let Some((_, old)) = self.contexts.insert(source, (words, domain)) {
            self.contexts_by_domain.remove(&(old, source));
        }
        self.contexts_by_domain.insert((domain, source));
    }

    fn keep_pasid(&mut self, key: (u16, u32), words: [u64; 8], disable: bool, domain: u16) {
        if self.pasids.len() >= LIMIT {
            self.forget_all_pasids();
        }
        let (source, pasid) = key;
        if let Some((_, _, old)) = self.pasids.insert(key, (words, disable, domain)) {
            self.pasids_by_domain.remove(&(old, pasid, source));
        }
        self.pasids_by_domain.insert((domain, pasid, source));
    }

    fn keep_upper(&mut self, resolved: &Resolved, stage: Stage, input: u64, entry: UpperEntry) {
        let (domain, place) = (resolved.domain, prefix(input, entry.level));
        match (stage, second_stage(&resolved.binding)) {
            (Stage::First, _) => {
                if self.first.len() >= LIMIT {
                    self.first.clear();
                }
                let key = (domain, number(resolved), entry.level, place);
                self.first.insert(key, (resolved.binding, entry));
            }
            (Stage::Second, Some(tables)) => {
                if self.second.len() >= LIMIT {
                    self.second.clear();
                }
                self.second
                    .insert((domain, entry.level, place), (tables, entry));
            }
            (Stage::Second, None) => {}
        }
    }

    fn keep_page(&mut self, key: PageKey, page: Page) {
        if self.pages.len() >= LIMIT {
            self.forget_all_pages();
        }
        self.forget_page(key);
        let (domain, first) = (page.translation.domain, page.is_first());
        self.pages_by_pasid.insert((domain, first, page.pasid, key));
        if !first {
            self.pages_by_domain.insert((domain, key));
        }
        self.pages.insert(key, page);
    }

    /// Takes out what `invalidation` names (tables in sections 6.5.2.1 to 6.5.2.4), and nothing else.
    pub(crate) fn forget(&mut self, invalidation: &Invalidation) {
        match *invalidation {
            Invalidation::Context(scope) => self.forget_contexts(scope),
            Invalidation::PasidCache(scope) => self.forget_pasids(scope),
            Invalidation::Iotlb(scope) => self.forget_domain(scope),
            Invalidation::PasidIotlb {
                domain,
                pasid,
                scope: PasidIotlbScope::Pasid,
            } => {
                self.forget_first(domain, pasid..=pasid);
                for first in [false, true] {
                    self.forget_pages_by_pasid(domain, first, pasid..=pasid, PAGES);
                }
            }
            Invalidation::PasidIotlb {
                domain,
                pasid,
                scope: PasidIotlbScope::Pages(block),
            } => {
                let bytes = span(block, 64);
                if !block.leaf_only {
                    for level in 2..=5 {
                        let places = prefix(*bytes.start(), level)..=prefix(*bytes.end(), level);
                        let least = (domain, pasid, level, *places.start());
                        let greatest = (domain, pasid, level, *places.end());
                        take_map(&mut self.first, least..=greatest);
                    }
                }
                let pages = bytes.start() >> 12..=bytes.end() >> 12;
                self.forget_pages_by_pasid(domain, true, pasid..=pasid, pages);
            }
            // What devices keep is not kept here.
            Invalidation::DeviceTlb { .. } => {}
            Invalidation::All => {
                self.contexts.clear();
                self.contexts_by_domain.clear();
                self.forget_all_pasids();
                self.forget_domain(IotlbScope::Global);
            }
        }
    }

    fn forget_contexts(&mut self, scope: ContextScope) {
        let sources: Vec<u16> = match scope {
            ContextScope::Global => self.contexts.keys().copied().collect(),
            // Entries of scalable mode are of no domain: all are taken out, for what they lead to may be of this one.
            ContextScope::Domain(domain) => [None, Some(domain)]
                .into_iter()
                .flat_map(|domain| {
                    self.contexts_by_domain
                        .range((domain, 0)..=(domain, u16::MAX))
                })
                .map(|(_, source)| *source)
                .collect(),
            ContextScope::Device {
                source,
                function_mask,
            } => {
                let ignored = ignored_bits(function_mask);
                (0..8)
                    .map(|function| source & !ignored | function & ignored)
                    .collect()
            }
        };
        for source in sources {
            if let Some((_, domain)) = self.contexts.remove(&source) {
                self.contexts_by_domain.remove(&(domain, source));
            }
        }
    }

    fn forget_pasids(&mut self, scope: PasidCacheScope) {
        let (domain, pasids) = match scope {
            PasidCacheScope::Global => return self.forget_all_pasids(),
            PasidCacheScope::Domain(domain) => (domain, PASIDS),
            PasidCacheScope::Pasid(domain, pasid) => (domain, pasid..=pasid),
        };
        let least = (domain, *pasids.start(), 0);
        let greatest = (domain, *pasids.end(), u16::MAX);
        for (_, pasid, source) in take(&mut self.pasids_by_domain, least..=greatest) {
            self.pasids.remove(&(source, pasid));
        }
    }

    fn forget_domain(&mut self, scope: IotlbScope) {
        match scope {
            IotlbScope::Global => {
                self.first.clear();
                self.second.clear();
                self.forget_all_pages();
            }
            IotlbScope::Domain(domain) => {
                self.forget_first(domain, PASIDS);
                take_map(
                    &mut self.second,
                    (domain, 0, 0)..=(domain, u8::MAX, u64::MAX),
                );
                for first in [false, true] {
                    self.forget_pages_by_pasid(domain, first, PASIDS, PAGES);
                }
            }
            IotlbScope::Pages(domain, block) => {
                let bytes = span(block, self.guest_width);
                self.forget_first(domain, PASIDS);
                self.forget_pages_by_pasid(domain, true, PASIDS, PAGES);
                if !block.leaf_only {
                    for level in 2..=5 {
                        let places = prefix(*bytes.start(), level)..=prefix(*bytes.end(), level);
                        let least = (domain, level, *places.start());
                        take_map(&mut self.second, least..=(domain, level, *places.end()));
                    }
                }
                let (least, greatest) = PageKey::range(&(bytes.start() >> 12..=bytes.end() >> 12));
                let range = (domain, least)..=(domain, greatest);
                for (_, key) in take(&mut self.pages_by_domain, range) {
                    self.forget_page(key);
                }
            }
        }
    }

    fn forget_first(&mut self, domain: u16, pasids: RangeInclusive<u32>) {
        let least = (domain, *pasids.start(), 0, 0);
        let greatest = (domain, *pasids.end(), u8::MAX, u64::MAX);
        take_map(&mut self.first, least..=greatest);
    }

    /// `pages` is of use with one PASID only.
    fn forget_pages_by_pasid(
        &mut self,
        domain: u16,
        first: bool,
        pasids: RangeInclusive<u32>,
        pages: RangeInclusive<u64>,
    ) {
        let (least, greatest) = PageKey::range(&pages);
        let range =
            (domain, first, *pasids.start(), least)..=(domain, first, *pasids.end(), greatest);
        for (.., key) in take(&mut self.pages_by_pasid, range) {
            self.forget_page(key);
        }
    }

    fn forget_page(&mut self, key: PageKey) {
        if let Some(page) = self.pages.remove(&key) {
            let domain = page.translation.domain;
            self.pages_by_pasid
                .remove(&(domain, page.is_first(), page.pasid, key));
            self.pages_by_domain.remove(&(domain, key));
        }
    }

    fn forget_all_pages(&mut self) {
        self.pages.clear();
        self.pages_by_pasid.clear();
        self.pages_by_domain.clear();
    }

    fn forget_all_pasids(&mut self) {
        self.pasids.clear();
        self.pasids_by_domain.clear();
    }
}

/// The PASID that tags what is found; legacy mode has none.
fn number(resolved: &Resolved) -> u32 {
    resolved.pasid.unwrap_or(Pasid::ZERO).get()
}

fn second_stage(binding: &Binding) -> Option<SecondStage> {
    match binding {
        Binding::SecondStage(tables) | Binding::Nested(_, tables) => Some(*tables),
        _ => None,
    }
}

/// The bits of `input` above what an entry of `level` is for.
fn prefix(input: u64, level: u8) -> u64 {
    input >> (12 + 9 * (level - 1))
}

/// First and last byte of `block`, whose address has `width` bits; what is above them is ignored.
fn span(block: PageBlock, width: u8) -> RangeInclusive<u64> {
    let within = |shift: u32| 1_u64.checked_shl(shift).map_or(u64::MAX, |size| size - 1);
    let first = block.address & within(u32::from(width));
    first..=first | within(12 + u32::from(block.mask))
}

/// Takes a range out of a set.
fn take<K: Ord + Copy>(set: &mut BTreeSet<K>, range: RangeInclusive<K>) -> Vec<K> {
    let found: Vec<K> = set.range(range).copied().collect();
    for key in &found {
        set.remove(key);
    }
    found
}

/// Takes a range out of a map.
fn take_map<K: Ord + Copy, V>(map: &mut BTreeMap<K, V>, range: RangeInclusive<K>) {
    let found: Vec<K> = map.range(range).map(|(key, _)| *key).collect();
    for key in found {
        map.remove(&key);
    }
}

#[cfg(test)]
#[path = "caches_test.rs"]
mod caches_test;
