//! KVM's interrupt chip: messages, routes, and events that become interrupts (irqfd).

use std::io;
use std::sync::Arc;

use intel_vtd::InterruptMessage;
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1, kvm_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::halves;
use crate::kvm::io_error;

/// KVM's local APICs and the routes to them, and a stand-in for both in tests.
pub(super) trait Chip: Send + Sync {
    /// Sends a message, which is in the form that local APICs take.
    fn send(&self, message: InterruptMessage) -> io::Result<()>;

    /// Replaces all routes at once: GSIs, each once, and the messages that they stand for. When it
    /// returns, an event is no longer turned into a message of the old table (KVM waits for the
    /// readers of that table, `synchronize_srcu_expedited`).
    fn set_routes(&self, routes: &[(u32, InterruptMessage)]) -> io::Result<()>;

    /// Has each event become an interrupt by the route of `gsi`. One that is there already becomes
    /// one as well, and stays.
    fn attach(&self, gsi: u32, event: &EventFd) -> io::Result<()>;

    /// Undoes it. When it returns, no interrupt is under way any more (KVM flushes the work that it
    /// has queued).
    fn detach(&self, gsi: u32, event: &EventFd) -> io::Result<()>;
}

/// The real one.
pub(super) struct KvmChip(pub(super) Arc<VmFd>);

impl Chip for KvmChip {
    fn send(&self, message: InterruptMessage) -> io::Result<()> {
        let (address_lo, address_hi) = halves(message.address);
        let message = kvm_msi {
            address_lo,
            address_hi,
            data: message.data,
            ..Default::default()
        };
        // KVM returns 0 when the guest blocks the interrupt, which is the guest's business.
        self.0.signal_msi(message).map(drop).map_err(io_error)
    }

    fn set_routes(&self, routes: &[(u32, InterruptMessage)]) -> io::Result<()> {
        let entries: Vec<_> = routes
            .iter()
            .map(|(gsi, message)| entry(*gsi, *message))
            .collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
        self.0.set_gsi_routing(&table).map_err(io_error)
    }

    fn attach(&self, gsi: u32, event: &EventFd) -> io::Result<()> {
        self.0.register_irqfd(event, gsi).map_err(io_error)
    }

    fn detach(&self, gsi: u32, event: &EventFd) -> io::Result<()> {
        self.0.unregister_irqfd(event, gsi).map_err(io_error)
    }
}

fn entry(gsi: u32, message: InterruptMessage) -> kvm_irq_routing_entry {
    let (address_lo, address_hi) = halves(message.address);
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo,
                address_hi,
                data: message.data,
                __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1 { pad: 0 },
            },
        },
        ..Default::default()
    }
}
