//! Interrupts of assigned devices: messages that KVM sends by itself when the host signals an event (irqfd).
//!
//! KVM knows nothing of interrupt remapping, so a route holds the message as the unit remaps it, and is resolved again whenever
//! the guest says that the entry behind it has changed. Whatever KVM cannot send as it stands is sent by a thread of ours, as any
//! other device's messages are: those that the unit blocks, which it then records as faults, and those that are no interrupts.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use devices::vfio::{InterruptRoute, InterruptRoutes};
use intel_vtd::SourceId;
use intel_vtd::unit::{InterruptEntryObserver, InterruptMessage};
use pci::{Bdf, MsiMessage, MsiSink};
use vmm_sys_util::eventfd::EventFd;

use super::watcher::Watcher;
use super::{Invalidated, Remapper, RoutingTable, is_interrupt};

/// Routes from events to messages, each with a GSI of its own.
pub(crate) struct MessageRoutes(Arc<Shared>);

struct Shared {
    /// For the thread.
    this: Weak<Self>,
    remapper: Arc<Remapper>,
    table: Arc<RoutingTable>,
    /// Taken before the routing table's lock and the unit's leaf locks; after the unit's command mutex. Held from the moment that
    /// a message is resolved until KVM has it, so that no older resolution can overwrite a newer one.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By GSI.
    routes: BTreeMap<u32, Route>,
    /// There while there are routes that needed it.
    watcher: Option<Watcher>,
}

struct Route {
    source: Bdf,
    event: EventFd,
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
    /// The thread.
    Thread,
}

impl MessageRoutes {
    /// Routes in `table` that are remapped by `remapper`.
    pub(crate) fn new(remapper: Arc<Remapper>, table: Arc<RoutingTable>) -> Self {
        let shared = Arc::new_cyclic(|this| Shared {
            this: Weak::clone(this),
            remapper,
            table,
            state: Mutex::default(),
        });
        if let Some(unit) = &shared.remapper.unit {
            unit.observe_interrupt_entries(Arc::clone(&shared) as _);
        }
        Self(shared)
    }
}

impl InterruptRoutes for MessageRoutes {
    fn add(&self, source: Bdf, event: EventFd) -> io::Result<Arc<dyn InterruptRoute>> {
        let mut state = self.0.lock();
        let mut gsis = self.0.table.gsis.clone();
        let Some(gsi) = gsis.find(|gsi| !state.routes.contains_key(gsi)) else {
            return Err(io::Error::other(format!(
                "all {} interrupt routes of this machine are in use; assign fewer devices",
                self.0.table.gsis.len()
            )));
        };
        let route = Route {
            source,
            event,
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
        self.shared.update(&mut state, &[self.gsi])
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        self.shared.leave(&mut state, self.gsi);
        state.routes.remove(&self.gsi);
        self.shared.table.forget(self.gsi);
        let watcher = if state.routes.is_empty() {
            state.watcher.take()
        } else {
            None
        };
        // Its thread may be waiting for the lock.
        drop(state);
        drop(watcher);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
            .map_or(Path::Thread, Path::Kvm)
    }

    /// Resolves the routes of `gsis`, and puts into effect what is new, with one change of KVM's table for all of them. No
    /// interrupt is sent as it was resolved before when this returns.
    fn update(&self, state: &mut State, gsis: &[u32]) -> io::Result<()> {
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
                Path::Nobody | Path::Thread => self.leave(state, *gsi),
            }
        }
        // Routes first, events second: an event that is attached to a GSI without a route is lost.
        if let Err(error) = self.table.change(changes) {
            self.complain("KVM refused the routes of messages", &error);
            for (gsi, target) in &mut targets {
                if matches!(target, Path::Kvm(_)) {
                    self.leave(state, *gsi);
                    *target = Path::Thread;
                }
            }
        }
        let mut result = Ok(());
        for (gsi, target) in targets {
            let entered = self.enter(state, gsi, target);
            result = result.and(entered);
        }
        result
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
            Path::Thread => {
                if let Some(watcher) = &state.watcher {
                    watcher.unwatch(&route.event);
                }
            }
        }
        route.path = Path::Nobody;
    }

    /// Gives the events of a route to `target`, whose message KVM has by now.
    fn enter(&self, state: &mut State, gsi: u32, target: Path) -> io::Result<()> {
        let Some(route) = state.routes.get_mut(&gsi) else {
            return Ok(());
        };
        match (route.path, target) {
            (_, Path::Nobody) => Ok(()),
            (Path::Kvm(_), Path::Kvm(_)) => {
                route.path = target;
                Ok(())
            }
            (_, Path::Kvm(_)) => {
                if route.path == Path::Thread
                    && let Some(watcher) = &state.watcher
                {
                    watcher.unwatch(&route.event);
                }
                route.path = Path::Nobody;
                if let Err(error) = self.table.chip.attach(gsi, &route.event) {
                    self.complain("KVM refused an event for interrupts", &error);
                    return self.watch(state, gsi);
                }
                route.path = target;
                // KVM has sent an interrupt for what was there, and left it there: it must not count again when the route is
                // attached the next time. Later events KVM reads itself, before anyone else can.
                let _ = route.event.read();
                Ok(())
            }
            (_, Path::Thread) => self.watch(state, gsi),
        }
    }

    fn watch(&self, state: &mut State, gsi: u32) -> io::Result<()> {
        let watcher = match &state.watcher {
            Some(watcher) => watcher,
            None => {
                let shared = Weak::clone(&self.this);
                let watcher = Watcher::start(move |gsi| {
                    if let Some(shared) = shared.upgrade() {
                        shared.arrived(gsi);
                    }
                })?;
                state.watcher.insert(watcher)
            }
        };
        if let Some(route) = state.routes.get_mut(&gsi) {
            watcher.watch(gsi, &route.event)?;
            route.path = Path::Thread;
        }
        Ok(())
    }

    /// The thread has seen an event.
    fn arrived(&self, gsi: u32) {
        let state = self.lock();
        let Some(route) = state.routes.get(&gsi) else {
            return;
        };
        let Some(message) = route.message.filter(|_| route.path == Path::Thread) else {
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
        if let Err(error) = self.update(&mut state, &gsis) {
            self.complain("blocked interrupts are not recorded as faults", &error);
        }
    }
}

#[cfg(test)]
#[path = "messages_test.rs"]
mod messages_test;
