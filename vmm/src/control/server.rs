//! The thread of the control socket: it accepts clients and gives each its turn.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::connection::{Connection, Wants};
use super::parser::answer;
use super::{Monitor, Socket};

/// Greatest number of connections.
pub(super) const CONNECTIONS: usize = 8;
/// How long to wait when the host has no descriptor left for a new client.
const RETRY: Duration = Duration::from_millis(100);

/// What an event is about. Connections are all looked at, whichever it came from.
mod token {
    pub(super) const STOP: u64 = 0;
    pub(super) const LISTENER: u64 = 1;
    pub(super) const CONNECTION: u64 = 2;
    pub(super) const WORK: u64 = 3;
}

pub(super) struct Server {
    socket: Socket,
    stop: EventFd,
    monitor: Monitor,
    epoll: Epoll,
    connections: Vec<(Connection, Wants)>,
}

impl Server {
    pub(super) fn new(socket: Socket, stop: EventFd, monitor: Monitor) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        for (fd, token) in [
            (stop.as_raw_fd(), token::STOP),
            (socket.listener().as_raw_fd(), token::LISTENER),
            (monitor.workers.done().as_raw_fd(), token::WORK),
        ] {
            epoll.ctl(
                ControlOperation::Add,
                fd,
                EpollEvent::new(EventSet::IN, token),
            )?;
        }
        Ok(Self {
            socket,
            stop,
            monitor,
            epoll,
            connections: Vec::new(),
        })
    }

    /// Serves clients until it is told to stop.
    pub(super) fn run(mut self) {
        // Room for all that can happen at once.
        let mut events = [EpollEvent::default(); CONNECTIONS + 3];
        loop {
            let count = match self.epoll.wait(self.timeout(), &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => {
                    log::warn!("the control socket is lost: {error}");
                    return;
                }
            };
            let mut tokens = events.iter().take(count).map(EpollEvent::data);
            if self.stop.read().is_ok() {
                return;
            }
            if tokens.any(|token| token == token::LISTENER) {
                self.accept();
            }
            // Read before the connections look for what was done, so that none of it is missed.
            let _ = self.monitor.workers.done().read();
            if self.serve().is_break() {
                return;
            }
        }
    }

    /// Milliseconds until something has to be done without an event.
    fn timeout(&self) -> i32 {
        if self
            .connections
            .iter()
            .any(|(_, wants)| *wants == Wants::Turn)
        {
            return 0;
        }
        let deadlines = self
            .connections
            .iter()
            .map(|(connection, _)| connection.deadline());
        let Some(first) = deadlines.min() else {
            return -1;
        };
        let left = first.saturating_duration_since(Instant::now());
        // Rounded up: the deadline is to have passed.
        i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX)
    }

    fn accept(&mut self) {
        match self.socket.listener().accept() {
            Ok((stream, _)) if self.connections.len() >= CONNECTIONS => refuse(stream),
            Ok((stream, _)) => {
                if let Err(error) = self.add(stream) {
                    log::debug!("control socket: a client is lost: {error}");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                log::debug!("control socket: no client can be accepted: {error}");
                thread::sleep(RETRY);
            }
        }
    }

    fn add(&mut self, stream: UnixStream) -> io::Result<()> {
        let connection = Connection::new(stream, Instant::now())?;
        self.epoll.ctl(
            ControlOperation::Add,
            connection.as_raw_fd(),
            EpollEvent::new(EventSet::IN, token::CONNECTION),
        )?;
        self.connections.push((connection, Wants::Input));
        Ok(())
    }

    /// Lets each connection get further, until the thread is to stop.
    ///
    /// An answer takes some time, so both the clock and the wish to stop are looked at before each.
    fn serve(&mut self) -> ControlFlow<()> {
        let (monitor, epoll, stop) = (&self.monitor, &self.epoll, &self.stop);
        let mut flow = ControlFlow::Continue(());
        self.connections.retain_mut(|(connection, wants)| {
            if flow.is_break() || stop.read().is_ok() {
                flow = ControlFlow::Break(());
                return true;
            }
            let before = *wants;
            *wants = connection.step(
                Instant::now(),
                |request| answer(monitor, request),
                |event| {
                    // Nobody waits for events any more only when the machine ends anyway.
                    let _ = monitor.events.send(event);
                },
            );
            if *wants == Wants::Close {
                // Closing the descriptor takes it out of the set.
                return false;
            }
            interest(before) == interest(*wants)
                || epoll
                    .ctl(
                        ControlOperation::Modify,
                        connection.as_raw_fd(),
                        EpollEvent::new(interest(*wants), token::CONNECTION),
                    )
                    .is_ok()
        });
        flow
    }
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
#[path = "server_test.rs"]
mod server_test;
