//! Interrupts on their way to KVM: through the remapping unit, if there is one, and into the local
//! APICs.

mod chip;
mod credit;
mod level;
mod messages;
mod table;
mod watcher;

use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;

use devices::limit::LogLimit;
use intel_vtd::{
    EventSink, InterruptMessage, InterruptRequestSink, Patience, SourceId, Unfinished,
};
use kvm_ioctls::VmFd;
use parking_lot::{Mutex, MutexGuard};
use pci::{Bdf, MsiMessage, MsiSink};

use crate::memory::Memory;
use chip::{Chip, KvmChip};
pub(crate) use level::LevelRoutes;
pub(crate) use messages::MessageRoutes;
pub(crate) use table::RoutingTable;

/// The remapping unit of this machine.
pub(crate) type Unit = intel_vtd::Unit<Memory>;

/// In whose name the IOAPIC sends its interrupts: a bus that holds no PCI function.
pub(crate) const IOAPIC_REQUESTER: u16 = 0xff00;

/// Bits 31:20 of an address in the interrupt address range.
const INTERRUPT_RANGE: u64 = 0xfee;

/// Delivers messages that are in the form that local APICs take.
pub(crate) struct LocalApics {
    chip: Arc<dyn Chip>,
    /// Leaf lock: what is refused is the guest's doing, and it may do so as often as it likes.
    refused: Mutex<LogLimit>,
}

impl LocalApics {
    /// The local APICs of `vm`.
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self::with_chip(Arc::new(KvmChip(vm)))
    }

    fn with_chip(chip: Arc<dyn Chip>) -> Self {
        Self {
            chip,
            refused: Mutex::default(),
        }
    }

    fn complain(&self, what: &str, error: impl Display) {
        let pass = self.refused.lock().pass();
        if let Some(held_back) = pass {
            log::warn!("{what}: {error} ({held_back} messages held back)");
        }
    }

    fn deliver(&self, message: InterruptMessage) {
        let InterruptMessage { address, data } = message;
        if !is_interrupt(message) {
            log::debug!("a message to {address:#x} is no interrupt; dropped");
            return;
        }
        if let Err(error) = self.chip.send(message) {
            self.complain(
                &format!("KVM refused the interrupt message {address:#x}, {data:#x}"),
                error,
            );
        }
    }
}

/// The unit's own events, which are never remapped.
impl EventSink for LocalApics {
    fn deliver(&self, message: InterruptMessage) {
        LocalApics::deliver(self, message);
    }
}

/// Whether local APICs take a message: it goes to the interrupt address range, and bits 39:32,
/// which are neither address nor destination, are zero. Anything else is a write to memory that
/// does not exist.
fn is_interrupt(message: InterruptMessage) -> bool {
    let (low, high) = halves(message.address);
    u64::from(low) >> 20 == INTERRUPT_RANGE && high & 0xff == 0
}

/// Whether an observer with this much patience changes what KVM has. KVM then waits for readers,
/// other vCPUs among them, and those for a host's CPU: mostly for some 100 µs, but for 50 ms where
/// CPUs are busy. So a register write does not.
const fn waits_for_kvm(patience: &Patience) -> bool {
    patience.steps() == u64::MAX
}

/// Locks what may be held by somebody who waits for KVM, for an observer with this much patience.
///
/// # Errors
/// It is held, and the observer does not wait for KVM.
fn lock<'a, T>(mutex: &'a Mutex<T>, patience: &Patience) -> Result<MutexGuard<'a, T>, Unfinished> {
    if waits_for_kvm(patience) {
        Ok(mutex.lock())
    } else {
        mutex.try_lock().ok_or(Unfinished)
    }
}

/// Interrupt entries that the guest has invalidated.
struct Invalidated(Range<u32>);

impl Invalidated {
    fn new(first: u16, count: u32) -> Self {
        let first = u32::from(first);
        Self(first..first.saturating_add(count))
    }

    /// A change of all entries concerns messages in compatibility format, too: it may be remapping
    /// that went on or off.
    fn all(&self) -> bool {
        self.0 == (0..0x1_0000)
    }

    /// Whether a message, as the guest wrote it, may now be remapped in another way.
    fn concerns(&self, MsiMessage { address, data }: MsiMessage) -> bool {
        let index = InterruptMessage { address, data }.entry_index();
        self.all() || index.is_some_and(|index| self.0.contains(&index))
    }
}

fn halves(address: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    )
}

/// Where devices and the IOAPIC send their interrupts.
pub(crate) struct Remapper {
    local_apics: Arc<LocalApics>,
    unit: Option<Arc<Unit>>,
}

impl Remapper {
    /// Remaps by `unit`, or not at all.
    pub(crate) fn new(local_apics: Arc<LocalApics>, unit: Option<Arc<Unit>>) -> Arc<Self> {
        Arc::new(Self { local_apics, unit })
    }

    /// What a message turns into, without sending it or recording a fault.
    fn resolve(&self, source: SourceId, address: u64, data: u32) -> Option<InterruptMessage> {
        match &self.unit {
            None => Some(InterruptMessage { address, data }),
            Some(unit) => unit.resolve_interrupt(source, address, data).ok(),
        }
    }
}

/// Where the function at `bdf` sends what it writes to the interrupt address range by DMA.
pub(crate) fn requests_of(bdf: Bdf, msi: Arc<dyn MsiSink>) -> InterruptRequestSink {
    Arc::new(move |address, data| msi.signal(bdf, address, data))
}

impl MsiSink for Remapper {
    fn signal(&self, requester: Bdf, address: u64, data: u32) {
        let deliver = |message| self.local_apics.deliver(message);
        match &self.unit {
            None => deliver(InterruptMessage { address, data }),
            Some(unit) => {
                // A blocked interrupt is recorded by the unit, and nobody else is told.
                let _ = unit.remap_with(SourceId(requester.as_u16()), address, data, deliver);
            }
        }
    }
}
