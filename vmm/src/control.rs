//! The control socket: what `--control path=SOCKET` listens on, for whoever wants to look at a
//! running machine or end it.
//!
//! # Protocol
//! A client connects and writes requests, each a line of text; each is answered, in order, by lines
//! of text and an empty line. An answer whose first line begins with `error: ` means that nothing
//! was done. `help` lists the commands. With socat:
//!
//! ```text
//! $ echo bindings | socat -t 10 - UNIX-CONNECT:/run/nido.sock
//! $ socat READLINE UNIX-CONNECT:/run/nido.sock
//! ```
//!
//! # Devices that come and go
//! `device-add TYPE,bus=PORT[,key=value]...` takes what `--device` takes, and puts the device into
//! the slot of the root port with the id PORT; the answer comes when it is there, and the guest,
//! which is told, powers it on in its own time. `device-del ID` asks the guest for the device with
//! that id, or behind the port with that id, and answers when the guest has let go and nothing of
//! the device is left, or after 30 seconds that it has not. `device-del ID,force=on` does not ask.
//!
//! # Snapshots
//! `snapshot DIR` saves the machine in a directory, and answers when all of it is written; `status` tells
//! how far it is, and `snapshot-cancel` gives it up. There is one at a time.
//!
//! # Pages that are written
//! `dirty-pages` lets the guest run for a while, and answers which pages of its memory were written, by whom. It ends
//! when its client goes away, and excludes snapshots and migrations.
//!
//! # Memory given back
//! `balloon size=SIZE` asks the guest to have a balloon of that size (`--device virtio-balloon`), and answers
//! at once: the guest does that in its own time, as it does what `memory size=SIZE` asks for. `balloon-status` asks it for its statistics, and waits a
//! second for them.
//!
//! # Upgrades
//! `upgrade FILE` has another nido go on with the guest, on this socket. It runs a program, so it is for the
//! user that nido runs as, and for root, whoever else was let in.
//!
//! # Bounds
//! The machine's event loop serves all clients and never waits for one: up to 8 connections,
//! requests of up to 1024 bytes. A connection is closed when a request is not complete, or an
//! answer not read, within 10 seconds, and after 10 minutes without a request. What asks a device
//! or the unit, or may take time to carry out, has a thread of its own, whose client waits up to 2
//! minutes, for a snapshot or a migration up to an hour; other clients do not notice. There are 8 of them at most that look, as many that add a
//! device or ask for one, as many that take one away by force, and as many that pause the guest or
//! have it go on; and one that saves the guest or has it leave. A pause that the machine has not begun within 10 seconds, or before its client went
//! away, does not happen; one that has begun outlives its client. No lock of the machine is held while
//! a client is talked to, so no client can hold up a vCPU or a device.
//!
//! The socket is its owner's alone (mode 0600): who can connect to it can end the machine, and see
//! where the guest's tables are.

mod balloon;
mod commands;
mod connection;
mod dirty_pages;
mod hotplug;
mod memory;
mod migrations;
mod monitor;
mod parser;
mod server;
mod snapshots;
mod turns;
mod upgrades;
mod workers;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::event_loop::{Handle, Subscription};
use crate::socket::Socket;
use server::Server;

pub(crate) use monitor::Monitor;
pub(crate) use workers::Workers;

/// The control socket at work. Dropping it closes all connections and removes the socket.
pub(crate) struct Control {
    stop: Arc<AtomicBool>,
    _server: Subscription,
}

impl Control {
    /// Starts to serve clients of `socket`.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub(crate) fn start(socket: Socket, monitor: Monitor, event_loop: &Handle) -> io::Result<Self> {
        let stop = Arc::<AtomicBool>::default();
        let server = Server::new(socket, Arc::clone(&stop), monitor)?;
        let sources = server.sources();
        Ok(Self {
            stop,
            _server: event_loop.subscribe(server, &sources)?,
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // No further answer before the server is gone.
        self.stop.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod control_test;
