//! The view of one worker thread, with its caches.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::Arc;

use vm_memory::GuestMemoryBackend;

use super::lookup::ViewCaches;
use super::port::{DmaPort, Path};
use super::slot::Slot;
use crate::translate::Latched;

/// A device's view of memory for one worker thread, with translation caches that no one else uses.
///
/// It can be moved to a thread, and is not shared between threads.
pub struct DmaView<M: Deref<Target: GuestMemoryBackend>> {
    pub(super) port: DmaPort<M>,
    /// `None` behind no unit.
    pub(super) slot: Option<Arc<Slot>>,
    /// What was latched when the transaction of generation `latched_in` began.
    pub(super) latched: Latched,
    pub(super) latched_in: u64,
    pub(super) caches: ViewCaches,
    /// Of `caches`.
    pub(super) hits: Cell<u64>,
}

impl<M> DmaPort<M>
where
    M: Clone + Deref<Target: GuestMemoryBackend>,
{
    /// A view for one worker thread.
    pub fn view(&self) -> DmaView<M> {
        let port = self.clone();
        let slot = match &port.path {
            Path::Direct(_) => None,
            Path::Translated { state, source } => Some(state.register(*source)),
        };
        DmaView {
            port,
            slot,
            latched: Latched::default(),
            latched_in: 0,
            caches: ViewCaches::default(),
            hits: Cell::new(0),
        }
    }
}

impl<M> DmaView<M>
where
    M: Deref<Target: GuestMemoryBackend>,
{
    /// Declares a transaction, and returns its generation.
    #[inline]
    pub(super) fn enter(&mut self) -> u64 {
        let mut generation = 0;
        if let (Path::Translated { state, .. }, Some(slot)) = (&self.port.path, &self.slot) {
            generation = state.enter(slot);
            if generation != self.latched_in {
                // Nothing in the caches is of this generation.
                slot.forget_domains();
                self.latched = state.latched();
                self.latched_in = generation;
            }
        }
        generation
    }

    /// How many times a table walk was needed since the view was made.
    pub fn walks(&self) -> u64 {
        self.caches.walks()
    }
}

impl<M: Deref<Target: GuestMemoryBackend>> Drop for DmaView<M> {
    fn drop(&mut self) {
        if let (Path::Translated { state, .. }, Some(slot)) = (&self.port.path, &self.slot) {
            state.unregister(slot);
        }
    }
}
