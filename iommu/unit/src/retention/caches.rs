//! The caches of section 6.2 by their tags: context cache, PASID cache, paging-structure caches,
//! IOTLB.
//!
//! Everything that leaves is found through an ordered index, so that an invalidation costs no more
//! than what it takes out: a guest fills its queue with them.

use std::ops::RangeInclusive;

use super::indexed::{Indexed, Indexes};
use super::notes::Notes;
use crate::spec::ids::{Pasid, SourceId};
use crate::translate::{
    Binding, Request, Resolved, SecondStage, Stage, Tag, Translation, TranslationType, UpperEntry,
};

/// A context entry, under its source.
pub(super) struct Context {
    words: [u64; 4],
    /// Which only legacy entries have.
    domain: Option<u16>,
}

/// By domain and source.
impl Indexes<u16> for Context {
    type Index = (Option<u16>, u16);

    fn indexes(&self, source: &u16) -> impl Iterator<Item = Self::Index> {
        std::iter::once((self.domain, *source))
    }
}

/// A PASID entry, under its source and PASID.
pub(super) struct PasidEntry {
    words: [u64; 8],
    directory_fault_disable: bool,
    domain: u16,
}

/// By domain, PASID and source.
impl Indexes<(u16, u32)> for PasidEntry {
    type Index = (u16, u32, u16);

    fn indexes(&self, (source, pasid): &(u16, u32)) -> impl Iterator<Item = Self::Index> {
        std::iter::once((self.domain, *pasid, *source))
    }
}

/// Domain, PASID, level, bits of the input above what the entry is for.
pub(super) type FirstKey = (u16, u32, u8, u64);
/// Domain, level, bits of the input.
pub(super) type SecondKey = (u16, u8, u64);

/// An entry of the tables `T` that points to another table.
pub(super) struct Upper<T> {
    tables: T,
    entry: UpperEntry,
}

/// By its key.
impl<K: Copy + Ord, T> Indexes<K> for Upper<T> {
    type Index = K;

    fn indexes(&self, key: &K) -> impl Iterator<Item = K> {
        std::iter::once(*key)
    }
}

/// A page as requests name it (6.2.4): no domain is looked up before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PageKey {
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
    pub(super) fn range(pages: &RangeInclusive<u64>) -> (Self, Self) {
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

/// What a page is taken out by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PageIndex {
    /// Domain, whether through a first stage, PASID.
    Pasid(u16, bool, u32, PageKey),
    /// Domain, of pages that are not through a first stage.
    Domain(u16, PageKey),
}

impl Indexes<PageKey> for Page {
    type Index = PageIndex;

    fn indexes(&self, key: &PageKey) -> impl Iterator<Item = PageIndex> {
        let (domain, first) = (self.translation.domain, self.is_first());
        let by_domain = (!first).then_some(PageIndex::Domain(domain, *key));
        std::iter::once(PageIndex::Pasid(domain, first, self.pasid, *key)).chain(by_domain)
    }
}

/// What each cache holds.
#[derive(Default)]
pub(crate) struct Store {
    pub(super) contexts: Indexed<u16, Context>,
    pub(super) pasids: Indexed<(u16, u32), PasidEntry>,
    pub(super) first: Indexed<FirstKey, Upper<Binding>>,
    pub(super) second: Indexed<SecondKey, Upper<SecondStage>>,
    pub(super) pages: Indexed<PageKey, Page>,
    /// The first generation of transactions that may add something: others may have read what was
    /// invalidated since.
    pub(crate) floor: u64,
    /// MGAW: the width of the addresses that domain-wide invalidations name.
    pub(super) guest_width: u8,
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
        self.contexts.get(&source.0).map(|context| context.words)
    }

    pub(crate) fn pasid(&self, source: SourceId, pasid: Pasid) -> Option<([u64; 8], bool)> {
        let entry = self.pasids.get(&(source.0, pasid.get()))?;
        Some((entry.words, entry.directory_fault_disable))
    }

    /// The lowest entry above `input` that was found under the same tables: domains have one set of
    /// them each.
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
                let upper = self.first.get(&key)?;
                (upper.tables == resolved.binding).then_some(upper.entry)
            }
            Stage::Second => {
                let upper = self.second.get(&(domain, level, prefix(input, level)))?;
                (Some(upper.tables) == second_stage(&resolved.binding)).then_some(upper.entry)
            }
        })
    }

    /// Remembers what a request that was let through has used, and what it got.
    pub(crate) fn keep(&mut self, notes: &Notes, request: &Request, found: Option<&Translation>) {
        let source = request.source.0;
        if let Some((words, domain)) = notes.context {
            self.contexts.insert(source, Context { words, domain });
        }
        if let Some((pasid, words, directory_fault_disable, domain)) = notes.pasid {
            let entry = PasidEntry {
                words,
                directory_fault_disable,
                domain,
            };
            self.pasids.insert((source, pasid), entry);
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
            self.pages.insert(PageKey::of(request), page);
        }
    }

    fn keep_upper(&mut self, resolved: &Resolved, stage: Stage, input: u64, entry: UpperEntry) {
        let (domain, place) = (resolved.domain, prefix(input, entry.level));
        match (stage, second_stage(&resolved.binding)) {
            (Stage::First, _) => {
                let key = (domain, number(resolved), entry.level, place);
                let tables = resolved.binding;
                self.first.insert(key, Upper { tables, entry });
            }
            (Stage::Second, Some(tables)) => {
                let key = (domain, entry.level, place);
                self.second.insert(key, Upper { tables, entry });
            }
            (Stage::Second, None) => {}
        }
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
pub(super) fn prefix(input: u64, level: u8) -> u64 {
    input >> (12 + 9 * (level - 1))
}

#[cfg(test)]
mod caches_test;
