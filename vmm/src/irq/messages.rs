//! Interrupts of devices that are served elsewhere, by the host's hardware or by vhost: messages that
//! KVM sends by itself when an event is signalled (irqfd).
//!
//! KVM knows nothing of interrupt remapping, so a route holds the message as the unit remaps it,
//! and is resolved again whenever the guest says that the entry behind it has changed. Whatever KVM
//! cannot send as it stands is sent by our event loop, as any other device's messages are: those
//! that the unit blocks, which it then records as faults, and those that are no interrupts.
//!
//! KVM takes its time for each change, and a guest can invalidate entries thousands of times with
//! one register write. So an invalidation never gives an event to KVM that the loop has: KVM gets
//! it back when an interrupt comes and is let pass. And an invalidation that comes when changes
//! have taken long enough (see [`super::credit`]) gives the events that it concerns to the loop.
//! A register write leaves all of that to the unit's background, which can be interrupted. What a
//! guest changes at a device itself takes time of that device's own, and goes to the loop likewise.

mod settle;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use devices::{InterruptRoute, InterruptRoutes};
use intel_vtd::{InterruptEntryObserver, InterruptMessage, Patience, SourceId, Unfinished};
use parking_lot::{Mutex, MutexGuard};
use pci::{Bdf, MsiMessage, MsiSink};
use vm_allocator::IdAllocator;
use vmm_sys_util::eventfd::EventFd;

use super::credit::Credit;
use super::watcher::Watcher;
use super::{Invalidated, Remapper, RoutingTable, is_interrupt, lock, waits_for_kvm};
use crate::event_loop;

/// Routes that are given to KVM or taken from it before others get a turn at the lock.
const BATCH: usize = 32;
/// [Steps](Patience::STEP) that it takes to resolve a route.
const RESOLUTION: u64 = 4;

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
    /// Interrupt entries and the GSIs of the routes whose messages name them.
    by_entry: BTreeSet<(u32, u32)>,
    /// For what the guest's invalidations change.
    credit: Credit,
    /// For what it changes at a device, by source.
    of_devices: BTreeMap<u16, Credit>,
}

impl State {
    /// Has a route send another message, as the guest writes it.
    fn set_message(&mut self, gsi: u32, message: Option<MsiMessage>) {
        let Some(route) = self.routes.get_mut(&gsi) else {
            return;
        };
        let before = std::mem::replace(&mut route.message, message);
        if let Some(entry) = before.and_then(entry_index) {
            self.by_entry.remove(&(entry, gsi));
        }
        if let Some(entry) = message.and_then(entry_index) {
            self.by_entry.insert((entry, gsi));
        }
    }

    /// For what the guest changes at the device of a route.
    fn credit_of(&mut self, gsi: u32) -> Option<&mut Credit> {
        let source = self.routes.get(&gsi)?.source.as_u16();
        Some(self.of_devices.entry(source).or_default())
    }

    /// The GSIs of routes whose messages may now be remapped in another way.
    fn concerned(&self, invalidated: &Invalidated) -> Vec<u32> {
        if invalidated.all() {
            return self.routes.keys().copied().collect();
        }
        let Range { start, end } = invalidated.0;
        let named = self.by_entry.range((start, 0)..(end, 0));
        named.map(|(_, gsi)| *gsi).collect()
    }
}

/// Which interrupt entry a message names.
fn entry_index(MsiMessage { address, data }: MsiMessage) -> Option<u32> {
    InterruptMessage { address, data }.entry_index()
}

/// Why routes are resolved anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Their device sends other messages, or an interrupt has come.
    Device,
    /// The guest has invalidated their entries.
    Invalidation,
    /// One of both, when changes have taken long enough.
    Excess,
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
            by_entry: BTreeSet::new(),
            credit: Credit::default(),
            of_devices: BTreeMap::new(),
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
    fn add(&self, source: Bdf, event: EventFd) -> io::Result<Box<dyn InterruptRoute>> {
        let mut state = self.0.lock();
        let gsi = state.gsis.as_mut().and_then(|gsis| gsis.allocate_id().ok());
        let Some(gsi) = gsi else {
            return Err(io::Error::other(format!(
                "all {} interrupt routes of this machine are in use; have fewer devices, or fewer queues",
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
        Ok(Box::new(Handle {
            shared: Arc::clone(&self.0),
            gsi,
        }))
    }

    /// KVM is told of all of them at once. Its events follow one by one, which takes longer, and
    /// invalidations of the guest need not wait for all of that.
    fn set_messages(&self, messages: &[(u32, Option<MsiMessage>)]) -> io::Result<()> {
        let Self(shared) = self;
        let mut state = shared.lock();
        for (gsi, message) in messages {
            state.set_message(*gsi, *message);
        }
        // All are of one device.
        let Some((first, _)) = messages.first() else {
            return Ok(());
        };
        let credit = state.credit_of(*first);
        let is_good = credit.is_none_or(|credit| credit.is_good(Instant::now()));
        let cause = if is_good {
            Cause::Device
        } else {
            Cause::Excess
        };
        let begin = Instant::now();
        let mut told = false;
        if is_good {
            let gsis = messages.iter().map(|(gsi, _)| *gsi);
            let routes = gsis.filter_map(|gsi| Some((gsi, shared.path(state.routes.get(&gsi)?))));
            told |= shared.prepare(routes);
        }
        for batch in messages.chunks(BATCH) {
            let gsis: Vec<_> = batch.iter().map(|(gsi, _)| *gsi).collect();
            told |= shared.update(&mut state, &gsis, cause);
            MutexGuard::bump(&mut state);
        }
        if let Some(credit) = state.credit_of(*first).filter(|_| told) {
            credit.charge(begin.elapsed());
        }
        Ok(())
    }
}

/// A route, as its device holds it.
struct Handle {
    shared: Arc<Shared>,
    gsi: u32,
}

impl InterruptRoute for Handle {
    fn number(&self) -> u32 {
        self.gsi
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        self.shared.leave(&mut state, self.gsi);
        state.set_message(self.gsi, None);
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

    /// Tells KVM what routes send, and leaves their events where they are. What it refuses, it
    /// refuses again when they follow. Whether KVM had to be told.
    fn prepare(&self, targets: impl IntoIterator<Item = (u32, Path)>) -> bool {
        let changes = targets
            .into_iter()
            .filter_map(|(gsi, target)| match target {
                Path::Kvm(message) => Some((gsi, Some(message))),
                Path::Nobody | Path::Loop => None,
            });
        self.table.change(changes).unwrap_or(false)
    }

    /// Where the events of `gsis` have to go, as far as they go elsewhere now.
    fn targets(&self, state: &State, gsis: &[u32], cause: Cause) -> Vec<(u32, Path)> {
        let mut targets = Vec::new();
        for gsi in gsis {
            let Some(route) = state.routes.get(gsi) else {
                continue;
            };
            let target = self.path(route);
            if target == route.path {
                continue;
            }
            let target = match (target, cause) {
                (Path::Kvm(_), Cause::Excess) => Path::Loop,
                (Path::Kvm(_), Cause::Invalidation) if route.path == Path::Loop => continue,
                _ => target,
            };
            targets.push((*gsi, target));
        }
        targets
    }

    /// Resolves the routes of `gsis`, and puts into effect what is new, with one change of KVM's
    /// table for all of them. No interrupt is sent as it was resolved before when this returns.
    /// Whether KVM had to be told.
    fn update(&self, state: &mut State, gsis: &[u32], cause: Cause) -> bool {
        let mut targets = self.targets(state, gsis, cause);
        let has_kvm = |path: &Path| matches!(path, Path::Kvm(_));
        let told = targets.iter().any(|(gsi, target)| {
            let route = state.routes.get(gsi);
            has_kvm(target) || route.is_some_and(|route| has_kvm(&route.path))
        });
        let mut changes = Vec::new();
        for (gsi, target) in &targets {
            match target {
                Path::Kvm(message) => changes.push((*gsi, Some(*message))),
                Path::Nobody | Path::Loop => self.leave(state, *gsi),
            }
        }
        // Routes first, events second: an event that is attached to a GSI without a route is lost.
        let begin = Instant::now();
        match self.table.change(changes) {
            Ok(true) => state.credit.charge(begin.elapsed()),
            Ok(false) => {}
            Err(error) => {
                self.complain("KVM refused the routes of messages", &error);
                for (gsi, target) in &mut targets {
                    if matches!(target, Path::Kvm(_)) {
                        self.leave(state, *gsi);
                        *target = Path::Loop;
                    }
                }
            }
        }
        for (gsi, target) in targets {
            self.enter(state, gsi, target);
        }
        told
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
        let mut state = self.lock();
        let is_left = |route: &Route| route.path == Path::Loop;
        if state.routes.get(&gsi).is_some_and(is_left) && state.credit.is_good(Instant::now()) {
            self.update(&mut state, &[gsi], Cause::Device);
        }
    }

    fn complain(&self, what: &str, error: &io::Error) {
        self.remapper.local_apics.complain(what, error);
    }
}

impl InterruptEntryObserver for Shared {
    fn interrupt_entries_invalidated(
        &self,
        first: u16,
        count: u32,
        patience: &Patience,
    ) -> Result<(), Unfinished> {
        let mut state = lock(&self.state, patience)?;
        let gsis = state.concerned(&Invalidated::new(first, count));
        if gsis.len() > usize::try_from(patience.steps() / RESOLUTION).unwrap_or(usize::MAX) {
            return Err(Unfinished);
        }
        let cause = if state.credit.is_good(Instant::now()) {
            Cause::Invalidation
        } else {
            Cause::Excess
        };
        let targets = self.targets(&state, &gsis, cause);
        if targets.is_empty() {
            return Ok(());
        }
        if !waits_for_kvm(patience) {
            return Err(Unfinished);
        }
        let begin = Instant::now();
        if self.prepare(targets.iter().copied()) {
            state.credit.charge(begin.elapsed());
        }
        let changed: Vec<_> = targets.iter().map(|(gsi, _)| *gsi).collect();
        for batch in changed.chunks(BATCH) {
            if patience.is_over() {
                // What is done needs no change the next time.
                return Err(Unfinished);
            }
            self.update(&mut state, batch, cause);
            MutexGuard::bump(&mut state);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod messages_test;
#[cfg(test)]
mod speed_test;
