//! The server of the control socket: a subscriber of the event loop that accepts clients and gives
//! each its turn.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::commands::COMMANDS;
use super::connection::{Connection, Wants};
use super::monitor::Monitor;
use super::parser::{self, answer};
use super::upgrades;
use crate::event_loop::{Timer, io_error};
use crate::socket::Socket;

/// Greatest number of connections.
pub(super) const CONNECTIONS: usize = 8;
/// How long to wait when the host has no descriptor left for a new client.
const RETRY: Duration = Duration::from_millis(100);
/// How long to wait when none is to be let in.
const CLOSED: Duration = Duration::from_millis(10);

/// What an event is about.
mod token {
    pub(super) const LISTENER: u32 = 0;
    pub(super) const CONNECTION: u32 = 1;
    pub(super) const WORK: u32 = 2;
    pub(super) const TIMER: u32 = 3;
}

pub(super) struct Server {
    socket: Socket,
    stop: Arc<AtomicBool>,
    monitor: Monitor,
    /// For what has to be done without an event.
    timer: Timer,
    connections: Vec<(Connection, Wants)>,
    /// No client can be accepted before.
    accept_again: Option<Instant>,
}

impl Server {
    /// A server without clients. Once `stop` is set it carries nothing out any more.
    pub(super) fn new(socket: Socket, stop: Arc<AtomicBool>, monitor: Monitor) -> io::Result<Self> {
        Ok(Self {
            socket,
            stop,
            monitor,
            timer: Timer::new()?,
            connections: Vec::new(),
            accept_again: None,
        })
    }

    /// What to listen to, besides connections.
    pub(super) fn sources(&self) -> [Events; 3] {
        [
            self.listener(),
            Events::with_data(self.monitor.workers.done(), token::WORK, EventSet::IN),
            Events::with_data(&self.timer, token::TIMER, EventSet::IN),
        ]
    }

    fn listener(&self) -> Events {
        Events::with_data(self.socket.listener(), token::LISTENER, EventSet::IN)
    }

    /// Has the timer tell when something has to be done without an event.
    fn set_timer(&mut self) {
        let now = Instant::now();
        let moments = self.connections.iter().map(|(connection, wants)| {
            // It has a request at hand.
            let at_once = *wants == Wants::Turn;
            if at_once { now } else { connection.deadline() }
        });
        match moments.chain(self.accept_again).min() {
            Some(first) => self.timer.set(first.saturating_duration_since(now)),
            None => self.timer.stop(),
        }
    }

    fn accept(&mut self, ops: &mut EventOps<'_>) {
        if self.monitor.upgrades.entrance.is_closed() {
            // They wait for whoever has the guest then.
            if ops.remove(self.listener()).is_ok() {
                self.accept_again = Some(Instant::now() + CLOSED);
            }
            return;
        }
        match self.socket.listener().accept() {
            Ok((stream, _)) if self.connections.len() >= CONNECTIONS => refuse(stream),
            Ok((stream, _)) => {
                if let Err(error) = self.add(stream, ops) {
                    log::debug!("control socket: a client is lost: {error}");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                log::debug!("control socket: no client can be accepted: {error}");
                if ops.remove(self.listener()).is_ok() {
                    self.accept_again = Some(Instant::now() + RETRY);
                }
            }
        }
    }

    /// Accepts clients again when it is time.
    fn listen(&mut self, ops: &mut EventOps<'_>) {
        let is_due = |again| Instant::now() >= again;
        if self.accept_again.is_some_and(is_due) {
            self.accept_again = match ops.add(self.listener()) {
                Ok(()) => None,
                Err(_) => Some(Instant::now() + RETRY),
            };
        }
    }

    fn add(&mut self, stream: UnixStream, ops: &mut EventOps<'_>) -> io::Result<()> {
        let connection = Connection::new(stream, Instant::now())?;
        ops.add(source(&connection, Wants::Input))
            .map_err(io_error)?;
        self.connections.push((connection, Wants::Input));
        Ok(())
    }

    /// Lets go of a client that has gone away, and waits for the end of work no longer. Others may
    /// have left requests behind, and find out for themselves.
    fn forget(&mut self, fd: RawFd, ops: &mut EventOps<'_>) {
        self.connections.retain(|(connection, wants)| {
            let gone = *wants == Wants::Work && connection.as_raw_fd() == fd;
            if gone {
                // It fails only for one that is not listened to.
                let _ = ops.remove(source(connection, *wants));
            }
            !gone
        });
    }

    /// Lets each connection get further, until the server is to stop.
    ///
    /// An answer takes some time, so both the clock and the wish to stop are looked at before each.
    fn serve(&mut self, ops: &mut EventOps<'_>) -> ControlFlow<()> {
        let (monitor, stop) = (&self.monitor, &self.stop);
        let mut flow = ControlFlow::Continue(());
        self.connections.retain_mut(|(connection, wants)| {
            if flow.is_break() || stop.load(Ordering::Acquire) {
                flow = ControlFlow::Break(());
                return true;
            }
            let before = *wants;
            let is_owner = connection.is_owners();
            *wants = connection.step(
                Instant::now(),
                |request| match upgrades::refusal(request, || is_owner) {
                    Some(why) => parser::outcome(Err(why)).into(),
                    None => answer(COMMANDS, monitor, request),
                },
                |event| {
                    // Nobody waits for events any more only when the machine ends anyway.
                    let _ = monitor.events.send(event);
                },
            );
            let stays = *wants != Wants::Close
                && (interest(before) == interest(*wants)
                    || ops.modify(source(connection, *wants)).is_ok());
            if !stays {
                // It fails only for one that is not listened to.
                let _ = ops.remove(source(connection, *wants));
            }
            stays
        });
        flow
    }
}

impl MutEventSubscriber for Server {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            token::LISTENER => self.accept(ops),
            token::TIMER => self.listen(ops),
            // Both ways are closed: there is nobody to answer.
            token::CONNECTION if events.event_set().contains(EventSet::HANG_UP) => {
                self.forget(events.fd(), ops);
            }
            _ => {}
        }
        // Read before the connections look for what was done, so that none of it is missed.
        let _ = self.monitor.workers.done().read();
        if self.serve(ops).is_continue() {
            self.set_timer();
        } else {
            self.timer.stop();
        }
    }

    fn init(&mut self, _ops: &mut EventOps<'_>) {}
}

fn source(connection: &Connection, wants: Wants) -> Events {
    Events::with_data(connection, token::CONNECTION, interest(wants))
}

fn interest(wants: Wants) -> EventSet {
    match wants {
        Wants::Output => EventSet::OUT,
        // A client that goes away meanwhile is told of once.
        Wants::Work => EventSet::EDGE_TRIGGERED,
        Wants::Input | Wants::Turn | Wants::Close => EventSet::IN,
    }
}

/// Tells a client why it is not served, if it can be told at once.
fn refuse(mut stream: UnixStream) {
    let text = format!(
        "error: {CONNECTIONS} clients are connected, which is the limit; disconnect one\n\n"
    );
    let _ = stream
        .set_nonblocking(true)
        .and_then(|()| stream.write_all(text.as_bytes()));
}

#[cfg(test)]
mod server_test;
