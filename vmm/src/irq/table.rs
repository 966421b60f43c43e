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

    /// Gives GSIs other routes, or none, all at once. When it returns, no event becomes an
    /// interrupt by an old one.
    ///
    /// # Errors
    /// When KVM refuses; then nothing has changed.
    pub(super) fn change(
        &self,
        changes: impl IntoIterator<Item = (u32, Option<InterruptMessage>)>,
    ) -> io::Result<()> {
        let mut routes = self.routes.lock();
        // Most changes change nothing: a guest may invalidate all entries thousands of times in a
        // row.
        let changes: Vec<_> = changes
            .into_iter()
            .filter(|(gsi, message)| routes.get(gsi) != message.as_ref())
            .collect();
        if changes.is_empty() {
            return Ok(());
        }
        let mut next = routes.clone();
        for (gsi, message) in changes {
            match message {
                Some(message) => next.insert(gsi, message),
                None => next.remove(&gsi),
            };
        }
        let list: Vec<_> = next.iter().map(|(gsi, message)| (*gsi, *message)).collect();
        self.chip.set_routes(&list)?;
        *routes = next;
        Ok(())
    }

    /// Drops the route of a GSI that has no event any more, when the table is next told to KVM.
    pub(super) fn forget(&self, gsi: u32) {
        let mut routes = self.routes.lock();
        routes.remove(&gsi);
    }
}
