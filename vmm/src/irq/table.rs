//! KVM's table of interrupt routes. KVM takes it only as a whole, so that all who have routes in it
//! share this one.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use intel_vtd::InterruptMessage;
use kvm_ioctls::{Cap, VmFd};
use parking_lot::Mutex;

use super::chip::{Chip, KvmChip};
use crate::layout;

/// Greatest number of routes that any KVM takes (KVM_MAX_IRQ_ROUTES); GSIs are below it, too.
const MOST_ROUTES: u32 = 4096;

/// The routes of a virtual machine. GSIs below 24 are the IOAPIC's pins.
pub(crate) struct RoutingTable {
    pub(super) chip: Arc<dyn Chip>,
    /// GSIs for messages.
    pub(super) gsis: Range<u32>,
    /// Routes that KVM has; it may have others, which nobody uses. Held while KVM is told; nothing
    /// else is called then.
    routes: Mutex<BTreeMap<u32, InterruptMessage>>,
}

impl RoutingTable {
    /// The table of `vm`, without routes.
    pub(crate) fn new(vm: Arc<VmFd>) -> Arc<Self> {
        let most = u32::try_from(vm.check_extension_int(Cap::IrqRouting)).unwrap_or(0);
        Self::with_chip(Arc::new(KvmChip(vm)), most)
    }

    pub(super) fn with_chip(chip: Arc<dyn Chip>, most: u32) -> Arc<Self> {
        Arc::new(Self {
            chip,
            gsis: layout::IOAPIC_PINS..most.min(MOST_ROUTES),
            routes: Mutex::default(),
        })
    }

    /// Whether KVM would have to be told of these, or is being told of others.
    pub(super) fn would_change(&self, changes: &[(u32, Option<InterruptMessage>)]) -> bool {
        let Some(routes) = self.routes.try_lock() else {
            return true;
        };
        let mut changes = changes.iter();
        changes.any(|(gsi, message)| routes.get(gsi) != message.as_ref())
    }

    /// Gives GSIs other routes, or none, all at once. When it returns, no event becomes an
    /// interrupt by an old one. Whether KVM had to be told.
    ///
    /// # Errors
    /// When KVM refuses; then nothing has changed.
    pub(super) fn change(
        &self,
        changes: impl IntoIterator<Item = (u32, Option<InterruptMessage>)>,
    ) -> io::Result<bool> {
        let mut routes = self.routes.lock();
        // Most changes change nothing: a guest may invalidate all entries thousands of times in a
        // row.
        let mut before = Vec::new();
        for (gsi, message) in changes {
            if routes.get(&gsi) != message.as_ref() {
                before.push((gsi, put(&mut routes, gsi, message)));
            }
        }
        if before.is_empty() {
            return Ok(false);
        }
        let list: Vec<_> = routes
            .iter()
            .map(|(gsi, message)| (*gsi, *message))
            .collect();
        if let Err(error) = self.chip.set_routes(&list) {
            // A GSI that came twice gets its first one back last.
            for (gsi, message) in before.into_iter().rev() {
                put(&mut routes, gsi, message);
            }
            return Err(error);
        }
        Ok(true)
    }

    /// Drops the route of a GSI that has no event any more, when the table is next told to KVM.
    pub(super) fn forget(&self, gsi: u32) {
        let mut routes = self.routes.lock();
        routes.remove(&gsi);
    }
}

/// Gives a GSI another route, or none, and returns the one that it had.
fn put(
    routes: &mut BTreeMap<u32, InterruptMessage>,
    gsi: u32,
    message: Option<InterruptMessage>,
) -> Option<InterruptMessage> {
    match message {
        Some(message) => routes.insert(gsi, message),
        None => routes.remove(&gsi),
    }
}
