//! Which transactions an invalidation waits for: those that may use what it names (sec. 6.5.2).

use super::block::{Block, Stage};
use super::used::{Domains, Used};
use crate::spec::descriptors::{
    ContextScope, IotlbScope, PasidCacheScope, PasidIotlbScope, ignored_bits,
};
use crate::spec::ids::SourceId;
use crate::spec::invalidation::Invalidation;

/// How many domains and sources are told apart. Any more are all of them.
const NAMED: usize = 8;

/// Of which views a drain has to wait for the transactions, and of which pages for the pins: the
/// union of what was added.
///
/// A translation is of a domain, and so is a PASID entry: a view that uses those of another domain
/// only is a stranger to an invalidation that names one. A context entry is of a source, which no
/// other source uses. Pages are told apart for pins only: several blocks of a domain are the one
/// that holds them all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrainScope {
    all: bool,
    named: [Option<Named>; NAMED],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Domain {
        domain: u16,
        /// The pages, if not all.
        block: Option<Block>,
    },
    /// Of a source-id, bits of which are not compared.
    Source { source: u16, ignored: u16 },
}

impl DrainScope {
    /// Of all views.
    pub const ALL: Self = Self {
        all: true,
        named: [None; NAMED],
    };

    /// Adds those that `invalidation` concerns. Tells whether that made a difference.
    pub fn add(&mut self, invalidation: &Invalidation) -> bool {
        if self.all {
            return false;
        }
        let Some(added) = concerned(invalidation) else {
            *self = Self::ALL;
            return true;
        };
        for place in &mut self.named {
            match place {
                Some(named) => {
                    if let Some(both) = named.joined(added) {
                        return std::mem::replace(named, both) != both;
                    }
                }
                None => {
                    *place = Some(added);
                    return true;
                }
            }
        }
        *self = Self::ALL;
        true
    }

    /// Whether it is of no view at all.
    pub fn is_empty(&self) -> bool {
        // Places are taken in turn.
        !self.all && matches!(self.named, [None, ..])
    }

    /// Whether it takes in a view of `source` that uses what is of `domains`.
    pub(super) fn takes_in(&self, source: SourceId, domains: Domains) -> bool {
        self.all
            || self.named.iter().flatten().any(|named| match *named {
                Named::Domain { domain, .. } => domains.may_include(domain),
                Named::Source {
                    source: named,
                    ignored,
                } => (source.0 ^ named) & !ignored == 0,
            })
    }

    /// Whether it takes in pages that are pinned.
    pub(super) fn takes_in_pages(&self, source: SourceId, used: &Used) -> bool {
        self.takes_in(source, used.domains)
            && (self.all
                || self.named.iter().flatten().any(|named| match named {
                    Named::Domain { domain, block } => {
                        used.domains.may_include(*domain)
                            && block.is_none_or(|block| used.may_touch(&block))
                    }
                    Named::Source { .. } => self.takes_in(source, Domains::None),
                }))
    }
}

impl Named {
    /// The two of them as one, if they are of the same domain or the same.
    fn joined(self, other: Self) -> Option<Self> {
        let (
            Self::Domain { domain, block },
            Self::Domain {
                domain: of,
                block: more,
            },
        ) = (self, other)
        else {
            return (self == other).then_some(self);
        };
        (domain == of).then(|| Self::Domain {
            domain,
            block: block.zip(more).and_then(|(one, more)| one.joined(more)),
        })
    }
}

impl<'a> FromIterator<&'a Invalidation> for DrainScope {
    fn from_iter<I: IntoIterator<Item = &'a Invalidation>>(invalidations: I) -> Self {
        let mut scope = Self::default();
        for invalidation in invalidations {
            scope.add(invalidation);
        }
        scope
    }
}

/// Whom `invalidation` concerns; `None` for everyone.
fn concerned(invalidation: &Invalidation) -> Option<Named> {
    let pages = |domain, block| Some(Named::Domain { domain, block });
    match *invalidation {
        Invalidation::Iotlb(IotlbScope::Domain(domain))
        | Invalidation::PasidIotlb {
            domain,
            scope: PasidIotlbScope::Pasid,
            ..
        }
        | Invalidation::PasidCache(
            PasidCacheScope::Domain(domain) | PasidCacheScope::Pasid(domain, _),
        ) => pages(domain, None),
        Invalidation::Iotlb(IotlbScope::Pages(domain, block)) => {
            pages(domain, Some(Block::new(Stage::Second, &block)))
        }
        Invalidation::PasidIotlb {
            domain,
            scope: PasidIotlbScope::Pages(block),
            ..
        } => pages(domain, Some(Block::new(Stage::First, &block))),
        Invalidation::Context(ContextScope::Device {
            source,
            function_mask,
        }) => Some(Named::Source {
            source,
            ignored: ignored_bits(function_mask),
        }),
        Invalidation::DeviceTlb { source, .. } => Some(Named::Source {
            source: source.0,
            ignored: 0,
        }),
        // In scalable mode, context entries are of no domain (section 6.5.2.1).
        Invalidation::Context(ContextScope::Global | ContextScope::Domain(_))
        | Invalidation::Iotlb(IotlbScope::Global)
        | Invalidation::PasidCache(PasidCacheScope::Global)
        | Invalidation::All => None,
    }
}

#[cfg(test)]
mod drain_scope_test;
