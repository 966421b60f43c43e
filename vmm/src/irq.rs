//! Interrupts on their way to KVM: through the remapping unit, if there is one, and into the local APICs.

use std::sync::{Arc, Mutex, PoisonError};

use devices::ioapic::{self, IoApic, Route, RouteListener};
use devices::limit::LogLimit;
use iommu::SourceId;
use iommu::unit::{EventSink, InterruptEntryObserver, InterruptMessage};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1, kvm_msi,
};
use kvm_ioctls::VmFd;
use pci::{Bdf, MsiMessage, MsiSink};

use crate::memory::Memory;

/// The remapping unit of this machine.
pub(crate) type Unit = iommu::Unit<Memory>;

/// In whose name the IOAPIC sends its interrupts: a bus that holds no PCI function.
pub(crate) const IOAPIC_REQUESTER: u16 = 0xff00;

/// Bits 31:20 of an address in the interrupt address range.
const INTERRUPT_RANGE: u64 = 0xfee;
/// Trigger mode in message data: level.
const DATA_LEVEL: u32 = 1 << 15;

/// Delivers messages that are in the form that local APICs take.
pub(crate) struct LocalApics {
    vm: Arc<VmFd>,
    /// Leaf lock: what is refused is the guest's doing, and it may do so as often as it likes.
    refused: Mutex<LogLimit>,
}

impl LocalApics {
    /// The local APICs of `vm`.
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            refused: Mutex::default(),
        }
    }

    fn complain(&self, what: &str, error: kvm_ioctls::Error) {
        let pass = self
            .refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pass();
        if let Some(held_back) = pass {
            log::warn!("KVM refused {what}: {error} ({held_back} messages held back)");
        }
    }

    fn deliver(&self, InterruptMessage { address, data }: InterruptMessage) {
        let (low, high) = halves(address);
        // Bits 39:32 are neither address nor destination: what has them set is a write to memory that does not exist.
        if u64::from(low) >> 20 != INTERRUPT_RANGE || high & 0xff != 0 {
            log::debug!("a message to {address:#x} is no interrupt; dropped");
            return;
        }
        let message = kvm_msi {
            address_lo: low,
            address_hi: high,
            data,
            ..Default::default()
        };
        // KVM returns 0 when the guest blocks the interrupt, which is the guest's business.
        if let Err(error) = self.vm.signal_msi(message) {
            self.complain(
                &format!("the interrupt message {address:#x}, {data:#x}"),
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

/// Keeps KVM informed about the level-triggered pins of the IOAPIC, so that it reports the end of their interrupts.
///
/// KVM looks at the routes of the first 24 GSIs for that, and at nothing else: no interrupt is sent through these routes.
pub(crate) struct LevelRoutes {
    remapper: Arc<Remapper>,
    ioapic: Arc<IoApic>,
    /// Taken before the IOAPIC's and the unit's leaf locks. Held while KVM is told, so that it learns of changes in order.
    pins: Mutex<Pins>,
}

struct Pins {
    routes: [Option<Route>; ioapic::PINS as usize],
    /// What KVM was told: pin and message.
    told: Vec<(u8, InterruptMessage)>,
}

impl LevelRoutes {
    /// Follows the entries of `ioapic`, and the unit's.
    pub(crate) fn install(remapper: Arc<Remapper>, ioapic: Arc<IoApic>) {
        let pins = Mutex::new(Pins {
            routes: [None; ioapic::PINS as usize],
            told: Vec::new(),
        });
        let routes = Arc::new(Self {
            remapper,
            ioapic,
            pins,
        });
        routes
            .ioapic
            .set_listener(Arc::clone(&routes) as Arc<dyn RouteListener>);
        if let Some(unit) = &routes.remapper.unit {
            unit.observe_interrupt_entries(Arc::clone(&routes) as Arc<dyn InterruptEntryObserver>);
        }
    }

    /// Resolves all pins, and tells KVM and the IOAPIC what is new.
    fn update(&self, pins: &mut Pins) {
        let mut messages = Vec::new();
        for (pin, route) in (0..).zip(&pins.routes) {
            // Masked pins as well: an interrupt of theirs may be in service, and KVM tells of the end of those only that it
            // has routes for. Linux masks a pin before it ends the interrupt whenever it moves it to another CPU.
            let Some(Route {
                message,
                level: true,
                ..
            }) = route
            else {
                continue;
            };
            let message =
                self.remapper
                    .resolve(SourceId(IOAPIC_REQUESTER), message.address, message.data);
            let vector = message.map(|message| message.data.to_le_bytes()[0]);
            self.ioapic.set_eoi_vector(pin, vector);
            messages.extend(
                message
                    .filter(|message| message.data & DATA_LEVEL != 0)
                    .map(|message| (pin, message)),
            );
        }
        if messages == pins.told {
            return;
        }
        let entries: Vec<_> = messages
            .iter()
            .map(|(pin, message)| routing_entry(*pin, *message))
            .collect();
        let result = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
            .and_then(|table| self.remapper.local_apics.vm.set_gsi_routing(&table));
        match result {
            Ok(()) => pins.told = messages,
            Err(error) => self
                .remapper
                .local_apics
                .complain("the routes of level-triggered interrupts", error),
        }
    }
}

fn routing_entry(pin: u8, message: InterruptMessage) -> kvm_irq_routing_entry {
    let (address_lo, address_hi) = halves(message.address);
    kvm_irq_routing_entry {
        gsi: u32::from(pin),
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

impl RouteListener for LevelRoutes {
    fn route_changed(&self, pin: u8, route: Route) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = pins.routes.get_mut(usize::from(pin)) else {
            return;
        };
        let before = slot.replace(route);
        if before.is_some_and(|before| before.level) || route.level {
            self.update(&mut pins);
        }
    }
}

impl InterruptEntryObserver for LevelRoutes {
    fn interrupt_entries_invalidated(&self, first: u16, count: u32) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let first = u32::from(first);
        // Of a change of all entries, pins in compatibility format have to hear, too: it may be remapping that went on or off.
        let all = first == 0 && count == 0x1_0000;
        let concerned = |route: &Route| {
            let MsiMessage { address, data } = route.message;
            let index = InterruptMessage { address, data }.entry_index();
            route.level
                && index.is_some_and(|index| (first..first.saturating_add(count)).contains(&index))
        };
        if all || pins.routes.iter().flatten().any(concerned) {
            self.update(&mut pins);
        }
    }
}
