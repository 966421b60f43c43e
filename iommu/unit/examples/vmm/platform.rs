//! What the machine and its device stand on: guest memory and the local APICs.

use std::sync::Arc;

use intel_vtd::{EventSink, InterruptMessage};
use parking_lot::Mutex;
use vm_memory::GuestMemoryMmap;

/// A handle on guest memory. Anything will do that dereferences to a `GuestMemoryBackend`.
pub(crate) type Memory = Arc<GuestMemoryMmap>;

/// The local APICs. With KVM, `deliver` is `KVM_SIGNAL_MSI`, which takes address and data as they are.
#[derive(Default)]
pub(crate) struct Apics {
    arrived: Mutex<Vec<(u64, u32)>>,
}

impl Apics {
    /// The interrupts since the last call: APIC id, vector.
    pub(crate) fn take(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.arrived.lock())
    }
}

impl EventSink for Apics {
    fn deliver(&self, message: InterruptMessage) {
        let destination = message.address >> 40 << 8 | message.address >> 12 & 0xFF;
        self.arrived.lock().push((destination, message.data & 0xFF));
    }
}
