//! Which transactions an invalidation waits for: those that may use what it names (sec. 6.5.2).

use crate::spec::descriptors::{
    ContextScope, IotlbScope, PasidCacheScope, PasidIotlbScope, ignored_bits,
};
use crate::spec::ids::SourceId;
use crate::spec::invalidation::Invalidation;

/// How many domains and sources are told apart. Any more are all of them.
const NAMED: usize = 8;

/// Of which views a drain has to wait for the transactions: the union of what was added.
///
/// A translation is of a domain, and so is a PASID entry: a view that uses those of another domain
/// only is a stranger to an invalidation that names one. A context entry is of a source, which no
/// other source uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrainScope {
    all: bool,
    named: [Option<Named>; NAMED],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Domain(u16),
    /// Of a source-id, bits of which are not compared.
    Source {
        source: u16,
        ignored: u16,
    },
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
                Some(named) if *named == added => return false,
                Some(_) => {}
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
                Named::Domain(domain) => match domains {
                    Domains::None => false,
                    Domains::One(used) => used == domain,
                    Domains::Any => true,
                },
                Named::Source {
                    source: named,
                    ignored,
                } => (source.0 ^ named) & !ignored == 0,
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

/// The domains of what a view has in its caches, and of what a running transaction uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Domains {
    /// It uses nothing yet.
    None,
    /// One.
    One(u16),
    /// Several, or it is not known which.
    Any,
}

/// Whom `invalidation` concerns; `None` for everyone.
fn concerned(invalidation: &Invalidation) -> Option<Named> {
    match *invalidation {
        Invalidation::Iotlb(IotlbScope::Domain(domain) | IotlbScope::Pages(domain, _))
        | Invalidation::PasidIotlb {
            domain,
            scope: PasidIotlbScope::Pasid | PasidIotlbScope::Pages(_),
            ..
        }
        | Invalidation::PasidCache(
            PasidCacheScope::Domain(domain) | PasidCacheScope::Pasid(domain, _),
        ) => Some(Named::Domain(domain)),
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
