//! Who goes through which shadow, and under which domain ids the guest invalidates it.

use std::collections::BTreeMap;

use super::ShadowKey;
use crate::index::{Index, Requester};

/// Index of the requests that go through shadows.
#[derive(Default)]
pub(crate) struct ShadowUsers {
    known: BTreeMap<Requester, (ShadowKey, u16)>,
    domains: Index<ShadowKey, u16>,
    shadows: Index<u16, ShadowKey>,
    /// Those that nobody uses any more, as far as that is new.
    left: Vec<ShadowKey>,
}

impl ShadowUsers {
    /// `requester` goes through this shadow now, under this domain id, or through none.
    pub(crate) fn set(&mut self, requester: Requester, now: Option<(ShadowKey, u16)>) {
        let before = match now {
            Some(now) => self.known.insert(requester, now),
            None => self.known.remove(&requester),
        };
        if before == now {
            return;
        }
        if let Some((key, domain)) = now {
            self.domains.add(key, domain);
            self.shadows.add(domain, key);
        }
        if let Some((key, domain)) = before {
            self.shadows.remove(&domain, &key);
            if self.domains.remove(&key, &domain) {
                self.left.push(key);
            }
        }
    }

    /// The shadows that have users.
    pub(crate) fn all(&self) -> impl Iterator<Item = &ShadowKey> {
        self.domains.firsts()
    }

    /// The shadows that the guest invalidates under `domain`.
    pub(crate) fn of_domain(&self, domain: u16) -> impl Iterator<Item = &ShadowKey> {
        self.shadows.of(&domain)
    }

    /// The domain ids under which the guest invalidates a shadow.
    pub(crate) fn domains(&self, key: &ShadowKey) -> impl Iterator<Item = u16> + Clone {
        self.domains.of(key).copied()
    }

    /// How many go through a shadow.
    pub(crate) fn count(&self, key: &ShadowKey) -> usize {
        self.domains.count(key)
    }

    /// The shadows whose last user has gone since this was asked before; some may have users again.
    pub(crate) fn take_left(&mut self) -> Vec<ShadowKey> {
        std::mem::take(&mut self.left)
    }
}

#[cfg(test)]
impl ShadowUsers {
    /// Whether both know the same.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.known == other.known
    }
}
