//! Interrupts of queues that somebody else serves (vhost): a queue's call event has a route, so that
//! the hypervisor sends the message of the queue's vector by itself (irqfd).
//!
//! A route has a message only while the vector sends one. Else an interrupt is to be pending, shown in
//! the ISR status or dropped, and the event holds it until somebody could tell the difference: before
//! pending bits or ISR status are read, and before anything changes that decides which of these it is,
//! what is held is taken out, and handled as any other interrupt.

use std::sync::Arc;

use parking_lot::Mutex;
use pci::{Bdf, MsiMessage};
use vmm_sys_util::eventfd::EventFd;

use crate::limit::LogLimit;
use crate::{InterruptRoute, InterruptRoutes};

/// A queue with a route.
struct Call {
    queue: usize,
    event: EventFd,
    route: Box<dyn InterruptRoute>,
    /// What the route sends now.
    message: Option<MsiMessage>,
}

/// The call events of a function's queues.
pub(super) struct Calls {
    routes: Arc<dyn InterruptRoutes>,
    /// The queues that have a route: those of `state`.
    routed: Box<[usize]>,
    /// Held while anything changes that decides what an interrupt does, and while the hypervisor is
    /// told. Taken after the function's other locks, and not by the device's threads.
    state: Mutex<State>,
}

struct State {
    calls: Vec<Call>,
    limit: LogLimit,
}

impl Calls {
    /// Gives the call events `events`, by queue, routes for messages of `source`. A queue for which
    /// there is no route has its event watched by the device's thread.
    pub(super) fn new(
        source: Bdf,
        routes: Arc<dyn InterruptRoutes>,
        events: Vec<(usize, EventFd)>,
    ) -> Self {
        let mut calls = Vec::new();
        for (queue, event) in events {
            let route = event
                .try_clone()
                .and_then(|event| routes.add(source, event));
            match route {
                Ok(route) => calls.push(Call {
                    queue,
                    event,
                    route,
                    message: None,
                }),
                Err(error) => {
                    log::info!("virtio {source}: interrupts of queue {queue} wake nido: {error}");
                }
            }
        }
        Self {
            routes,
            routed: calls.iter().map(|call| call.queue).collect(),
            state: Mutex::new(State {
                calls,
                limit: LogLimit::default(),
            }),
        }
    }

    /// Whether the hypervisor interrupts for `queue`.
    pub(super) fn has(&self, queue: usize) -> bool {
        self.routed.contains(&queue)
    }

    /// Hands the queues to `interrupt` whose calls are held back.
    pub(super) fn collect(&self, interrupt: impl Fn(usize)) {
        if !self.routed.is_empty() {
            self.state.lock().collect(interrupt);
        }
    }

    /// Runs `body`, which changes what interrupts do. What was held back is handed to `interrupt`
    /// before, and routes send what `message` says of each queue afterwards.
    pub(super) fn change<R>(
        &self,
        interrupt: impl Fn(usize),
        body: impl FnOnce() -> R,
        message: impl Fn(usize) -> Option<MsiMessage>,
    ) -> R {
        if self.routed.is_empty() {
            return body();
        }
        let mut state = self.state.lock();
        state.collect(interrupt);
        let result = body();
        state.follow(&*self.routes, message);
        result
    }
}

impl State {
    fn collect(&mut self, interrupt: impl Fn(usize)) {
        for call in &self.calls {
            // Nobody else reads the event of a route without a message.
            if call.message.is_none() && call.event.read().is_ok() {
                interrupt(call.queue);
            }
        }
    }

    /// The hypervisor is told of what is new, all at once.
    fn follow(
        &mut self,
        routes: &dyn InterruptRoutes,
        message: impl Fn(usize) -> Option<MsiMessage>,
    ) {
        let mut changes = Vec::new();
        for call in &mut self.calls {
            let message = message(call.queue);
            if message != call.message {
                call.message = message;
                changes.push((call.route.number(), message));
            }
        }
        if changes.is_empty() {
            return;
        }
        if let Err(error) = routes.set_messages(&changes) {
            for call in &mut self.calls {
                let number = call.route.number();
                if changes.iter().any(|(changed, _)| *changed == number) {
                    call.message = None;
                }
            }
            if let Some(held_back) = self.limit.pass() {
                log::warn!(
                    "virtio: interrupts of a queue have no route: {error} ({held_back} messages held back)"
                );
            }
        }
    }
}
