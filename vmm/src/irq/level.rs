//! Keeps KVM informed about the level-triggered pins of the IOAPIC, so that it reports the end of
//! their interrupts.
//!
//! KVM looks at the routes of the first 24 GSIs for that, and at nothing else: no interrupt is sent
//! through these routes.

use std::sync::Arc;

use devices::ioapic::{self, IoApic, Route, RouteListener};
use intel_vtd::{InterruptEntryObserver, InterruptMessage, Patience, SourceId, Unfinished};
use parking_lot::Mutex;

use super::{IOAPIC_REQUESTER, Invalidated, Remapper, RoutingTable, lock, waits_for_kvm};

/// Trigger mode in message data: level.
const DATA_LEVEL: u32 = 1 << 15;

/// The routes of the first 24 GSIs.
pub(crate) struct LevelRoutes {
    remapper: Arc<Remapper>,
    table: Arc<RoutingTable>,
    ioapic: Arc<IoApic>,
    /// Taken before the routing table's lock and the IOAPIC's and the unit's leaf locks. Held while
    /// KVM is told, so that it learns of changes in order.
    pins: Mutex<Pins>,
}

type Pins = [Option<Route>; ioapic::PINS as usize];

impl LevelRoutes {
    /// Follows the entries of `ioapic`, and the unit's.
    pub(crate) fn install(remapper: Arc<Remapper>, table: Arc<RoutingTable>, ioapic: Arc<IoApic>) {
        let routes = Arc::new(Self {
            remapper,
            table,
            ioapic,
            pins: Mutex::new([None; ioapic::PINS as usize]),
        });
        routes
            .ioapic
            .set_listener(Arc::clone(&routes) as Arc<dyn RouteListener>);
        if let Some(unit) = &routes.remapper.unit {
            unit.observe_interrupt_entries(Arc::clone(&routes) as Arc<dyn InterruptEntryObserver>);
        }
    }

    /// What pins lead to by now.
    fn resolve(&self, pins: &Pins) -> Resolved {
        let mut resolved = Resolved::default();
        for (pin, route) in (0..).zip(pins) {
            // Masked pins as well: an interrupt of theirs may be in service, and KVM tells of the
            // end of those only that it has routes for. Linux masks a pin before it ends the
            // interrupt whenever it moves it to another CPU.
            let Some(Route {
                message,
                level: true,
                ..
            }) = route
            else {
                resolved.routes.push((u32::from(pin), None));
                continue;
            };
            let message =
                self.remapper
                    .resolve(SourceId(IOAPIC_REQUESTER), message.address, message.data);
            let vector = message.map(|message| message.data.to_le_bytes()[0]);
            resolved.vectors.push((pin, vector));
            // A route that is not needed does no harm, and may be needed again: a guest can block
            // and allow an interrupt thousands of times with one register write.
            if let Some(message) = message {
                let message = Some(message).filter(|message| message.data & DATA_LEVEL != 0);
                resolved.routes.push((u32::from(pin), message));
            }
        }
        resolved
    }

    /// Tells KVM and the IOAPIC what is new.
    fn put(&self, resolved: Resolved) {
        for (pin, vector) in resolved.vectors {
            self.ioapic.set_eoi_vector(pin, vector);
        }
        if let Err(error) = self.table.change(resolved.routes) {
            self.remapper.local_apics.complain(
                "KVM refused the routes of level-triggered interrupts",
                error,
            );
        }
    }
}

/// What level-triggered pins lead to.
#[derive(Default)]
struct Resolved {
    /// For the IOAPIC: with which vectors their interrupts end.
    vectors: Vec<(u8, Option<u8>)>,
    /// For KVM.
    routes: Vec<(u32, Option<InterruptMessage>)>,
}

impl RouteListener for LevelRoutes {
    fn route_changed(&self, pin: u8, route: Route) {
        let mut pins = self.pins.lock();
        let Some(slot) = pins.get_mut(usize::from(pin)) else {
            return;
        };
        let before = slot.replace(route);
        if before.is_some_and(|before| before.level) || route.level {
            self.put(self.resolve(&pins));
        }
    }
}

impl InterruptEntryObserver for LevelRoutes {
    fn interrupt_entries_invalidated(
        &self,
        first: u16,
        count: u32,
        patience: &Patience,
    ) -> Result<(), Unfinished> {
        let pins = lock(&self.pins, patience)?;
        let invalidated = Invalidated::new(first, count);
        let concerned = |route: &Route| route.level && invalidated.concerns(route.message);
        if !invalidated.all() && !pins.iter().flatten().any(concerned) {
            return Ok(());
        }
        let resolved = self.resolve(&pins);
        if !waits_for_kvm(patience) && self.table.would_change(&resolved.routes) {
            return Err(Unfinished);
        }
        self.put(resolved);
        Ok(())
    }
}

#[cfg(test)]
mod level_test;
