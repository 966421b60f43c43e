//! Interrupts of assigned devices: messages that KVM sends by itself when the host signals an event
//! (irqfd).
//!
//! KVM knows nothing of interrupt remapping, so a route holds the message as the unit remaps it,
//! and is resolved again whenever the guest says that the entry behind it has changed. Whatever KVM
//! cannot send as it stands is sent by our event loop, as any other device's messages are: those
//! that the unit blocks, which it then records as faults, and those that are no interrupts.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, OnceLock, Weak};

use devices::vfio::{InterruptRoute, InterruptRoutes};
use intel_vtd::{InterruptEntryObserver, InterruptMessage, SourceId};
use parking_lot::{Mutex, MutexGuard};
use pci::{Bdf, MsiMessage, MsiSink};
use vm_allocator::IdAllocator;
use vmm_sys_util::eventfd::EventFd;

use super::watcher::Watcher;
use super::{Invalidated, Remapper, RoutingTable, is_interrupt};
use crate::event_loop;

/// Routes from events to messages, each with a GSI of its own.
pub(crate) struct MessageRoutes(Arc<Shared>);

struct Shared {
    /// Of routes that KVM cannot serve.
    watcher: Watcher,
    remapper: Arc<Remapper>,
    table: Arc<RoutingTable>,
    /// Taken before the routing table's lock and the unit's leaf locks; after the unit's command
    /// mutex. Held from the moment that a message is resolved until KVM has it, so that no older
    /// resolution can overwrite a newer one.
    state: Mutex<State>,
}

struct State {
    /// Not there if KVM has no GSIs for messages.
    gsis: Option<IdAllocator>,
    /// By GSI.
    routes: BTreeMap<u32, Route>,
}

struct Route {
    source: Bdf,
    /// Shared with the watcher, which closes it last.
    event: Arc<EventFd>,
    /// As the guest wrote it.
    message: Option<MsiMessage>,
    path: Path,
}

/// Who reads a route's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    /// Nobody: they wait.
    Nobody,
    /// KVM, which sends this message.
    Kvm(InterruptMessage),
    /// The event loop.
    Loop,
}

impl MessageRoutes {
    /// Routes in `table` that are remapped by `remapper`.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub(crate) fn new(
        remapper: Arc<Remapper>,
        table: Arc<RoutingTable>,
        event_loop: &event_loop::Handle,
    ) -> io::Result<Self> {
        // Known to the loop before it is there.
        let place = Arc::new(OnceLock::<Weak<Shared>>::new());
        let known = Arc::clone(&place);
        let watcher = Watcher::start(event_loop, move |gsi| {
            if let Some(shared) = known.get().and_then(Weak::upgrade) {
                shared.arrived(gsi);
            }
        })?;
        let last = table.gsis.end.saturating_sub(1);
        let state = State {
            gsis: IdAllocator::new(table.gsis.start, last).ok(),
            routes: BTreeMap::new(),
        };
        let shared = Arc::new(Shared {
            watcher,
            remapper,
            table,
            state: Mutex::new(state),
        });
        // It is set once only.
        let _ = place.set(Arc::downgrade(&shared));
        if let Some(unit) = &shared.remapper.unit {
            unit.observe_interrupt_entries(Arc::clone(&shared) as _);
        }
        Ok(Self(shared))
    }
}

impl InterruptRoutes for MessageRoutes {
    fn add(&self, source: Bdf, event: EventFd) -> io::Result<Arc<dyn InterruptRoute>> {
        let mut state = self.0.lock();
        let gsi = state.gsis.as_mut().and_then(|gsis| gsis.allocate_id().ok());
        let Some(gsi) = gsi else {
            return Err(io::Error::other(format!(
                "all {} interrupt routes of this machine are in use; assign fewer devices",
                self.0.table.gsis.len()
            )));
        };
        let route = Route {
            source,
            event: Arc::new(event),
            message: None,
            path: Path::Nobody,
        };
        state.routes.insert(gsi, route);
        Ok(Arc::new(Handle {
            shared: Arc::clone(&self.0),
            gsi,
        }))
    }
}

/// A route, as its device holds it.
struct Handle {
    shared: Arc<Shared>,
    gsi: u32,
}

impl InterruptRoute for Handle {
    fn set_message(&self, message: Option<MsiMessage>) -> io::Result<()> {
        let mut state = self.shared.lock();
        let Some(route) = state.routes.get_mut(&self.gsi) else {
            return Ok(());
        };
        route.message = message;
        self.shared.update(&mut state, &[self.gsi]);
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        self.shared.leave(&mut state, self.gsi);
        state.routes.remove(&self.gsi);
        if let Some(gsis) = &mut state.gsis {
            // It fails only for one that is free.
            let _ = gsis.free_id(self.gsi);
        }
        self.shared.table.forget(self.gsi);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Where the events of a route are to go now.
    fn path(&self, route: &Route) -> Path {
        let Some(MsiMessage { address, data }) = route.message else {
            return Path::Nobody;
        };
        let source = SourceId(route.source.as_u16());
        let message = self.remapper.resolve(source, address, data);
        message
            .filter(|message| is_interrupt(*message))
            .map_or(Path::Loop, Path::Kvm)
    }

    /// Resolves the routes of `gsis`, and puts into effect what is new, with one change of KVM's
    /// table for all of them. No interrupt is sent as it was resolved before when this returns.
    fn update(&self, state: &mut State, gsis: &[u32]) {
        let mut targets = Vec::new();
        for gsi in gsis {
            let Some(route) = state.routes.get(gsi) else {
                continue;
            };
            let target = self.path(route);
            if target != route.path {
                targets.push((*gsi, target));
            }
        }
        let mut changes = Vec::new();
        for (gsi, target) in &targets {
            match target {
                Path::Kvm(message) => changes.push((*gsi, Some(*message))),
                Path::Nobody | Path::Loop => self.leave(state, *gsi),
            }
        }
        // Routes first, events second: an event that is attached to a GSI without a route is lost.
        if let Err(error) = self.table.change(changes) {
            self.complain("KVM refused the routes of messages", &error);
            for (gsi, target) in &mut targets {
                if matches!(target, Path::Kvm(_)) {
                    self.leave(state, *gsi);
                    *target = Path::Loop;
                }
            }
        }
        for (gsi, target) in targets {
            self.enter(state, gsi, target);
        }
    }

    /// Takes the events of a route from who has them.
    fn leave(&self, state: &mut State, gsi: u32) {
        let Some(route) = state.routes.get_mut(&gsi) else {
            return;
        };
        match route.path {
            Path::Nobody => {}
            Path::Kvm(_) => {
                if let Err(error) = self.table.chip.detach(gsi, &route.event) {
                    self.complain("KVM did not let go of an event", &error);
                }
            }
            Path::Loop => self.watcher.unwatch(gsi),
        }
        route.path = Path::Nobody;
    }

    /// Gives the events of a route to `target`, whose message KVM has by now.
    fn enter(&self, state: &mut State, gsi: u32, target: Path) {
        let Some(route) = state.routes.get_mut(&gsi) else {
            return;
        };
        match (route.path, target) {
            (_, Path::Nobody) => {}
            (Path::Kvm(_), Path::Kvm(_)) => route.path = target,
            (_, Path::Kvm(_)) => {
                if route.path == Path::Loop {
                    self.watcher.unwatch(gsi);
                }
                if let Err(error) = self.table.chip.attach(gsi, &route.event) {
                    self.complain("KVM refused an event for interrupts", &error);
                    self.watch(route, gsi);
                    return;
                }
                route.path = target;
                // KVM has sent an interrupt for what was there, and left it there: it must not
                // count again when the route is attached the next time. Later events KVM reads
                // itself, before anyone else can.
                let _ = route.event.read();
            }
            (_, Path::Loop) => self.watch(route, gsi),
        }
    }

    fn watch(&self, route: &mut Route, gsi: u32) {
        self.watcher.watch(gsi, &route.event);
        route.path = Path::Loop;
    }

    /// The loop has seen an event.
    fn arrived(&self, gsi: u32) {
        let state = self.lock();
        let Some(route) = state.routes.get(&gsi) else {
            return;
        };
        let Some(message) = route.message.filter(|_| route.path == Path::Loop) else {
            return;
        };
        if route.event.read().is_err() {
            return;
        }
        let source = route.source;
        drop(state);
        // By now the unit may let it pass, and then it is sent.
        self.remapper.signal(source, message.address, message.data);
    }

    fn complain(&self, what: &str, error: &io::Error) {
        self.remapper.local_apics.complain(what, error);
    }
}

impl InterruptEntryObserver for Shared {
    fn interrupt_entries_invalidated(&self, first: u16, count: u32) {
        let mut state = self.lock();
        let invalidated = Invalidated::new(first, count);
        let concerned = |route: &Route| {
            route
                .message
                .is_some_and(|message| invalidated.concerns(message))
        };
        let routes = state.routes.iter().filter(|(_, route)| concerned(route));
        let gsis: Vec<u32> = routes.map(|(gsi, _)| *gsi).collect();
        self.update(&mut state, &gsis);
    }
}

#[cfg(test)]
mod messages_test;
