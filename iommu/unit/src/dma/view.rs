//! The view of one worker thread, and the transactions on it.

use std::cell::{Cell, OnceCell};
use std::ops::Deref;
use std::sync::Arc;

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, Permissions,
};

use super::guest_memory::DmaSlices;
use super::iotlb::Cache;
use super::port::{DmaPort, Path};
use super::shared::{DmaState, Slot};
use crate::memory::{Nearby, TableMemory};
use crate::retention::{Answer, Found, Kept};
use crate::spec::ids::{Pasid, SourceId};
use crate::translate::{
    Access, Binding, Fault, GuestTables, Latched, Permitted, Request, RequestKind, Resolved,
    Structures, Tag,
};

/// A device's view of memory for one worker thread, with a translation cache that no one else uses.
///
/// It can be moved to a thread, and is not shared between threads.
pub struct DmaView<M: Deref<Target: GuestMemoryBackend>> {
    port: DmaPort<M>,
    /// `None` behind no unit.
    slot: Option<Arc<Slot>>,
    /// What was latched when the transaction of generation `latched_in` began.
    latched: Latched,
    latched_in: u64,
    cache: Cache,
    structures: Structures,
    /// What root, context, directory and PASID entry say about the requests of `bound_for`. A view has one source, and
    /// mostly one PASID.
    bound: OnceCell<Resolved>,
    bound_for: Tag,
    /// For tests and statistics.
    hits: Cell<u64>,
    walks: Cell<u64>,
}

impl<M> DmaView<M>
where
    M: Deref<Target: GuestMemoryBackend>,
{
    pub(super) fn new(port: DmaPort<M>) -> Self {
        let slot = match &port.path {
            Path::Direct(_) => None,
            Path::Translated { state, .. } => Some(state.register()),
        };
        Self {
            port,
            slot,
            latched: Latched::default(),
            latched_in: 0,
            cache: Cache::default(),
            structures: Structures::default(),
            bound: OnceCell::new(),
            bound_for: Tag::NOTHING,
            hits: Cell::new(0),
            walks: Cell::new(0),
        }
    }

    /// Begins a transaction of requests without PASID.
    pub fn begin(&mut self) -> DmaTransaction<'_, M> {
        self.begin_pasid(None)
    }

    /// Begins a transaction of requests with `pasid`, or of requests without one.
    pub fn begin_pasid(&mut self, pasid: Option<Pasid>) -> DmaTransaction<'_, M> {
        self.begin_untranslated(pasid, false)
    }

    /// Begins a transaction of requests with `pasid` that ask for supervisor privilege (Privileged Mode Requested in the
    /// PASID prefix).
    ///
    /// The guest permits them for each PASID (SRE); where it does not, every access fails. First-stage entries then need no
    /// U/S, and no R/W unless the guest asks for that (WPE).
    pub fn begin_supervisor(&mut self, pasid: Pasid) -> DmaTransaction<'_, M> {
        self.begin_untranslated(Some(pasid), true)
    }

    fn begin_untranslated(
        &mut self,
        pasid: Option<Pasid>,
        privileged: bool,
    ) -> DmaTransaction<'_, M> {
        let tag = Tag::new(self.enter(), pasid, privileged);
        if self.bound_for != tag {
            self.bound = OnceCell::new();
            self.bound_for = tag;
        }
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

    /// Begins a transaction of translated requests: their addresses are what [`DmaTransaction::translate`] answered.
    ///
    /// The device's own permission to make such requests is checked for every access (DTE in scalable mode, the
    /// translation type in legacy mode), and a fault reported; whether it was given an address is not, as on hardware.
    /// While translation is off, and behind no unit, every access fails, and nothing is reported.
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

    /// Declares a transaction, and returns its generation.
    fn enter(&mut self) -> u64 {
        let mut generation = 0;
        if let (Path::Translated { state, .. }, Some(slot)) = (&self.port.path, &self.slot) {
            generation = state.enter(slot);
            if generation != self.latched_in {
                self.latched = state.latched();
                self.latched_in = generation;
            }
        }
        generation
    }

    /// How many times a table walk was needed since the view was made.
    pub fn walks(&self) -> u64 {
        self.walks.get()
    }
}

impl<M: Deref<Target: GuestMemoryBackend>> Drop for DmaView<M> {
    fn drop(&mut self) {
        if let (Path::Translated { state, .. }, Some(slot)) = (&self.port.path, &self.slot) {
            state.unregister(slot);
        }
    }
}

/// The generation of no entry: translated requests neither find what untranslated ones left in the cache, nor leave
/// anything there. What they need is two entries, which say much about a whole range at once.
const NEVER: u64 = u64::MAX;

/// Access to guest memory as the device sees it, during which no invalidation completes.
///
/// An address that does not translate, or is not memory, fails with [`GuestMemoryError::InvalidGuestAddress`].
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
            slot.leave(self.view.hits.get(), self.view.walks.get());
        }
    }
}

impl<'v, M: Deref<Target: GuestMemoryBackend>> DmaTransaction<'v, M> {
    /// Whether the gate of the port lets requests out.
    pub(super) fn is_open(&self) -> bool {
        self.view.port.is_open()
    }

    /// Whether addresses are guest-physical: behind no unit, or while the guest has translation switched off.
    pub(super) fn is_identity(&self) -> bool {
        (self.view.slot.is_none() || !self.view.latched.enabled)
            && self.kind == RequestKind::Untranslated
    }

    pub(super) fn port(&self) -> &DmaPort<M> {
        &self.view.port
    }

    pub(super) fn pasid(&self) -> Option<Pasid> {
        self.pasid
    }

    pub(super) fn privileged(&self) -> bool {
        self.privileged
    }

    /// Reports a blocked request, if there is anything to say: translation that is off, and conditions that a device may
    /// meet when it asks for a translation, are no faults.
    pub(super) fn blocked(&self, state: &DmaState<M>, request: &Request, fault: &Fault) {
        let asks = matches!(request.kind, RequestKind::TranslationRequest { .. });
        let recoverable = asks && fault.reason.is_recoverable();
        if self.view.latched.enabled && !recoverable {
            state.report(request, fault);
        }
    }

    pub(super) fn memory(&self) -> &M::Target {
        self.view.port.memory()
    }

    /// Memory for what the device accesses.
    pub(super) fn near(&self) -> &Nearby<'v, M::Target> {
        &self.near
    }

    /// Translates one page for `access`, and reports the fault if that is blocked.
    #[inline]
    pub(super) fn lookup(&self, address: u64, access: Permissions) -> Option<Permitted> {
        if let Some(hit) = self.view.cache.lookup(self.tag, address)
            && permits(&hit, access)
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
        let mut cached = None;
        if access.has_write() {
            cached = Some(self.walk(address, Access::Write)?);
        }
        if cached.is_none()
            || access == Permissions::ReadWrite && cached.is_some_and(|cached| !cached.readable)
        {
            cached = Some(self.walk(address, Access::Read)?);
        }
        cached
    }

    fn walk(&self, address: u64, access: Access) -> Option<Permitted> {
        let view = self.view;
        let Path::Translated { state, source } = &view.port.path else {
            return None;
        };
        if let Some(kept) = state.kept() {
            return self.walk_kept(state, kept, self.request(*source, address, access));
        }
        view.walks.set(view.walks.get().wrapping_add(1));
        let tables = self.tables(state);
        let remembers = self.tag.generation != NEVER;
        if remembers
            && let Some(resolved) = view.bound.get()
            && let Some(found) = view
                .structures
                .translate(&tables, resolved, self.tag, address, access)
        {
            view.cache.insert(self.tag, address, &found);
            self.count_nested(resolved);
            return Some(found);
        }
        let request = self.request(*source, address, access);
        let outcome = if remembers {
            let resolve = || {
                let resolved = self.resolve(&tables, &request)?;
                self.count_nested(resolved);
                Ok(resolved)
            };
            tables
                .translate_with(&request, resolve)
                .map(|(translation, trail)| {
                    view.structures.keep(self.tag, address, &trail);
                    let found = Permitted::new(&translation);
                    view.cache.insert(self.tag, address, &found);
                    found
                })
        } else {
            // What untranslated requests are bound to is no permission for translated ones, nor the other way round.
            tables
                .translate(&request)
                .map(|translation| Permitted::new(&translation))
        };
        outcome
            .inspect_err(|fault| self.blocked(state, &request, fault))
            .ok()
    }

    const fn request(&self, source: SourceId, address: u64, access: Access) -> Request {
        Request {
            source,
            pasid: self.pasid,
            address,
            access,
            privileged: self.privileged,
            kind: self.kind,
        }
    }

    /// As [`walk`](Self::walk), where translations are kept.
    #[cold]
    #[inline(never)]
    fn walk_kept(&self, state: &DmaState<M>, kept: &Kept, request: Request) -> Option<Permitted> {
        let view = self.view;
        let answer = kept.translate(&self.tables(state), self.generation(), &request);
        if let Found::Walked { .. } = answer.found {
            view.walks.set(view.walks.get().wrapping_add(1));
        }
        if let Some(slot) = &view.slot {
            match answer.found {
                Found::Kept => slot.count_kept(),
                Found::Walked { nested: true } => slot.count_nested(),
                Found::Walked { nested: false } => {}
            }
        }
        self.compare(state, &request, &answer);
        match answer.outcome {
            // The view's own cache stays empty, so that every use is compared. Its neighbours may be kept from another time.
            Ok(translation) => Some(Permitted {
                page_shift: 12,
                ..Permitted::new(&translation)
            }),
            Err(fault) => {
                self.blocked(state, &request, &fault);
                None
            }
        }
    }

    /// Counts and reports an answer that the tables no longer give.
    pub(super) fn compare(&self, state: &DmaState<M>, request: &Request, answer: &Answer) {
        if let Some(now) = &answer.instead {
            if let Some(slot) = &self.view.slot {
                slot.count_stale();
            }
            state.report_stale(request, &answer.outcome, now);
        }
    }

    /// The guest's tables, as this transaction sees them.
    #[inline]
    pub(super) fn tables<'s>(
        &'s self,
        state: &'s DmaState<M>,
    ) -> GuestTables<'s, &'s Nearby<'v, M::Target>> {
        GuestTables::new(&self.tables, state.gates(), self.view.latched)
    }

    /// Under which this transaction runs.
    pub(super) fn generation(&self) -> u64 {
        self.view.latched_in
    }

    /// What translates `request`, from memory or from the tables.
    #[inline]
    fn resolve<T: TableMemory>(
        &self,
        tables: &GuestTables<'_, T>,
        request: &Request,
    ) -> Result<&Resolved, Fault> {
        let view = self.view;
        if let Some(resolved) = view.bound.get() {
            return Ok(resolved);
        }
        let resolved = tables.resolve_request(request)?;
        Ok(view.bound.get_or_init(|| resolved))
    }

    #[inline]
    fn count_nested(&self, resolved: &Resolved) {
        if let (Binding::Nested(..), Some(slot)) = (&resolved.binding, &self.view.slot) {
            slot.count_nested();
        }
    }

    /// What a page permits, without making a request: nothing is reported.
    fn probe(&self, address: u64) -> Option<Permitted> {
        let Path::Translated { state, source } = &self.view.port.path else {
            return None;
        };
        let request = self.request(*source, address, Access::Read);
        let tables = self.tables(state);
        let outcome = match state.kept() {
            Some(kept) => kept.probe(&tables, &request),
            None => tables.probe(&request),
        };
        let translation = outcome.ok()?;
        Some(Permitted {
            address: translation.address,
            page_shift: translation.page_shift,
            readable: translation.readable,
            writable: translation.writable,
        })
    }
}

/// The most bytes that [`DmaTransaction::check_range`] looks at: whatever is longer is declared bad, so that a guest
/// cannot make one check take arbitrarily long. The largest ring of virtio has half a mebibyte.
const CHECK_LIMIT: usize = 64 << 20;

impl<M> GuestMemory for DmaTransaction<'_, M>
where
    M: Deref<Target: GuestMemoryBackend>,
{
    type PhysicalMemory = M::Target;
    type Bitmap = <<M::Target as GuestMemoryBackend>::R as GuestMemoryRegion>::B;

    /// Whether the tables permit `access` to the whole range. It reports no fault, as it makes no request.
    ///
    /// It sets no dirty bit either. So a write can still be blocked where a dirty bit is due that cannot be set, as the
    /// guest forbids the unit to snoop (section 7.1.3: SFS.9, SSS.5) or to write to that first-stage table (SFS.8).
    ///
    /// Ranges of more than 64 MiB are not looked at while translation is on; they count as inaccessible.
    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        if !self.is_open() {
            return false;
        }
        if self.is_identity() {
            return GuestMemoryBackend::check_range(self.memory(), addr, count);
        }
        if count > CHECK_LIMIT {
            return false;
        }
        let mut address = addr.0;
        let mut left = count as u64;
        while left != 0 {
            let Some(found) = self.probe(address).filter(|found| permits(found, access)) else {
                return false;
            };
            let block = 1_u64 << found.page_shift;
            let length = left.min(block - (address & (block - 1)));
            let Ok(bytes) = usize::try_from(length) else {
                return false;
            };
            if !GuestMemoryBackend::check_range(self.memory(), GuestAddress(found.address), bytes) {
                return false;
            }
            left -= length;
            match address.checked_add(length) {
                Some(next) => address = next,
                None => return left == 0,
            }
        }
        true
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>, GuestMemoryError> {
        if !self.is_open() {
            return Err(GuestMemoryError::InvalidGuestAddress(addr));
        }
        Ok(DmaSlices::new(self, addr, count, access))
    }

    fn physical_memory(&self) -> Option<&Self::PhysicalMemory> {
        (self.is_identity() && self.is_open()).then(|| self.memory())
    }
}

fn permits(found: &Permitted, access: Permissions) -> bool {
    let write = matches!(access, Permissions::Write | Permissions::ReadWrite);
    (found.readable || access == Permissions::Write) && (found.writable || !write)
}
