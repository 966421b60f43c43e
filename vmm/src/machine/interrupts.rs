//! The ways that interrupts take: from functions and the I/O APIC through the remapping unit to
//! KVM.

use std::sync::Arc;

use anyhow::Context as _;
use devices::ioapic::IoApic;
use kvm_ioctls::VmFd;
use pci::{Bdf, MsiSink};

use crate::event_loop::Handle;
use crate::irq::{
    IOAPIC_REQUESTER, LevelRoutes, LocalApics, MessageRoutes, Remapper, RoutingTable, Unit,
};

/// The ways of interrupts to the local APICs.
pub(super) struct Interrupts {
    pub(super) remapper: Arc<Remapper>,
    routing: Arc<RoutingTable>,
    pub(super) ioapic: Arc<IoApic>,
}

impl Interrupts {
    /// Through `unit`, if there is one.
    pub(super) fn new(
        vm: &Arc<VmFd>,
        local_apics: Arc<LocalApics>,
        unit: Option<Arc<Unit>>,
    ) -> Self {
        let remapper = Remapper::new(local_apics, unit);
        let msi = Arc::clone(&remapper) as Arc<dyn MsiSink>;
        let ioapic = IoApic::new(msi, Bdf::from_requester_id(IOAPIC_REQUESTER));
        let routing = RoutingTable::new(Arc::clone(vm));
        LevelRoutes::install(
            Arc::clone(&remapper),
            Arc::clone(&routing),
            Arc::clone(&ioapic),
        );
        Self {
            remapper,
            routing,
            ioapic,
        }
    }

    /// Messages that KVM sends by itself.
    pub(super) fn of_assigned_devices(
        &self,
        event_loop: &Handle,
    ) -> anyhow::Result<Arc<MessageRoutes>> {
        let (remapper, routing) = (Arc::clone(&self.remapper), Arc::clone(&self.routing));
        let routes = MessageRoutes::new(remapper, routing, event_loop);
        Ok(Arc::new(routes.context("waiting for interrupts")?))
    }
}
