//! A transaction: requests of one kind and PASID, during which no invalidation completes.

use std::ops::Deref;

use vm_memory::{GuestMemoryBackend, Permissions};

use super::lookup::Lookup;
use super::port::{DmaPort, Path};
use super::view::DmaView;
use crate::memory::Nearby;
use crate::spec::ids::{Pasid, SourceId};
use crate::translate::{Access, GuestTables, Permitted, Request, RequestKind, Resolved, Tag};

impl<M> DmaView<M>
where
    M: Deref<Target: GuestMemoryBackend>,
{
    /// Begins a transaction of requests without PASID.
    pub fn begin(&mut self) -> DmaTransaction<'_, M> {
        self.begin_pasid(None)
    }

    /// Begins a transaction of requests with `pasid`, or of requests without one.
    pub fn begin_pasid(&mut self, pasid: Option<Pasid>) -> DmaTransaction<'_, M> {
        self.begin_untranslated(pasid, false)
    }

    /// Begins a transaction of requests with `pasid` that ask for supervisor privilege (Privileged
    /// Mode Requested in the PASID prefix).
    ///
    /// The guest permits them for each PASID (SRE); where it does not, every access fails.
    /// First-stage entries then need no U/S, and no R/W unless the guest asks for that (WPE).
    pub fn begin_supervisor(&mut self, pasid: Pasid) -> DmaTransaction<'_, M> {
        self.begin_untranslated(Some(pasid), true)
    }

    #[inline]
    fn begin_untranslated(
        &mut self,
        pasid: Option<Pasid>,
        privileged: bool,
    ) -> DmaTransaction<'_, M> {
        let tag = Tag::new(self.enter(), pasid, privileged);
        self.caches.begin(tag);
        DmaTransaction {
            view: self,
            near: Nearby::new(self.port.memory()),
            tables: Nearby::new(self.port.memory()),
            tag,
            pasid,
            privileged,
            kind: RequestKind::Untranslated,
        }
    }

    /// Begins a transaction of translated requests: their addresses are what
    /// [`DmaTransaction::translate`] answered.
    ///
    /// The device's own permission to make such requests is checked for every access (DTE in
    /// scalable mode, the translation type in legacy mode), and a fault reported; whether it was
    /// given an address is not, as on hardware. While translation is off, and behind no unit, every
    /// access fails, and nothing is reported.
    ///
    /// Such requests have no PASID.
    pub fn begin_translated(&mut self) -> DmaTransaction<'_, M> {
        self.enter();
        DmaTransaction {
            view: self,
            near: Nearby::new(self.port.memory()),
            tables: Nearby::new(self.port.memory()),
            tag: Tag::new(NEVER, None, false),
            pasid: None,
            privileged: false,
            kind: RequestKind::Translated,
        }
    }
}

/// The generation of no entry: translated requests neither find what untranslated ones left in the
/// caches, nor leave anything there. What they need is two entries, which say much about a whole
/// range at once.
const NEVER: u64 = u64::MAX;

/// Access to guest memory as the device sees it, during which no invalidation completes.
///
/// An address that does not translate, or is not memory, fails with
/// [`GuestMemoryError::InvalidGuestAddress`](vm_memory::GuestMemoryError::InvalidGuestAddress).
pub struct DmaTransaction<'v, M: Deref<Target: GuestMemoryBackend>> {
    view: &'v DmaView<M>,
    /// For what the device accesses, and for tables, which are mostly elsewhere.
    near: Nearby<'v, M::Target>,
    tables: Nearby<'v, M::Target>,
    /// Of generation [`NEVER`] for translated requests.
    tag: Tag,
    pasid: Option<Pasid>,
    privileged: bool,
    kind: RequestKind,
}

impl<M: Deref<Target: GuestMemoryBackend>> Drop for DmaTransaction<'_, M> {
    fn drop(&mut self) {
        if let Some(slot) = &self.view.slot {
            slot.leave(self.view.hits.get(), self.view.caches.walks());
        }
    }
}

impl<'v, M: Deref<Target: GuestMemoryBackend>> DmaTransaction<'v, M> {
    /// Whether the gate of the port lets requests out: without that, no access succeeds.
    pub fn is_open(&self) -> bool {
        self.view.port.is_open()
    }

    pub(super) fn port(&self) -> &DmaPort<M> {
        &self.view.port
    }

    pub(super) const fn pasid(&self) -> Option<Pasid> {
        self.pasid
    }

    pub(super) const fn kind(&self) -> RequestKind {
        self.kind
    }

    pub(super) const fn privileged(&self) -> bool {
        self.privileged
    }

    /// Under which it runs; 0 behind no unit.
    pub(super) const fn generation(&self) -> u64 {
        self.view.latched_in
    }

    /// What translates its requests, if that is known and the same for all of them.
    pub(super) fn bound(&self) -> Option<&Resolved> {
        let is_untranslated = self.kind == RequestKind::Untranslated;
        self.view.caches.bound().filter(|_| is_untranslated)
    }

    /// Whether addresses are guest-physical: behind no unit, or while the guest has translation
    /// switched off.
    pub(crate) fn is_identity(&self) -> bool {
        (self.view.slot.is_none() || !self.view.latched.enabled)
            && self.kind == RequestKind::Untranslated
    }

    pub(super) fn memory(&self) -> &M::Target {
        self.view.port.memory()
    }

    /// Memory for what the device accesses.
    pub(super) fn near(&self) -> &Nearby<'v, M::Target> {
        &self.near
    }

    /// Where `address` leads, and how many of `most` bytes from there on have the same translation.
    /// Reports the fault if `access` is blocked.
    #[inline(always)]
    pub(super) fn stretch(
        &self,
        address: u64,
        most: u64,
        access: Permissions,
    ) -> Option<(u64, u64)> {
        if self.is_identity() {
            return Some((address, most));
        }
        let found = self.translated(address, access)?;
        let block = 1_u64 << found.page_shift;
        Some((found.address, most.min(block - (address & (block - 1)))))
    }

    /// Translates one page for `access`, and reports the fault if that is blocked.
    #[inline]
    pub(crate) fn translated(&self, address: u64, access: Permissions) -> Option<Permitted> {
        if let Some(hit) = self.view.caches.iotlb.lookup(self.tag, address)
            && permits((hit.readable, hit.writable), access)
        {
            let hits = &self.view.hits;
            hits.set(hits.get().wrapping_add(1));
            return Some(hit);
        }
        self.miss(address, access)
    }

    /// What a hit does not need, out of its way.
    #[cold]
    #[inline(never)]
    fn miss(&self, address: u64, access: Permissions) -> Option<Permitted> {
        // Both permissions are two requests, so that a fault names the one that is missing.
        let mut found = None;
        if access.has_write() {
            found = Some(self.page(address, Access::Write)?);
        }
        if found.is_none()
            || access == Permissions::ReadWrite && found.is_some_and(|found| !found.readable)
        {
            found = Some(self.page(address, Access::Read)?);
        }
        found
    }

    #[inline]
    fn page(&self, address: u64, access: Access) -> Option<Permitted> {
        let view = self.view;
        if let (Path::Translated { state, .. }, Some(slot)) = (&view.port.path, &view.slot) {
            let tables = GuestTables::new(&self.tables, state.gates(), view.latched);
            let found = view.caches.recall(&tables, self.tag, address, access, slot);
            if found.is_some() {
                return found;
            }
        }
        self.walk(address, access)
    }

    #[inline(never)]
    fn walk(&self, address: u64, access: Access) -> Option<Permitted> {
        let (lookup, source) = self.lookup()?;
        let request = self.request(source, address, access, self.kind);
        lookup.page(&self.view.caches, self.tag, &request).ok()
    }

    /// The page that answers `access`, if it permits that, without making a request: nothing is
    /// reported.
    pub(super) fn probe(&self, address: u64, access: Access) -> Option<Permitted> {
        let (lookup, source) = self.lookup()?;
        let request = self.request(source, address, Access::Read, self.kind);
        let translation = lookup.probe(&request, access.writes()).ok()?;
        let found = Permitted {
            address: translation.address,
            page_shift: translation.page_shift,
            readable: translation.readable,
            writable: translation.writable,
        };
        let permitted = if access.writes() {
            found.writable
        } else {
            found.readable
        };
        permitted.then_some(found)
    }

    /// Counts a walk that leaves nothing in the caches.
    pub(super) fn count_walk(&self) {
        self.view.caches.count_walk();
    }

    /// Where to ask for translations, and as whom; `None` behind no unit.
    #[inline]
    pub(super) fn lookup(&self) -> Option<(Lookup<'_, 'v, M>, SourceId)> {
        let view = self.view;
        let (Path::Translated { state, source }, Some(slot)) = (&view.port.path, &view.slot) else {
            return None;
        };
        let lookup = Lookup {
            state,
            slot,
            tables: GuestTables::new(&self.tables, state.gates(), view.latched),
            generation: view.latched_in,
        };
        Some((lookup, *source))
    }

    pub(super) const fn request(
        &self,
        source: SourceId,
        address: u64,
        access: Access,
        kind: RequestKind,
    ) -> Request {
        Request {
            source,
            pasid: self.pasid,
            address,
            access,
            privileged: self.privileged,
            kind,
        }
    }
}

/// Whether what is readable and writable as given permits `access`.
pub(super) fn permits((readable, writable): (bool, bool), access: Permissions) -> bool {
    let write = matches!(access, Permissions::Write | Permissions::ReadWrite);
    (readable || access == Permissions::Write) && (writable || !write)
}
